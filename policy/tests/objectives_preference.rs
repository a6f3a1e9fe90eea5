//! The preference algorithms: losses, gradients and metrics against TRL's code, what they refuse, and what
//! they do to a tiny model.
//!
//! `vectors/README.md` says how `vectors/preference.json` was made.

use std::collections::BTreeMap;
use std::path::Path;

use arriero_buffers::{Branch, Tree};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::model::Model;
use arriero_policy::objective::{Algorithm, Metrics, MicroBatch, Objective, TokenStatistics, Totals};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::scoring::{response_logps, score_reference};
use arriero_policy::trainer::Trainer;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn algorithm(value: Value) -> Algorithm {
    let algorithm: Algorithm = serde_json::from_value(value).expect("an algorithm");
    algorithm.validate().expect("valid");
    algorithm.resolved()
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).expect("numbers")
}

/// A batch of the vectors: its trees, and the policy's log-probabilities of each tree's responses.
fn read_batch(batch: &Value) -> Vec<(Tree, Vec<f32>)> {
    let branch = |branch: &Value| Branch {
        sample: 0,
        tokens: vec![7; numbers(&branch["logps"]).len()],
        is_format: serde_json::from_value(branch["is_format"].clone()).expect("flags"),
        behaviour_logps: Vec::new(),
        reference_logps: numbers(&branch["reference_logps"]),
        mismatched_ratio: branch["mismatched_ratio"].as_f64().map(|ratio| ratio as f32),
        reward: branch["reward"].as_f64().expect("a number") as f32,
        ..Branch::default()
    };
    let trees = batch.as_array().expect("trees").iter().enumerate();
    let tree = |(id, branches): (usize, &Value)| {
        let branches = branches.as_array().expect("branches");
        let logps = branches.iter().flat_map(|branch| numbers(&branch["logps"])).collect();
        let branches = branches.iter().map(branch).collect();
        (Tree { prompt_id: id as u64, prompt: vec![1], branches, ..Tree::default() }, logps)
    };
    trees.map(tree).collect()
}

struct Found {
    loss: f64,
    gradients: Vec<f64>,
    metrics: BTreeMap<String, f64>,
}

/// Runs the objective over the batch in micro-batches of `trees_each`, with the entropies and hits of
/// `make_preference_vectors.py`.
fn run(objective: &dyn Objective, batch: &[(Tree, Vec<f32>)], trees_each: usize) -> Found {
    let trees: Vec<&Tree> = batch.iter().map(|(tree, _)| tree).collect();
    let totals = Totals::of(&trees);
    let all = trees.clone();
    let (mut loss, mut gradients, mut metrics) = (0.0, Vec::new(), Metrics::default());
    for (piece, trees) in batch.chunks(trees_each).zip(trees.chunks(trees_each)) {
        let flat: Vec<f32> = piece.iter().flat_map(|(_, logps)| logps.clone()).collect();
        let logps = Tensor::from_slice(&flat).set_requires_grad(true);
        let statistics = TokenStatistics {
            entropies: logps.detach() * -0.5,
            top1: logps.detach().gt(-0.7).to_kind(Kind::Float),
            logps,
            values: None,
            teacher: None,
        };
        let found = objective.loss(&statistics, &MicroBatch { trees, totals, batch: &all });
        found.value.backward();
        loss += found.value.double_value(&[]);
        gradients
            .extend(Vec::<f64>::try_from(statistics.logps.grad().to_kind(Kind::Double)).expect("numbers"));
        metrics.merge(&found.metrics);
    }
    Found { loss, gradients, metrics: metrics.values() }
}

/// 1e-5 relative; below `floor` absolute, at 1e-5 of the floor.
fn assert_close(what: &str, found: f64, expected: f64, floor: f64) {
    let error = (found - expected).abs() / expected.abs().max(floor);
    assert!(error <= 1e-5, "{what}: found {found}, expected {expected}, relative error {error:.1e}");
}

