//! Training: DPO, GRPO, packed SFT.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{Group, Message, Score, ScoredGroup, Selection, SelectionConfig, Tree, select};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::objective::Algorithm;
use arriero_policy::optim::TrainingConfig;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::scoring::score_reference;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::trainer::Trainer;
use serde_json::json;

use crate::data::{distinct_prompts, read_pairs, tree};
use crate::{Figures, Given, Result, figures, flops, timed};

pub const PAIRS: usize = 8;

const PROMPTS: usize = 4;
const COMPLETIONS: usize = 8;
const MAX_NEW_TOKENS: usize = 64;

/// Tokens of the packed SFT steps.
const PACKED: [usize; 4] = [512, 1024, 2048, 4096];

/// The rate of the other toolkits' scripts; all else is what a user gets who sets nothing.
pub fn training() -> TrainingConfig {
    TrainingConfig { learning_rate: 1e-6, ..TrainingConfig::default() }
}

/// A trainer, and a frozen model of the weights that it starts from.
pub fn trainer(
    compute: Compute,
    checkpoint: &Checkpoint,
    algorithm: &Algorithm,
    training: TrainingConfig,
    steps: usize,
) -> Result<(Trainer, Model)> {
    let Checkpoint { config, weights, .. } = checkpoint;
    let handles = weights.iter().map(|(name, weight)| (name.clone(), weight.shallow_clone())).collect();
    let initial = Snapshot::new(0, config.clone(), compute.master(), handles).in_precision(compute);
    let trainer = Trainer::new(config, weights, compute, algorithm.objective(), training, steps)?;
    Ok((trainer, initial.model()?.packed()))
}

/// DPO steps on the file's pairs in their order, eight a step.
pub fn dpo(given: &Given) -> Result<Figures> {
    let pairs = read_pairs(&given.pairs)?;
    let mut checkpoint = Checkpoint::open(&given.model)?;
    let algorithm = Algorithm::Dpo(Default::default());
    let (mut trainer, reference) =
        trainer(given.compute()?, &checkpoint, &algorithm, training(), given.steps as usize + 1)?;
    checkpoint.weights.clear();
    let budget = training().token_budget(&checkpoint.config, given.compute()?);
    let (mut seconds, mut tokens, mut arithmetic) = (Vec::new(), 0, 0.0);
    for step in 0..=given.steps as usize {
        let pairs = pairs.iter().enumerate().cycle().skip(step * PAIRS).take(PAIRS);
        let answers = pairs
            .map(|(id, pair)| tree(&checkpoint.tokenizer, id, &pair.prompt, &[&pair.chosen, &pair.rejected]));
        let mut trees: Vec<Tree> = answers.collect::<Result<_>>()?;
        let (time, report) = timed(given.compute()?.device, || {
            score_reference(&reference, &mut trees, budget)?;
            trainer.step(&trees.iter().collect::<Vec<_>>())
        });
        let report = report?;
        if step > 0 {
            seconds.push(time);
            tokens += report.tokens;
            // Forward, backward at twice its cost, and the reference's forward.
            arithmetic += 4.0 * flops::forward(&checkpoint.config, &trees);
        }
    }
    let rate = arithmetic / seconds.iter().map(|time| time.as_secs_f64()).sum::<f64>();
    let mut figures = figures(seconds, tokens);
    figures.insert("useful_gflops".to_owned(), json!(1e-9 * rate));
    Ok(figures)
}

