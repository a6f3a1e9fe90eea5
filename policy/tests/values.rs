//! Scalar heads: reward models and PPO's critic, against reference numbers and transformers.
//!
//! `vectors/README.md` says how the numbers were made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arriero_buffers::selection::WholeGroup;
use arriero_buffers::{Branch, Message, Role, Strength, Tree};
use arriero_policy::checkpoint::{Checkpoint, Weights, write_hf};
use arriero_policy::config::SCORE;
use arriero_policy::device::Compute;
use arriero_policy::lora::LoraConfig;
use arriero_policy::model::Model;
use arriero_policy::objective::{
    Algorithm, Critic, CriticKind, Loss, Metrics, MicroBatch, Needs, Objective, Statistics, TokenStatistics,
    Totals,
};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::reward_model::{self, Conversations, scores};
use arriero_policy::trainer::{Trainer, VALUE_HEAD};
use arriero_policy::written;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn tiny() -> Checkpoint {
    Checkpoint::open(&manifest("../tests/fixtures/tiny")).expect("it loads")
}

fn reward_model() -> Checkpoint {
    Checkpoint::open_reward_model(&manifest("tests/vectors/reward_model")).expect("it loads")
}

fn vectors() -> Value {
    let text = fs::read_to_string(manifest("tests/vectors/values.json")).expect("it is in the repository");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn single(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|number| number as f32).collect()
}

fn algorithm(config: &Value) -> Algorithm {
    let algorithm: Algorithm = serde_json::from_value(config.clone()).expect("a configuration");
    algorithm.validate().expect("valid");
    algorithm.resolved()
}

/// Trees with the statistics of their tokens.
#[derive(Default)]
struct Data {
    trees: Vec<Tree>,
    logps: Vec<f32>,
    entropies: Vec<f32>,
    values: Vec<f32>,
}

/// Loss, gradients with respect to log-probabilities, values and entropies, and metrics, in micro-batches of `size` trees.
fn evaluate(algorithm: &Algorithm, data: &Data, size: usize) -> (f64, [Vec<f64>; 3], BTreeMap<String, f64>) {
    let views: Vec<&Tree> = data.trees.iter().collect();
    let totals = Totals::of(&views);
    let mut objective = algorithm.objective();
    objective.check(&views).expect("it learns from them");
    objective.begin(&views);
    let (mut loss, mut gradients, mut metrics) =
        (0.0, [Vec::new(), Vec::new(), Vec::new()], Metrics::default());
    let mut start = 0;
    for piece in views.chunks(size) {
        let end = start + piece.iter().map(|tree| tree.loss_tokens()).sum::<usize>();
        let part = |values: &[f32]| if values.is_empty() { Vec::new() } else { values[start..end].to_vec() };
        let leaf = |values: &[f32]| Tensor::from_slice(&part(values)).set_requires_grad(true);
        let statistics = TokenStatistics {
            logps: leaf(&data.logps),
            entropies: leaf(&data.entropies),
            top1: Tensor::zeros_like(&leaf(&data.logps)),
            values: Some(leaf(&data.values)),
            teacher: None,
        };
        let share = objective.loss(&statistics, &MicroBatch { trees: piece, totals, batch: &views });
        share.value.backward();
        loss += share.value.double_value(&[]);
        metrics.merge(&share.metrics);
        let values = statistics.values.as_ref().expect("they are there");
        for (leaf, gradients) in
            [&statistics.logps, values, &statistics.entropies].into_iter().zip(&mut gradients)
        {
            let gradient = leaf.grad();
            let gradient = if gradient.defined() { gradient } else { leaf.zeros_like() };
            gradients.extend(Vec::<f64>::try_from(gradient.to_kind(Kind::Double)).expect("numbers"));
        }
        start = end;
    }
    (loss, gradients, metrics.values())
}

fn assert_close(what: &str, found: f64, expected: f64) {
    // What is a difference of f32 numbers around 1 has their digits.
    let error = (found - expected).abs() / expected.abs().max(0.01);
    assert!(error <= 1e-5, "{what}: found {found}, expected {expected}, relative error {error:.1e}");
}

fn assert_all_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1e-3 * largest).max(1e-6);
        assert!(
            error <= 1e-5,
            "{what}[{index}]: found {found}, expected {expected}, relative error {error:.1e}"
        );
    }
}

fn assert_metrics(what: &str, found: &BTreeMap<String, f64>, expected: &Value) {
    for (name, value) in expected.as_object().expect("metrics") {
        let found = found.get(name).unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_close(&format!("{what}: {name}"), *found, value.as_f64().expect("a number"));
    }
}

