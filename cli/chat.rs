//! `arriero chat`: a conversation on the terminal.

use std::io::{BufRead, Write};

use arriero_buffers::{Message, Role};
use arriero_policy::PolicyError;
use arriero_policy::generate::{Engine, Request};
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::tokenizer::Tokenizer;

use crate::failure::Failure;
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
    let engine = Engine::new(model, 0, tokenizer.clone(), 1);
    let mut session = ChatSession { engine, tokenizer, sampling, seed: arguments.seed };
    let system = arguments.system.map(|content| Message::new(Role::System, content));
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
                match session.answer(&messages, turn) {
                    Ok(text) => messages.push(Message::assistant(text)),
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

/// The model's side of the conversation.
struct ChatSession {
    engine: Engine,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    seed: u64,
}

impl ChatSession {
    /// Prints the answer as it comes.
    fn answer(&mut self, messages: &[Message], turn: u64) -> Result<String, Failure> {
        let input = |error| match error {
            PolicyError::PromptTooLong { .. }
            | PolicyError::Template { .. }
            | PolicyError::TemplateUnreadable { .. } => Failure::input(error),
            error => Failure::broken(error),
        };
        let request = Request {
            tokens: self.tokenizer.prompt_tokens(messages).map_err(input)?,
            samples: 1,
            sampling: self.sampling.clone(),
            end_tokens: self.tokenizer.eos_ids().to_vec(),
            seed: self.seed,
            prompt_id: turn,
            greedy_last: false,
            mixed: 0,
            report: true,
            alternatives: 0,
        };
        self.engine.submit(request).map_err(input)?;
        let mut out = std::io::stdout();
        let mut text = String::new();
        while !self.engine.is_idle() {
            self.engine.step().map_err(Failure::broken)?;
            for drawn in self.engine.take_drawn() {
                write!(out, "{}", drawn.text).and_then(|()| out.flush()).map_err(Failure::broken)?;
                text.push_str(&drawn.text);
            }
        }
        writeln!(out).map_err(Failure::broken)?;
        Ok(text)
    }
}
