//! The halves of a step, and what a trainer's later steps depend on, on a tiny random checkpoint.

use std::fs;
use std::path::Path;

use arriero_buffers::{Branch, Tree};
use arriero_policy::checkpoint::{Checkpoint, Weights, load_weights, save_weights};
use arriero_policy::device::Compute;
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::model::Model;
use arriero_policy::objective::{Algorithm, MicroBatch, Totals};
use arriero_policy::optim::TrainingConfig;
use arriero_policy::reward_model;
use arriero_policy::scoring::score_reference;
use arriero_policy::trainer::{Contribution, Trainer, TrainerState};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Four trees of two responses each, the first the better one, as a policy near the reference has sampled them.
fn tiny() -> (Checkpoint, Vec<Tree>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let checkpoint = Checkpoint::open(&path).expect("it loads");
    let branch = |tokens: Vec<u32>, sample: u32| Branch {
        sample,
        is_format: vec![false; tokens.len()],
        behaviour_logps: vec![-5.5; tokens.len()],
        reward: 1.0 - sample as f32,
        tokens,
        ..Branch::default()
    };
    let tree = |id: u32| Tree {
        prompt_id: id.into(),
        prompt: vec![1, 10 + id, 20 + id],
        branches: vec![
            branch((0..3 + id).map(|place| 40 + 7 * id + place).collect(), 0),
            branch((0..5 - id).map(|place| 100 + 5 * id + 2 * place).collect(), 1),
        ],
        ..Tree::default()
    };
    let mut trees: Vec<Tree> = (0..4).map(tree).collect();
    let model = Model::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32).expect("it fits");
    score_reference(&model, &mut trees, usize::MAX).expect("they fit");
    // A policy that has left its reference.
    trees.iter_mut().flat_map(|tree| &mut tree.branches).for_each(|branch| {
        branch.reference_logps.iter_mut().for_each(|logp| *logp -= 0.25);
    });
    (checkpoint, trees)
}

fn views(trees: &[Tree]) -> Vec<&Tree> {
    trees.iter().collect()
}

/// A tree or two at a time.
fn training() -> TrainingConfig {
    TrainingConfig { learning_rate: 1e-2, micro_batch_tokens: Some(16), ..TrainingConfig::default() }
}

fn algorithm(config: &Value) -> Algorithm {
    let algorithm: Algorithm = serde_json::from_value(config.clone()).expect("a configuration");
    algorithm.validate().expect("valid");
    algorithm.resolved()
}

/// A new stage of the objective, which has the trees scored by the weights as they are.
fn begin(trainer: &mut Trainer, trees: &mut [Tree]) {
    trees.iter_mut().for_each(|tree| trainer.score_old(tree).expect("they fit"));
    trainer.begin(&views(trees));
}

fn copies(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
}

fn assert_same(what: &str, found: &Weights, expected: &Weights) {
    assert!(found.keys().eq(expected.keys()), "{what}: other names");
    for (name, tensor) in found {
        assert!(*tensor == expected[name], "{what}: {name} differs");
    }
}

fn assert_close(what: &str, found: &Weights, expected: &Weights) {
    assert!(found.keys().eq(expected.keys()), "{what}: other names");
    for (name, tensor) in found {
        let norm = |tensor: &Tensor| tensor.to_kind(Kind::Double).norm().double_value(&[]);
        let (error, size) = (norm(&(tensor - &expected[name])), norm(&expected[name]));
        assert!(error <= 1e-6 * size, "{what}: {name}: an error of {error:.1e} in {size:.1e}");
    }
}