/// Scores stand at the last tokens of their responses, among others that count for nothing.
fn ranked(trees: &Value) -> Data {
    let mut data = Data::default();
    for (id, tree) in trees.as_array().expect("trees").iter().enumerate() {
        let mut branches = Vec::new();
        for (score, length) in numbers(&tree["scores"]).iter().zip(numbers(&tree["lengths"])) {
            data.values.extend(vec![9.0; length as usize - 1]);
            data.values.push(*score as f32);
            branches.push(Branch { tokens: vec![7; length as usize], ..Branch::default() });
        }
        let strength = tree["strength"].as_str().and_then(Strength::parse);
        let margin = tree["margin"].as_f64().map(|margin| margin as f32);
        data.trees.push(Tree {
            prompt_id: id as u64,
            prompt: vec![1],
            branches,
            strength,
            margin,
            ..Tree::default()
        });
    }
    data
}

#[test]
fn reward_models_equal_trl_however_the_batch_is_cut() {
    let vectors = vectors();
    let cases = vectors["reward_cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let data = ranked(&vectors["reward_data"][case["data"].as_str().expect("a name")]);
        for size in [1, 3, 100] {
            let what = format!("{} on {}, {size} trees at a time", case["config"], case["data"]);
            let (loss, [_, found, _], metrics) = evaluate(&algorithm(&case["config"]), &data, size);
            assert_close(&format!("{what}: loss"), loss, case["loss"].as_f64().expect("a number"));
            let mut expected = Vec::new();
            for (tree, gradients) in data.trees.iter().zip(case["gradients"].as_array().expect("gradients")) {
                for (branch, gradient) in tree.branches.iter().zip(numbers(gradients)) {
                    expected.extend(vec![0.0; branch.tokens.len() - 1]);
                    expected.push(gradient);
                }
            }
            assert_all_close(&format!("{what}: d scores"), &found, &expected);
            assert_metrics(&what, &metrics, &case["metrics"]);
        }
    }
}

fn samples(groups: &Value) -> Data {
    let mut data = Data::default();
    for (id, group) in groups.as_array().expect("groups").iter().enumerate() {
        let mut branches = Vec::new();
        for (sample, branch) in group.as_array().expect("branches").iter().enumerate() {
            data.logps.extend(single(&branch["logps"]));
            data.entropies.extend(single(&branch["entropies"]));
            data.values.extend(single(&branch["values"]));
            let old = single(&branch["old"]);
            branches.push(Branch {
                sample: sample as u32,
                tokens: vec![7; old.len()],
                is_format: vec![false; old.len()],
                // What the sampler says is not what counts.
                behaviour_logps: old.iter().map(|logp| logp - 0.5).collect(),
                reference_logps: single(&branch["reference"]),
                old_logps: old,
                old_values: single(&branch["old_values"]),
                reward: branch["reward"].as_f64().expect("a reward") as f32,
                truncated: branch["truncated"].as_bool().expect("a flag"),
                ..Branch::default()
            });
        }
        data.trees.push(Tree { prompt_id: id as u64, prompt: vec![1], branches, ..Tree::default() });
    }
    data
}

#[test]
fn ppo_equals_trl_however_the_batch_is_cut() {
    let vectors = vectors();
    let cases = vectors["ppo_cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 33);
    for case in cases {
        let data = samples(&vectors["ppo_data"][case["data"].as_str().expect("a name")]);
        for size in [1, 2, 100] {
            let what = format!("{} on {}, {size} trees at a time", case["config"], case["data"]);
            let (loss, [d_logps, d_values, d_entropies], metrics) =
                evaluate(&algorithm(&case["config"]), &data, size);
            assert_close(&format!("{what}: loss"), loss, case["loss"].as_f64().expect("a number"));
            assert_all_close(&format!("{what}: d logps"), &d_logps, &numbers(&case["d_logps"]));
            assert_all_close(&format!("{what}: d values"), &d_values, &numbers(&case["d_values"]));
            let expected = numbers(&case["d_entropies"]);
            let expected = if expected.is_empty() { vec![0.0; d_entropies.len()] } else { expected };
            assert_all_close(&format!("{what}: d entropies"), &d_entropies, &expected);
            assert_metrics(&what, &metrics, &case["metrics"]);
        }
    }
}

/// The tokens of the vectors' conversations.
fn conversations(checkpoint: &Checkpoint, vectors: &Value) -> Vec<Vec<u32>> {
    let message = |turn: &Value| {
        let role: Role = serde_json::from_value(turn[0].clone()).expect("a role");
        Message::new(role, turn[1].as_str().expect("a text"))
    };
    let tokens = |conversation: &Value| {
        let turns: Vec<Message> = conversation.as_array().expect("turns").iter().map(message).collect();
        let (prompt, answer) = turns.split_at(turns.len() - 1);
        let written = written::completions(&checkpoint.tokenizer, prompt, &[answer], &[Role::Assistant]);
        let (mut tokens, marked) = written.expect("tokens");
        tokens.extend(&marked[0].tokens);
        tokens
    };
    vectors["conversations"].as_array().expect("conversations").iter().map(tokens).collect()
}

fn all_scores(checkpoint: &Checkpoint, sequences: &[Vec<u32>], budget: usize) -> Vec<f64> {
    let model = Model::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32).expect("it fits");
    // Two sets, as if they were of two prompts.
    let set = |sequences: &[Vec<u32>]| Conversations { prompt_id: 0, sequences: sequences.to_vec() };
    let (some, others) = sequences.split_at(sequences.len() - 1);
    let scores = scores(&model, &[set(some), set(others)], budget).expect("scores");
    scores.into_iter().flatten().map(f64::from).collect()
}

