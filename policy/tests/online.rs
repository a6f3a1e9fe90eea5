//! The critic-free online algorithms: against reference numbers, on fresh samples, and whether they learn.
//!
//! `vectors/README.md` says how the numbers were made.

#[path = "../examples/plain_loop.rs"]
mod plain_loop;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_buffers::{Branch, Message, Prompt, ScoredGroup, Selection, SelectionConfig, Tree, select};
use arriero_policy::checkpoint::{Checkpoint, Weights};
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::objective::{Algorithm, Metrics, MicroBatch, TokenStatistics, Totals};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::trainer::Trainer;
use arriero_reward::RewardConfig;
use plain_loop::{Settings, plain_loop};
use serde_json::{Value, json};
use tch::Tensor;

const TINY: &str = "../tests/fixtures/tiny";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY)
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/online.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the vectors are in the repository")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn single(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|number| number as f32).collect()
}

fn algorithm(config: Value) -> Algorithm {
    serde_json::from_value(config).expect("a configuration")
}

/// A data set of the vectors, and the statistics that go with it.
fn batch(data: &Value, has_old: bool) -> (Vec<Tree>, Vec<f32>, Vec<f32>) {
    let (mut trees, mut logps, mut entropies) = (Vec::new(), Vec::new(), Vec::new());
    for (id, group) in data.as_array().expect("groups").iter().enumerate() {
        let mut branches = Vec::new();
        for (sample, branch) in group["branches"].as_array().expect("branches").iter().enumerate() {
            logps.extend(single(&branch["logps"]));
            entropies.extend(single(&branch["entropies"]));
            let sampled = single(&branch["sampled"]);
            branches.push(Branch {
                sample: sample as u32,
                tokens: vec![7; sampled.len()],
                is_format: vec![false; sampled.len()],
                behaviour_logps: sampled,
                reference_logps: single(&branch["reference"]),
                old_logps: if has_old { single(&branch["old"]) } else { Vec::new() },
                reward: branch["reward"].as_f64().expect("a reward") as f32,
                truncated: branch["truncated"].as_bool().expect("a flag"),
                ..Branch::default()
            });
        }
        let greedy_reward = group["greedy_reward"].as_f64().map(|reward| reward as f32);
        trees.push(Tree {
            prompt_id: id as u64,
            prompt: vec![1],
            branches,
            greedy_reward,
            ..Tree::default()
        });
    }
    (trees, logps, entropies)
}

/// Loss, its gradients with respect to log-probabilities and entropies, and metrics; in micro-batches of `size` trees.
fn evaluate(
    algorithm: &Algorithm,
    (trees, logps, entropies): &(Vec<Tree>, Vec<f32>, Vec<f32>),
    size: usize,
) -> (f64, Vec<f64>, Vec<f64>, BTreeMap<String, f64>) {
    let views: Vec<&Tree> = trees.iter().collect();
    let totals = Totals::of(&views);
    let objective = algorithm.objective();
    let (mut loss, mut d_logps, mut d_entropies) = (0.0, Vec::new(), Vec::new());
    let mut metrics = Metrics::default();
    let mut start = 0;
    for piece in views.chunks(size) {
        let end = start + piece.iter().map(|tree| tree.response_tokens()).sum::<usize>();
        let leaf = |values: &[f32]| Tensor::from_slice(&values[start..end]).set_requires_grad(true);
        let statistics = TokenStatistics {
            logps: leaf(logps),
            entropies: leaf(entropies),
            top1: Tensor::zeros_like(&leaf(logps)),
            values: None,
            teacher: None,
        };
        let share = objective.loss(&statistics, &MicroBatch { trees: piece, totals, batch: &views });
        share.value.backward();
        loss += share.value.double_value(&[]);
        metrics.merge(&share.metrics);
        for (leaf, gradients) in
            [(&statistics.logps, &mut d_logps), (&statistics.entropies, &mut d_entropies)]
        {
            let gradient = leaf.grad();
            let gradient = if gradient.defined() { gradient } else { leaf.zeros_like() };
            gradients.extend(Vec::<f64>::try_from(gradient.to_kind(tch::Kind::Double)).expect("numbers"));
        }
        start = end;
    }
    (loss, d_logps, d_entropies, metrics.values())
}

