//! Tiny random checkpoints against PyTorch: logits, losses, gradients, AdamW; and what becomes of broken
//! ones.
//!
//! `vectors/README.md` and `tests/fixtures/README.md` of the root say how these were made.

use std::fs;
use std::path::{Path, PathBuf};

use arriero_buffers::{Branch, Tree};
use arriero_policy::checkpoint::{Checkpoint, Weights, write_hf};
use arriero_policy::device::Compute;
use arriero_policy::embedding::embed;
use arriero_policy::forest::Forest;
use arriero_policy::generate::{Engine, Request};
use arriero_policy::kernels;
use arriero_policy::model::Model;
use arriero_policy::objective::dpo::DpoPreset;
use arriero_policy::objective::{Algorithm, DpoConfig, SftConfig};
use arriero_policy::optim::{Schedule, TrainingConfig};
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::scoring::score_reference;
use arriero_policy::trainer::Trainer;
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/tiny.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the vectors are in the repository")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn assert_close(what: &str, found: f64, expected: f64, relative: f64) {
    let error = (found - expected).abs() / expected.abs().max(1e-3);
    assert!(error <= relative, "{what}: found {found}, expected {expected}, relative error {error:.1e}");
}

#[test]
fn logits_equal_transformers_whether_tied_or_not_sharded_or_not() {
    let expected = vectors();
    let columns: Vec<i64> = ids(&expected["columns"]).into_iter().map(i64::from).collect();
    for name in ["tiny", "tiny-untied"] {
        let Checkpoint { config, weights, .. } = Checkpoint::open(&fixture(name)).expect("it loads");
        let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
        let tree = Tree { prompt_id: 0, prompt: ids(&expected["tokens"]), ..Tree::default() };
        let forest = Forest::pack(&[&tree], config.max_positions, tch::Device::Cpu).expect("it fits");
        let logits = no_grad(|| model.forest(&forest, &mut |_, _| ()).matmul(&model.output().matrix().tr()));
        let found = logits.index_select(1, &Tensor::from_slice(&columns)).to_kind(Kind::Double);
        let found: Vec<f64> = Vec::try_from(found.flatten(0, -1)).expect("numbers");
        let rows = expected["models"][name]["logits"].as_array().expect("rows");
        let wanted: Vec<f64> = rows.iter().flat_map(numbers).collect();
        assert_eq!(found.len(), wanted.len());
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-4, "{name}: largest difference of a logit {worst}");
    }
}