#[test]
fn losses_gradients_and_metrics_equal_trl_however_the_batch_is_cut() {
    let text = include_str!("vectors/preference.json");
    let vectors: Value = serde_json::from_str(text).expect("JSON");
    let cases = vectors["cases"].as_array().expect("cases");
    assert!(cases.len() > 25, "vectors are missing");
    for case in cases {
        for trees_each in [usize::MAX, 2, 1] {
            let mut objective = algorithm(case["algorithm"].clone()).objective();
            if trees_each < usize::MAX && objective.needs().whole_batch {
                continue;
            }
            for (index, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
                let name = step["batch"].as_str().expect("a name");
                let batch = read_batch(&vectors["batches"][name]);
                let found = run(&*objective, &batch, trees_each.min(batch.len()));
                let what = format!("{}, step {index} ({name})", case["algorithm"]);
                let loss = step["loss"].as_f64().expect("a number");
                assert_close(&format!("loss of {what}"), found.loss, loss, 1e-6);
                assert_close(&format!("metric loss of {what}"), found.metrics["loss"], loss, 1e-6);
                let gradients: Vec<Vec<f64>> =
                    serde_json::from_value(step["gradients"].clone()).expect("numbers");
                let gradients = gradients.concat();
                assert_eq!(found.gradients.len(), gradients.len(), "{what}");
                for (token, (found, expected)) in found.gradients.iter().zip(&gradients).enumerate() {
                    assert_close(&format!("gradient {token} of {what}"), *found, *expected, 1e-6);
                }
                for (metric, expected) in step["metrics"].as_object().expect("metrics") {
                    let expected = expected.as_f64().expect("a number");
                    let found = found.metrics.get(metric);
                    let found = *found.unwrap_or_else(|| panic!("{metric} is missing: {what}"));
                    assert_close(&format!("{metric} of {what}"), found, expected, 1e-6);
                }
                objective.stepped(&found.metrics);
            }
        }
    }
}

/// What the vectors do not reach: numbers at which a careless form gives NaN.
#[test]
fn certain_and_impossible_responses_have_finite_gradients() {
    let branch = |reward: f32| Branch {
        sample: 0,
        tokens: vec![7],
        is_format: vec![false],
        behaviour_logps: Vec::new(),
        reference_logps: vec![-1.0],
        reward,
        mismatched_ratio: Some(0.0),
        ..Branch::default()
    };
    // (chosen, rejected) log-probabilities; 0 is certainty.
    for (chosen, rejected) in [(0.0, -1e4), (-1e4, 0.0), (0.0, 0.0), (-1e-7, -1e-30)] {
        let branches = vec![branch(1.0), branch(0.0)];
        let batch =
            [(Tree { prompt_id: 0, prompt: vec![1], branches, ..Tree::default() }, vec![chosen, rejected])];
        for config in every_algorithm().into_iter().filter(|config| config["loss"] != "alphapo") {
            let found = run(&*algorithm(config.clone()).objective(), &batch, 1);
            let numbers = found.gradients.iter().chain([&found.loss]);
            assert!(
                numbers.clone().all(|number| number.is_finite()),
                "{config} at ({chosen}, {rejected}): {:?}",
                numbers.collect::<Vec<_>>()
            );
        }
    }
}

/// Each algorithm with each of its losses, at scales of β that suit a mean or a sum.
fn every_algorithm() -> Vec<Value> {
    let dpo = [
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ];
    let mut all: Vec<Value> = dpo.iter().map(|loss| json!({"kind": "dpo", "loss": loss})).collect();
    all.push(json!({"kind": "dpo", "preset": "llama3"}));
    all.push(json!({"kind": "dpo", "loss": {"sigmoid": 0.8, "bco_pair": 0.2}, "nll_coefficient": 1.0}));
    all.push(json!({"kind": "simpo"}));
    all.push(json!({"kind": "orpo", "beta": 1.0}));
    for loss in ["sigmoid", "hinge", "ipo", "simpo"] {
        all.push(json!({"kind": "cpo", "loss": loss}));
    }
    all.push(json!({"kind": "cpo", "loss": "alphapo", "alpha": 0.1, "beta": 2.5}));
    all.push(json!({"kind": "kto"}));
    all.push(json!({"kind": "kto", "loss": "apo_zero_unpaired"}));
    all.push(json!({"kind": "kto", "kl_estimate": "batch"}));
    for kind in ["dpo", "kto"] {
        all.push(json!({"kind": kind, "sync_ref_model": true, "ref_model_sync_steps": 8}));
    }
    all
}