/// Two learners, each with half of the batch, that add up their gradients and what they report, do what one does with all of it.
#[test]
fn the_gradient_of_a_batch_is_the_sum_of_its_parts() {
    for config in [
        json!({"kind": "sft"}),
        json!({"kind": "dpo", "loss": {"sigmoid": 0.8, "ipo": 0.2}, "nll_coefficient": 0.1}),
        json!({"kind": "grpo", "scale_rewards": "batch"}),
        json!({"kind": "ppo"}),
        json!({"kind": "ppo", "critic": "model"}),
    ] {
        let (Checkpoint { config: model, weights, .. }, mut trees) = tiny();
        let trainer = |trees: &mut [Tree]| {
            let objective = algorithm(&config).objective();
            // So that the update is far from 0 where the gradient is.
            let training = TrainingConfig { warmup_ratio: 0.0, eps: 1e-3, ..training() };
            let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training, 3);
            let mut trainer = trainer.expect("it fits");
            begin(&mut trainer, trees);
            trainer
        };
        let mut one = trainer(&mut trees);
        let mut learners = [(); 2].map(|()| trainer(&mut trees));
        let batch = views(&trees);
        let (first, second) = batch.split_at(2);
        let whole = MicroBatch::whole(&batch);
        let totals = Totals::of(first) + Totals::of(second);
        assert_eq!(totals, whole.totals);
        let parts = [first, second].map(|trees| MicroBatch { trees, totals, batch: &batch });

        let all = one.gradient(&whole).expect("a gradient");
        let expected = copies(&one.accumulated());
        assert_same("gradients are not clipped yet", &one.gradients(), &expected);
        let mut sum = Contribution::default();
        let mut gradients = Weights::new();
        for (learner, part) in learners.iter_mut().zip(&parts) {
            let before = (copies(&learner.weights()), learner.critic().map(|critic| copies(&critic)));
            // Again from the beginning, not on top.
            learner.gradient(&whole).expect("a gradient");
            sum.merge(learner.gradient(part).expect("a gradient"));
            assert_same("a gradient changes no weight", &learner.weights(), &before.0);
            if let (Some(critic), Some(before)) = (learner.critic(), before.1) {
                assert_same("nor the critic", &critic, &before);
            }
            assert_eq!(learner.steps(), 0);
            for (name, gradient) in learner.accumulated() {
                let sum = gradients.remove(&name).map_or(gradient.copy(), |sum: Tensor| sum + gradient);
                gradients.insert(name, sum);
            }
        }
        assert_close(&config.to_string(), &gradients, &expected);

        let alone = one.apply(all, &whole).expect("a step");
        let reports = [0, 1].map(|number| {
            for (name, mut gradient) in learners[number].accumulated() {
                gradient.copy_(&gradients[&name]);
            }
            learners[number].apply(sum.clone(), &parts[number]).expect("a step")
        });
        assert_eq!(reports[0], reports[1]);
        assert_same("the learners stay together", &learners[0].weights(), &learners[1].weights());
        assert_close(&config.to_string(), &learners[0].weights(), &one.weights());
        assert_eq!(reports[0].tokens, alone.tokens);
        assert!(reports[0].metrics.keys().eq(alone.metrics.keys()));
        for (name, value) in &alone.metrics {
            let found = reports[0].metrics[name];
            assert!(
                (found - value).abs() <= 1e-6 * value.abs().max(1.0),
                "{config}: {name}: {found}, {value}"
            );
        }
    }
}

#[test]
fn a_part_of_a_coupled_batch_is_refused() {
    let (Checkpoint { config: model, weights, .. }, trees) = tiny();
    let objective = algorithm(&json!({"kind": "kto", "kl_estimate": "batch"})).objective();
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training(), 3);
    let batch = views(&trees);
    let part = MicroBatch { trees: &batch[..3], ..MicroBatch::whole(&batch) };
    let error = trainer.expect("it fits").gradient(&part).expect_err("refused").to_string();
    assert!(error.contains("all 4 trees of a batch with one another, and was given 3"), "{error}");
}

/// A gradient that was summed from parts, and is not finite: nothing changes, and the part's own responses are named.
#[test]
fn a_sum_that_is_not_finite_changes_nothing() {
    let (Checkpoint { config: model, weights, .. }, trees) = tiny();
    let objective = algorithm(&json!({"kind": "sft"})).objective();
    let trainer = Trainer::new(&model, &weights, Compute::CPU_F32, objective, training(), 3);
    let mut trainer = trainer.expect("it fits");
    let batch = views(&trees);
    let part = MicroBatch { trees: &batch[1..2], ..MicroBatch::whole(&batch) };
    let contribution = trainer.gradient(&part).expect("a gradient");
    let (_, mut gradient) = trainer.accumulated().pop_first().expect("there are gradients");
    let _ = gradient.fill_(f64::NAN);
    let error = trainer.apply(contribution, &part).expect_err("refused").to_string();
    assert!(
        error.starts_with("the gradient norm is not finite because of prompt 1 (response 0), "),
        "{error}"
    );
    assert_same("weights", &trainer.weights(), &weights);
    assert_eq!(trainer.steps(), 0);
}