fn assert_all_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected.abs().max(1e-3 * largest).max(1e-6);
        let error = (found - expected).abs() / scale;
        assert!(
            error <= 1e-5,
            "{what}[{index}]: found {found}, expected {expected}, relative error {error:.1e}"
        );
    }
}

#[test]
fn losses_gradients_and_metrics_equal_the_references_however_the_batch_is_cut() {
    let vectors = vectors();
    let length = vectors["max_completion_length"].as_u64().expect("a length") as usize;
    let cases = vectors["cases"].as_array().expect("cases");
    assert!(cases.len() >= 50);
    for case in cases {
        let mut algorithm = algorithm(case["config"].clone());
        algorithm.validate().expect("valid");
        algorithm.fit(length);
        let algorithm = algorithm.resolved();
        let name = case["data"].as_str().expect("a name");
        let data = batch(&vectors["data"][name], algorithm.objective().needs().old);
        for size in [1, 2, 100] {
            let what = |part: &str| format!("{} on {name}, {size} trees at a time: {part}", case["config"]);
            let (loss, d_logps, d_entropies, metrics) = evaluate(&algorithm, &data, size);
            // A loss is a difference of f32 numbers around 1: where they cancel, its digits are theirs.
            let expected = case["loss"].as_f64().expect("a number");
            let error = (loss - expected).abs() / expected.abs().max(0.01);
            assert!(error <= 1e-5, "{}: found {loss}, expected {expected}", what("loss"));
            assert_all_close(&what("d logps"), &d_logps, &numbers(&case["d_logps"]));
            let expected = numbers(&case["d_entropies"]);
            let expected = if expected.is_empty() { vec![0.0; d_entropies.len()] } else { expected };
            assert_all_close(&what("d entropies"), &d_entropies, &expected);
            for (metric, value) in case["metrics"].as_object().expect("metrics") {
                let found =
                    metrics.get(metric).unwrap_or_else(|| panic!("{}", what(&format!("no {metric}"))));
                let expected = value.as_f64().expect("a number");
                let error = (found - expected).abs() / expected.abs().max(0.01);
                assert!(error <= 1e-5, "{}: found {found}, expected {expected}", what(metric));
            }
        }
    }
}

fn prompts() -> Vec<Arc<Prompt>> {
    (0..96)
        .map(|id| Prompt { id, messages: vec![Message::user(format!("Say {id}."))], checks: Value::Null })
        .map(Arc::new)
        .collect()
}

fn generation(temperature: f64) -> GenerationConfig {
    let sampling = SamplingConfig { max_new_tokens: 6, temperature, ..SamplingConfig::default() };
    GenerationConfig { sampling, samples: 6, batch: 96, seed: 3 }
}

/// Whether an answer has an "e".
fn reward() -> RewardConfig {
    serde_json::from_value(json!({ "kind": "contains", "text": "e" })).expect("a scorer")
}

fn scored(weights: &Weights, prompts: &[Arc<Prompt>], config: GenerationConfig) -> Vec<ScoredGroup> {
    let tiny = Checkpoint::open(&tiny()).expect("it loads");
    let model = Model::new(&tiny.config, weights, Compute::CPU_F32).expect("it fits");
    let mut generator = GroupSampler::new(model, 0, tiny.tokenizer, config);
    for prompt in prompts {
        generator.submit(Arc::clone(prompt)).expect("it fits");
    }
    let mut scorer = reward().build().expect("a scorer");
    let groups = generator.run().expect("groups");
    groups
        .into_iter()
        .map(|group| ScoredGroup { scores: scorer.score(&group).expect("scores"), group })
        .collect()
}