/// Logits are linear in hidden states: those of a mean are the mean of transformers'.
#[test]
fn an_embedding_is_the_mean_of_hidden_states_whatever_the_batch() {
    let expected = vectors();
    let columns: Vec<i64> = ids(&expected["columns"]).into_iter().map(i64::from).collect();
    let Checkpoint { config, weights, .. } = Checkpoint::open(&fixture("tiny-untied")).expect("it loads");
    let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
    let tokens = ids(&expected["tokens"]);
    let sequences = [tokens.clone(), Vec::new(), tokens[..1].to_vec(), tokens[..3].to_vec()];
    let packed = embed(&model, &sequences, 1000).expect("they fit");
    for (sequence, vector) in sequences.iter().zip(&packed) {
        let alone = &embed(&model, std::slice::from_ref(sequence), 1).expect("it fits")[0];
        let worst = alone.iter().zip(vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{worst}");
        let length: f32 = vector.iter().map(|entry| entry * entry).sum();
        assert!((length - if sequence.is_empty() { 0.0 } else { 1.0 }).abs() <= 1e-4, "{length}");
    }
    let found = Tensor::from_slice(&packed[0]).view([1, -1]).matmul(&model.output().matrix().tr()).squeeze();
    let found = found.index_select(0, &Tensor::from_slice(&columns)).to_kind(Kind::Double);
    let found: Vec<f64> = Vec::try_from(found).expect("numbers");
    let rows = expected["models"]["tiny-untied"]["logits"].as_array().expect("rows");
    let rows: Vec<Vec<f64>> = rows[1..].iter().map(numbers).collect();
    let sum = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>();
    let wanted: Vec<f64> = (0..columns.len()).map(sum).collect();
    let dot = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
    let cosine = dot(&found, &wanted) / (dot(&found, &found) * dot(&wanted, &wanted)).sqrt();
    assert!(cosine > 1.0 - 1e-6, "{cosine}");
}

/// The vectors' preference pairs; chosen first.
fn pairs(expected: &Value) -> Vec<Tree> {
    let format: Vec<u32> = ids(&expected["dpo"]["format_tokens"]);
    let branch = |pair: &Value, role: &str, sample: u32| {
        let tokens = ids(&pair[role]);
        let reference = numbers(&pair[format!("reference_logps_{role}")]);
        Branch {
            sample,
            is_format: tokens.iter().map(|token| format.contains(token)).collect(),
            behaviour_logps: vec![0.0; tokens.len()],
            reference_logps: reference.into_iter().map(|number| number as f32).collect(),
            tokens,
            ..Branch::default()
        }
    };
    let tree = |(id, pair): (usize, &Value)| Tree {
        prompt_id: id as u64,
        prompt: ids(&pair["prompt"]),
        branches: vec![branch(pair, "chosen", 0), branch(pair, "rejected", 1)],
        ..Tree::default()
    };
    expected["pairs"].as_array().expect("pairs").iter().enumerate().map(tree).collect()
}

fn chosen_only(pairs: &[Tree]) -> Vec<Tree> {
    let alone = |tree: &Tree| Tree { branches: tree.branches[..1].to_vec(), ..tree.clone() };
    pairs.iter().map(alone).collect()
}

/// No clipping, no schedule: what the vectors were made with.
fn plain(learning_rate: f64, weight_decay: f64, micro_batch_tokens: usize) -> TrainingConfig {
    TrainingConfig {
        learning_rate,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        max_grad_norm: 1e9,
        weight_decay,
        micro_batch_tokens: Some(micro_batch_tokens),
        ..TrainingConfig::default()
    }
}

fn trainer(algorithm: &Algorithm, training: TrainingConfig) -> Trainer {
    let Checkpoint { config, weights, .. } = Checkpoint::open(&fixture("tiny")).expect("it loads");
    Trainer::new(&config, &weights, Compute::CPU_F32, algorithm.objective(), training, 3).expect("it fits")
}

fn assert_tensors(what: &str, found: &Weights, expected: &Value, indices: &Value, relative: f64) {
    let norms = expected["norms"].as_object().expect("norms");
    assert_eq!(found.len(), norms.len());
    for (name, norm) in norms {
        let tensor = found[name].to_kind(Kind::Double).flatten(0, -1);
        let norm = norm.as_f64().expect("a number");
        assert_close(&format!("{what}: norm of {name}"), tensor.norm().double_value(&[]), norm, relative);
        let wanted = numbers(&expected["entries"][name]);
        for (index, wanted) in ids(&indices[name]).into_iter().zip(wanted) {
            let entry = tensor.double_value(&[i64::from(index)]);
            let error = (entry - wanted).abs() / norm;
            assert!(error <= relative, "{what}: {name}[{index}] is {entry}, expected {wanted}");
        }
    }
}

/// The whole path (packing, shared prompts, chunked head, micro-batches) against one sequence at a time
/// in f64: with the kernels and without, with every tree a micro-batch of its own, and with the layers computed
/// again in the backward.
#[test]
fn losses_and_gradients_equal_pytorch_however_the_batch_is_cut() {
    let expected = vectors();
    let pairs = pairs(&expected);
    let chosen = chosen_only(&pairs);
    let dpo = DpoConfig::from(DpoPreset::Llama3);
    let largest = pairs.iter().map(Tree::len).max().expect("pairs");
    for (budget, checkpointing, plain_only) in
        [(largest, false, false), (100_000, false, false), (100_000, false, true), (largest, true, false)]
    {
        kernels::plain_only(plain_only);
        for (name, algorithm, trees) in
            [("sft", Algorithm::Sft(SftConfig {}), &chosen), ("dpo", Algorithm::Dpo(dpo.clone()), &pairs)]
        {
            let training =
                TrainingConfig { activation_checkpointing: checkpointing, ..plain(0.0, 0.0, budget) };
            let mut trainer = trainer(&algorithm, training);
            let report = trainer.step(&trees.iter().collect::<Vec<_>>()).expect("a step");
            let expected = &expected[name];
            let loss = expected["loss"].as_f64().expect("a number");
            assert_close(&format!("{name} loss"), report.metrics["loss"], loss, 1e-5);
            if let Some(metrics) = expected["metrics"].as_object() {
                for (metric, value) in metrics {
                    assert_close(metric, report.metrics[metric], value.as_f64().expect("a number"), 1e-5);
                }
                let nll = expected["nll"].as_f64().expect("a number");
                assert_close("nll_loss", report.metrics["nll_loss"], nll, 1e-5);
            }
            assert_tensors(
                name,
                &trainer.gradients(),
                &expected["gradient"],
                &vectors()["entry_indices"],
                1e-5,
            );
        }
    }
}

#[test]
fn adamw_steps_equal_pytorch() {
    let expected = vectors();
    let chosen = chosen_only(&pairs(&expected));
    let adamw = &expected["adamw"];
    let number = |key: &str| adamw[key].as_f64().expect("a number");
    let mut trainer =
        trainer(&Algorithm::Sft(SftConfig {}), plain(number("lr"), number("weight_decay"), 100_000));
    for loss in numbers(&adamw["losses"]) {
        let report = trainer.step(&chosen.iter().collect::<Vec<_>>()).expect("a step");
        assert_close("loss", report.metrics["loss"], loss, 1e-5);
    }
    assert_tensors("weights", &trainer.weights(), adamw, &expected["entry_indices"], 1e-5);
}

#[test]
fn reference_scores_equal_transformers() {
    let expected = vectors();
    let wanted = pairs(&expected);
    let Checkpoint { config, weights, .. } = Checkpoint::open(&fixture("tiny-untied")).expect("it loads");
    let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
    let mut trees = wanted.clone();
    score_reference(&model, &mut trees, usize::MAX).expect("they fit");
    for (found, wanted) in trees.iter().zip(&wanted) {
        for (found, wanted) in found.branches.iter().zip(&wanted.branches) {
            assert_eq!(found.reference_logps.len(), wanted.reference_logps.len());
            for (a, b) in found.reference_logps.iter().zip(&wanted.reference_logps) {
                assert!((a - b).abs() < 1e-4, "{a} against {b}");
            }
        }
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let tiny = Checkpoint::open(&fixture("tiny-untied")).expect("it loads");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("written");
    for _ in 0..2 {
        // The second time there is something to replace.
        write_hf(&path, &tiny.config, &tiny.tokenizer, &tiny.weights).expect("it is written");
    }
    let again = Checkpoint::open(&path).expect("it loads");
    assert_eq!(again.config, tiny.config);
    assert!(tiny.weights.iter().all(|(name, tensor)| *tensor == again.weights[name]));
    assert_eq!(again.tokenizer.chat_template(), tiny.tokenizer.chat_template());
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1, "something was left behind");
}

/// A copy of `tiny` that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(fixture(name)).expect("the fixture") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

fn refusal(path: &Path) -> String {
    let inspected = Checkpoint::inspect(path).expect_err("it is damaged").to_string();
    let opened = Checkpoint::open(path).expect_err("it is damaged").to_string();
    assert_eq!(inspected, opened);
    assert!(!opened.contains('\n'), "{opened}");
    opened
}

#[test]
fn damaged_directories_are_refused_before_weights_are_read() {
    let missing = refusal(Path::new("no/such/model"));
    assert!(
        missing.starts_with("there is no model at no/such/model; expected a Hugging Face directory"),
        "{missing}"
    );

    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = copy("tiny");
        fs::remove_file(folder.path().join(file)).expect("removed");
        assert!(refusal(folder.path()).contains(file));
    }

    let folder = copy("tiny");
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).expect("the weights");
    fs::write(&weights, &bytes[..bytes.len() - 100]).expect("cut");
    let error = refusal(folder.path());
    let expected = format!("it should have {} bytes, and has {}", bytes.len(), bytes.len() - 100);
    assert!(error.contains(&expected) && error.contains("model.safetensors"), "{error}");
    fs::write(&weights, &bytes[..5]).expect("cut");
    assert!(refusal(folder.path()).contains("it has 5 bytes, too few for a header"));
    fs::write(&weights, [&[255; 8][..], &bytes[8..]].concat()).expect("spoilt");
    assert!(refusal(folder.path()).contains("its header should end at byte"));

    let folder = copy("tiny-untied");
    let index = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("the index");
    fs::write(&index, text.replace("model-00002", "../model-00002")).expect("spoilt");
    assert!(refusal(folder.path()).contains("is no file name"));

    let folder = copy("tiny");
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"))
        .expect("changed");
    assert!(refusal(folder.path()).contains("lacks the tensor model.layers.2."));
    fs::write(&config, text.replace("\"vocab_size\": 320", "\"vocab_size\": 384")).expect("changed");
    let error = refusal(folder.path());
    assert!(error.contains("[320, 32], expected [384, 32]"), "{error}");
    fs::write(&config, &text[..text.len() / 2]).expect("cut");
    assert!(refusal(folder.path()).contains("config.json is broken"));
}

