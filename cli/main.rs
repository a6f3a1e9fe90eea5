//! The program: parse, call, render.
//!
//! Each command is one file here. Everything that it does lives in the crates below. Exit codes: 0 for success, 1 for a
//! run that failed, 2 for wrong input, 130 after ctrl-c.

mod algorithms;
mod chat;
mod data;
mod eval;
mod failure;
mod generate;
mod model;
mod progress;
mod run;
mod score;
mod serve;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use failure::Failure;

/// Trains and compares alignment algorithms.
#[derive(Debug, Parser)]
#[command(name = "arriero", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an experiment file.
    Run(run::Arguments),
    /// List the algorithms, or show what one needs and its options.
    Algorithms(algorithms::Arguments),
    /// Sample completions of prompts.
    Generate(generate::Arguments),
    /// Talk to a model.
    Chat(chat::Arguments),
    /// Answer HTTP requests in OpenAI's format.
    Serve(serve::Arguments),
    /// Score a file of completions.
    Score(score::Arguments),
    /// Look at a dataset.
    Data(data::Arguments),
    /// Measure a model on benchmarks.
    Eval(eval::Arguments),
}

fn main() -> ExitCode {
    if let Some(code) = arriero_reward::scorer::program::keeper::keep_if_asked() {
        return code;
    }
    arriero_policy::allocator::keep_large_blocks();
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(arguments),
        Command::Algorithms(arguments) => algorithms::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
        Command::Chat(arguments) => chat::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Score(arguments) => score::run(arguments),
        Command::Data(arguments) => data::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
    };
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Interrupted) => return ExitCode::from(130),
        Err(Failure::Input(error)) => (error, 2),
        Err(Failure::Broken(error)) => (error, 1),
    };
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}