#[test]
fn scores_equal_transformers_alone_and_packed_and_what_is_written_reads_the_same() {
    let (vectors, checkpoint) = (vectors(), reward_model());
    let sequences = conversations(&checkpoint, &vectors);
    let expected = numbers(&vectors["scores"]);
    let found = all_scores(&checkpoint, &sequences, usize::MAX);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
    }
    let alone = all_scores(&checkpoint, &sequences, 1);
    assert!(found.iter().zip(&alone).all(|(one, other)| (one - other).abs() < 1e-5), "{found:?}, {alone:?}");
    // What pads a text is not its end.
    let mut padded = sequences.clone();
    padded.iter_mut().for_each(|tokens| tokens.extend([0, 0]));
    assert_eq!(all_scores(&checkpoint, &padded, 1), alone);

    // A reward model that begins from a language model, for `make_values_vectors.py --check`.
    let tiny = tiny();
    let (config, weights) = reward_model::initial(&tiny.config, &tiny.weights, &tiny.tokenizer, 3);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reward-model");
    write_hf(&directory, &config, &tiny.tokenizer, &weights).expect("it is written");
    let again = Checkpoint::open_reward_model(&directory).expect("it loads");
    assert_eq!(again.config, config);
    let ours = Checkpoint { config, weights, tokenizer: tiny.tokenizer };
    let found = all_scores(&ours, &sequences, usize::MAX);
    assert_eq!(all_scores(&again, &sequences, usize::MAX), found);
    fs::write(directory.join("scores.json"), json!(found).to_string()).expect("it is written");
}

#[test]
fn the_heads_of_files_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |name: &str, edit: &dyn Fn(&mut Value, &mut Weights)| {
        let ours = reward_model();
        let directory = folder.path().join(name);
        let (mut config, mut weights) = (ours.config.to_hf_json(&[2], Some(1)), ours.weights);
        edit(&mut config, &mut weights);
        write_hf(&directory, &ours.config, &ours.tokenizer, &weights).expect("it is written");
        fs::write(directory.join("config.json"), config.to_string()).expect("it is written");
        Checkpoint::open_reward_model(&directory).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(copy("as-it-is", &|_, _| ()), Ok(()));
    let headless = copy("headless", &|_, weights| drop(weights.remove(SCORE))).expect_err("refused");
    assert!(
        headless.contains("is a reward model without a value head: it has no score.weight"),
        "{headless}"
    );
    let labels =
        copy("labels", &|config, _| config["id2label"] = json!({"0": "a", "1": "b"})).expect_err("refused");
    assert!(labels.contains("a classifier of 2 labels (id2label) is not supported"), "{labels}");
    let wide = copy("wide", &|_, weights| {
        weights.insert(SCORE.to_string(), Tensor::zeros([2, 32], (Kind::Float, tch::Device::Cpu)));
    });
    assert!(wide.expect_err("refused").contains("score.weight has the shape [2, 32], expected [1, 32]"));

    let language = Checkpoint::open_reward_model(&manifest("../tests/fixtures/tiny")).expect_err("refused");
    assert!(language.to_string().contains("without a value head"), "{language}");
    let reward = Checkpoint::open(&manifest("tests/vectors/reward_model")).expect_err("refused");
    assert!(reward.to_string().contains("is a reward model, which gives scores and no tokens"), "{reward}");
}

