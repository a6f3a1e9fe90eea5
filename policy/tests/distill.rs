//! The online algorithms that have a second model beside the policy: against reference numbers, how their samples are drawn,
//! and whether they learn.
//!
//! `vectors/README.md` says how the numbers were made.

#[path = "../examples/plain_loop.rs"]
mod plain_loop;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use arriero_buffers::{Branch, Group, Message, Prompt, SelectionConfig, Tree};
use arriero_policy::checkpoint::{Checkpoint, Weights, write_hf};
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::head::{Output, divergence};
use arriero_policy::kernels::Weight;
use arriero_policy::model::Model;
use arriero_policy::objective::{
    Algorithm, Divergence, Metrics, MicroBatch, TeacherStatistics, TokenStatistics, Totals,
};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::scoring::{response_logps, token_kl};
use arriero_policy::teacher;
use arriero_policy::trainer::Trainer;
use arriero_reward::RewardConfig;
use plain_loop::{Settings, plain_loop};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn tiny_path() -> PathBuf {
    manifest("../tests/fixtures/tiny")
}

fn tiny() -> Checkpoint {
    Checkpoint::open(&tiny_path()).expect("it loads")
}

fn model_of(weights: &Weights) -> Model {
    Model::new(&tiny().config, weights, Compute::CPU_F32).expect("it fits")
}

fn vectors() -> Value {
    let text = fs::read_to_string(manifest("tests/vectors/distill.json")).expect("it is in the repository");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn single(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|number| number as f32).collect()
}

fn flat(matrix: &Value) -> Vec<f64> {
    matrix.as_array().expect("rows").iter().flat_map(numbers).collect()
}

fn doubles(value: &Value) -> Tensor {
    let rows = value.as_array().expect("rows").len() as i64;
    Tensor::from_slice(&flat(value)).view([rows, -1])
}

fn matrix(value: &Value) -> Tensor {
    doubles(value).to_kind(Kind::Float)
}

fn entries(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).expect("numbers")
}

fn algorithm(config: &Value) -> Algorithm {
    let algorithm: Algorithm = serde_json::from_value(config.clone()).expect("a configuration");
    algorithm.validate().expect("valid");
    algorithm.resolved()
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

/// Gradients of rows: sums over the vocabulary, whose terms cancel, so that a row is measured by its length.
fn assert_rows_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let lengths = |rows: &Tensor| entries(&rows.square().sum_dim_intlist(1, false, Kind::Double).sqrt());
    let errors = lengths(&(found.to_kind(Kind::Double) - expected));
    let sizes = lengths(expected);
    for (row, (error, size)) in errors.iter().zip(sizes).enumerate() {
        // Where both models are certain, the gradient is 0 but for the rounding of numbers around 1.
        assert!(*error <= 1e-5 * size.max(0.01), "{what}, row {row}: off by {error} of {size}");
    }
}

/// Rows as they stand, and many times over, so that they fill more than a chunk.
#[test]
fn divergences_and_their_gradients_equal_trl() {
    let vectors = vectors();
    let rows = &vectors["rows"];
    let many = |tensor: Tensor, times: i64| tensor.repeat([times, 1]);
    for times in [1, 30] {
        let hidden = many(matrix(&rows["hidden"]), times);
        let theirs = many(matrix(&rows["teacher_hidden"]), times);
        let output = matrix(&rows["output"]);
        let side = |value: Tensor| Output::new(Weight::plain(value));
        let (ours, their_output) = (side(output.shallow_clone()), side(matrix(&rows["teacher_output"])));
        let targets: Vec<i64> = numbers(&rows["targets"]).into_iter().map(|number| number as i64).collect();
        let targets = Tensor::from_slice(&targets).repeat([times]);
        let weights = Tensor::from_slice(&single(&rows["weights"])).repeat([times]);
        let cases = vectors["divergences"].as_array().expect("cases");
        assert_eq!(cases.len(), 15);
        for case in cases {
            let number = |name: &str| case[name].as_f64().expect("a number");
            let options = Divergence { beta: number("beta"), temperature: number("temperature") };
            let (policy, teacher) = ((&hidden, &ours), (&theirs, &their_output));
            let what = |part: &str| format!("{options:?}, {times} times: {part}");
            let found = divergence::statistics(policy, teacher, &targets, options);
            let repeated = |values: Vec<f64>| values.repeat(times as usize);
            let expected = repeated(numbers(&case["divergences"]));
            assert_all_close(&what("divergences"), &entries(&found.divergences), &expected);
            let expected = repeated(numbers(&case["teacher_logps"]));
            assert_all_close(&what("the teacher's log-probabilities"), &entries(&found.logps), &expected);
            let mut d_output = output.zeros_like();
            for _ in 0..2 {
                let d_hidden = divergence::backward(policy, teacher, options, &weights, Some(&mut d_output));
                let expected = many(doubles(&case["d_hidden"]), times);
                assert_rows_close(&what("d hidden"), &d_hidden, &expected);
            }
            // The second time was added to the first.
            let d_output = d_output / (2 * times) as f64;
            assert_rows_close(&what("d output"), &d_output, &doubles(&case["d_output"]));
        }
    }
}

