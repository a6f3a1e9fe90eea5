//! `arriero serve`: a model behind OpenAI's HTTP interface.

use std::io::Write;
use std::time::Duration;

use anyhow::anyhow;
use arriero_serve::{ServeConfig, ServeError, Server};

use crate::failure::Failure;
use crate::generate::MAX_SEQUENCES;
use crate::model::ModelArguments;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Where to listen. The server asks nobody for a key: think before you leave this machine.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// 0 picks a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// What clients call the model; without it, the name of its file or folder.
    #[arg(long)]
    name: Option<String>,
    /// Sequences decoded at once.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Sequences that may wait beyond these; a request that finds no place gets status 429.
    #[arg(long, default_value_t = 256)]
    queue: usize,
    /// Tokens of an answer where the request names none.
    #[arg(long, default_value_t = 1024)]
    max_tokens: usize,
    /// Seconds that answers may go on after ctrl-c or SIGTERM.
    #[arg(long, default_value_t = 30)]
    grace: u64,
}

/// Answers until ctrl-c or SIGTERM.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let input = |message: String| Failure::input(anyhow!(message));
    for (name, count, least) in [
        ("--batch", arguments.batch, 1),
        ("--queue", arguments.queue, 0),
        ("--max-tokens", arguments.max_tokens, 1),
    ] {
        if !(least..=MAX_SEQUENCES).contains(&count) {
            return Err(input(format!(
                "{name} is {count}; it must be at least {least} and at most {MAX_SEQUENCES}"
            )));
        }
    }
    let path = arguments.model.path()?;
    let name = match arguments.name {
        Some(name) => name,
        None => {
            let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
            stem.map_or_else(|| "model".to_string(), |stem| stem.to_string_lossy().into_owned())
        }
    };
    let (model, tokenizer) = arguments.model.load()?;
    let config = ServeConfig {
        host: arguments.host,
        port: arguments.port,
        model_name: name.clone(),
        batch: arguments.batch,
        queue: arguments.queue,
        max_tokens: arguments.max_tokens,
        grace: Duration::from_secs(arguments.grace),
        handle_signals: true,
    };
    let failure = |error: ServeError| match error {
        ServeError::Address { .. } => Failure::input(error),
        error => Failure::broken(error),
    };
    let server = Server::bind(config, model, tokenizer).map_err(failure)?;
    // Whoever started the server may have closed the pipe. The server serves all the same.
    let _ = writeln!(std::io::stdout(), "{name} on http://{}", server.address());
    server.run().map_err(failure)
}
