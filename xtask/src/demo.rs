//! `cargo xtask demo`: from nothing to the table that compares two algorithms.

use crate::{process, setup, workspace::Workspace};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const EXPERIMENT: &str = "experiments/quickstart.toml";

/// Sets up, builds and runs the quickstart; `args` go to `arriero run`.
pub fn demo(workspace: &Workspace, args: &[String]) -> Result<()> {
    setup::setup(workspace, false)?;
    process::step(workspace.cargo().args(["build", "--release", "--package", "arriero"]))?;

    let runs = workspace.root().join(given_value(args, "--runs").unwrap_or("runs"));
    let mut arriero = Command::new(workspace.release().join("arriero"));
    arriero.current_dir(workspace.root()).args(["run", EXPERIMENT]).args(args);
    let name = given_name(args).map_or_else(|| free_name(&runs), str::to_owned);
    if given_name(args).is_none() {
        arriero.arg("--set").arg(format!("name={name}"));
    }
    println!("==> {EXPERIMENT} as runs/{name}");
    let started = Instant::now();
    process::run(&mut arriero)?;
    println!(
        "==> ran in {}; the run is in {}",
        process::seconds(started.elapsed()),
        runs.join(name).display()
    );
    Ok(())
}

/// The name in `--set name=NAME`, if the arguments have it.
fn given_name(args: &[String]) -> Option<&str> {
    let joined = args.iter().filter_map(|arg| arg.strip_prefix("--set=name="));
    let apart =
        args.windows(2).filter(|pair| pair[0] == "--set").filter_map(|pair| pair[1].strip_prefix("name="));
    joined.chain(apart).next_back()
}

/// The value of an option, as `--option VALUE` or `--option=VALUE`.
fn given_value<'a>(args: &'a [String], option: &str) -> Option<&'a str> {
    let joined = args.iter().filter_map(|arg| arg.strip_prefix(option)?.strip_prefix('='));
    let apart = args.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str());
    joined.chain(apart).next_back()
}

/// `quickstart`, or the first of `quickstart-2`, `quickstart-3`, … that no run has yet.
fn free_name(runs: &Path) -> String {
    let mut name = "quickstart".to_owned();
    let mut n = 1;
    while runs.join(&name).exists() {
        n += 1;
        name = format!("quickstart-{n}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_first_name_without_a_run_is_taken() {
        let runs = tempfile::tempdir().expect("temporary directory");
        let take = |name: &str| fs::create_dir(runs.path().join(name)).expect("a run's directory");
        assert_eq!(free_name(&runs.path().join("not-there")), "quickstart");
        assert_eq!(free_name(runs.path()), "quickstart");
        take("quickstart");
        assert_eq!(free_name(runs.path()), "quickstart-2");
        take("quickstart-3");
        assert_eq!(free_name(runs.path()), "quickstart-2");
        take("quickstart-2");
        assert_eq!(free_name(runs.path()), "quickstart-4");
    }

    #[test]
    fn a_folder_given_by_the_user_is_seen() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(given_value(&args(&["--runs", "there"]), "--runs"), Some("there"));
        assert_eq!(given_value(&args(&["--runs=there"]), "--runs"), Some("there"));
        assert_eq!(given_value(&args(&["--set", "name=a"]), "--runs"), None);
    }

    #[test]
    fn a_name_given_by_the_user_is_seen() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(given_name(&args(&["--set", "name=mine"])), Some("mine"));
        assert_eq!(given_name(&args(&["--set=name=mine"])), Some("mine"));
        assert_eq!(given_name(&args(&["--set", "model.name=mine", "name=file"])), None);
    }
}
