//! SmolLM2-135M-Instruct, the model that set-up brings, against transformers' numbers.
//!
//! `vectors/README.md` says how these were made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_buffers::{Message, Prompt, Tree};
use arriero_policy::checkpoint::{Checkpoint, default_model, write_hf};
use arriero_policy::device::Compute;
use arriero_policy::forest::Forest;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::tokenizer::TokenizerRule;
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};

/// The tolerance for logits in f32.
const LOGIT_TOLERANCE: f64 = 2e-3;

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    let text = std::fs::read_to_string(&path).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn model_path() -> PathBuf {
    default_model().expect("`cargo xtask setup` has brought the model")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn largest_difference(found: &Tensor, expected: &[f64]) -> f64 {
    let found: Vec<f64> = Vec::try_from(found.to_kind(Kind::Double).flatten(0, -1)).expect("numbers");
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_and_greedy_text_equal_transformers() {
    let expected = vectors("smollm2.json");
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&model_path()).expect("the model loads");
    let compute = Compute::CPU_F32;
    let model = Model::new(&config, &weights, compute).expect("the model fits its configuration");
    let columns: Vec<i64> = ids(&expected["columns"]).into_iter().map(i64::from).collect();
    let columns = Tensor::from_slice(&columns);
    let prompts = expected["prompts"].as_array().expect("prompts");
    assert_eq!(prompts.len(), 16);
    let mut worst: f64 = 0.0;
    for prompt in prompts {
        let rendered = prompt["rendered"].as_str().expect("a text");
        let text = prompt["text"].as_str().expect("a text");
        if rendered != text {
            assert_eq!(tokenizer.render(&[Message::user(text)]).expect("it renders"), rendered);
        }
        let tokens = ids(&prompt["tokens"]);
        assert_eq!(tokenizer.encode(rendered).expect("it encodes"), tokens, "{text}");
        let tree = Tree { prompt_id: 0, prompt: tokens, ..Tree::default() };
        let forest = Forest::pack(&[&tree], config.max_positions, compute.device).expect("it fits");
        let logits = no_grad(|| model.forest(&forest, &mut |_, _| ()).matmul(&model.output().matrix().tr()));
        let best: Vec<i64> = Vec::try_from(logits.argmax(1, false)).expect("ids");
        assert_eq!(best, ids(&prompt["argmax"]).into_iter().map(i64::from).collect::<Vec<_>>(), "{text}");
        let last = logits.narrow(0, logits.size()[0] - 4, 4);
        let rows: Vec<f64> = prompt["logits"].as_array().expect("rows").iter().flat_map(numbers).collect();
        worst = worst.max(largest_difference(&last.index_select(1, &columns), &rows));
        let sums = last.logsumexp(&[1i64][..], false);
        worst = worst.max(largest_difference(&sums, &numbers(&prompt["logsumexp"])));
    }
    println!("largest difference of a logit: {worst:.1e}");
    assert!(worst <= LOGIT_TOLERANCE, "largest difference of a logit: {worst}");

    let sampling = SamplingConfig { temperature: 0.0, max_new_tokens: 32, ..SamplingConfig::default() };
    let settings = GenerationConfig { sampling, samples: 1, batch: 16, seed: 0 };
    let eos_ids = tokenizer.eos_ids().to_vec();
    let mut generator = GroupSampler::new(model, 0, tokenizer, settings);
    for (id, prompt) in prompts.iter().enumerate() {
        let blank = Prompt { id: id as u64, messages: Vec::new(), checks: Value::Null };
        generator.submit_tokens(Arc::new(blank), ids(&prompt["tokens"])).expect("it fits");
    }
    let groups = generator.run().expect("it generates");
    // The reference goes on after the end of the turn; we do not.
    let until_end = |tokens: Vec<u32>| {
        let end = tokens.iter().position(|token| eos_ids.contains(token));
        tokens[..end.map_or(tokens.len(), |end| end + 1)].to_vec()
    };
    let equal = groups
        .iter()
        .zip(prompts)
        .filter(|(group, prompt)| group.completions[0].tokens().eq(until_end(ids(&prompt["greedy"]))))
        .count();
    println!("identical greedy continuations: {equal} of 16");
    assert!(equal >= 15, "identical greedy continuations: {equal} of 16");
}

#[test]
fn token_ids_and_chats_equal_transformers() {
    let expected = vectors("tokenizer_cases.json");
    let (_, tokenizer) = Checkpoint::inspect(&model_path()).expect("the model is there");
    let converted = tokenizer.with_rule(TokenizerRule::Transformers);
    for case in expected["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        // transformers forgets SmolLM2's rule for digits when it reads a GGUF file: `ids_digits` has it.
        let wanted = if case["ids_digits"].is_null() { &case["ids"] } else { &case["ids_digits"] };
        let found = tokenizer.encode(text).expect("it encodes");
        assert_eq!(found, ids(wanted), "{text:?}");
        assert_eq!(
            converted.encode(text).expect("it encodes"),
            ids(&case["ids"]),
            "{text:?} by transformers' rule"
        );
        for (key, skip) in [("decoded", false), ("decoded_skip", true)] {
            assert_eq!(
                tokenizer.decode(&found, skip).expect("it decodes"),
                case[key].as_str().expect("a text")
            );
        }
    }
    for chat in expected["chats"].as_array().expect("chats") {
        let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).expect("messages");
        assert_eq!(
            tokenizer.render(&messages).expect("it renders"),
            chat["rendered"].as_str().expect("a text")
        );
    }
}

#[test]
fn a_written_directory_is_the_same_model_as_the_gguf_file() {
    let file = Checkpoint::open(&model_path()).expect("the model loads");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("smollm2");
    write_hf(&path, &file.config, &file.tokenizer, &file.weights).expect("it is written");
    let directory = Checkpoint::open(&path).expect("what was written loads");
    assert_eq!(directory.config, file.config);
    assert_eq!(directory.weights.keys().collect::<Vec<_>>(), file.weights.keys().collect::<Vec<_>>());
    for (name, tensor) in &file.weights {
        assert!(*tensor == directory.weights[name], "{name} differs");
    }
    assert_eq!(directory.tokenizer.eos_ids(), file.tokenizer.eos_ids());
    assert_eq!(directory.tokenizer.bos_id(), file.tokenizer.bos_id());
    assert_eq!(directory.tokenizer.chat_template(), file.tokenizer.chat_template());
    for case in vectors("tokenizer_cases.json")["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        assert_eq!(directory.tokenizer.encode(text).ok(), file.tokenizer.encode(text).ok(), "{text:?}");
    }
}