/// The first step on fresh samples, tempered or not: π = π_old, so nothing is clipped.
#[test]
fn ratios_are_one_on_fresh_samples() {
    let tiny = Checkpoint::open(&tiny()).expect("it loads");
    for temperature in [1.0, 0.7] {
        let groups = scored(&tiny.weights, &prompts()[..8], generation(temperature));
        for config in [
            json!({ "kind": "grpo", "epsilon": 1e-4, "importance_sampling_mode": "token_truncate" }),
            json!({ "kind": "gspo" }),
            json!({ "kind": "cispo", "epsilon_high": 1.0001 }),
            json!({ "kind": "rloo", "beta": 0.0, "epsilon": 1e-3 }),
            json!({ "kind": "reinforce_pp", "beta": 0.0, "epsilon": 1e-4 }),
            json!({ "kind": "ppo", "kl_coef": 0.0, "cliprange": 1e-6 }),
            json!({ "kind": "ppo", "critic": "model", "kl_coef": 0.0, "cliprange": 1e-6 }),
        ] {
            let algorithm = algorithm(config.clone());
            let rule = algorithm.objective().needs().selection;
            let mut trees: Vec<Tree> = groups
                .iter()
                .map(|group| match select(group, rule, &SelectionConfig::default(), |_| false) {
                    Selection::Accepted(tree) => tree,
                    Selection::Dropped(reason) => panic!("dropped: {reason}"),
                })
                .collect();
            let (objective, training) = (algorithm.objective(), TrainingConfig::default());
            let mut trainer =
                Trainer::new(&tiny.config, &tiny.weights, Compute::CPU_F32, objective, training, 1)
                    .expect("it fits");
            trees.iter_mut().for_each(|tree| trainer.score_old(tree).expect("it fits"));
            let report = trainer.step(&trees.iter().collect::<Vec<_>>()).expect("a step");
            for (name, value) in &report.metrics {
                let is_ratio = name == "val/ratio"
                    || name.starts_with("ratio/")
                    || name.starts_with("sampling/importance_sampling_ratio/");
                assert!(!is_ratio || (value - 1.0).abs() < 1e-4, "{config}: {name} is {value}");
                assert!(!name.contains("clip_ratio") || *value == 0.0, "{config}: {name} is {value}");
            }
            assert!(report.metrics.contains_key("ratio/max"), "{config}: no ratio");
        }
    }
}

fn share_of_rewarded(weights: &Weights) -> f64 {
    // Prompts and random numbers that training does not see.
    let config = GenerationConfig { seed: 99, ..generation(1.0) };
    let groups = scored(weights, &prompts()[..16], config);
    let rewards: Vec<f32> = groups.iter().flat_map(|group| group.rewards().collect::<Vec<_>>()).collect();
    rewards.iter().map(|&reward| f64::from(reward)).sum::<f64>() / rewards.len() as f64
}

#[test]
fn every_online_algorithm_raises_a_simple_reward() {
    let tiny_weights = Checkpoint::open(&tiny()).expect("it loads").weights;
    let before = share_of_rewarded(&tiny_weights);
    assert!(before < 0.6, "too easy: {before}");
    let prompts = prompts();
    for config in [
        json!({ "kind": "grpo" }),
        json!({ "kind": "grpo", "loss_type": "grpo", "beta": 0.01, "importance_sampling_mode": "sequence_mask" }),
        json!({ "kind": "dr_grpo" }),
        json!({ "kind": "dapo" }),
        json!({ "kind": "gspo", "epsilon": 0.2, "epsilon_high": 0.2 }),
        json!({ "kind": "cispo" }),
        json!({ "kind": "rloo" }),
        json!({ "kind": "reinforce_pp" }),
        json!({ "kind": "reinforce_pp", "baseline": true }),
        json!({ "kind": "remax" }),
        json!({ "kind": "ppo", "vf_coef": 1.0 }),
        json!({ "kind": "ppo", "vf_coef": 1.0, "critic": "model", "kl": "loss", "critic_learning_rate": 1e-3 }),
        json!({ "kind": "online_dpo" }),
    ] {
        let mut algorithm = algorithm(config.clone());
        algorithm.fit(6);
        let settings = Settings {
            algorithm,
            training: TrainingConfig {
                learning_rate: 1e-2,
                schedule: Schedule::Constant,
                warmup_ratio: 0.0,
                batch_size: 8,
                ..TrainingConfig::default()
            },
            generation: generation(1.0),
            selection: SelectionConfig::default(),
            reward: reward(),
            rounds: 6,
        };
        let weights = plain_loop(&tiny(), Compute::CPU_F32, &prompts, &settings).expect("the loop");
        let after = share_of_rewarded(&weights);
        println!("{config}: {before:.3} to {after:.3}");
        assert!(after > before + 0.15, "{config}: from {before} to {after}");
    }
}