/// What is trained, and how.
struct Case {
    config: Value,
    lora: Option<LoraConfig>,
}

impl Case {
    fn of(config: Value) -> Self {
        Case { config, lora: None }
    }

    fn all() -> Vec<Case> {
        let of = Case::of;
        let following = |kind: &str, loss: &str| {
            of(json!({"kind": kind, "loss": loss, "sync_ref_model": true, "ref_model_sync_steps": 2}))
        };
        let adaptive = |critic: &str| {
            let (target, horizon) = (0.05, 10.0);
            of(
                json!({"kind": "ppo", "critic": critic, "kl_target": target, "kl_horizon": horizon, "whiten_rewards": true}),
            )
        };
        let lora = LoraConfig { target_modules: vec!["all-linear".to_string()], ..LoraConfig::default() };
        let adapting = |config: Value| Case { lora: Some(lora.clone()), ..of(config) };
        vec![
            of(json!({"kind": "sft"})),
            following("dpo", "sigmoid"),
            of(json!({"kind": "dpo", "loss": {"sigmoid": 0.8, "bco_pair": 0.2}})),
            of(json!({"kind": "kto"})),
            following("kto", "kto"),
            of(json!({"kind": "grpo"})),
            adaptive("shared"),
            adaptive("model"),
            of(json!({"kind": "reward_model"})),
            adapting(json!({"kind": "sft"})),
            adapting(json!({"kind": "reward_model"})),
        ]
    }

    /// A trainer that begins with these weights, and for which `total_steps` steps are planned. What is frozen is the
    /// checkpoint's in any case.
    fn trainer(&self, checkpoint: &Checkpoint, factor: f64, total_steps: usize) -> Trainer {
        let Checkpoint { config, weights, tokenizer } = checkpoint;
        let (config, frozen) = match self.config["kind"] == "reward_model" {
            true => reward_model::initial(config, weights, tokenizer, 4),
            false => (config.clone(), copies(weights)),
        };
        let start: Weights = frozen.iter().map(|(name, tensor)| (name.clone(), tensor * factor)).collect();
        let objective = algorithm(&self.config).objective();
        let needs = objective.needs();
        let training = training();
        let trainer = match &self.lora {
            Some(lora) => {
                let seed = if factor == 1.0 { 1 } else { 2 };
                let adapter = Adapter::new(lora, &config, seed).expect("it fits");
                Trainer::adapting(
                    &config,
                    &frozen,
                    &adapter,
                    Compute::CPU_F32,
                    objective,
                    training,
                    total_steps,
                )
            }
            None => Trainer::new(&config, &start, Compute::CPU_F32, objective, training, total_steps),
        };
        let reference = if needs.sync.is_some() { &start } else { &frozen };
        trainer.and_then(|trainer| trainer.with_reference(reference)).expect("it fits")
    }
}

/// Three steps, written and read; three more, in which a stage begins anew, are the same in a trainer that went on from other
/// weights, another plan and a fresh objective.
#[test]
fn a_training_goes_on_from_its_state_to_the_last_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    for case in Case::all() {
        let what = case.config.to_string();
        let (checkpoint, mut trees) = tiny();
        let mut trainer = case.trainer(&checkpoint, 1.0, 7);
        for step in 0..3 {
            if step != 1 {
                begin(&mut trainer, &mut trees);
            }
            trainer.step(&views(&trees)).expect("a step");
        }
        let place = folder.path().join("trainer");
        trainer.state().save(&place).expect("it is written");
        let state = TrainerState::load(&place).expect("it is read");
        let mut other = case.trainer(&checkpoint, 1.25, 100).resume(&state).expect("it fits");
        // The state is not what is trained.
        drop(state);
        assert_eq!(other.steps(), 3);
        for step in 3..6 {
            if step == 4 {
                begin(&mut other, &mut trees.clone());
                begin(&mut trainer, &mut trees);
            }
            let reports = [&mut trainer, &mut other].map(|one| one.step(&views(&trees)).expect("a step"));
            assert_eq!(reports[0], reports[1], "{what}: step {step}");
            assert_same(&what, &other.weights(), &trainer.weights());
            assert_same(&what, &other.optimizer_state(), &trainer.optimizer_state());
            assert_same(&what, &other.snapshot(0).weights(), &trainer.snapshot(0).weights());
            for (found, expected) in
                [(other.critic(), trainer.critic()), (other.reference(), trainer.reference())]
            {
                assert_same(&what, &found.unwrap_or_default(), &expected.unwrap_or_default());
            }
            assert_eq!(other.state().objective, trainer.state().objective, "{what}");
        }
    }
}