/// A tiny random model, and four pairs with its reference log-probabilities.
fn tiny() -> (Checkpoint, Vec<Tree>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let checkpoint = Checkpoint::open(&path).expect("it loads");
    let branch = |tokens: Vec<u32>, reward: f32| Branch {
        sample: u32::from(reward < 0.5),
        is_format: vec![false; tokens.len()],
        behaviour_logps: vec![0.0; tokens.len()],
        reference_logps: Vec::new(),
        reward,
        tokens,
        ..Branch::default()
    };
    let tree = |id: u32| Tree {
        prompt_id: id.into(),
        prompt: vec![1, 10 + id, 20 + id],
        branches: vec![
            branch((0..3 + id).map(|place| 40 + 7 * id + place).collect(), 1.0),
            branch((0..5 - id).map(|place| 100 + 5 * id + 2 * place).collect(), 0.0),
        ],
        ..Tree::default()
    };
    let mut trees: Vec<Tree> = (0..4).map(tree).collect();
    let model = Model::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32).expect("it fits");
    score_reference(&model, &mut trees, usize::MAX).expect("they fit");
    (checkpoint, trees)
}

/// Mean over the pairs of chosen minus rejected mean log-probability, and the mean distance of a token's
/// log-probability from the reference's, after `steps` steps.
fn train(config: &Value, steps: usize) -> (f64, f64, f64) {
    let (checkpoint, trees) = tiny();
    let training = TrainingConfig {
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        // Two trees exceed it: what needs the whole batch must get it nonetheless.
        micro_batch_tokens: Some(16),
        ..TrainingConfig::default()
    };
    let objective = algorithm(config.clone()).objective();
    let batch: Vec<&Tree> = trees.iter().collect();
    objective.check(&batch).expect("pairs");
    let Checkpoint { config: model, weights, .. } = checkpoint;
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, steps);
    let mut trainer = trainer.and_then(|trainer| trainer.with_reference(&weights)).expect("it fits");
    let margin = |logps: &[f32]| {
        let mut rest = logps;
        let mut mean = |length: usize| {
            let (own, others) = rest.split_at(length);
            rest = others;
            own.iter().map(|&logp| f64::from(logp)).sum::<f64>() / length as f64
        };
        let margins = trees.iter().map(|tree| {
            let chosen = mean(tree.branches[0].tokens.len());
            chosen - mean(tree.branches[1].tokens.len())
        });
        margins.sum::<f64>() / trees.len() as f64
    };
    let reference: Vec<f32> = trees
        .iter()
        .flat_map(|tree| &tree.branches)
        .flat_map(|branch| branch.reference_logps.clone())
        .collect();
    for _ in 0..steps {
        trainer.step(&batch).expect("a step");
    }
    let trained = Model::new(&model, &trainer.weights(), Compute::CPU_F32).expect("it fits");
    let logps = response_logps(&trained, &batch).expect("they fit");
    let distances = logps.iter().zip(&reference).map(|(a, b)| f64::from((a - b).abs()));
    (margin(&reference), margin(&logps), distances.sum::<f64>() / logps.len() as f64)
}

#[test]
fn every_algorithm_raises_its_margin() {
    for config in every_algorithm() {
        let (before, after, _) = train(&config, 20);
        assert!(after > before + 0.1, "{config}: the margin went from {before} to {after}");
    }
}

#[test]
fn beta_holds_the_policy_at_the_reference() {
    let losses = ["sigmoid", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "apo_zero"];
    let dpo = losses.iter().map(|loss| json!({"kind": "dpo", "loss": loss}));
    for config in dpo.chain([json!({"kind": "kto"})]) {
        let with_beta = |beta: f64| {
            let mut config = config.clone();
            config["beta"] = json!(beta);
            train(&config, 40).2
        };
        let (held, free) = (with_beta(20.0), with_beta(0.05));
        assert!(held * 2.0 < free, "{config}: {held} with β 20, {free} with β 0.05");
    }
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let (_, trees) = tiny();
    let alone: Vec<Tree> =
        trees.iter().map(|tree| Tree { branches: tree.branches[..1].to_vec(), ..tree.clone() }).collect();
    let (pairs, alone): (Vec<&Tree>, Vec<&Tree>) = (trees.iter().collect(), alone.iter().collect());
    for config in every_algorithm() {
        let objective = algorithm(config.clone()).objective();
        assert_eq!(objective.check(&pairs), Ok(()), "{config}");
        let refusal = objective.check(&alone).expect_err("no pairs, and one class only");
        let expected =
            if config["kind"] == "kto" { "needs both classes" } else { "prompt 0 has 1 responses" };
        assert!(refusal.contains(expected), "{config}: {refusal}");
    }
}

