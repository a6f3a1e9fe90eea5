//! `cargo xtask setup | demo | test | bench | structure | ci`: everything that a checkout needs besides cargo itself.
//!
//! - [`workspace`]: where things lie
//! - [`setup`]: libtorch and the default model, from pinned wheels
//! - [`prerequisites`]: what the machine must bring, and how to get it
//! - [`demo`], [`check`]: the other commands, each of which starts with the set-up
//! - [`structure`]: crates and modules import in one direction
//! - [`mod@bench`]: the comparison with other toolkits
//! - [`venv`]: virtual environments of Python
//! - [`process`]: running programs and timing them

#[cfg(not(unix))]
compile_error!("Arriero builds on Linux and macOS; on Windows, use WSL 2");

mod bench;
mod check;
mod demo;
mod prerequisites;
mod process;
mod setup;
mod structure;
mod venv;
mod workspace;

use clap::Parser;
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
enum Command {
    /// Install libtorch into .venv and the default model into .arriero; does nothing if they are there
    Setup {
        /// Install the CUDA libraries as well (Linux; about 5 GB)
        #[arg(long)]
        cuda: bool,
    },
    /// Set up, build, and run experiments/quickstart.toml under a free name
    Demo {
        /// Passed on to `arriero run`, such as `-- --set seed=7`
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        args: Vec<String>,
    },
    /// Set up, and run all tests
    Test {
        /// Passed on to `cargo test`
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
        /// Passed on to the test programs
        #[arg(last = true)]
        test_args: Vec<String>,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Check that crates and modules import in one direction, as ARCHITECTURE.md says
    Structure,
    /// Check structure, format, lints and documentation, then do what `test` does
    Ci,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// The same work here and in TRL, transformers and llama.cpp; writes docs/PERFORMANCE.md
    Peers(bench::Options),
}

fn main() -> ExitCode {
    let command = Command::parse();
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<process::Failed>() {
                Some(failed) => ExitCode::from(failed.code),
                None => ExitCode::from(2),
            }
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    // Ctrl-c reaches the running child too; wait for it to end in its own way instead of leaving it behind.
    ctrlc::set_handler(|| ())?;
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup { cuda } => setup::setup(&workspace, *cuda),
        Command::Demo { args } => demo::demo(&workspace, args),
        Command::Test { args, test_args } => check::test(&workspace, args, test_args),
        Command::Bench(Bench::Peers(options)) => bench::peers(&workspace, options),
        Command::Structure => structure::check(&workspace),
        Command::Ci => check::ci(&workspace),
    }
}