/// GRPO iterations: sample, score, score under the reference, update, publish.
pub fn grpo(given: &Given, algorithm: &str) -> Result<Figures> {
    let refused = |error| format!("--algorithm {algorithm}: {error}");
    let algorithm: Algorithm = serde_json::from_str(algorithm).map_err(|error| refused(error.to_string()))?;
    algorithm.validate().map_err(refused)?;
    let prompts = distinct_prompts(&read_pairs(&given.pairs)?);
    let mut checkpoint = Checkpoint::open(&given.model)?;
    let (mut trainer, reference) =
        trainer(given.compute()?, &checkpoint, &algorithm, training(), given.steps as usize + 1)?;
    checkpoint.weights.clear();
    let budget = training().token_budget(&checkpoint.config, given.compute()?);
    let needs = algorithm.objective().needs();
    let selection = SelectionConfig { min_reward: f32::NEG_INFINITY, ..SelectionConfig::default() };
    let (mut seconds, mut tokens) = (Vec::new(), 0);
    let mut newest = trainer.snapshot(0);
    for step in 0..=given.steps as usize {
        let (time, report) = timed(given.compute()?.device, || -> Result<_> {
            let generation = GenerationConfig {
                sampling: SamplingConfig { max_new_tokens: MAX_NEW_TOKENS, ..SamplingConfig::default() },
                samples: COMPLETIONS,
                batch: PROMPTS * COMPLETIONS,
                seed: step as u64,
            };
            let tokenizer = checkpoint.tokenizer.clone();
            let mut generator = GroupSampler::new(newest.model()?, newest.version(), tokenizer, generation);
            for prompt in prompts.iter().cycle().skip(step * PROMPTS).take(PROMPTS) {
                generator.submit(Arc::clone(prompt))?;
            }
            let mut trees = Vec::new();
            for group in generator.run()? {
                let scored = lower_case_and_short(group);
                let is_format = |token| checkpoint.tokenizer.is_special(token);
                match select(&scored, needs.selection, &selection, is_format) {
                    Selection::Accepted(tree) => trees.push(tree),
                    Selection::Dropped(reason) => {
                        return Err(format!("a group was dropped: {reason}").into());
                    }
                }
            }
            if needs.reference {
                score_reference(&reference, &mut trees, budget)?;
            }
            let report = trainer.step(&trees.iter().collect::<Vec<_>>())?;
            newest = trainer.snapshot(step as u32 + 1);
            Ok(report)
        });
        let report = report?;
        if step > 0 {
            seconds.push(time);
            tokens += report.tokens;
        }
    }
    Ok(figures(seconds, tokens))
}

/// Scored by the same reward as in TRL's script: 1 for lower case, less the distance from 120 characters.
pub fn lower_case_and_short(group: Group) -> ScoredGroup {
    let score = |text: &str| {
        // Python's islower: a letter in lower case, and none in upper case.
        let lower = text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase);
        let length = text.chars().count() as f32;
        Score {
            reward: f32::from(u8::from(lower)) - (length - 120.0).abs() / 120.0,
            components: BTreeMap::new(),
        }
    };
    ScoredGroup {
        scores: group.completions.iter().map(|completion| score(&completion.text)).collect(),
        group,
    }
}

/// SFT steps on a growing number of packed tokens, all of them in one forward and backward pass. `proportional` is
/// the time of the largest step against that of the smallest, scaled by its tokens.
pub fn packed_sft(given: &Given) -> Result<Figures> {
    let pairs = read_pairs(&given.pairs)?;
    let checkpoint = Checkpoint::open(&given.model)?;
    let algorithm = Algorithm::Sft(Default::default());
    let mut all = Figures::new();
    let mut times = Vec::new();
    for size in PACKED {
        let training = TrainingConfig { micro_batch_tokens: Some(2 * size), ..training() };
        let (mut trainer, _) =
            trainer(given.compute()?, &checkpoint, &algorithm, training, given.steps as usize + 1)?;
        let answers = pairs.iter().map(|pair| (&pair.prompt[..], &pair.chosen[..]));
        let trees = packed(&checkpoint, answers, size)?;
        let views: Vec<&Tree> = trees.iter().collect();
        let (mut seconds, mut tokens) = (Vec::new(), 0);
        for step in 0..=given.steps {
            let (time, report) = timed(given.compute()?.device, || trainer.step(&views));
            let report = report?;
            if step > 0 {
                seconds.push(time);
                tokens += report.tokens;
            }
        }
        let figures = figures(seconds, tokens);
        times.push(figures["seconds_per_step"].as_f64().unwrap_or(f64::NAN) / size as f64);
        all.insert(format!("seconds_{size}"), figures["seconds_per_step"].clone());
    }
    all.insert("proportional".to_owned(), json!(times[times.len() - 1] / times[0]));
    Ok(all)
}

/// Trees with `size` input tokens together: the answers in turn, the last one cut to fit.
fn packed<'a>(
    checkpoint: &Checkpoint,
    answers: impl Iterator<Item = (&'a [Message], &'a [Message])> + Clone,
    size: usize,
) -> Result<Vec<Tree>> {
    let (mut trees, mut left) = (Vec::new(), size);
    for (id, (prompt, answer)) in answers.cycle().enumerate() {
        let mut tree = tree(&checkpoint.tokenizer, id, prompt, &[answer])?;
        tree.prompt.truncate(left);
        left -= tree.prompt.len();
        for branch in &mut tree.branches {
            // The last token of a response is no input.
            branch.tokens.truncate(left + 1);
            branch.is_format.truncate(left + 1);
            branch.behaviour_logps.truncate(left + 1);
            left -= branch.tokens.len() - 1;
        }
        trees.push(tree);
        if left == 0 {
            break;
        }
    }
    Ok(trees)
}