/// π_ref ← α π + (1 − α) π_ref behind every second step, by hand.
#[test]
fn a_reference_follows_softly() {
    let config = json!({"kind": "dpo", "sync_ref_model": true, "ref_model_mixup_alpha": 0.25, "ref_model_sync_steps": 2});
    let (Checkpoint { config: model, weights, .. }, trees) = tiny();
    let batch: Vec<&Tree> = trees.iter().collect();
    let training = TrainingConfig { learning_rate: 1e-2, ..TrainingConfig::default() };
    let objective = algorithm(config).objective();
    assert!(!objective.needs().reference, "nobody else is to score the reference");
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, 4).expect("it fits");
    let mut trainer = trainer.with_reference(&weights).expect("it fits");
    let name = "model.layers.0.mlp.up_proj.weight";
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).expect("numbers");
    let mut by_hand = values(&weights[name]);
    for step in 1..=4 {
        trainer.step(&batch).expect("a step");
        if step % 2 == 0 {
            let policy = values(&trainer.weights()[name]);
            for (reference, policy) in by_hand.iter_mut().zip(policy) {
                *reference = 0.25 * policy + 0.75 * *reference;
            }
        }
        let found = values(&trainer.reference().expect("it has one")[name]);
        let error = found.iter().zip(&by_hand).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(error < 1e-6, "step {step}: {error}");
        assert_ne!(found, values(&trainer.weights()[name]));
    }
}

/// With α = 1 behind every step the reference is the policy as each step finds it: no response has a reward.
#[test]
fn a_reference_in_step_is_the_policy_before() {
    let config = json!({"kind": "dpo", "sync_ref_model": true, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1});
    let (Checkpoint { config: model, weights, .. }, trees) = tiny();
    let batch: Vec<&Tree> = trees.iter().collect();
    let objective = algorithm(config).objective();
    let training = TrainingConfig { learning_rate: 1e-2, ..TrainingConfig::default() };
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, 3).expect("it fits");
    let mut trainer = trainer.with_reference(&weights).expect("it fits");
    for _ in 0..3 {
        let report = trainer.step(&batch).expect("a step");
        for name in ["rewards/chosen", "rewards/rejected"] {
            assert!(report.metrics[name].abs() < 1e-6, "{name}: {}", report.metrics[name]);
        }
        let reference = trainer.reference().expect("it has one");
        assert!(trainer.weights().iter().all(|(name, tensor)| *tensor == reference[name]));
    }
}

/// KTO's `kl` is the mean of log π/π_ref over each prompt with the responses of the prompt before, which scoring these as
/// trees of their own gives, too.
#[test]
fn the_kl_of_kto_is_that_of_mismatched_responses() {
    let (Checkpoint { config: model, weights, .. }, trees) = tiny();
    let batch: Vec<&Tree> = trees.iter().collect();
    let training = TrainingConfig { learning_rate: 1e-2, ..TrainingConfig::default() };
    let objective = algorithm(json!({"kind": "kto"})).objective();
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, 9).expect("it fits");
    let mut trainer = trainer.with_reference(&weights).expect("it fits");
    let mut seen = Vec::new();
    for _ in 0..6 {
        let others: Vec<Tree> = (0..trees.len())
            .map(|place| {
                let branches = trees[(place + trees.len() - 1) % trees.len()].branches.clone();
                Tree { branches, ..trees[place].clone() }
            })
            .collect();
        let others: Vec<&Tree> = others.iter().collect();
        let score = |weights: &arriero_policy::checkpoint::Weights| {
            let model = Model::new(&model, weights, Compute::CPU_F32).expect("it fits");
            let logps = response_logps(&model, &others).expect("they fit");
            logps.iter().map(|&logp| f64::from(logp)).sum::<f64>()
        };
        let expected = ((score(&trainer.weights()) - score(&weights)) / 8.0).max(0.0);
        let found = trainer.step(&batch).expect("a step").metrics["kl"];
        assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
        seen.push(found);
    }
    assert!(seen.iter().any(|&kl| kl > 0.0), "{seen:?}");
}

