//! What the tests share: a folder to run in, the tiny experiment, and the program as its users start it.

#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use arriero_actors::{Fault, RunError, RunEvent, RunOptions};
use arriero_experiment::{self as experiment, Plan};
use arriero_results::RunSummary;

/// The program, in the repository.
pub fn arriero() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// `arriero run` of the tiny experiment with `set` on top of it.
pub fn run(workplace: &Workplace, set: &[&str]) -> Command {
    let mut command = arriero();
    command.args(["run", "tests/fixtures/experiments/tiny.toml", "--runs"]).arg(workplace.runs());
    for assignment in set {
        command.args(["--set", assignment]);
    }
    command
}

/// The one line of an error of wrong input.
pub fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let [line] = lines[..] else { panic!("expected one line, found:\n{text}") };
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {line}")).to_string()
}

/// A temporary folder for runs.
pub struct Workplace(tempfile::TempDir);

impl Workplace {
    pub fn new() -> Self {
        Workplace(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn runs(&self) -> PathBuf {
        self.path().join("runs")
    }

    /// The tiny experiment with `set` on top of it.
    pub fn plan(&self, set: &[String]) -> Plan {
        self.plan_of("tiny.toml", set)
    }

    pub fn plan_of(&self, file: &str, set: &[String]) -> Plan {
        experiment::load(&fixture("experiments").join(file), set).expect("the experiment is valid")
    }

    pub fn run(&self, plan: Plan, faults: Vec<Fault>) -> Result<RunSummary, RunError> {
        self.run_seen(plan, faults).0
    }

    /// The run's result, and its notes.
    pub fn run_seen(&self, plan: Plan, faults: Vec<Fault>) -> (Result<RunSummary, RunError>, Vec<String>) {
        let options = RunOptions { runs: self.runs(), faults, ..RunOptions::default() };
        let notes: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&notes);
        let result = arriero_actors::run(plan, options, move |event| {
            if let RunEvent::Note { message, .. } = event {
                seen.lock().expect("no panic holds it").push(message);
            }
        });
        let notes = notes.lock().expect("no panic holds it").clone();
        (result, notes)
    }
}

/// A path in tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