#[test]
fn another_models_tokenizer_is_refused() {
    // SmolLM2's own tokenizer has 49,152 tokens; tiny's embedding has 320 rows.
    let smollm2 =
        arriero_policy::checkpoint::default_model().expect("`cargo xtask setup` has brought the model");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let smollm2 = Checkpoint::open(&smollm2).expect("it loads");
    let tiny = Checkpoint::open(&fixture("tiny")).expect("it loads");
    write_hf(&folder.path().join("mixed"), &tiny.config, &smollm2.tokenizer, &tiny.weights).expect("written");
    let error = refusal(&folder.path().join("mixed"));
    assert!(error.contains("has 49152 tokens, but the model's embedding has 320 rows"), "{error}");
    write_hf(&folder.path().join("mixed"), &smollm2.config, &tiny.tokenizer, &smollm2.weights)
        .expect("written");
    let error = refusal(&folder.path().join("mixed"));
    assert!(error.contains("has 320 tokens, but the model's embedding has 49152 rows"), "{error}");
}

#[test]
fn damaged_gguf_files_are_refused() {
    let whole =
        arriero_policy::checkpoint::default_model().expect("`cargo xtask setup` has brought the model");
    let bytes = fs::read(whole).expect("the model");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, &bytes[..bytes.len() - 1000]).expect("cut");
    let error = refusal(&path);
    assert!(error.contains("should end at byte") && error.contains("model.gguf is broken"), "{error}");
    fs::write(&path, &bytes[..10_000]).expect("cut");
    assert!(refusal(&path).contains("it is no GGUF file, or ends early"));
    fs::write(&path, "hello").expect("no model at all");
    assert!(refusal(&path).contains("it is no GGUF file, or ends early"));
}

#[test]
fn logits_that_are_not_finite_are_an_error_however_tokens_are_drawn() {
    let Checkpoint { config, tokenizer, mut weights, .. } =
        Checkpoint::open(&fixture("tiny")).expect("the fixture");
    let norm = weights.get_mut("model.norm.weight").expect("it has a last norm");
    *norm = norm.full_like(f64::NAN);
    for (temperature, top_k) in [(1.0, 0), (0.0, 0), (0.7, 5)] {
        let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
        let mut engine = Engine::new(model, 0, tokenizer.clone(), 4);
        let request = Request {
            tokens: vec![1, 40, 41],
            samples: 2,
            sampling: SamplingConfig { temperature, top_k, ..SamplingConfig::default() },
            end_tokens: vec![2],
            seed: 0,
            prompt_id: 0,
            greedy_last: false,
            mixed: 0,
            report: false,
            alternatives: 0,
        };
        engine.submit(request).expect("it is taken");
        let error = engine.step().expect_err("no token can be drawn").to_string();
        assert!(error.starts_with("the model's logits are not finite"), "{error}");
    }
}