fn training(learning_rate: f64) -> TrainingConfig {
    TrainingConfig {
        learning_rate,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        max_grad_norm: 1e9,
        ..TrainingConfig::default()
    }
}

fn tree(id: u64, prompt: &[u32], responses: &[&[u32]]) -> Tree {
    let branch = |tokens: &&[u32]| Branch {
        tokens: tokens.to_vec(),
        is_format: vec![false; tokens.len()],
        behaviour_logps: vec![-1.0; tokens.len()],
        reference_logps: vec![-1.0; tokens.len()],
        ..Branch::default()
    };
    Tree {
        prompt_id: id,
        prompt: prompt.to_vec(),
        branches: responses.iter().map(branch).collect(),
        ..Tree::default()
    }
}

#[test]
fn the_gradient_of_a_pair_equals_pytorch() {
    let (vectors, checkpoint) = (vectors(), reward_model());
    let sequences = conversations(&checkpoint, &vectors);
    let shared = sequences[0].iter().zip(&sequences[1]).take_while(|(one, other)| one == other).count();
    let pair = tree(0, &sequences[0][..shared], &[&sequences[0][shared..], &sequences[1][shared..]]);
    for checkpointing in [false, true] {
        let training = TrainingConfig { activation_checkpointing: checkpointing, ..training(0.0) };
        let objective = algorithm(&json!({ "kind": "reward_model" })).objective();
        let mut trainer =
            Trainer::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32, objective, training, 1)
                .expect("it fits");
        let report = trainer.step(&[&pair]).expect("a step");
        let loss = vectors["pair"]["loss"].as_f64().expect("a number");
        assert!((report.metrics["loss"] - loss).abs() < 1e-4, "{:?}", report.metrics);
        let gradients = trainer.gradients();
        let norms = vectors["pair"]["norms"].as_object().expect("norms");
        assert_eq!(gradients.keys().collect::<Vec<_>>(), norms.keys().collect::<Vec<_>>());
        for (name, norm) in norms {
            let (found, norm) = (gradients[name].norm().double_value(&[]), norm.as_f64().expect("a number"));
            assert!((found - norm).abs() < 1e-4 * norm, "{name}: {found}, not {norm}");
        }
        let found =
            Vec::<f64>::try_from(gradients[SCORE].flatten(0, -1).to_kind(Kind::Double)).expect("numbers");
        for (found, expected) in found.iter().zip(numbers(&vectors["pair"]["score"])) {
            assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
        }
    }
}

/// Σ c_t v_t, with c_t that differ from token to token.
struct ValueSum(CriticKind);

impl Objective for ValueSum {
    fn needs(&self) -> Needs {
        let critic = Critic { kind: self.0, learning_rate: None };
        let group = WholeGroup { least: 1, drop_equal: false };
        Needs { statistics: Statistics::ProbabilitiesAndValues(critic), ..Needs::of(group) }
    }

    fn loss(&self, statistics: &TokenStatistics, _: &MicroBatch<'_>) -> Loss {
        let values = statistics.values.as_ref().expect("they were asked for");
        let factors = (Tensor::arange(values.size()[0], (Kind::Float, values.device())) * 0.7).sin();
        let value = (values * factors).sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("sum", value.double_value(&[]), 1.0);
        Loss { value, metrics }
    }
}

/// A head of every shape against differences of the loss.
#[test]
fn gradients_of_values_equal_differences() {
    let tiny = tiny();
    let tree = tree(0, &[1, 10, 20], &[&[40, 41, 42], &[50, 51]]);
    let head = Tensor::arange(32, (Kind::Float, tch::Device::Cpu)).cos().view([1, 32]);
    let norm = "model.layers.1.post_attention_layernorm.weight";
    for kind in [CriticKind::Shared, CriticKind::Model] {
        let (policy, mut critic) = (&tiny.weights, Weights::new());
        if kind == CriticKind::Model {
            critic = policy.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
        }
        let own = if kind == CriticKind::Model { SCORE } else { VALUE_HEAD };
        critic.insert(own.to_string(), head.copy());
        let trainer = |policy: &Weights, critic: &Weights| {
            Trainer::new(&tiny.config, policy, Compute::CPU_F32, Box::new(ValueSum(kind)), training(0.0), 1)
                .and_then(|trainer| trainer.with_critic(critic))
                .expect("it fits")
        };
        let mut analytic = trainer(policy, &critic);
        analytic.step(&[&tree]).expect("a step");
        let gradients = analytic.gradients();
        let learns = match kind {
            CriticKind::Shared => norm.to_string(),
            CriticKind::Model => format!("critic.{norm}"),
        };
        for (name, index) in [(learns.as_str(), 5), (&format!("critic.{own}"), 3)] {
            let of = match name.strip_prefix("critic.") {
                Some(name) => critic[name].shallow_clone(),
                None => policy[name].shallow_clone(),
            };
            let at = |difference: f64| {
                let mut entry = of.view([-1]).narrow(0, index, 1);
                entry += difference;
                let sum = trainer(policy, &critic).evaluate(&[&tree]).expect("metrics")["sum"];
                entry -= difference;
                sum
            };
            let expected = (at(0.01) - at(-0.01)) / 0.02;
            let found = gradients[name].view([-1]).double_value(&[index]);
            assert!(
                (found - expected).abs() < 0.02 * expected.abs().max(0.1),
                "{name}: {found}, not {expected}"
            );
        }
        if kind == CriticKind::Model {
            assert_eq!(
                gradients[norm].abs().max().double_value(&[]),
                0.0,
                "the policy does not learn from values"
            );
        }
    }
}

