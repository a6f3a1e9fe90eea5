//! Adapters on a tiny random checkpoint: against PEFT, against the gradients of full training, and what is
//! refused.

use std::fs;
use std::path::{Path, PathBuf};

use arriero_buffers::{Branch, Tree};
use arriero_policy::checkpoint::{Checkpoint, Weights, read_adapter, write_adapter};
use arriero_policy::config::ModelConfig;
use arriero_policy::device::Compute;
use arriero_policy::forest::Forest;
use arriero_policy::lora::{Adapter, LoraConfig};
use arriero_policy::model::Model;
use arriero_policy::objective::{Algorithm, SftConfig};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::trainer::Trainer;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};

const TARGET: &str = "base_model.model.model.layers.1.self_attn.q_proj";

fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn tiny() -> Checkpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    Checkpoint::open(&path).expect("it loads")
}

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("it is there")).expect("JSON")
}

fn rows(value: &Value) -> Tensor {
    let row = |row: &Value| -> Vec<f64> {
        row.as_array().expect("a row").iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    Tensor::from_slice2(&value.as_array().expect("rows").iter().map(row).collect::<Vec<_>>())
}

/// Logits of the vectors' tokens in the vectors' columns.
fn logits(model: &Model, vectors: &Value) -> Tensor {
    let numbers = |key: &str| rows(&json!([vectors[key]])).to_kind(Kind::Int64).squeeze();
    let tokens: Vec<i64> = Vec::try_from(numbers("tokens")).expect("ids");
    let prompt = tokens.into_iter().map(|id| id as u32).collect();
    let tree = Tree { prompt_id: 0, prompt, ..Tree::default() };
    let forest = Forest::pack(&[&tree], model.config().max_positions, Device::Cpu).expect("it fits");
    let hidden = no_grad(|| model.forest(&forest, &mut |_, _| ()));
    model.logits(&hidden).index_select(1, &numbers("columns")).to_kind(Kind::Double)
}

fn worst(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[])
}

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    ((found - expected).norm() / expected.norm()).double_value(&[])
}

fn all_linear(r: usize) -> LoraConfig {
    LoraConfig { r, alpha: 6.0, target_modules: vec!["all-linear".to_string()], use_rslora: false }
}

/// With A and B far from zero, so that every gradient is.
fn random_adapter(config: &LoraConfig, model: &ModelConfig) -> Adapter {
    tch::manual_seed(4);
    let mut adapter = Adapter::new(config, model, 4).expect("it fits");
    for tensor in adapter.tensors.values_mut() {
        *tensor = tensor.randn_like() * 0.1;
    }
    adapter
}

