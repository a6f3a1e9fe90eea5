//! `arriero data`: datasets before anything learns from them.

mod inspect;
mod marks;
mod prepare;

use crate::failure::Failure;

/// What to do with a dataset.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Count a dataset's rows and tokens, name its problems, and show which tokens carry loss.
    Inspect(inspect::Arguments),
    /// Sort out rows by rules, duplicates, topics and scores, and mix datasets.
    Prepare(prepare::Arguments),
}

/// Does it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Prepare(arguments) => prepare::run(arguments),
    }
}
