//! One program's figures and peak memory.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use wait4::Wait4;

/// What a program said, and what it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The numbers of the last JSON object on its standard output.
    pub figures: BTreeMap<String, f64>,
    /// Its largest resident set, as the kernel counted it.
    pub peak_bytes: u64,
}

impl Measured {
    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// Seconds a token, over the timed steps.
    pub fn seconds_per_token(&self) -> Option<f64> {
        Some(self.get("seconds_per_step")? * self.get("steps")? / self.get("tokens")?)
    }
}

/// Runs a program to its end; what it says on standard error goes into `log`.
///
/// # Errors
/// If it cannot be started, fails, or prints no JSON object.
pub fn measure(command: &mut Command, log: &Path) -> Result<Measured> {
    let program = command.get_program().to_string_lossy().into_owned();
    let errors = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut output = String::new();
    child.stdout.take().context("standard output is piped")?.read_to_string(&mut output)?;
    let used = child.wait4().with_context(|| format!("cannot wait for {program}"))?;
    if !used.status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(6).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{program}: {}; it said (all of it in {}):\n{}", used.status, log.display(), last.join("\n"));
    }
    let figures = last_object(&output);
    ensure!(!figures.is_empty(), "{program} printed no line of JSON; see {}", log.display());
    Ok(Measured { figures, peak_bytes: used.rusage.maxrss })
}

/// The numbers of the last line that is a JSON object.
fn last_object(output: &str) -> BTreeMap<String, f64> {
    let mut objects = output.lines().rev().filter_map(|line| {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line.trim()).ok()
    });
    let numbers = objects.next().unwrap_or_default().into_iter();
    numbers.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Measured> {
        let folder = tempfile::tempdir().expect("temporary directory");
        measure(Command::new("/bin/sh").args(["-c", script]), &folder.path().join("log"))
    }

    #[test]
    fn the_last_object_counts_and_text_is_left_out() {
        let measured = shell(r#"echo loading; echo '{"a": 1}'; echo '{"a": 2.5, "b": "text"}'; echo bye"#);
        let measured = measured.expect("figures");
        assert_eq!(measured.figures, BTreeMap::from([("a".to_owned(), 2.5)]));
        assert!(measured.peak_bytes > 100_000, "a shell needs more than {} bytes", measured.peak_bytes);
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let error = shell("echo no such model >&2; exit 3").expect_err("it fails").to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such model"), "{error}");
        let error = shell("echo done").expect_err("no figures").to_string();
        assert!(error.contains("printed no line of JSON"), "{error}");
    }

    #[test]
    fn seconds_a_token_come_from_the_median_step() {
        let figures = [("seconds_per_step", 2.0), ("steps", 3.0), ("tokens", 600.0)];
        let figures = figures.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(Measured { figures, peak_bytes: 0 }.seconds_per_token(), Some(0.01));
    }
}
