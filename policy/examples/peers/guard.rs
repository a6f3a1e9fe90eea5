//! What bf16 changes: log-probabilities of sequences, a DPO curve, and the sampler against the trainer.

use std::sync::Arc;

use arriero_buffers::{Selection, SelectionConfig, Tree, select};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::{Compute, DtypeSpec};
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::objective::Algorithm;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::scoring::score_reference;
use arriero_policy::trainer::StepReport;
use serde_json::json;

use crate::data::{distinct_prompts, read_pairs, tree};
use crate::training::{PAIRS, lower_case_and_short, trainer, training};
use crate::{Figures, Given, Result};

/// Steps of the DPO curve.
const CURVE: usize = 50;

/// What a sequence's log-probability may be off by.
const NEAR: f64 = 0.005;

const PROMPTS: usize = 16;
const SAMPLES: usize = 8;
const MAX_NEW_TOKENS: usize = 128;

/// Everything in bf16 against the same in f32, from the same weights. Differences are relative.
pub fn guard(given: &Given) -> Result<Figures> {
    let mut figures = Figures::new();
    let bf16 = Compute::resolve(given.device, DtypeSpec::Bf16)?;
    let f32 = Compute::resolve(given.device, DtypeSpec::F32)?;
    let (logps, curve) = dpo(given, bf16)?;
    let (exact_logps, exact_curve) = dpo(given, f32)?;
    let mut put = |name: &str, value: f64| figures.insert(name.to_owned(), json!(value));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let differences = relative(&logps, &exact_logps);
    let near = differences.iter().filter(|&&difference| difference <= NEAR).count();
    put("logps_mean", mean(&differences));
    put("logps_max", most(&differences));
    put("logps_near", near as f64 / differences.len() as f64);
    for (step, (found, exact)) in curve.iter().zip(&exact_curve).enumerate() {
        eprintln!("step {}: {found:.6} in bf16, {exact:.6} in f32", step + 1);
    }
    let differences = relative(&curve, &exact_curve);
    put("curve_mean", mean(&differences));
    put("curve_max", most(&differences));
    put("curve_first", exact_curve[0]);
    put("curve_last", exact_curve[CURVE - 1]);
    for (name, value) in on_policy(given, bf16)?.metrics {
        if let Some(name) = name.strip_prefix("behaviour_") {
            put(&name.replace('/', "_"), value);
        }
    }
    Ok(figures)
}

/// |a − b| / |b| of each.
fn relative(values: &[f64], exact: &[f64]) -> Vec<f64> {
    values.iter().zip(exact).map(|(value, exact)| (value - exact).abs() / exact.abs()).collect()
}

/// The log-probability of every answer of the file under the initial weights, and the loss of each of [`CURVE`] DPO
/// steps on the file's pairs in their order, over and over.
fn dpo(given: &Given, compute: Compute) -> Result<(Vec<f64>, Vec<f64>)> {
    let pairs = read_pairs(&given.pairs)?;
    let mut checkpoint = Checkpoint::open(&given.model)?;
    let algorithm = Algorithm::Dpo(Default::default());
    let (mut trainer, reference) = trainer(compute, &checkpoint, &algorithm, training(), CURVE)?;
    checkpoint.weights.clear();
    let answers = pairs
        .iter()
        .enumerate()
        .map(|(id, pair)| tree(&checkpoint.tokenizer, id, &pair.prompt, &[&pair.chosen, &pair.rejected]));
    let mut trees: Vec<Tree> = answers.collect::<Result<_>>()?;
    score_reference(&reference, &mut trees, training().token_budget(&checkpoint.config, compute))?;
    let branches = trees.iter().flat_map(|tree| &tree.branches);
    let logps = branches.map(|branch| branch.reference_logps.iter().copied().map(f64::from).sum()).collect();
    let mut losses = Vec::with_capacity(CURVE);
    for step in 0..CURVE {
        let batch: Vec<&Tree> = trees.iter().cycle().skip(step * PAIRS).take(PAIRS).collect();
        losses.push(trainer.step(&batch)?.metrics["loss"]);
    }
    Ok((logps, losses))
}

/// A GRPO step on fresh samples: generator and trainer have the same weights.
fn on_policy(given: &Given, compute: Compute) -> Result<StepReport> {
    let prompts = distinct_prompts(&read_pairs(&given.pairs)?);
    let checkpoint = Checkpoint::open(&given.model)?;
    let algorithm = Algorithm::Grpo(Default::default());
    let (mut trainer, model) = trainer(compute, &checkpoint, &algorithm, training(), 1)?;
    let generation = GenerationConfig {
        sampling: SamplingConfig { max_new_tokens: MAX_NEW_TOKENS, ..SamplingConfig::default() },
        samples: SAMPLES,
        batch: PROMPTS * SAMPLES,
        seed: 0,
    };
    let mut generator = GroupSampler::new(model, 0, checkpoint.tokenizer.clone(), generation);
    for prompt in prompts.iter().take(PROMPTS) {
        generator.submit(Arc::clone(prompt))?;
    }
    let rule = algorithm.objective().needs().selection;
    let mut trees = Vec::new();
    for group in generator.run()? {
        let scored = lower_case_and_short(group);
        match select(&scored, rule, &SelectionConfig::default(), |token| {
            checkpoint.tokenizer.is_special(token)
        }) {
            Selection::Accepted(tree) => trees.push(tree),
            Selection::Dropped(reason) => return Err(format!("a group was dropped: {reason}").into()),
        }
    }
    Ok(trainer.step(&trees.iter().collect::<Vec<_>>())?)
}
