//! `arriero data prepare`: from several datasets to one that is worth learning from.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use arriero_buffers::{Completion, Finish, Group, Prompt};
use arriero_data::DataError;
use arriero_data::prepare::{Annotator, PromptCompletion, Report, prepare};
use arriero_experiment::{ModelPlan, PreparationPlan, Unscored, read_preparation};
use arriero_policy::PolicyError;
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::embedding;
use arriero_policy::model::Model;
use arriero_policy::tokenizer::Tokenizer;
use arriero_reward::{OnError, RewardConfig, Scorer};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;

/// Tokens of a forward pass.
const BATCH_TOKENS: usize = 8192;

/// Options of `data prepare`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A TOML file that says what is done; docs/data.md has all of its keys.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Sets a key of the file, such as near_duplicates.threshold=0.7.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Prepares, and says what came of it.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let plan = read_preparation(&arguments.config, &arguments.set).map_err(Failure::input)?;
    let scorings = plan.scorers.iter().map(Scoring::of).collect::<Result<_, Failure>>()?;
    let model = plan.model.as_ref().map(load).transpose()?;
    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{msg} {pos}/{len}").map_err(Failure::broken)?);
    let mut annotator = ModelAnnotator { model, max_tokens: plan.max_tokens, scorings, bar };
    // Written beside the output and put in its place when it is whole.
    let mut partial = plan.output.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = File::create(&partial)
        .with_context(|| format!("{} cannot be written", partial.display()))
        .map_err(Failure::Input)?;
    let prepared = prepare(&plan.steps, &mut annotator, &mut BufWriter::new(file));
    annotator.bar.finish_and_clear();
    let prepared = prepared.map_err(|error| {
        let broken = matches!(error, DataError::Annotator { .. } | DataError::Unwritable { .. });
        if broken { Failure::broken(error) } else { Failure::input(error) }
    });
    let checked = prepared.and_then(|report| {
        annotator.scorings.iter().try_for_each(Scoring::check)?;
        Ok(report)
    });
    let report = checked.inspect_err(|_| {
        // Only half an answer: nobody should take it for the whole.
        let _ = std::fs::remove_file(&partial);
    })?;
    write(&plan, &partial, &report).map_err(Failure::Broken)?;
    // The rows are in the file: a closed pipe is no failure.
    let _ = write!(std::io::stdout(), "{}", summary(&plan, &report));
    Ok(())
}

fn write(plan: &PreparationPlan, partial: &std::path::Path, report: &Report) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(&plan.report, text + "\n")
        .with_context(|| format!("{} cannot be written", plan.report.display()))?;
    std::fs::rename(partial, &plan.output)
        .with_context(|| format!("{} cannot be written", plan.output.display()))
}

fn load(plan: &ModelPlan) -> Result<(Model, Tokenizer), Failure> {
    let compute = Compute::resolve(plan.device, plan.dtype).map_err(Failure::input)?;
    let mut checkpoint = Checkpoint::open(&plan.path).map_err(Failure::input)?;
    if let Some(adapter) = &plan.adapter {
        checkpoint = checkpoint.with_adapter(adapter).map_err(Failure::input)?;
    }
    let model = Model::new(&checkpoint.config, &checkpoint.weights, compute).map_err(Failure::input)?;
    Ok((model, checkpoint.tokenizer))
}

/// Embeddings of the policy, and scores of scorers.
struct ModelAnnotator {
    model: Option<(Model, Tokenizer)>,
    max_tokens: usize,
    scorings: Vec<Scoring>,
    bar: ProgressBar,
}

/// A scorer at work.
struct Scoring {
    scorer: Box<dyn Scorer>,
    unscored: Unscored,
    /// Rows that it was asked for, and those that it could not score.
    asked: usize,
    failed: usize,
    /// Why it could not score the last of these.
    last: String,
}

impl Scoring {
    fn of((reward, unscored): &(RewardConfig, Unscored)) -> Result<Self, Failure> {
        let scorer = reward.build().map_err(Failure::input)?;
        Ok(Scoring { scorer, unscored: *unscored, asked: 0, failed: 0, last: String::new() })
    }