fn batch() -> Vec<Tree> {
    let branch = |tokens: Vec<u32>| Branch {
        sample: 0,
        is_format: vec![false; tokens.len()],
        behaviour_logps: vec![0.0; tokens.len()],
        reference_logps: vec![0.0; tokens.len()],
        reward: 1.0,
        tokens,
        ..Branch::default()
    };
    let tree = |id: u32| Tree {
        prompt_id: id.into(),
        prompt: (0..5 + id).map(|token| (token * 37 + id) % 320).collect(),
        branches: vec![branch((0..7 + id).map(|token| (token * 53 + 11 * id + 3) % 320).collect())],
        ..Tree::default()
    };
    (0..3).map(tree).collect()
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

fn full(weights: &Weights, config: &ModelConfig) -> Trainer {
    let objective = Algorithm::Sft(SftConfig {}).objective();
    Trainer::new(config, weights, Compute::CPU_F32, objective, training(0.0), 1).expect("it fits")
}

fn adapting(adapter: &Adapter, tiny: &Checkpoint, training: TrainingConfig) -> Trainer {
    let objective = Algorithm::Sft(SftConfig {}).objective();
    let Checkpoint { config, weights, .. } = tiny;
    Trainer::adapting(config, weights, adapter, Compute::CPU_F32, objective, training, 20).expect("it fits")
}

fn step(trainer: &mut Trainer) -> f64 {
    trainer.step(&batch().iter().collect::<Vec<_>>()).expect("a step").metrics["loss"]
}

#[test]
fn logits_with_an_adapter_of_peft_equal_pefts_before_and_after_the_merge() {
    let expected = json_file(&vectors("lora.json"));
    let Checkpoint { config, weights, .. } = tiny();
    let adapter = read_adapter(&vectors("lora"), &config).expect("it loads");
    assert_eq!((adapter.config.r, adapter.config.alpha, adapter.config.use_rslora), (3, 5.0, true));
    let adapted = Model::adapted(&config, &weights, &adapter, &Weights::new(), Compute::CPU_F32);
    let adapted = adapted.expect("it fits");
    let merged = adapter.merge(&config, &weights).expect("it fits");
    let merged = Model::new(&config, &merged, Compute::CPU_F32).expect("it fits");
    let wanted = rows(&expected["adapted"]);
    assert!(worst(&wanted, &rows(&expected["base"])) > 0.1, "the adapter does nothing");
    for (name, model) in [("adapted", adapted), ("merged", merged)] {
        let worst = worst(&logits(&model, &expected), &wanted);
        assert!(worst <= 1e-5, "{name}: largest difference of a logit {worst}");
        let packed = logits(&model.packed().packed(), &expected);
        assert!((&packed - &wanted).abs().max().double_value(&[]) <= 1e-5, "{name}, packed");
    }
}

/// With W' = W + s B A: dA = s Bᵀ dW' and dB = s dW' Aᵀ, where dW' is what full training of the merged weights
/// finds. For an odd rank (libtorch's operators) and an even one (the kernels), with and without computing
/// layers again.
#[test]
fn gradients_are_those_of_the_merged_weights() {
    let tiny = tiny();
    for (r, use_rslora, checkpointing) in [(3, false, false), (4, true, false), (4, false, true)] {
        let config = LoraConfig { use_rslora, ..all_linear(r) };
        let scale = if use_rslora { 6.0 / (r as f64).sqrt() } else { 6.0 / r as f64 };
        let adapter = random_adapter(&config, &tiny.config);
        let merged = adapter.merge(&tiny.config, &tiny.weights).expect("it fits");
        let mut dense = full(&merged, &tiny.config);
        let options = TrainingConfig { activation_checkpointing: checkpointing, ..training(0.0) };
        let mut low_rank = adapting(&adapter, &tiny, options);
        let (expected, found) = (step(&mut dense), step(&mut low_rank));
        assert!((expected - found).abs() < 1e-5 * expected, "loss {found}, expected {expected}");
        let (dense, gradients) = (dense.gradients(), low_rank.gradients());
        assert_eq!(gradients.len(), 2 * 7 * tiny.config.num_layers);
        for (name, a) in adapter.tensors.iter().filter(|(name, _)| name.ends_with("lora_A.weight")) {
            let name_b = name.replace("lora_A", "lora_B");
            let module = name.replace("base_model.model.", "").replace(".lora_A", "");
            let (b, dw) = (&adapter.tensors[&name_b], &dense[&module]);
            for (name, expected) in [(name, b.tr().matmul(dw) * scale), (&name_b, dw.matmul(&a.tr()) * scale)]
            {
                let error = relative(&gradients[name], &expected);
                assert!(error < 1e-5, "r {r}: {name}: relative error {error:.1e}");
            }
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_is_drawn_by_its_seed() {
    let expected = json_file(&vectors("lora.json"));
    let tiny = tiny();
    let adapter = Adapter::new(&all_linear(8), &tiny.config, 7).expect("it fits");
    let base = Model::new(&tiny.config, &tiny.weights, Compute::CPU_F32).expect("it fits");
    let adapted = Model::adapted(&tiny.config, &tiny.weights, &adapter, &Weights::new(), Compute::CPU_F32)
        .expect("it fits");
    assert_eq!(logits(&adapted, &expected), logits(&base, &expected));
    let merged = adapter.merge(&tiny.config, &tiny.weights).expect("it fits");
    assert!(merged.iter().all(|(name, tensor)| *tensor == tiny.weights[name]));

    let again = Adapter::new(&all_linear(8), &tiny.config, 7).expect("it fits");
    assert!(adapter.tensors.iter().all(|(name, tensor)| *tensor == again.tensors[name]));
    let other = Adapter::new(&all_linear(8), &tiny.config, 8).expect("it fits");
    let a = format!("{TARGET}.lora_A.weight");
    assert_ne!(adapter.tensors[&a], other.tensors[&a]);
    assert_ne!(adapter.tensors[&a], adapter.tensors[&a.replace("layers.1", "layers.0")]);
    // Uniform within ± 1 / √32, whose variance is 1 / 96; 8 × 32 draws.
    let draws = &adapter.tensors[&a];
    assert!(draws.abs().max().double_value(&[]) <= 1.0 / 32f64.sqrt());
    let variance = draws.square().mean(Kind::Double).double_value(&[]);
    assert!((variance * 96.0 - 1.0).abs() < 0.3, "{variance}");
}

#[test]
fn training_moves_the_adapter_and_leaves_the_weights() {
    let tiny = tiny();
    let before: Weights = tiny.weights.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
    let adapter = Adapter::new(&LoraConfig::default(), &tiny.config, 1).expect("it fits");
    let mut trainer = adapting(&adapter, &tiny, training(1e-2));
    let first = step(&mut trainer);
    let last = (0..15).map(|_| step(&mut trainer)).last().expect("steps");
    assert!(last < 0.95 * first, "loss {first}, then {last}");
    assert!(tiny.weights.iter().all(|(name, tensor)| *tensor == before[name]), "a weight has changed");

    // Moments for A and B of two matrices a layer, and for nothing else.
    assert_eq!(trainer.optimizer_state().len(), 2 * 2 * 2 * tiny.config.num_layers);
    // What generators get, what is exported, and the adapter itself are the same model.
    let trained = trainer.adapter().expect("adapters are trained");
    let merged = trained.merge(&tiny.config, &tiny.weights).expect("it fits");
    let changed = |name: &str| name.contains("q_proj") || name.contains("v_proj");
    for (what, weights) in [("weights", trainer.weights()), ("snapshot", trainer.snapshot(1).weights())] {
        assert_eq!(weights.len(), tiny.weights.len());
        for (name, tensor) in &weights {
            assert_eq!(*tensor, merged[name], "{what}: {name}");
            assert_eq!(*tensor != before[name], changed(name), "{what}: {name}");
        }
    }
    // A snapshot stands still while training goes on.
    let snapshot = trainer.snapshot(1);
    step(&mut trainer);
    assert!(snapshot.weights().iter().all(|(name, tensor)| *tensor == merged[name]));
}

#[test]
fn bf16_snapshots_are_the_merged_weights_rounded_once() {
    let tiny = tiny();
    let adapter = random_adapter(&all_linear(4), &tiny.config);
    let compute = Compute { kind: Kind::BFloat16, ..Compute::CPU_F32 };
    let objective = Algorithm::Sft(SftConfig {}).objective();
    let Checkpoint { config, weights, .. } = &tiny;
    let trainer = Trainer::adapting(config, weights, &adapter, compute, objective, training(0.0), 1);
    let snapshot = trainer.expect("it fits").snapshot(0).weights();
    for (name, tensor) in adapter.merge(config, weights).expect("it fits") {
        assert_eq!(snapshot[&name], compute.place(&name, &tensor), "{name}");
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let tiny = tiny();
    let mut config = all_linear(3);
    config.alpha = 4.5;
    let adapter = random_adapter(&config, &tiny.config);
    // Kept for `make_lora.py --check`.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lora-for-peft");
    write_adapter(&folder, &tiny.config, &adapter, "tiny").expect("it is written");
    let again = read_adapter(&folder, &tiny.config).expect("it loads");
    assert_eq!((again.config.r, again.config.alpha, again.config.use_rslora), (3, 4.5, false));
    assert_eq!(again.config.target_modules.len(), 7);
    assert_eq!(again.tensors.len(), adapter.tensors.len());
    assert!(adapter.tensors.iter().all(|(name, tensor)| *tensor == again.tensors[name]));

    let model = Model::adapted(&tiny.config, &tiny.weights, &adapter, &Weights::new(), Compute::CPU_F32);
    let found = logits(&model.expect("it fits"), &json_file(&vectors("lora.json")));
    let found: Vec<Vec<f64>> =
        (0..found.size()[0]).map(|row| Vec::try_from(found.get(row)).expect("a row")).collect();
    fs::write(folder.join("logits.json"), json!(found).to_string()).expect("written");
}

/// The adapter of the vectors with some options changed.
fn with_options(changed: &Value) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = json_file(&vectors("lora/adapter_config.json"));
    for (name, value) in changed.as_object().expect("options") {
        config[name] = value.clone();
    }
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).expect("written");
    fs::copy(vectors("lora/adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .expect("a copy");
    let error = read_adapter(folder.path(), &tiny().config).expect_err("it is refused").to_string();
    assert!(error.contains(&folder.path().display().to_string()) && !error.contains('\n'), "{error}");
    error
}

#[test]
fn an_adapter_of_another_base_model_is_refused() {
    let Checkpoint { config, weights, .. } = tiny();
    let refused =
        |config: &ModelConfig| read_adapter(&vectors("lora"), config).expect_err("another model").to_string();
    let wider = refused(&ModelConfig { intermediate_size: 96, ..config.clone() });
    assert!(wider.contains("layers.0.mlp.down_proj.lora_A.weight has the shape [3, 64]"), "{wider}");
    assert!(wider.contains("need [3, 96]; use it with the base model that it was trained on"), "{wider}");
    let shallower = refused(&ModelConfig { num_layers: 1, ..config.clone() });
    assert!(shallower.contains("targets \"model.layers.1.mlp.down_proj\""), "{shallower}");
    assert!(shallower.contains("no linear layer of this model of 1 layers"), "{shallower}");

    // The same through the trainer, which gets no file.
    let short = LoraConfig::default();
    let deep = ModelConfig { num_layers: 3, ..config.clone() };
    let adapter = Adapter::new(&short, &deep, 0).expect("it fits");
    let error = adapter.merge(&config, &weights).expect_err("another model").to_string();
    assert!(error.contains("model.layers.2.self_attn.q_proj.lora_A.weight, which its targets"), "{error}");
    assert!(error.contains("in this model of 2 layers"), "{error}");
    let adapter = Adapter::new(&short, &config, 0).expect("it fits");
    let error = adapter.check(&deep).expect_err("another model").to_string();
    assert!(error.contains("lacks the tensor base_model.model.model.layers.2.self_attn.q_proj"), "{error}");
}

#[test]
fn options_of_peft_that_make_another_model_are_refused_by_name() {
    for (option, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("layers_to_transform", json!([0])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("LOHA")),
        ("lora_bias", json!(true)),
        ("an_option_of_next_year", json!(true)),
    ] {
        let error = with_options(&json!({ option: value }));
        assert!(error.contains(&format!("{option} = {value} is not supported; supported: ")), "{error}");
    }
    let error = with_options(&json!({"target_modules": ".*q_proj"}));
    assert!(
        error.contains("target_modules = \".*q_proj\" (a regular expression) is not supported"),
        "{error}"
    );
}

#[test]
fn broken_adapters_are_refused() {
    for (changed, expected) in [
        (json!({"r": 4}), "has the shape [3, 64], but this model and r = 4 need [4, 64]"),
        (json!({"r": 0}), "lora.r is 0; it must be at least 1 and at most 65536"),
        (json!({"r": "three"}), "r is \"three\", expected a whole number"),
        (json!({"lora_alpha": -1}), "lora.alpha is -1; it must be above 0"),
        (json!({"lora_alpha": null}), "lora_alpha is null, expected a number"),
        (json!({"target_modules": ["q_proj"]}), "which its targets do not name"),
        (json!({"target_modules": ["query"]}), "targets \"query\", which is no linear layer"),
        (json!({"target_modules": [1]}), "target_modules is [1], expected a list of names"),
        (json!({"peft_type": null}), "peft_type = null is not supported"),
    ] {
        let error = with_options(&changed);
        assert!(error.contains(expected), "{error}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = read_adapter(folder.path(), &tiny().config).expect_err("nothing is there").to_string();
    assert!(error.contains("adapter_config.json cannot be read"), "{error}");
    fs::copy(vectors("lora/adapter_config.json"), folder.path().join("adapter_config.json")).expect("a copy");
    let error = read_adapter(folder.path(), &tiny().config).expect_err("no tensors").to_string();
    assert!(error.contains("adapter_model.safetensors cannot be read"), "{error}");
    let bytes = fs::read(vectors("lora/adapter_model.safetensors")).expect("the tensors");
    fs::write(folder.path().join("adapter_model.safetensors"), &bytes[..bytes.len() - 8]).expect("cut");
    let error = read_adapter(folder.path(), &tiny().config).expect_err("cut").to_string();
    assert!(error.contains("adapter_model.safetensors is broken: it should have"), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    let config = tiny().config;
    let lora = |change: fn(&mut LoraConfig)| {
        let mut lora = LoraConfig::default();
        change(&mut lora);
        let training = TrainingConfig { lora: Some(lora), ..TrainingConfig::default() };
        training.validate().expect_err("out of range")
    };
    assert_eq!(lora(|lora| lora.r = 0), "lora.r is 0; it must be at least 1 and at most 65536");
    assert_eq!(lora(|lora| lora.alpha = f64::NAN), "lora.alpha is NaN; it must be above 0");
    assert!(lora(|lora| lora.target_modules.clear()).starts_with("lora.target_modules is empty"));
    let unknown = LoraConfig { target_modules: vec!["attn".to_string()], ..LoraConfig::default() };
    let error = unknown.check(&config).expect_err("unknown").to_string();
    assert!(
        error.contains("names \"attn\", which is no linear layer of this model; known: q_proj, k_proj"),
        "{error}"
    );
}