/// One response of a batch has a reference that is not a number: the error names its tree, and no other.
#[test]
fn what_is_not_finite_is_traced_to_its_responses() {
    let (Checkpoint { config: model, weights, .. }, mut trees) = tiny();
    trees[2].branches[1].reference_logps[0] = f32::NAN;
    let batch: Vec<&Tree> = trees.iter().collect();
    // In one pass, and tree by tree.
    for micro_batch_tokens in [None, Some(16)] {
        let training = TrainingConfig { micro_batch_tokens, ..TrainingConfig::default() };
        let objective = algorithm(json!({"kind": "dpo"})).objective();
        let mut trainer =
            Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, 1).expect("it fits");
        let error = trainer.step(&batch).expect_err("the loss is NaN").to_string();
        assert_eq!(
            error,
            "the loss is not finite because of prompt 2 (response 0), prompt 2 (response 1); no weight was changed. A lower \
             learning_rate or dtype = \"f32\" may help, or leaving these out"
        );
        assert!(trainer.weights().iter().all(|(name, tensor)| *tensor == weights[name]), "a weight changed");
        // The trainer goes on without it.
        let others: Vec<&Tree> = batch.iter().copied().filter(|tree| tree.prompt_id != 2).collect();
        assert!(trainer.step(&others).expect("a step").metrics["loss"].is_finite());
    }
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    for (config, expected) in [
        (json!({"kind": "dpo", "beta": 0.0}), "beta is 0; it must be above 0"),
        (
            json!({"kind": "dpo", "label_smoothing": 0.5}),
            "label_smoothing is 0.5; it must be at least 0 and below 0.5",
        ),
        (
            json!({"kind": "dpo", "loss": "exo_pair", "label_smoothing": 0.0}),
            "label_smoothing is 0; with exo_pair",
        ),
        (json!({"kind": "dpo", "loss": {}}), "loss is an empty table"),
        (
            json!({"kind": "dpo", "loss": {"sigmoid": -1.0}}),
            "loss: the weight of Sigmoid is -1; it must be above 0",
        ),
        (json!({"kind": "dpo", "discopop_tau": 0.0}), "discopop_tau is 0"),
        (json!({"kind": "simpo", "gamma": -0.5}), "gamma is -0.5; it must be at least 0"),
        (json!({"kind": "orpo", "beta": -1.0}), "beta is -1"),
        (json!({"kind": "cpo", "loss": "alphapo"}), "alpha is 0; with alphapo"),
        (json!({"kind": "cpo", "nll_coefficient": -1.0}), "nll_coefficient is -1"),
        (json!({"kind": "kto", "undesirable_weight": 0.0}), "undesirable_weight is 0"),
        (
            json!({"kind": "dpo", "ref_model_mixup_alpha": 1.5}),
            "ref_model_mixup_alpha is 1.5; it must be above 0 and at most 1",
        ),
        (json!({"kind": "kto", "ref_model_sync_steps": 0}), "ref_model_sync_steps is 0"),
    ] {
        let algorithm: Algorithm = serde_json::from_value(config.clone()).expect("an algorithm");
        let refusal = algorithm.validate().expect_err("out of range");
        assert!(refusal.starts_with(expected), "{config}: {refusal}");
    }
    let unknown = serde_json::from_value::<Algorithm>(json!({"kind": "dpo", "loss": "sigmoyd"}));
    let unknown = unknown.expect_err("no such loss").to_string();
    assert!(unknown.contains("unknown variant `sigmoyd`, expected one of `sigmoid`, `hinge`"), "{unknown}");
}

#[test]
fn resolved_options_read_back_the_same() {
    for config in every_algorithm() {
        let resolved = algorithm(config);
        let written = serde_json::to_value(&resolved).expect("it is written");
        assert_eq!(serde_json::from_value::<Algorithm>(written).expect("it reads back"), resolved);
    }
    let written = serde_json::to_value(algorithm(json!({"kind": "dpo", "loss": "ipo"}))).expect("written");
    assert_eq!(written["loss"], "ipo");
}
