//! `arriero chat`: a conversation on the terminal.

use std::io::{BufRead, Write};
use std::sync::Arc;

use arriero_buffers::{Message, Prompt, Role};
use arriero_policy::PolicyError;
use arriero_policy::generate::{GenerationConfig, Generator};
use arriero_policy::sampling::SamplingConfig;

use crate::Failure;
use crate::model::ModelArguments;

/// Options of `chat`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Standing instructions.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens an answer may have.
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Only the most probable tokens that together have this probability.
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Reads lines from standard input until it ends.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let sampling = SamplingConfig {
        max_new_tokens: arguments.max_new_tokens,
        temperature: arguments.temperature,
        top_p: arguments.top_p,
        ..SamplingConfig::default()
    };
    sampling.validate().map_err(|message| Failure::input(anyhow::anyhow!(message)))?;
    let (model, tokenizer) = arguments.model.load()?;
    let config = GenerationConfig { sampling, samples: 1, batch: 1, seed: arguments.seed };
    let mut generator = Generator::new(model, 0, tokenizer, config);
    let system = arguments.system.map(|content| Message { role: Role::System, content });
    let beginning: Vec<Message> = system.into_iter().collect();
    let mut messages = beginning.clone();
    eprintln!("/reset forgets the conversation, /quit ends it.");
    let mut turn = 0;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        eprint!("> ");
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.map_err(Failure::broken)?;
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => return Ok(()),
            "/reset" => messages = beginning.clone(),
            text => {
                messages.push(Message::user(text));
                match answer(&mut generator, &messages, turn) {
                    Ok(text) => messages.push(Message { role: Role::Assistant, content: text }),
                    Err(Failure::Input(error)) => {
                        messages.pop();
                        eprintln!("{error:#}; /reset begins anew");
                    }
                    Err(failure) => return Err(failure),
                }
                turn += 1;
            }
        }
    }
}

/// Prints the answer as it comes.
fn answer(generator: &mut Generator, messages: &[Message], turn: u64) -> Result<String, Failure> {
    let prompt = Prompt { id: turn, messages: messages.to_vec(), checks: serde_json::Value::Null };
    generator.submit(Arc::new(prompt)).map_err(|error| match error {
        PolicyError::PromptTooLong { .. } | PolicyError::Template { .. } => Failure::input(error),
        error => Failure::broken(error),
    })?;
    let mut out = std::io::stdout();
    let mut shown = 0;
    loop {
        let groups = generator.step().map_err(Failure::broken)?;
        let text = match groups.into_iter().next().and_then(|group| group.completions.into_iter().next()) {
            Some(completion) => completion.text,
            None => generator.text_in_progress(turn).map_err(Failure::broken)?,
        };
        // A character of several tokens shows as a replacement until it is complete.
        let stable = if generator.is_idle() { text.len() } else { text.trim_end_matches('\u{fffd}').len() };
        if let Some(new) = text.get(shown..stable) {
            write!(out, "{new}").and_then(|()| out.flush()).map_err(Failure::broken)?;
            shown = stable;
        }
        if generator.is_idle() {
            writeln!(out).map_err(Failure::broken)?;
            return Ok(text);
        }
    }
}