    /// Fails if more rows could not be scored than may be.
    fn check(&self) -> Result<(), Failure> {
        let Scoring { unscored, asked, failed, last, .. } = self;
        if *failed as f64 <= unscored.max_skipped * *asked as f64 {
            return Ok(());
        }
        let share = unscored.max_skipped;
        Err(Failure::broken(anyhow!(
            "{failed} of {asked} rows could not be scored, more than the share of {share} that the reward's max_skipped \
             allows; the last one: {last}"
        )))
    }
}

/// An answer as scorers read it.
fn group(pair: &PromptCompletion) -> Group {
    let completion = Completion::given(0, Vec::new(), pair.completion.as_str(), Finish::EndOfTurn);
    let prompt = Prompt { id: 0, messages: pair.prompt.clone(), checks: serde_json::Value::Null };
    Group { prompt: Arc::new(prompt), prompt_tokens: Vec::new(), completions: vec![completion] }
}

impl Annotator for ModelAnnotator {
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let Some((model, tokenizer)) = &self.model else {
            return Err("there is no model to embed with".to_string());
        };
        let most = self.max_tokens.min(model.config().max_positions);
        let tokens = |text: &String| -> Result<Vec<u32>, PolicyError> {
            let mut tokens = tokenizer.text_tokens(text)?;
            tokens.truncate(most);
            Ok(tokens)
        };
        let tokens: Result<Vec<Vec<u32>>, PolicyError> = texts.iter().map(tokens).collect();
        tokens
            .and_then(|tokens| embedding::embed(model, &tokens, BATCH_TOKENS))
            .map_err(|error| error.to_string())
    }

    fn score(&mut self, rule: usize, pairs: &[PromptCompletion]) -> Result<Vec<f64>, String> {
        let Scoring { scorer, unscored, asked, failed, last } = &mut self.scorings[rule];
        let groups: Vec<Group> = pairs.iter().map(group).collect();
        let mut scores = Vec::with_capacity(groups.len());
        for outcome in scorer.score_groups(&groups.iter().collect::<Vec<_>>()).into_iter().flatten() {
            *asked += 1;
            match outcome {
                Ok(score) => scores.push(f64::from(score.reward)),
                Err(error) if unscored.on_error == OnError::Stop => return Err(error.to_string()),
                Err(error) => {
                    *failed += 1;
                    *last = error.to_string();
                    scores.push(f64::NAN);
                }
            }
        }
        Ok(scores)
    }

    fn progress(&mut self, step: &'static str, done: usize, all: usize) {
        self.bar.set_message(step);
        self.bar.set_length(all.max(done) as u64);
        self.bar.set_position(done as u64);
    }
}

/// What became of the rows, a figure a line.
fn summary(plan: &PreparationPlan, report: &Report) -> String {
    let mut text = String::new();
    let mut figure = |name: &str, value: String| text += &format!("{name:<28}{value}\n");
    for source in &report.sources {
        figure(
            &source.name,
            format!("{} read, {} left, {} written", source.read, source.left, source.written),
        );
        if source.outside_split > 0 {
            figure("  outside of split", source.outside_split.to_string());
        }
        for (reason, count) in &source.skipped {
            figure(&format!("  skipped: {reason}"), count.to_string());
        }
        for (reason, count) in &source.dropped {
            figure(&format!("  dropped: {reason}"), count.to_string());
        }
        if source.left_over > 0 {
            figure("  left over by the mix", source.left_over.to_string());
        }
    }
    for (topic, count) in &report.topics {
        figure(&format!("topic {topic}"), count.to_string());
    }
    for (name, figures) in &report.scores {
        figure(
            &format!("score {name}"),
            format!("{:.4} to {:.4}, mean {:.4}", figures.min, figures.max, figures.mean),
        );
    }
    text + &format!("{}, {}\n", plan.output.display(), plan.report.display())
}