/// Pairs whose better response has a token 60, in the place of a token 61.
fn preferences(from: u64, count: u64) -> Vec<Tree> {
    let pair = |id: u64| {
        let (prompt, filler) = (vec![1, 100 + (id % 37) as u32], 150 + (id % 53) as u32);
        tree(id, &prompt, &[&[filler, 60, 2], &[filler, 61, 2]])
    };
    (from..from + count).map(pair).collect()
}

#[test]
fn a_reward_models_accuracy_rises_with_and_without_adapters() {
    let tiny = tiny();
    let (config, weights) = reward_model::initial(&tiny.config, &tiny.weights, &tiny.tokenizer, 4);
    let (train, test) = (preferences(0, 32), preferences(1000, 40));
    let test: Vec<&Tree> = test.iter().collect();
    for lora in
        [None, Some(LoraConfig { target_modules: vec!["all-linear".into()], ..LoraConfig::default() })]
    {
        let adapts = lora.is_some();
        let objective = algorithm(&json!({ "kind": "reward_model" })).objective();
        let training = TrainingConfig { lora, ..training(3e-3) };
        let mut trainer =
            Trainer::new(&config, &weights, Compute::CPU_F32, objective, training, 24).expect("it fits");
        let before = trainer.evaluate(&test).expect("metrics");
        for batch in train.chunks(8).cycle().take(24) {
            trainer.step(&batch.iter().collect::<Vec<_>>()).expect("a step");
        }
        let after = trainer.evaluate(&test).expect("metrics");
        assert!(
            after["accuracy"] >= 0.95 && after["margin"] > before["margin"] + 0.5,
            "{before:?}, {after:?}"
        );
        assert!(after["loss"] < 0.5 * before["loss"], "{before:?}, {after:?}");
        // The weights that it gives away are those that it scores with.
        let model = trainer.snapshot(0).model().expect("a model");
        let sequence = |branch: &Branch| [&test[0].prompt[..], &branch.tokens].concat();
        let sequences: Vec<Vec<u32>> = test[0].branches.iter().map(sequence).collect();
        let set = Conversations { prompt_id: 0, sequences };
        let scores = scores(&model, &[set], usize::MAX).expect("scores").remove(0);
        let one = trainer.evaluate(&test[..1]).expect("metrics");
        assert!((f64::from(scores[0] - scores[1]) - one["margin"]).abs() < 1e-4, "{scores:?}, {one:?}");
        let again = Model::new(&config, &trainer.weights(), Compute::CPU_F32).expect("it fits");
        assert_eq!(model.score().expect("a head"), again.score().expect("a head"));
        let has_moved = trainer.weights()[SCORE] != weights[SCORE];
        assert!(has_moved, "the head learns beside adapters, too ({adapts})");
    }
}

#[test]
fn an_objective_and_a_model_of_different_heads_are_refused() {
    let (tiny, ours) = (tiny(), reward_model());
    let new = |checkpoint: &Checkpoint, kind: &str| {
        let objective = algorithm(&json!({ "kind": kind })).objective();
        let (config, weights) = (&checkpoint.config, &checkpoint.weights);
        Trainer::new(config, weights, Compute::CPU_F32, objective, training(0.0), 1).map(|_| ())
    };
    assert!(new(&tiny, "reward_model").expect_err("no head").to_string().contains(SCORE));
    assert!(new(&ours, "sft").expect_err("no head").to_string().contains("lm_head.weight"));
}
