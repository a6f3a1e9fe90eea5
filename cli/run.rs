//! `arriero run`: an experiment from its file to its table.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use arriero_actors::{RunError, RunOptions};
use arriero_experiment as experiment;
use arriero_results::Status;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::table::table;

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The experiment file.
    #[arg(value_name = "FILE")]
    experiment: PathBuf,
    /// Sets a value of the experiment, such as algorithm.beta=0.05 or arm.rs-dpo.stage.0.beta=0.05.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder that holds the runs.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Serves metrics for Prometheus, for example on 127.0.0.1:9464.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let plan = experiment::load(&arguments.experiment, &arguments.set).map_err(Failure::input)?;
    let options = RunOptions {
        runs: arguments.runs,
        metrics: arguments.metrics,
        faults: Vec::new(),
        handle_ctrl_c: true,
    };
    let progress = Progress::new();
    let summary = arriero_actors::run(plan, options, move |event| progress.show(event)).map_err(failure)?;
    // The table is in summary.json as well. So a closed pipe is no failure of the run.
    let _ = writeln!(std::io::stdout(), "{}", table(&summary));
    match summary.status {
        Status::Interrupted => Err(Failure::Interrupted),
        Status::Completed | Status::Failed => Ok(()),
    }
}

fn failure(error: RunError) -> Failure {
    if error.is_input() { Failure::input(error) } else { Failure::broken(error) }
}
