//! `arriero eval`: benchmarks of a model, in a table, as JSON, and in a run store.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use arriero_buffers::Address;
use arriero_data::OnError;
use arriero_eval::{EvalError, EvaluatedModel, Evaluation, Outcome, Report, SuiteConfig, assign, record};
use arriero_policy::device::Compute;
use arriero_store::{RunDir, StoreError};
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::failure::Failure;
use crate::model::ModelArguments;
use crate::progress::counter;
use crate::table;

/// Bytes that must be free where the run is recorded.
const NEEDED_BYTES: u64 = 16 << 20;

/// Runs of one name that are told apart by a number.
const MOST_RUNS: usize = 10_000;

/// Options of `eval`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Which suites: ifeval, gsm8k, arc, hellaswag, mmlu, perplexity, humaneval, winrate, preference; docs/eval.md has all.
    #[arg(long, value_name = "NAME[,NAME…]", value_delimiter = ',', required = true)]
    suite: Vec<String>,
    /// A file, a folder or a Hugging Face dataset; with several suites as NAME=PATH. Without it: where the suite
    /// was published.
    #[arg(long, value_name = "PATH")]
    data: Vec<String>,
    /// At most this many items of each suite.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Examples before each question.
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Whose answers are compared with the model's (winrate): a model, or a file of completions.
    #[arg(long, value_name = "PATH")]
    against: Option<String>,
    /// No chat template: questions are texts that go on.
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    plain: bool,
    /// The chat template for choices, too.
    #[arg(long)]
    chat: bool,
    /// Standing instructions.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Sets an option of the suites, such as temperature=0.7, or of one, such as gsm8k.shots=5.
    #[arg(long = "set", value_name = "KEY=VALUE", allow_hyphen_values = true)]
    set: Vec<String>,
    /// What a row does that cannot be asked or judged: stop, or be left out and counted.
    #[arg(long, value_name = "stop|skip", value_parser = on_error)]
    on_error: Option<OnError>,
    /// Seed of the answers' random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where to write what came of each item, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// The folder that holds the runs.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// The name of the run that figures and answers are recorded as. Without it: eval-MODEL, and a number where
    /// that is taken.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

fn on_error(word: &str) -> Result<OnError, String> {
    match word {
        "stop" => Ok(OnError::Stop),
        "skip" => Ok(OnError::Skip),
        _ => Err("it must be stop or skip".to_string()),
    }
}

/// Asks, judges and tells.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let suites = suites(&arguments)?;
    let path = arguments.model.path()?;
    let compute = arguments.model.compute()?;
    // Errors in the last suite are found before the first one has taken its time.
    let is_reward_model = is_of_reward_models(&suites)?;
    let evaluated = match is_reward_model {
        true => EvaluatedModel::open(&path, compute, true).map_err(Failure::input)?,
        false => EvaluatedModel::new(arguments.model.open()?, compute),
    };
    let run_name = run_name(&arguments, &path)?;
    let toml = resolved(&path, compute, arguments.seed, &suites)?;
    let interrupts = Interrupts::listen()?;
    let output = arguments.output.as_deref().map(Created::new).transpose()?;
    let mut samples = arguments.samples.as_deref().map(Created::new).transpose()?;
    let mut run: Option<RunDir> = None;
    let mut reports: Vec<Report> = Vec::new();
    for suite in &suites {
        if interrupts.any() {
            break;
        }
        let evaluation = Evaluation::new(suite, &evaluated, arguments.seed).map_err(failure)?;
        let (report, outcomes) = evaluate(evaluation, &interrupts)?;
        // Only now is there something to record.
        if run.is_none() {
            let made = RunDir::create(&arguments.runs, &run_name, &toml, NEEDED_BYTES);
            run = Some(made.map_err(Failure::broken)?);
        }
        if let Some(run) = &run {
            keep(run, arguments.seed, &report, &outcomes).map_err(Failure::broken)?;
        }
        if let Some(file) = &mut samples {
            write_samples(&mut file.writer, &report, &outcomes).map_err(Failure::broken)?;
        }
        reports.push(report);
    }
    let interrupted = interrupts.any();
    let summary = json!({
        "kind": "eval",
        "name": run_name,
        "model": path.display().to_string(),
        "compute": compute.to_string(),
        "seed": arguments.seed,
        "status": if interrupted { "interrupted" } else { "completed" },
        "suites": reports,
    });
    if let Some(run) = &run {
        run.write_summary(&summary).map_err(Failure::broken)?;
    }
    if let Some(mut file) = output {
        writeln!(file.writer, "{summary:#}")
            .context("the output cannot be written")
            .map_err(Failure::broken)?;
        file.keep()?;
    }
    samples.map(Created::keep).transpose()?;
    // The figures are in the run: a closed pipe is no failure.
    let _ = writeln!(std::io::stdout(), "{}", table::figures(&path.display().to_string(), &reports));
    if let Some(run) = &run {
        let _ = writeln!(std::io::stderr(), "recorded: {}", run.path().display());
    }
    if interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