/// Trees with the statistics of their tokens.
#[derive(Default)]
struct Data {
    trees: Vec<Tree>,
    logps: Vec<f32>,
    entropies: Vec<f32>,
    divergences: Vec<f32>,
    teacher_logps: Vec<f32>,
}

/// A data set of the vectors, whose branches are pairs of a sample and its rival. Nash-MD keeps the rivals' rewards alone.
fn data(groups: &Value, keep_rivals: bool) -> Data {
    let mut data = Data::default();
    for (id, group) in groups.as_array().expect("groups").iter().enumerate() {
        let mut tree = Tree { prompt_id: id as u64, prompt: vec![1], ..Tree::default() };
        for (sample, branch) in group.as_array().expect("branches").iter().enumerate() {
            let reward = branch["reward"].as_f64().expect("a reward") as f32;
            if sample % 2 == 1 && !keep_rivals {
                tree.rival_rewards.push(reward);
                continue;
            }
            data.logps.extend(single(&branch["logps"]));
            data.entropies.extend(single(&branch["entropies"]));
            data.divergences.extend(single(&branch["divergences"]));
            data.teacher_logps.extend(single(&branch["teacher_logps"]));
            let sampled = single(&branch["sampled"]);
            tree.branches.push(Branch {
                sample: sample as u32,
                tokens: vec![7; sampled.len()],
                behaviour_logps: sampled,
                reference_logps: single(&branch["reference"]),
                reward,
                truncated: branch["truncated"].as_bool().expect("a flag"),
                ..Branch::default()
            });
        }
        data.trees.push(tree);
    }
    data
}

/// Loss, its gradients with respect to log-probabilities and divergences, and metrics; in micro-batches of `size` trees.
fn evaluate(algorithm: &Algorithm, data: &Data, size: usize) -> (f64, [Vec<f64>; 2], BTreeMap<String, f64>) {
    let views: Vec<&Tree> = data.trees.iter().collect();
    let totals = Totals::of(&views);
    let objective = algorithm.objective();
    objective.check(&views).expect("it learns from them");
    let (mut loss, mut gradients, mut metrics) = (0.0, [Vec::new(), Vec::new()], Metrics::default());
    let mut start = 0;
    for piece in views.chunks(size) {
        let end = start + piece.iter().map(|tree| tree.loss_tokens()).sum::<usize>();
        let leaf = |values: &[f32]| Tensor::from_slice(&values[start..end]).set_requires_grad(true);
        let divergences = leaf(&data.divergences);
        let statistics = TokenStatistics {
            logps: leaf(&data.logps),
            entropies: leaf(&data.entropies),
            top1: leaf(&data.logps).zeros_like(),
            values: None,
            teacher: Some(TeacherStatistics {
                divergences: divergences.shallow_clone(),
                logps: Tensor::from_slice(&data.teacher_logps[start..end]),
            }),
        };
        let share = objective.loss(&statistics, &MicroBatch { trees: piece, totals, batch: &views });
        share.value.backward();
        loss += share.value.double_value(&[]);
        metrics.merge(&share.metrics);
        for (leaf, gradients) in [&statistics.logps, &divergences].into_iter().zip(&mut gradients) {
            let gradient = leaf.grad();
            gradients.extend(entries(&if gradient.defined() { gradient } else { leaf.zeros_like() }));
        }
        start = end;
    }
    (loss, gradients, metrics.values())
}

