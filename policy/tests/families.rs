//! Random checkpoints of every family against transformers: packed trees, generation through the cache, and
//! what is written.
//!
//! `vectors/README.md` says how these were made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_buffers::{Branch, Prompt, Tree};
use arriero_policy::checkpoint::{Checkpoint, write_hf};
use arriero_policy::device::Compute;
use arriero_policy::forest::Forest;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::kernels;
use arriero_policy::model::Model;
use arriero_policy::sampling::SamplingConfig;
use serde_json::{Map, Value};
use tch::{Kind, Tensor, no_grad};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Each family's name and what transformers computes with its checkpoint.
fn expected() -> Map<String, Value> {
    let text =
        fs::read_to_string(vectors().join("families.json")).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("JSON")
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&vectors().join("families").join(name)).expect("it loads")
}

fn model(checkpoint: &Checkpoint) -> Model {
    Model::new(&checkpoint.config, &checkpoint.weights, Compute::CPU_F32).expect("it fits")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

/// The vectors' columns of every token's logits, row after row.
fn logits(model: &Model, prompt: &[u32], branches: &[&[u32]], columns: &Tensor) -> Vec<f64> {
    let branch = |tokens: &&[u32]| Branch {
        sample: 0,
        tokens: tokens.to_vec(),
        is_format: vec![false; tokens.len()],
        behaviour_logps: vec![0.0; tokens.len()],
        ..Branch::default()
    };
    let branches = branches.iter().map(branch).collect();
    let tree = Tree { prompt_id: 0, prompt: prompt.to_vec(), branches, ..Tree::default() };
    // A tree before it, so that this one does not begin at the first row.
    let other = Tree { prompt_id: 1, prompt: vec![7; 9], ..Tree::default() };
    let limit = model.config().max_positions;
    let forest = Forest::pack(&[&other, &tree], limit, tch::Device::Cpu).expect("it fits");
    let found = no_grad(|| {
        let hidden = model.forest(&forest, &mut |_, _| ()).narrow(0, 9, forest.len() - 9);
        hidden.matmul(&model.output().matrix().tr()).index_select(1, columns).to_kind(Kind::Double)
    });
    Vec::try_from(found.flatten(0, -1)).expect("numbers")
}

fn largest_difference(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Every family, by the kernels and by libtorch's ordinary operators, which stand in for them on other devices.
fn both_ways(check: impl Fn(&str, &str, &Value)) {
    for plain in [false, true] {
        kernels::plain_only(plain);
        for (name, expected) in expected() {
            check(&format!("{name}{}", if plain { ", ordinary operators" } else { "" }), &name, &expected);
        }
    }
    kernels::plain_only(false);
}

/// A sequence alone, a prompt with one response, and a prompt with two, which must not see one another.
#[test]
fn logits_equal_transformers_however_a_sequence_is_packed() {
    both_ways(|name, family, expected| {
        let model = model(&open(family));
        let prompt = ids(&expected["prompt"]);
        let columns: Vec<i64> = ids(&expected["columns"]).into_iter().map(i64::from).collect();
        let width = columns.len();
        let columns = Tensor::from_slice(&columns);
        let branches: Vec<Vec<u32>> =
            expected["branches"].as_array().expect("lists").iter().map(ids).collect();
        let wanted: Vec<Vec<f64>> =
            expected["logits"].as_array().expect("lists").iter().map(numbers).collect();
        let mut worst: f64 = 0.0;
        for (branch, wanted) in branches.iter().zip(&wanted) {
            let whole = logits(&model, &[&prompt[..], branch].concat(), &[], &columns);
            worst = worst.max(largest_difference(&whole, wanted));
            // The last token of a response is no input.
            let one = logits(&model, &prompt, &[branch], &columns);
            worst = worst.max(largest_difference(&one, &wanted[..wanted.len() - width]));
        }
        let both = logits(&model, &prompt, &[&branches[0], &branches[1]], &columns);
        let of_branch = |index: usize| &wanted[index][prompt.len() * width..wanted[index].len() - width];
        let wanted = [&wanted[0][..prompt.len() * width], of_branch(0), of_branch(1)].concat();
        worst = worst.max(largest_difference(&both, &wanted));
        println!("{name}: largest difference of a logit {worst:.1e}");
        assert!(worst <= 1e-4, "{name}: largest difference of a logit {worst}");
    });
}

/// Token by token through the cache, beside a shorter prompt, so that lengths differ within a step.
#[test]
fn greedy_tokens_and_their_log_probs_equal_transformers() {
    both_ways(|name, family, expected| {
        let checkpoint = open(family);
        let greedy = ids(&expected["greedy"]);
        let sampling =
            SamplingConfig { temperature: 0.0, max_new_tokens: greedy.len(), ..SamplingConfig::default() };
        let settings = GenerationConfig { sampling, samples: 2, batch: 4, seed: 0 };
        let mut generator = GroupSampler::new(model(&checkpoint), 0, checkpoint.tokenizer, settings);
        let prompt = ids(&expected["prompt"]);
        for (id, tokens) in [(0, prompt.clone()), (1, prompt[..3].to_vec())] {
            let blank = Prompt { id, messages: Vec::new(), checks: Value::Null };
            generator.submit_tokens(Arc::new(blank), tokens).expect("it fits");
        }
        let groups = generator.run().expect("it generates");
        for completion in &groups[0].completions {
            assert_eq!(completion.tokens().collect::<Vec<_>>(), greedy, "{name}");
            let logps: Vec<f64> = completion.logps().map(f64::from).collect();
            let worst = largest_difference(&logps, &numbers(&expected["greedy_logps"]));
            println!("{name}: largest difference of a log-probability {worst:.1e}");
            assert!(worst <= 1e-4, "{name}: largest difference of a log-probability {worst}");
        }
    });
}

/// `make_families.py --check` lets transformers load what this leaves in the target folder.
#[test]
fn what_is_written_reads_back_the_same() {
    for name in expected().keys() {
        let checkpoint = open(name);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("families").join(name);
        write_hf(&path, &checkpoint.config, &checkpoint.tokenizer, &checkpoint.weights).expect("written");
        let again = Checkpoint::open(&path).expect("what was written loads");
        assert_eq!(again.config, checkpoint.config);
        assert_eq!(again.weights.len(), checkpoint.weights.len());
        for (tensor, weight) in &checkpoint.weights {
            assert!(*weight == again.weights[tensor], "{name}: {tensor} differs");
        }
    }
}

#[test]
fn gguf_files_are_the_same_models_as_the_directories() {
    for name in ["llama-biased-linear", "qwen2", "qwen3"] {
        let mut directory = open(name);
        let file = open(&format!("{name}.gguf"));
        directory.config.sliding_window = None;
        assert_eq!(file.config, directory.config);
        assert_eq!(file.weights.keys().collect::<Vec<_>>(), directory.weights.keys().collect::<Vec<_>>());
        for (tensor, weight) in &directory.weights {
            assert!(*weight == file.weights[tensor], "{name}: {tensor} differs");
        }
    }
}

/// A bias that the configuration does not speak of, and one that it does and that is not there.
#[test]
fn tensors_that_do_not_fit_the_configuration_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refusal = |name: &str, from: &str, to: &str| {
        for entry in fs::read_dir(vectors().join("families").join(name)).expect("the checkpoint") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
        }
        let config = folder.path().join("config.json");
        let text = fs::read_to_string(&config).expect("the configuration");
        assert!(text.contains(from));
        fs::write(&config, text.replace(from, to)).expect("changed");
        Checkpoint::inspect(folder.path()).expect_err("it does not fit").to_string()
    };
    let bias = |stated: bool| format!("\"attention_bias\": {stated}");
    let surplus = refusal("llama-biased-linear", &bias(true), &bias(false));
    let supported = "supported: the tensors that its configuration asks for, of the family \"llama\"";
    assert!(surplus.contains("_proj.bias is not supported") && surplus.contains(supported), "{surplus}");
    let missing = refusal("qwen3", &bias(false), &bias(true));
    assert!(missing.contains("it lacks the tensor model.layers.0.self_attn.k_proj.bias"), "{missing}");
    let norms = refusal("qwen2", "\"model_type\": \"qwen2\"", "\"model_type\": \"qwen3\"");
    assert!(norms.contains("it lacks the tensor model.layers.0.self_attn.k_norm.weight"), "{norms}");
}
