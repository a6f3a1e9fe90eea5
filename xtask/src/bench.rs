//! `cargo xtask bench peers`: the same work here and in other toolkits, pair by pair.
//!
//! - [`toolkits`]: the others, installed into a folder of their own
//! - [`measure`]: one program's figures and peak memory
//! - [`work`]: what is compared, with which programs
//! - [`goals`]: from the figures to the rows of the table
//! - [`report`]: the table, and docs/PERFORMANCE.md
//!
//! Each kind of work is kept in the folder's `results/` as it was measured. So one can be measured again alone.

mod goals;
mod machine;
mod measure;
mod report;
mod toolkits;
mod work;

use crate::{process, setup, workspace::Workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use toolkits::Toolkits;
use work::{Outcome, Programs, Work};

/// What `cargo xtask bench peers` is told.
#[derive(clap::Args)]
pub struct Options {
    /// Measure these alone; the others keep their last figures
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Work>,
    /// How often both sides take their turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Timed steps of a turn, after one that is not
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Preference pairs, as JSON lines in TRL's conversational format
    #[arg(long, default_value = "benches/peers/pairs.jsonl")]
    pairs: PathBuf,
    /// Where the toolkits are installed and the figures kept (8 GB)
    #[arg(long, default_value = ".arriero/peers")]
    folder: PathBuf,
}

/// Sets up, measures, shows the table, and writes docs/PERFORMANCE.md.
///
/// # Errors
/// If the set-up fails, or if some work could not be measured. The others are measured all the same.
pub fn peers(workspace: &Workspace, options: &Options) -> Result<()> {
    let pairs = workspace.root().join(&options.pairs);
    ensure!(
        pairs.is_file(),
        "--pairs: {} is not there; expected a file of JSON lines with prompt, chosen and rejected",
        pairs.display()
    );
    setup::setup(workspace, false)?;
    let example = ["build", "--release", "--package", "arriero-policy", "--example", "peers"];
    process::step(workspace.cargo().args(example))?;
    let toolkits = Toolkits::install(workspace, workspace.root().join(&options.folder))?;
    let results = toolkits.folder().join("results");
    fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    let programs = Programs { workspace, toolkits: &toolkits, pairs: &pairs, steps: options.steps };

    let mut failed = Vec::new();
    for work in Work::ALL.into_iter().filter(|work| options.only.is_empty() || options.only.contains(work)) {
        println!("==> {work}");
        match programs.measure(work, options.rounds) {
            Ok(outcome) => outcome.write(&results, work)?,
            Err(error) => {
                eprintln!("{work} was not measured: {error:#}");
                failed.push(work.to_string());
            }
        }
    }
    let mut outcomes = Vec::new();
    for work in Work::ALL {
        if let Some(outcome) = Outcome::read(&results, work)? {
            outcomes.push((work, outcome));
        }
    }
    let rows = goals::rows(&outcomes);
    println!("\n{}", report::table(&rows));
    report::write(workspace, &rows, &outcomes, &toolkits.versions())?;
    if !failed.is_empty() {
        bail!("not measured, for the reasons above: {}", failed.join(", "));
    }
    Ok(())
}

/// What a program prints on one line, trimmed; empty where there is no such program.
fn line_of(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
