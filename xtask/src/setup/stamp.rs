//! What a finished set-up says about itself.

use std::fmt;

const CPU: &str = include_str!("../../requirements/cpu.txt");
const CUDA: &str = include_str!("../../requirements/cuda.txt");
const MODEL: &str = include_str!("../../requirements/model.txt");

/// What a set-up holds; each holds what those before it hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// The default model only, because LIBTORCH names a libtorch.
    Model,
    /// libtorch for the CPU.
    Cpu,
    /// libtorch with the CUDA libraries.
    Cuda,
}

impl Content {
    /// As it stands in the stamp and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
        }
    }
}

/// A set-up's content, and the pins it was made from.
#[derive(Debug, PartialEq, Eq)]
pub struct Stamp {
    pub content: Content,
    pins: Vec<String>,
}

impl Stamp {
    /// The stamp of a set-up made from the pins of today.
    pub fn of(content: Content) -> Self {
        let libtorch = match content {
            Content::Model => "",
            Content::Cpu => CPU,
            Content::Cuda => CUDA,
        };
        Self { content, pins: pins(libtorch).chain(pins(MODEL)).map(str::to_owned).collect() }
    }

    /// Reads what [`fmt::Display`] wrote; `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let name = lines.next()?;
        let content = [Content::Model, Content::Cpu, Content::Cuda]
            .into_iter()
            .find(|content| content.name() == name)?;
        Some(Self { content, pins: lines.map(str::to_owned).collect() })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.content.name())?;
        self.pins.iter().try_for_each(|pin| writeln!(f, "{pin}"))
    }
}

/// The version of libtorch that the set-up installs, such as `2.13.0`.
pub fn torch_version() -> &'static str {
    pins(CPU).find_map(|pin| pin.strip_prefix("torch==")).unwrap_or_default()
}

fn pins(requirements: &str) -> impl Iterator<Item = &str> {
    requirements.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_writing_and_reading() {
        for content in [Content::Model, Content::Cpu, Content::Cuda] {
            assert_eq!(Stamp::parse(&Stamp::of(content).to_string()), Some(Stamp::of(content)));
        }
    }

    #[test]
    fn other_pins_or_another_content_make_another_stamp() {
        let stamp = Stamp::of(Content::Cpu);
        let older = stamp.to_string().replace("torch==", "torch==1.");
        assert_ne!(Stamp::parse(&older), Some(stamp));
        assert_ne!(Stamp::of(Content::Cpu), Stamp::of(Content::Cuda));
        let cut = Stamp::of(Content::Cpu).to_string();
        assert_ne!(Stamp::parse(&cut[..cut.len() / 2]), Some(Stamp::of(Content::Cpu)));
    }

    #[test]
    fn what_is_no_stamp_is_not_read() {
        assert_eq!(Stamp::parse(""), None);
        assert_eq!(Stamp::parse("cpu\ntorch==2.13.0\n"), None);
    }

    #[test]
    fn comments_are_no_pins() {
        let text = "# why\n\n a==1 \nb==2; platform_system == \"Linux\"\n";
        assert_eq!(pins(text).collect::<Vec<_>>(), ["a==1", "b==2; platform_system == \"Linux\""]);
    }

    #[test]
    fn cpu_and_cuda_pin_the_same_torch() {
        let version = torch_version();
        assert_eq!(version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
        assert!(pins(CUDA).any(|pin| pin == format!("torch=={version}")));
    }

    #[test]
    fn every_requirement_is_pinned() {
        assert!([CPU, CUDA, MODEL].into_iter().flat_map(pins).all(|pin| pin.contains("==")));
    }
}
