//! `arriero data inspect`: what is in a dataset, as training would read it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use arriero_data::{Entry, Row};
use arriero_experiment::{DataPlan, read_data};
use arriero_policy::checkpoint::{Checkpoint, default_model};
use arriero_policy::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::marks::{CLOSE, OPEN, Part, marked_text, parts, token_list};
use crate::failure::Failure;

/// Options of `data inspect`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A file of JSON lines or Parquet, a folder of them, or a Hugging Face dataset as OWNER/NAME.
    #[arg(value_name = "FILE|ID", required_unless_present = "config")]
    path: Option<String>,
    /// A TOML file whose `data` table says how to read it; an experiment file will do.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets an option of `data`, such as fields.prompt=instruction or loss=["user","assistant"]; docs/data.md has all.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A Hugging Face directory or a GGUF file, whose tokens are counted; without it, the model that set-up brought.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// How many rows to show.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    samples: usize,
    /// Answer in JSON, with every token of the samples.
    #[arg(long)]
    json: bool,
}

/// Inspects and shows.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let path = arguments.path.map(|path| format!("path={}", Value::from(path)));
    // Unless the user says otherwise, every row is read, in the file's order, and what is wrong is listed.
    let set: Vec<String> = ["shuffle=false", "on_error=skip", "max_skipped=1.0"]
        .map(String::from)
        .into_iter()
        .chain(path)
        .chain(arguments.set)
        .collect();
    let plan = read_data(arguments.config.as_deref(), &set).map_err(Failure::input)?;
    let model = arguments.model.map_or_else(default_model, Ok).map_err(Failure::input)?;
    let (_, tokenizer) = Checkpoint::inspect(&model).map_err(Failure::input)?;
    let inspected = inspect(&plan, &tokenizer, arguments.samples)?;
    let mut text = match arguments.json {
        true => format!("{:#}\n", inspected.to_json(&tokenizer)),
        false => inspected.to_text(&tokenizer),
    };
    // The text of rows must not steer the terminal. The marks' own colours are put in afterwards.
    text.retain(|character| !character.is_control() || "\n\t".contains(character));
    if !arguments.json {
        let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (open, close) = if is_coloured { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
        text = text.replace(OPEN, open).replace(CLOSE, close);
    }
    // A reader that has seen enough closes the pipe; that is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// What is in a dataset.
struct Inspected {
    path: String,
    formats: Vec<(String, &'static str)>,
    counts: arriero_data::Counts,
    /// Rows by type, and how many of these are texts without roles.
    types: BTreeMap<&'static str, u64>,
    plain: u64,
    with_system: u64,
    /// Rows with several turns of the assistant.
    multi_turn: u64,
    /// Tokens a row, by part; and those with loss.
    tokens: BTreeMap<&'static str, Vec<u32>>,
    loss: BTreeMap<&'static str, Vec<u32>>,
    max_length: usize,
    over_max_length: u64,
    without_loss: u64,
    /// Rows that the chat template refuses.
    refused: u64,
    refusals: Vec<(String, String)>,
    samples: Vec<(Entry, Vec<Part>)>,
}

fn inspect(plan: &DataPlan, tokenizer: &Tokenizer, samples: usize) -> Result<Inspected, Failure> {
    let mut rows = plan.rows.open(0).map_err(Failure::input)?;
    let formats = rows.formats().into_iter().map(|(file, format)| (file.to_string(), format)).collect();
    let mut inspected = Inspected {
        path: plan.rows.path.clone(),
        formats,
        counts: arriero_data::Counts::default(),
        types: BTreeMap::new(),
        plain: 0,
        with_system: 0,
        multi_turn: 0,
        tokens: BTreeMap::new(),
        loss: BTreeMap::new(),
        max_length: plan.examples.max_length,
        over_max_length: 0,
        without_loss: 0,
        refused: 0,
        refusals: Vec::new(),
        samples: Vec::new(),
    };
    for entry in &mut rows {
        let entry = entry.map_err(Failure::input)?;
        match parts(tokenizer, &entry, &plan.rows.loss) {
            Ok(parts) => inspected.add(entry, parts, samples),
            Err(cause) => {
                inspected.refused += 1;
                if inspected.refusals.len() < 20 {
                    inspected.refusals.push((entry.place(), cause.to_string()));
                }
            }
        }
    }
    inspected.counts = rows.counts().clone();
    Ok(inspected)
}

impl Inspected {
    fn add(&mut self, entry: Entry, parts: Vec<Part>, samples: usize) {
        let row = &entry.row;
        *self.types.entry(row.kind()).or_default() += 1;
        self.plain += u64::from(entry.is_plain);
        let turns = || {
            let whole = match row {
                Row::Conversation { messages } => &messages[..],
                _ => row.prompt().unwrap_or_default(),
            };
            whole.iter().map(|message| message.role)
        };
        self.with_system += u64::from(turns().any(|role| role == arriero_buffers::Role::System));
        let own = turns().filter(|&role| role == arriero_buffers::Role::Assistant).count();
        self.multi_turn += u64::from(own + usize::from(row.prompt().is_some()) > 1);
        let prompt =
            parts.first().filter(|part| part.name == "prompt").map_or(0, |part| part.marked.tokens.len());
        let answers = || parts.iter().filter(|part| part.name != "prompt");
        let longest = answers().map(|part| part.marked.tokens.len()).max().unwrap_or(0);
        self.over_max_length += u64::from(prompt + longest > self.max_length);
        let learns = answers().any(|part| part.loss_tokens() > 0);
        self.without_loss += u64::from(!learns && !matches!(row, Row::Prompt { .. }));
        for part in &parts {
            self.tokens.entry(part.name).or_default().push(part.marked.tokens.len() as u32);
            if part.name != "prompt" {
                self.loss.entry(part.name).or_default().push(part.loss_tokens() as u32);
            }
        }
        if self.samples.len() < samples {
            self.samples.push((entry, parts));
        }
    }

    /// What is wrong, by the rows' places.
    fn problems(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let skipped = self.counts.examples.iter();
        let refused = self.refusals.iter();
        skipped
            .map(|(place, error)| (&**place, error.reason.as_str(), &*error.message))
            .chain(refused.map(|(place, cause)| (&**place, "refused_by_template", &**cause)))
    }

    fn reasons(&self) -> BTreeMap<&str, u64> {
        let mut reasons: BTreeMap<&str, u64> =
            self.counts.skipped.iter().map(|(reason, count)| (*reason, *count)).collect();
        if self.refused > 0 {
            reasons.insert("refused_by_template", self.refused);
        }
        reasons
    }

    fn usable(&self) -> u64 {
        self.counts.given - self.refused
    }

    fn to_json(&self, tokenizer: &Tokenizer) -> Value {
        let part = |part: &Part| json!({"field": part.name, "tokens": token_list(tokenizer, &part.marked)});
        let sample = |(entry, parts): &(Entry, Vec<Part>)| {
            let parts: Vec<Value> = parts.iter().map(part).collect();
            json!({"place": entry.place(), "type": entry.row.kind(), "plain": entry.is_plain,
                "row": entry.row.to_json(), "parts": parts})
        };
        let lengths = |all: &BTreeMap<&'static str, Vec<u32>>| -> Value {
            all.iter().map(|(name, lengths)| (name.to_string(), Lengths::of(lengths).to_json())).collect()
        };
        let problem = |(place, reason, message): (&str, &str, &str)| json!({"place": place, "reason": reason, "message": message});
        json!({
            "path": self.path,
            "files": self.formats.iter().map(|(file, format)| json!({"file": file, "format": format}))
                .collect::<Vec<_>>(),
            "rows": {"read": self.counts.read, "usable": self.usable(), "outside_split": self.counts.elsewhere,
                "problems": self.reasons()},
            "types": self.types,
            "plain": self.plain,
            "with_system": self.with_system,
            "multi_turn": self.multi_turn,
            "tokens": lengths(&self.tokens),
            "loss_tokens": lengths(&self.loss),
            "max_length": self.max_length,
            "over_max_length": self.over_max_length,
            "without_loss": self.without_loss,
            "problems": self.problems().map(problem).collect::<Vec<_>>(),
            "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }

    fn to_text(&self, tokenizer: &Tokenizer) -> String {
        let mut text = String::new();
        for (file, format) in &self.formats {
            let _ = writeln!(text, "{file}: read as {format}");
        }
        let mut figure = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<22}{value}");
        };
        figure("rows", format!("{} read, {} usable", self.counts.read, self.usable()));
        if self.counts.elsewhere > 0 {
            figure("  outside of split", self.counts.elsewhere.to_string());
        }
        for (reason, count) in self.reasons() {
            figure(&format!("  {reason}"), count.to_string());
        }
        for (kind, count) in &self.types {
            figure(&format!("  {kind}"), count.to_string());
        }
        for (name, count) in [
            ("texts without roles", self.plain),
            ("with a system message", self.with_system),
            ("of several turns", self.multi_turn),
            ("no token with loss", self.without_loss),
            (&*format!("over {} tokens", self.max_length), self.over_max_length),
        ] {
            if count > 0 {
                figure(name, count.to_string());
            }
        }
        let _ = writeln!(
            text,
            "\n{:<22}{:>8}{:>8}{:>8}{:>8}{:>8}{:>12}",
            "tokens", "min", "mean", "p50", "p95", "max", "all"
        );
        for (name, lengths) in &self.tokens {
            let _ = writeln!(text, "{name:<22}{}", Lengths::of(lengths));
            if let Some(lengths) = self.loss.get(name) {
                let _ = writeln!(text, "{:<22}{}", "  with loss", Lengths::of(lengths));
            }
        }
        let problems: Vec<_> = self.problems().collect();
        if !problems.is_empty() {
            let _ = writeln!(text, "\nproblems");
            for (place, _, message) in &problems {
                let _ = writeln!(text, "  {place}: {message}");
            }
            let more = self.reasons().values().sum::<u64>() - problems.len() as u64;
            if more > 0 {
                let _ = writeln!(text, "  … and {more} more");
            }
        }
        if !self.samples.is_empty() {
            let _ = writeln!(text, "\nsamples, with the tokens that carry loss {OPEN}marked{CLOSE}");
        }
        for (entry, parts) in &self.samples {
            let _ = writeln!(text, "\n  {} ({})", entry.place(), entry.row.kind());
            for Part { name, marked } in parts {
                let shown = marked_text(tokenizer, marked).replace('\n', "\n      ");
                let _ = writeln!(text, "    {name}\n      {}", shown.trim_end());
            }
            if let Row::Prompt { checks, .. } = &entry.row
                && !checks.is_null()
            {
                let _ = writeln!(text, "    checks\n      {checks}");
            }
        }
        text
    }
}

/// Figures of some lengths.
struct Lengths {
    least: u32,
    mean: f64,
    median: u32,
    high: u32,
    most: u32,
    sum: u64,
}

impl Lengths {
    /// Of at least one.
    fn of(lengths: &[u32]) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        // By the nearest rank: the least length that this share of the rows does not exceed.
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        let sum: u64 = sorted.iter().map(|&length| u64::from(length)).sum();
        Lengths {
            least: sorted[0],
            mean: sum as f64 / sorted.len() as f64,
            median: rank(50),
            high: rank(95),
            most: rank(100),
            sum,
        }
    }

    fn to_json(&self) -> Value {
        json!({"min": self.least, "mean": self.mean, "p50": self.median, "p95": self.high, "max": self.most,
            "sum": self.sum})
    }
}

impl std::fmt::Display for Lengths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lengths { least, mean, median, high, most, sum } = self;
        write!(f, "{least:>8}{mean:>8.1}{median:>8}{high:>8}{most:>8}{sum:>12}")
    }
}
