//! `arriero score`: rewards for a file of completions.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use arriero_experiment::read_reward;
use arriero_reward::rows::Fields;
use arriero_reward::{FileError, FileOptions, FileReport, OnError, score_file};

use crate::failure::Failure;

/// Options of `score`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which scorer: ifeval, math, exact, contains, regex, json, length, …; docs/rewards.md has all.
    #[arg(long, value_name = "KIND", required_unless_present = "config")]
    reward: Option<String>,
    /// A TOML file whose `reward` table has the scorer and its options; an experiment file will do.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets an option of the scorer, such as mode=loose.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// JSON lines, one completion a line: {"prompt": …, "completion": …} and what the scorer checks.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write the rows with their rewards.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What a line that cannot be scored does: stop the run (the default), or be skipped and counted.
    #[arg(long, value_name = "stop|skip", value_parser = on_error)]
    on_error: Option<OnError>,
    /// The greatest share of lines that may be skipped, from 0 to 1; by default 0.1.
    #[arg(long, value_name = "SHARE")]
    max_skipped: Option<f64>,
    /// The field of the completion; without it: completion, response or text.
    #[arg(long, value_name = "FIELD")]
    completion_field: Option<String>,
    /// The field of the right answer; without it: answer, solution or ground_truth.
    #[arg(long, value_name = "FIELD")]
    answer_field: Option<String>,
}

fn on_error(word: &str) -> Result<OnError, String> {
    match word {
        "stop" => Ok(OnError::Stop),
        "skip" => Ok(OnError::Skip),
        _ => Err("it must be stop or skip".to_string()),
    }
}

/// Scores and writes.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { reward, config, set, input, output, .. } = arguments;
    let (config, unscored) =
        read_reward(config.as_deref(), reward.as_deref(), &set).map_err(Failure::input)?;
    let options = FileOptions {
        on_error: arguments.on_error.unwrap_or(unscored.on_error),
        max_skipped: arguments.max_skipped.unwrap_or(unscored.max_skipped),
        fields: Fields { completion: arguments.completion_field, answer: arguments.answer_field },
    };
    let rows = File::open(&input)
        .with_context(|| format!("{} cannot be read", input.display()))
        .map_err(Failure::Input)?;
    // Written beside the output and put in its place when it is whole.
    let mut partial = output.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = File::create(&partial)
        .with_context(|| format!("{} cannot be written", partial.display()))
        .map_err(Failure::Input)?;
    let skipped = |line, cause: &str| eprintln!("skipped: {}:{line}: {cause}", input.display());
    let scored = score_file(BufReader::new(rows), BufWriter::new(file), &config, &options, skipped);
    let report = scored.and_then(|report| {
        std::fs::rename(&partial, &output).map_err(FileError::Write)?;
        Ok(report)
    });
    let report = report.map_err(|error| {
        // Only half an answer: nobody should take it for the whole.
        let _ = std::fs::remove_file(&partial);
        let broken = matches!(error, FileError::Read { .. } | FileError::Write(_));
        let error = anyhow!("{}: {error}", input.display());
        if broken { Failure::broken(error) } else { Failure::input(error) }
    })?;
    // The rewards are in the file: a closed pipe is no failure.
    let _ = write!(std::io::stdout(), "{}", summary(&report));
    Ok(())
}

/// What came of the file, a figure a line.
fn summary(report: &FileReport) -> String {
    let mut text = format!("{:<24}{}\n", "rows scored", report.scored);
    if report.skipped > 0 {
        text += &format!("{:<24}{}\n", "rows skipped", report.skipped);
    }
    if report.scored > 0 {
        text += &format!("{:<24}{:.4}\n", "reward", report.reward);
    }
    for (name, mean) in &report.components {
        text += &format!("{:<24}{mean:.4}\n", format!("  {name}"));
    }
    if let Some([strict, loose]) = report.instruction_accuracy {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        text +=
            &format!("{:<24}{} strict, {} loose\n", "instruction accuracy", percent(strict), percent(loose));
    }
    for (name, rows) in &report.replaced {
        text += &format!("the rows' own `{name}` was replaced in {rows} rows\n");
    }
    text
}