/// A trainer that another one goes on from in memory keeps its own.
#[test]
fn a_resumed_trainer_shares_no_tensor() {
    let (checkpoint, mut trees) = tiny();
    let case = Case::of(json!({"kind": "ppo", "critic": "model"}));
    let mut trainer = case.trainer(&checkpoint, 1.0, 7);
    begin(&mut trainer, &mut trees);
    trainer.step(&views(&trees)).expect("a step");
    let (weights, moments) = (copies(&trainer.weights()), copies(&trainer.optimizer_state()));
    let mut other = case.trainer(&checkpoint, 1.25, 7).resume(&trainer.state()).expect("it fits");
    other.step(&views(&trees)).expect("a step");
    assert_same("weights", &trainer.weights(), &weights);
    assert_same("moments", &trainer.optimizer_state(), &moments);
}

/// Numbers that other writings would lose.
#[test]
fn tensors_keep_their_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let bits = [0x7fc0_0001, 0x8000_0000, 1, 0x0080_0000, 0xff80_0000, 0x3eaa_aaab];
    let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
    let tensor = Tensor::from_slice(&values).view([2, 3]);
    let path = folder.path().join("some.safetensors");
    save_weights(&path, &Weights::from([("a".to_string(), tensor)])).expect("it is written");
    let again = load_weights(&path).expect("it is read").remove("a").expect("it is there");
    assert_eq!(again.size(), [2, 3]);
    let again = Vec::<f32>::try_from(again.flatten(0, -1)).expect("numbers");
    assert_eq!(again.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), bits);
}

#[test]
fn a_state_of_another_training_is_refused_and_a_broken_one_named() {
    let (checkpoint, mut trees) = tiny();
    let state = |config: Value, trees: &mut [Tree]| {
        let mut trainer = Case::of(config).trainer(&checkpoint, 1.0, 7);
        begin(&mut trainer, trees);
        trainer.state()
    };
    let refused = |config: Value, state: &TrainerState| {
        let trainer = Case::of(config).trainer(&checkpoint, 1.0, 7);
        trainer.resume(state).expect_err("refused").to_string()
    };
    let sft = state(json!({"kind": "sft"}), &mut trees);
    let ppo = state(json!({"kind": "ppo"}), &mut trees);
    for (config, state, expected) in [
        (json!({"kind": "ppo"}), &sft, "it has not a critic, and the objective has one"),
        (json!({"kind": "sft"}), &ppo, "it has a critic, and the objective has not one"),
        (
            json!({"kind": "ppo", "critic": "model"}),
            &ppo,
            "it has the tensor value_head.weight, which is not",
        ),
        (
            json!({"kind": "dpo", "sync_ref_model": true}),
            &sft,
            "it has not a reference that follows the policy, and the objective has one",
        ),
        (json!({"kind": "dpo"}), &sft, "the objective's part: invalid type: null"),
    ] {
        let error = refused(config, state);
        assert!(error.contains(expected), "{error}");
    }
    let dpo = state(json!({"kind": "dpo"}), &mut trees);
    let error = refused(json!({"kind": "sft"}), &dpo);
    assert!(
        error.contains("the objective's part: expected none, found {\"mean\":0.0,\"steps\":0.0}"),
        "{error}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("state");
    for (name, change) in [
        ("trained.safetensors", "cut"),
        ("position/optimizer.safetensors", "cut"),
        ("trainer.json", "cut"),
        ("critic.safetensors", "gone"),
        ("position/position.json", "gone"),
    ] {
        ppo.save(&place).expect("it is written");
        let path = place.join(name);
        let bytes = fs::read(&path).expect("it is there");
        match change {
            "cut" => fs::write(&path, &bytes[..bytes.len() - 5]).expect("it is written"),
            _ => fs::remove_file(&path).expect("it is removed"),
        }
        let error = TrainerState::load(&place).expect_err("refused").to_string();
        let expected = if change == "cut" { "is broken (" } else { "cannot be read" };
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}
