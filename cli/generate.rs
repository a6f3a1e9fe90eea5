//! `arriero generate`: completions of one prompt or of a file of prompts.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use arriero_buffers::{Group, Message, Prompt};
use arriero_experiment::read_prompts;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::sampling::SamplingConfig;
use serde::Serialize;

use crate::failure::Failure;
use crate::model::ModelArguments;
use crate::progress::counter;

/// The most sequences decoded at once, and the most samples of a prompt. More would only run out of memory.
pub(crate) const MAX_SEQUENCES: usize = 65_536;

/// Options of `generate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// What to ask.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "prompts",
        required_unless_present = "prompts"
    )]
    prompt: Option<String>,
    /// A file with one JSON object a line: {"prompt": "…"} or {"messages": [{"role": …, "content": …}]}.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Completions of each prompt.
    #[arg(long, default_value_t = 1)]
    samples: usize,
    /// Tokens a completion may have.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 always takes the most probable token. Without it: 0 for one sample, 1 for several.
    #[arg(long)]
    temperature: Option<f64>,
    /// Only the k most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most probable tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Only tokens with at least this share of the most probable one's probability.
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Ends a completion, whose text ends before it; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Sequences decoded at once.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Where to write one JSON object a completion; without it, to standard output (one completion
    /// alone as plain text).
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One completion in the output.
#[derive(Serialize)]
struct Row<'a> {
    prompt_id: u64,
    messages: &'a [Message],
    sample: u32,
    text: &'a str,
    finish: arriero_buffers::Finish,
    tokens: &'a [u32],
    logps: &'a [f32],
}

/// Samples and writes.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let input = |message: String| Failure::input(anyhow!(message));
    for (name, count) in [("--samples", arguments.samples), ("--batch", arguments.batch)] {
        if !(1..=MAX_SEQUENCES).contains(&count) {
            return Err(input(format!(
                "{name} is {count}; it must be at least 1 and at most {MAX_SEQUENCES}"
            )));
        }
    }
    let greedy = if arguments.samples == 1 { 0.0 } else { 1.0 };
    let sampling = SamplingConfig {
        max_new_tokens: arguments.max_new_tokens,
        temperature: arguments.temperature.unwrap_or(greedy),
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        stop: arguments.stop,
    };
    sampling.validate().map_err(input)?;
    let prompts = match (&arguments.prompt, &arguments.prompts) {
        (_, Some(path)) => read_prompts(path).map_err(Failure::input)?,
        (Some(text), None) if text.trim().is_empty() => {
            return Err(input("--prompt is empty; give it some text".to_string()));
        }
        (Some(text), None) => vec![Prompt {
            id: 0,
            messages: vec![Message::user(text.as_str())],
            checks: serde_json::Value::Null,
        }],
        (None, None) => return Err(input("give --prompt or --prompts".to_string())),
    };
    let (model, tokenizer) = arguments.model.load()?;
    let config = GenerationConfig {
        sampling,
        samples: arguments.samples,
        batch: arguments.batch,
        seed: arguments.seed,
    };
    let mut generator = GroupSampler::new(model, 0, tokenizer, config);
    let plain = arguments.output.is_none() && prompts.len() == 1 && arguments.samples == 1;
    let bar = counter(prompts.len() as u64, "prompts");
    for prompt in prompts {
        generator.submit(Arc::new(prompt)).map_err(Failure::input)?;
    }
    // Only now: an earlier refusal leaves the file that is there as it is.
    let mut output: Box<dyn Write> = match &arguments.output {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()));
            Box::new(BufWriter::new(file.map_err(Failure::Input)?))
        }
        None => Box::new(std::io::stdout()),
    };
    while !generator.is_idle() {
        for group in generator.step().map_err(Failure::broken)? {
            bar.inc(1);
            write_group(&mut output, &group, plain).map_err(Failure::broken)?;
        }
    }
    output.flush().context("the output cannot be written").map_err(Failure::broken)?;
    bar.finish_and_clear();
    Ok(())
}

fn write_group(output: &mut dyn Write, group: &Group, plain: bool) -> anyhow::Result<()> {
    for completion in &group.completions {
        if plain {
            writeln!(output, "{}", completion.text)?;
            continue;
        }
        let row = Row {
            prompt_id: group.prompt.id,
            messages: &group.prompt.messages,
            sample: completion.sample,
            text: &completion.text,
            finish: completion.finish,
            tokens: &completion.drawn_tokens().collect::<Vec<_>>(),
            logps: &completion.logps().collect::<Vec<_>>(),
        };
        writeln!(output, "{}", serde_json::to_string(&row)?)?;
    }
    Ok(())
}
