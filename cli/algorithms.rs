//! `arriero algorithms`: what there is, and what each has to be told.

use std::fmt::Write as _;
use std::io::Write as _;

use arriero_experiment::nearest;
use arriero_policy::objective::{Algorithm, Description, OptionDescription};
use serde_json::Value;

use crate::failure::Failure;

/// Columns of a paragraph.
const WIDTH: usize = 100;

/// Options of `algorithms`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show the options, defaults, sources and needs of this one.
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Lists all, or describes one.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = match &arguments.name {
        None => list(),
        Some(name) => page(&Algorithm::describe(name).ok_or_else(|| {
            let near = nearest(name, Algorithm::KINDS);
            let all = Algorithm::KINDS.join(", ");
            Failure::Input(anyhow::anyhow!(
                "there is no algorithm \"{name}\"; the nearest is \"{near}\" (all: {all})"
            ))
        })?),
    };
    // A reader that has seen enough closes the pipe; that is no failure.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}

fn list() -> String {
    let all: Vec<Description> =
        Algorithm::KINDS.iter().filter_map(|kind| Algorithm::describe(kind)).collect();
    let width = all.iter().map(|one| one.kind.len()).max().unwrap_or(0);
    all.iter().map(|one| format!("{:width$}  {}\n", one.kind, one.about)).collect()
}

fn page(one: &Description) -> String {
    let mut page = format!("{}: {}\n\n{}\n\n", one.kind, one.about, one.text);
    let _ = writeln!(page, "Learns from: {}.", one.needs.selection.learns_from());
    let needed = [
        (one.needs.reference, "log-probabilities of the frozen reference"),
        (one.needs.old, "log-probabilities of the weights that a stage's training begins with"),
        (one.needs.whole_batch, "the whole batch in one forward pass"),
        (one.needs.mismatched, "in each step, two forward passes over prompts with the responses of others"),
    ];
    let needed: Vec<&str> =
        needed.iter().filter(|(is_needed, _)| *is_needed).map(|&(_, what)| what).collect();
    let needed = if needed.is_empty() { "nothing".to_string() } else { needed.join("; ") };
    let _ = writeln!(page, "Needs besides: {needed}.");
    let _ = writeln!(page, "Experiment: experiments/{}.toml", one.kind);
    if one.options.is_empty() {
        page.push_str("\nIt has no options of its own.\n");
    } else {
        page.push_str("\nOptions, beside those of training (docs/experiments.md):\n");
    }
    one.options.iter().for_each(|option| describe(option, &mut page));
    page
}

fn describe(option: &OptionDescription, page: &mut String) {
    let default = match &option.default {
        Value::Null => String::new(),
        default => format!(" = {default}"),
    };
    let _ = write!(page, "\n  {}{default}\n{}", option.name, indented(&option.text, 6));
    for (name, meaning) in &option.choices {
        let colon = if meaning.is_empty() { "" } else { ": " };
        page.push_str(&indented(&format!("\"{name}\"{colon}{meaning}"), 8));
    }
}

/// The text as a paragraph, whose every line begins with `indent` spaces.
fn indented(text: &str, indent: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && indent + line + 1 + word.chars().count() > WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{:indent$}{line}\n", "")).collect()
}