/// The suites with all options of the command line.
fn suites(arguments: &Arguments) -> Result<Vec<SuiteConfig>, Failure> {
    let mut set = arguments.set.clone();
    let mut add = |key: &str, value: Option<String>| set.extend(value.map(|value| format!("{key}={value}")));
    let text = |text: &String| toml_text(text);
    add("limit", arguments.limit.map(|limit| limit.to_string()));
    add("shots", arguments.shots.map(|shots| shots.to_string()));
    add("against", arguments.against.as_ref().map(text));
    add("system", arguments.system.as_ref().map(text));
    add("chat", arguments.plain.then(|| "false".to_string()).or(arguments.chat.then(|| "true".to_string())));
    add("on_error", arguments.on_error.map(|on_error| json!(on_error).to_string()));
    assign::suites(&arguments.suite, &arguments.data, &set).map_err(Failure::input)
}

/// A text as TOML writes it; JSON's form is one of TOML's.
fn toml_text(text: &str) -> String {
    json!(text).to_string()
}

/// Whether the suites ask a reward model.
fn is_of_reward_models(suites: &[SuiteConfig]) -> Result<bool, Failure> {
    let of_reward_models = suites.iter().filter(|suite| suite.kind.is_of_reward_models()).count();
    if of_reward_models > 0 && of_reward_models < suites.len() {
        let message =
            "preference asks a reward model, and the other suites a language model; run them one by one";
        return Err(Failure::input(anyhow!(message)));
    }
    Ok(of_reward_models > 0)
}

/// One suite to its end, or to ctrl-c.
fn evaluate(mut evaluation: Evaluation, interrupts: &Interrupts) -> Result<(Report, Vec<Outcome>), Failure> {
    let name = evaluation.name().to_string();
    let bar = counter(evaluation.total() as u64, "items");
    bar.set_prefix(format!("{name} "));
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    while !interrupts.any() {
        let goes_on = evaluation.step().map_err(failure)?;
        bar.set_message(if evaluation.is_preparing() { "the other's answers, " } else { "" });
        bar.set_position(evaluation.done() as u64);
        if !goes_on {
            break;
        }
    }
    bar.finish_and_clear();
    let (report, outcomes) = evaluation.finish().map_err(failure)?;
    for row in &report.skipped_rows {
        let _ = writeln!(std::io::stderr(), "left out: {row}");
    }
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} of {} items in {:.1} s ({rate:.0} tokens/s)",
        report.judged,
        report.items,
        report.seconds
    );
    Ok((report, outcomes))
}

/// Records a suite as an arm of the run.
fn keep(run: &RunDir, seed: u64, report: &Report, outcomes: &[Outcome]) -> Result<(), StoreError> {
    let mut store = run.arm(&report.suite, seed)?;
    let address = Address::new(report.suite.as_str(), seed, 0, "eval");
    record::record(&mut store, &address, 0, report, outcomes)?;
    store.write_summary(&json!(report))?;
    store.finish()
}

fn write_samples(output: &mut dyn Write, report: &Report, outcomes: &[Outcome]) -> anyhow::Result<()> {
    for outcome in outcomes {
        let Value::Object(mut row) = serde_json::to_value(outcome)? else { continue };
        row.insert("suite".to_string(), json!(report.suite));
        writeln!(output, "{}", Value::Object(row)).context("the samples cannot be written")?;
    }
    Ok(())
}

/// The run's name: as asked for, or the first of the model's that is free.
fn run_name(arguments: &Arguments, model: &Path) -> Result<String, Failure> {
    let check = |name: &str| RunDir::check(&arguments.runs, name, NEEDED_BYTES);
    if let Some(name) = &arguments.name {
        check(name).map_err(Failure::input)?;
        return Ok(name.clone());
    }
    let stem = model.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let stem: String = stem.chars().map(allowed).take(60).collect();
    let first = if stem.is_empty() { "eval".to_string() } else { format!("eval-{stem}") };
    let names =
        std::iter::once(first.clone()).chain((2..MOST_RUNS).map(|number| format!("{first}-{number}")));
    for name in names {
        match check(&name) {
            Ok(()) => return Ok(name),
            Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(Failure::input(error)),
        }
    }
    Err(Failure::input(anyhow!("every name from {first} on is taken; give --name")))
}

/// What was asked, as TOML.
fn resolved(model: &Path, compute: Compute, seed: u64, suites: &[SuiteConfig]) -> Result<String, Failure> {
    let resolved = json!({
        "model": {"path": model.display().to_string(), "compute": compute.to_string()},
        "seed": seed,
        "evaluation": {"suites": suites},
    });
    toml::to_string(&resolved).map_err(Failure::broken)
}

fn failure(error: EvalError) -> Failure {
    if error.is_input() { Failure::input(error) } else { Failure::broken(error) }
}

/// A file that is written beside its place and put there when it is whole.
struct Created {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
}

impl Created {
    fn new(path: &Path) -> Result<Self, Failure> {
        let mut partial = path.as_os_str().to_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).with_context(|| format!("{} cannot be written", partial.display()));
        Ok(Created {
            path: path.to_path_buf(),
            partial,
            writer: BufWriter::new(file.map_err(Failure::Input)?),
        })
    }

    fn keep(mut self) -> Result<(), Failure> {
        let kept = self.writer.flush().and_then(|()| std::fs::rename(&self.partial, &self.path));
        kept.with_context(|| format!("{} cannot be written", self.path.display())).map_err(Failure::Broken)
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // Gone already where it was put in its place.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// The first ctrl-c ends the work after its step. The second ends the program at once, without the exit handlers of
/// libraries: they would free what threads that still compute use.
struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    fn listen() -> Result<Self, Failure> {
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&interrupted))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&interrupted)))
            .map_err(Failure::broken)?;
        Ok(Interrupts(interrupted))
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