#[test]
fn losses_gradients_and_metrics_equal_the_references_however_the_batch_is_cut() {
    let vectors = vectors();
    let cases = vectors["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 18);
    for case in cases {
        let algorithm = algorithm(&case["config"]);
        let name = case["data"].as_str().expect("a name");
        let data = data(&vectors["data"][name], algorithm.kind() != "nash_md");
        for size in [1, 2, 100] {
            let what = |part: &str| format!("{} on {name}, {size} trees at a time: {part}", case["config"]);
            let (loss, [d_logps, d_divergences], metrics) = evaluate(&algorithm, &data, size);
            let close = |part: &str, found: f64, expected: &Value| {
                // What is a difference of f32 numbers around 1 has their digits.
                let expected = expected.as_f64().expect("a number");
                let error = (found - expected).abs() / expected.abs().max(0.01);
                assert!(error <= 1e-5, "{}: found {found}, expected {expected}", what(part));
            };
            close("loss", loss, &case["loss"]);
            assert_all_close(&what("d logps"), &d_logps, &numbers(&case["d_logps"]));
            let expected = numbers(&case["d_divergences"]);
            let expected = if expected.is_empty() { vec![0.0; d_divergences.len()] } else { expected };
            assert_all_close(&what("d divergences"), &d_divergences, &expected);
            for (metric, value) in case["metrics"].as_object().expect("metrics") {
                close(metric, *metrics.get(metric).unwrap_or_else(|| panic!("no {metric}")), value);
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

fn generation() -> GenerationConfig {
    let sampling = SamplingConfig { max_new_tokens: 6, ..SamplingConfig::default() };
    GenerationConfig { sampling, samples: 3, batch: 96, seed: 3 }
}

fn sampled(mut generator: GroupSampler, prompts: &[Arc<Prompt>]) -> Vec<Group> {
    for prompt in prompts {
        generator.submit(Arc::clone(prompt)).expect("it fits");
    }
    generator.run().expect("groups")
}

/// Other weights of the same architecture: a tenth of each tensor's deviation is added to it.
fn other_weights(weights: &Weights, share: f64) -> Weights {
    tch::manual_seed(7);
    let noise = |tensor: &Tensor| tensor.randn_like() * tensor.std(false) * share;
    weights.iter().map(|(name, tensor)| (name.clone(), tensor + noise(tensor))).collect()
}

/// Log-probabilities of a group's completions under a model, one vector a completion.
fn logps_under(model: &Model, group: &Group) -> Vec<Vec<f32>> {
    let tree = trees_of(vec![group.clone()]).remove(0);
    let flat = response_logps(model, &[&tree]).expect("it fits");
    Branch::split_by_loss_tokens(&tree.branches, &flat).map(<[f32]>::to_vec).collect()
}

/// The second half of a group is drawn from the second model where its weight is 1, from the first where it is 0, and
/// between them from neither; the first half is what it is without a second model.
#[test]
fn rivals_are_drawn_from_the_mixture_and_samples_from_the_policy() {
    let Checkpoint { weights, tokenizer, .. } = tiny();
    let reference = other_weights(&weights, 0.5);
    let prompts = &prompts()[..10];
    // Few places: prompts are admitted while others are decoded.
    for batch in [96, 7] {
        let config = GenerationConfig { batch, ..generation() };
        let generator = |weights: &Weights, samples| {
            let config = GenerationConfig { samples, ..config.clone() };
            GroupSampler::new(model_of(weights), 0, tokenizer.clone(), config)
        };
        let alone = sampled(generator(&weights, 6), prompts);
        let reference_alone = sampled(generator(&reference, 6), prompts);
        for (weight, expected) in [(0.0, Some(&alone)), (1.0, Some(&reference_alone)), (0.5, None)] {
            let mixed = generator(&weights, 3).with_mixture(model_of(&reference), weight).expect("it fits");
            let groups = sampled(mixed, prompts);
            let mut differs = 0;
            for (index, group) in groups.iter().enumerate() {
                let tokens =
                    |group: &Group, sample: usize| group.completions[sample].tokens().collect::<Vec<_>>();
                for sample in 0..3 {
                    assert_eq!(tokens(group, sample), tokens(&alone[index], sample), "{weight}: a sample");
                }
                for sample in 3..6 {
                    let rival = tokens(group, sample);
                    match expected {
                        Some(expected) => assert_eq!(rival, tokens(&expected[index], sample), "{weight}"),
                        None => {
                            let is_other = |groups: &[Group]| rival != tokens(&groups[index], sample);
                            differs += usize::from(is_other(&alone) && is_other(&reference_alone));
                        }
                    }
                }
            }
            assert!(expected.is_some() || differs > 5, "the mixture is one of its parts: {differs}");
        }
    }
}

/// log π′ = (1 − c) log π + c log π_ref − log Σ exp of that, token by token, over the whole vocabulary; and with a
/// temperature the sampled distribution is that of the tempered mixture.
#[test]
fn log_probabilities_of_rivals_are_those_of_the_mixture() {
    let Checkpoint { config, weights, tokenizer } = tiny();
    let reference = other_weights(&weights, 0.5);
    let (weight, temperature) = (0.3, 0.7);
    let sampling = SamplingConfig { max_new_tokens: 6, temperature, ..SamplingConfig::default() };
    let generator = GroupSampler::new(
        model_of(&weights),
        0,
        tokenizer,
        GenerationConfig { sampling, samples: 2, batch: 8, seed: 1 },
    );
    let generator = generator.with_mixture(model_of(&reference), weight).expect("it fits");
    let (policy, reference) = (model_of(&weights), model_of(&reference));
    for group in sampled(generator, &prompts()[..4]) {
        let own = logps_under(&policy, &group);
        for (sample, completion) in group.completions.iter().enumerate() {
            if sample < 2 {
                for (found, expected) in completion.logps().zip(&own[sample]) {
                    assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
                }
                continue;
            }
            let tokens: Vec<u32> = completion.tokens().collect();
            let provenance = completion.logps().zip(completion.sampled_logps());
            for ((place, &token), (own_logp, sampled_logp)) in tokens.iter().enumerate().zip(provenance) {
                let context = [&group.prompt_tokens[..], &tokens[..place]].concat();
                let log_p = |model: &Model| {
                    // The last token of a response is a target alone.
                    let branch = |token| Branch { tokens: vec![token], ..Branch::default() };
                    let tree = Tree {
                        prompt: context.clone(),
                        branches: (0..config.vocab_size as u32).map(branch).collect(),
                        ..Tree::default()
                    };
                    Tensor::from_slice(&response_logps(model, &[&tree]).expect("it fits"))
                };
                let mixed = log_p(&policy) * (1.0 - weight) + log_p(&reference) * weight;
                let logp =
                    |logits: &Tensor| logits.log_softmax(0, Kind::Double).double_value(&[token.into()]);
                for (found, expected) in
                    [(own_logp, logp(&mixed)), (sampled_logp, logp(&(&mixed / temperature)))]
                {
                    assert!((f64::from(found) - expected).abs() < 1e-4, "{found}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn a_request_for_a_mixture_wants_a_second_model() {
    let Checkpoint { tokenizer, weights, .. } = tiny();
    let mut engine = arriero_policy::generate::Engine::new(model_of(&weights), 0, tokenizer, 4);
    let error = engine.submit(arriero_policy::generate::Request {
        tokens: vec![1, 2],
        samples: 2,
        sampling: SamplingConfig::default(),
        end_tokens: Vec::new(),
        seed: 0,
        prompt_id: 0,
        greedy_last: false,
        mixed: 1,
        report: false,
        alternatives: 0,
    });
    let error = error.expect_err("there is one model").to_string();
    assert_eq!(error, "mixed is 1; it must be at most 0, the samples of an engine with two models");
}

fn training(learning_rate: f64) -> TrainingConfig {
    TrainingConfig {
        learning_rate,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        batch_size: 8,
        ..TrainingConfig::default()
    }
}

/// Whether an answer has an "e".
fn settings(config: &Value, samples: usize, learning_rate: f64) -> Settings {
    let mut algorithm = algorithm(config);
    algorithm.fit(6);
    Settings {
        algorithm,
        training: training(learning_rate),
        generation: GenerationConfig { samples, ..generation() },
        selection: SelectionConfig::default(),
        reward: serde_json::from_value(json!({ "kind": "contains", "text": "e" })).expect("a scorer"),
        rounds: 6,
    }
}

/// Trees of what a model answers to prompts that training does not see.
fn held_out(weights: &Weights) -> Vec<Tree> {
    let config = GenerationConfig { seed: 99, samples: 6, ..generation() };
    let generator = GroupSampler::new(model_of(weights), 0, tiny().tokenizer, config);
    trees_of(sampled(generator, &prompts()[..16]))
}

fn share_of_rewarded(weights: &Weights) -> f64 {
    let config = GenerationConfig { seed: 99, samples: 6, ..generation() };
    let groups = sampled(GroupSampler::new(model_of(weights), 0, tiny().tokenizer, config), &prompts()[..16]);
    let reward: RewardConfig =
        serde_json::from_value(json!({ "kind": "contains", "text": "e" })).expect("a scorer");
    let mut scorer = reward.build().expect("a scorer");
    let scores: Vec<f32> = groups
        .iter()
        .flat_map(|group| scorer.score(group).expect("scores"))
        .map(|score| score.reward)
        .collect();
    scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64
}

#[test]
fn xpo_and_nash_md_raise_a_simple_reward() {
    let before = share_of_rewarded(&tiny().weights);
    assert!(before < 0.6, "too easy: {before}");
    for config in [
        json!({ "kind": "xpo" }),
        json!({ "kind": "nash_md", "beta": 0.01, "preference": "indicator" }),
        json!({ "kind": "nash_md", "beta": 0.001 }),
    ] {
        let weights = plain_loop(&tiny_path(), Compute::CPU_F32, &prompts(), &settings(&config, 6, 1e-2));
        let after = share_of_rewarded(&weights.expect("the loop"));
        println!("{config}: {before:.3} to {after:.3}");
        assert!(after > before + 0.15, "{config}: from {before} to {after}");
    }
}

/// Exploration: with a large α the policy leaves what the reference says, whatever its reward.
#[test]
fn the_bonus_of_xpo_drives_the_policy_from_the_references_samples() {
    let Checkpoint { weights, .. } = tiny();
    let kl = |config: Value| {
        let trained = plain_loop(&tiny_path(), Compute::CPU_F32, &prompts(), &settings(&config, 2, 1e-3));
        distance(&trained.expect("the loop"), &weights)
    };
    let (without, with) =
        (kl(json!({ "kind": "xpo", "alpha": 0.0 })), kl(json!({ "kind": "xpo", "alpha": 0.1 })));
    println!("KL to the reference: {without:.4} without, {with:.4} with the bonus");
    assert!(with > 1.5 * without, "{with}, without it {without}");
}

/// KL(policy ‖ other) of a token, on the policy's own samples.
fn distance(policy: &Weights, other: &Weights) -> f64 {
    let trees = held_out(policy);
    let views: Vec<&Tree> = trees.iter().collect();
    let (sum, tokens) = token_kl(&model_of(policy), &model_of(other), &views, 4096).expect("it fits");
    sum / tokens as f64
}

/// A teacher of other weights, in a folder.
fn teacher_in(folder: &Path, share: f64) -> Weights {
    let Checkpoint { config, weights, tokenizer } = tiny();
    let weights = other_weights(&weights, share);
    write_hf(folder, &config, &tokenizer, &weights).expect("written");
    weights
}

#[test]
fn distillation_brings_the_policy_to_its_teacher() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("distill-teacher");
    let target = teacher_in(&folder, 0.5);
    let before = distance(&tiny().weights, &target);
    for mut config in [
        json!({ "beta": 1.0 }),
        json!({ "beta": 0.0 }),
        json!({ "beta": 0.5 }),
        json!({ "beta": 1.0, "temperature": 2.0 }),
        json!({ "loss": "sampled_reverse_kl" }),
    ] {
        config["kind"] = json!("distill");
        config["teacher"] = json!(folder);
        let trained = plain_loop(&tiny_path(), Compute::CPU_F32, &prompts(), &settings(&config, 6, 3e-3));
        let after = distance(&trained.expect("the loop"), &target);
        println!("{config}: {before:.4} to {after:.4}");
        // What one token says of a distribution over hundreds of them is noisy.
        let most = if config["loss"].is_null() { 0.6 } else { 0.9 };
        assert!(after < most * before, "{config}: from {before} to {after}");
    }
}

fn trees_of(groups: Vec<Group>) -> Vec<Tree> {
    let tree = |group: Group| Tree {
        prompt_id: group.prompt.id,
        prompt: group.prompt_tokens.clone(),
        branches: group.completions.iter().map(|completion| Branch::of(completion, |_| false)).collect(),
        ..Tree::default()
    };
    groups.into_iter().map(tree).collect()
}

/// The gradient of the whole model does not depend on micro-batches or on checkpointing, and the exact reverse KL that the
/// trainer reports is that of [`token_kl`].
#[test]
fn the_gradient_does_not_depend_on_how_the_batch_is_cut() {
    let Checkpoint { config, weights, tokenizer } = tiny();
    let teacher = Rc::new(model_of(&other_weights(&weights, 0.5)));
    let trees =
        trees_of(sampled(GroupSampler::new(model_of(&weights), 0, tokenizer, generation()), &prompts()[..6]));
    let views: Vec<&Tree> = trees.iter().collect();
    let run = |micro_batch_tokens: usize, activation_checkpointing: bool| {
        let algorithm = algorithm(&json!({ "kind": "distill", "teacher": "given", "beta": 1.0 }));
        let training = TrainingConfig {
            micro_batch_tokens: Some(micro_batch_tokens),
            activation_checkpointing,
            ..training(1e-3)
        };
        let trainer = Trainer::new(&config, &weights, Compute::CPU_F32, algorithm.objective(), training, 1)
            .expect("it fits");
        let mut trainer = trainer.with_teacher(Rc::clone(&teacher)).expect("one vocabulary");
        let evaluated = trainer.evaluate(&views).expect("it fits")["divergence"];
        let report = trainer.step(&views).expect("a step");
        assert!((evaluated - report.metrics["divergence"]).abs() < 1e-6);
        (report.metrics, trainer.gradients())
    };
    let (metrics, whole) = run(4096, false);
    let (sum, tokens) = token_kl(&model_of(&weights), &teacher, &views, 4096).expect("it fits");
    let expected = sum / tokens as f64;
    assert!((metrics["divergence"] - expected).abs() < 1e-5 * expected, "{metrics:?}, expected {expected}");
    assert!((metrics["loss"] - expected).abs() < 1e-5 * expected);
    let smallest = views.iter().map(|tree| tree.len()).max().expect("trees");
    for (size, checkpointing) in [(smallest, false), (4096, true)] {
        let (_, found) = run(size, checkpointing);
        for (name, gradient) in &found {
            let error = (gradient - &whole[name]).norm().double_value(&[]);
            let norm = whole[name].norm().double_value(&[]);
            assert!(error <= 1e-5 * norm.max(1e-6), "{name}: {error} of {norm}");
        }
    }
}

#[test]
fn a_teacher_of_another_vocabulary_is_refused() {
    let Checkpoint { config, weights, tokenizer } = tiny();
    let missing = teacher::check(Path::new("no/such/model"), &config, &tokenizer).expect_err("there is none");
    assert!(missing.to_string().starts_with("there is no model at no/such/model"), "{missing}");
    teacher::check(&tiny_path(), &config, &tokenizer).expect("it is the policy itself");

    // As many tokens, but the ids of two of them have changed places.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("distill-other-tokens");
    write_hf(&folder, &config, &tokenizer, &weights).expect("written");
    let file = folder.join("tokenizer.json");
    let mut json: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("it is there")).expect("JSON");
    let vocabulary = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let token_of =
        |id: u64| vocabulary.iter().find(|(_, found)| found.as_u64() == Some(id)).expect("a token").0.clone();
    let (one, other) = (token_of(100), token_of(101));
    vocabulary.insert(one, json!(101));
    vocabulary.insert(other, json!(100));
    fs::write(&file, json.to_string()).expect("written");
    let error = teacher::check(&folder, &config, &tokenizer).expect_err("another vocabulary").to_string();
    assert!(
        error.contains("has another vocabulary than the policy: its tokenizer has ")
            && error.contains("as number 100"),
        "{error}"
    );

    let other = Checkpoint::open(&manifest("../tests/fixtures/tiny")).expect("it loads");
    let smaller = arriero_policy::config::ModelConfig { vocab_size: config.vocab_size - 1, ..other.config };
    let cut: Weights = weights
        .iter()
        .map(|(name, tensor)| {
            let is_of_vocabulary = tensor.size()[0] == config.vocab_size as i64;
            let rows = tensor.size()[0] - i64::from(is_of_vocabulary);
            (name.clone(), tensor.narrow(0, 0, rows))
        })
        .collect();
    let smaller = Model::new(&smaller, &cut, Compute::CPU_F32).expect("it fits");
    let algorithm = algorithm(&json!({ "kind": "distill", "teacher": "given" }));
    let trainer = |objective| {
        Trainer::new(&config, &weights, Compute::CPU_F32, objective, training(1e-3), 1).expect("it fits")
    };
    let error =
        trainer(algorithm.objective()).with_teacher(Rc::new(smaller)).expect_err("another vocabulary");
    assert!(error.to_string().contains("its output has"), "{error}");

    let tree = Tree {
        prompt: vec![1, 2],
        branches: vec![Branch { tokens: vec![3], ..Branch::default() }],
        ..Tree::default()
    };
    let error = trainer(algorithm.objective()).step(&[&tree]).expect_err("no teacher");
    assert!(error.to_string().contains("there is none"), "{error}");
}

#[test]
fn options_out_of_range_and_experience_of_another_kind_are_refused() {
    for (config, expected) in [
        (json!({ "kind": "distill" }), "teacher is missing"),
        (json!({ "kind": "distill", "teacher": "" }), "teacher is missing"),
        (json!({ "kind": "distill", "teacher": "t", "beta": 1.5 }), "beta is 1.5; it must be from 0 to 1"),
        (
            json!({ "kind": "distill", "teacher": "t", "temperature": 0.0 }),
            "temperature is 0; it must be above 0",
        ),
        (json!({ "kind": "xpo", "alpha": -1.0 }), "alpha is -1; it must be at least 0"),
        (json!({ "kind": "xpo", "beta": 0.0 }), "beta is 0; it must be above 0"),
        (json!({ "kind": "nash_md", "mixture_coef": 2.0 }), "mixture_coef is 2; it must be from 0 to 1"),
    ] {
        let algorithm: Algorithm = serde_json::from_value(config).expect("a configuration");
        let error = algorithm.validate().expect_err("out of range");
        assert!(error.contains(expected), "{error}");
    }
    let branch = || Branch { tokens: vec![3, 4], ..Branch::default() };
    let tree = |branches: usize| Tree {
        prompt: vec![1],
        branches: (0..branches).map(|_| branch()).collect(),
        ..Tree::default()
    };
    for (config, tree, expected) in [
        (json!({ "kind": "xpo" }), tree(3), "prompt 0 has 3 responses, expected pairs of one of the policy"),
        (json!({ "kind": "xpo" }), tree(2), "without log-probabilities of the reference"),
        (json!({ "kind": "nash_md" }), tree(2), "prompt 0 has 2 responses and 0 rewards of rivals"),
        (
            json!({ "kind": "nash_md" }),
            Tree { rival_rewards: vec![1.0], ..tree(1) },
            "without log-probabilities of the reference",
        ),
        (
            json!({ "kind": "distill", "teacher": "t", "loss": "sampled_reverse_kl" }),
            tree(1),
            "has a response that the policy did not sample",
        ),
    ] {
        let error = algorithm(&config).objective().check(&[&tree]).expect_err("it is refused");
        assert!(error.contains(expected), "{config}: {error}");
    }
}
