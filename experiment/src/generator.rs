//! `[generator]`: how experience is sampled.

use arriero_policy::sampling::SamplingConfig;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::document::Section;
use crate::error::ExperimentError;

/// The most sequences decoded at once. A greater number is a slip of the finger, and would only run out of memory.
pub(crate) const MOST_SEQUENCES: usize = 65_536;

/// The most MiB of a cache: what 64 bits can count in bytes, and more than any machine has.
const MOST_MEBIBYTES: usize = 1 << 40;

/// Options of the generator.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorPlan {
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// Completions of a prompt: Llama 3's K. Default 8.
    pub samples: usize,
    /// Sequences decoded at once. Default 64.
    pub batch: usize,
    /// MiB of the KV cache. Default: half of the memory that is free.
    pub cache_memory: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GeneratorSizes {
    samples: usize,
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_memory: Option<usize>,
}

impl Default for GeneratorPlan {
    fn default() -> Self {
        let GeneratorSizes { samples, batch, cache_memory } = GeneratorSizes::default();
        GeneratorPlan { sampling: SamplingConfig::default(), samples, batch, cache_memory }
    }
}

impl GeneratorPlan {
    fn sizes(&self) -> GeneratorSizes {
        let GeneratorPlan { samples, batch, cache_memory, .. } = *self;
        GeneratorSizes { samples, batch, cache_memory }
    }

    pub(crate) fn to_table(&self) -> Result<Table, toml::ser::Error> {
        let mut table = Table::try_from(self.sizes())?;
        table.extend(Table::try_from(&self.sampling)?);
        Ok(table)
    }
}

impl Default for GeneratorSizes {
    fn default() -> Self {
        GeneratorSizes { samples: 8, batch: 64, cache_memory: None }
    }
}

pub(crate) fn generator(
    mut section: Section<'_>,
    default: &GeneratorPlan,
) -> Result<GeneratorPlan, ExperimentError> {
    let GeneratorSizes { samples, batch, cache_memory } = section.read(&default.sizes())?;
    let sampling: SamplingConfig = section.read(&default.sampling)?;
    section.check(sampling.validate())?;
    section.counts(&[
        ("samples", samples, MOST_SEQUENCES),
        ("batch", batch, MOST_SEQUENCES),
        ("cache_memory", cache_memory.unwrap_or(1), MOST_MEBIBYTES),
    ])?;
    section.finish()?;
    Ok(GeneratorPlan { sampling, samples, batch, cache_memory })
}
