//! The judge against this project's own server, with the tiny fixture model: what it hears is what the model says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_buffers::{Message, Prompt};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::tokenizer::Tokenizer;
use arriero_reward::Judge;
use arriero_reward::scorer::judge::{Comparison, JudgeConfig, Question, Winner};
use arriero_serve::{ServeConfig, Server};
use serde_json::{Value, json};

const TOKENS: usize = 24;

fn load() -> (Model, Tokenizer) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&path).expect("the fixture");
    (Model::new(&config, &weights, Compute::CPU_F32).expect("it fits"), tokenizer)
}

/// What the model says to a user, greedily.
fn said(messages: &[&str]) -> Vec<String> {
    let (model, tokenizer) = load();
    let sampling = SamplingConfig { temperature: 0.0, max_new_tokens: TOKENS, ..SamplingConfig::default() };
    let mut generator =
        GroupSampler::new(model, 0, tokenizer, GenerationConfig { sampling, samples: 1, batch: 8, seed: 0 });
    for (id, text) in messages.iter().enumerate() {
        let prompt = Prompt { id: id as u64, messages: vec![Message::user(*text)], checks: Value::Null };
        generator.submit(Arc::new(prompt)).expect("it fits");
    }
    let mut groups = generator.run().expect("it generates");
    groups.sort_by_key(|group| group.prompt.id);
    groups.into_iter().map(|mut group| group.completions.remove(0).text).collect()
}

/// The verdict that the pattern `(?i)([abc])` finds.
fn last_letter(text: &str) -> Option<Winner> {
    text.chars().rev().find_map(|letter| match letter.to_ascii_lowercase() {
        'a' => Some(Winner::A),
        'b' => Some(Winner::B),
        'c' => Some(Winner::Tie),
        _ => None,
    })
}

fn swapped(winner: Winner) -> Winner {
    match winner {
        Winner::A => Winner::B,
        Winner::B => Winner::A,
        Winner::Tie => Winner::Tie,
    }
}

#[test]
fn the_judge_hears_what_our_own_server_says() {
    let (model, tokenizer) = load();
    let server = Server::bind(ServeConfig::local("tiny"), model, tokenizer).expect("it starts");
    let (base_url, shutdown) = (format!("http://{}/v1", server.address()), server.shutdown_handle());
    let serving = std::thread::spawn(|| server.run());

    let judge = |options: Value| {
        let mut config = json!({"base_url": base_url, "model": "tiny", "max_tokens": TOKENS, "retries": 0});
        config.as_object_mut().expect("a table").extend(options.as_object().expect("a table").clone());
        let config: JudgeConfig = serde_json::from_value(config).expect("options");
        Judge::new(&config).expect("it is valid")
    };
    let hi = [Message::user("hi")];
    let texts = ["apple", "bean", "cherry", "damson"];

    // A random model says nothing that is a rating: its own words are in the error.
    let pointwise = judge(json!({"template": "{prompt} {completion}", "pattern": "Rating: (\\d+)"}));
    let questions = texts.map(|completion| Question { prompt: &hi, answer: None, completion });
    let expected = said(&["hi apple", "hi bean", "hi cherry", "hi damson"]);
    for (rating, expected) in pointwise.rate_all(&questions).into_iter().zip(&expected) {
        let error = rating.expect_err("no rating").to_string();
        assert_eq!(error, format!("the judge answered {expected:?}; expected a match of its pattern"));
    }

    // But it has letters, here and there.
    let pairwise = judge(json!({"mode": "pairwise", "template": "{a} {b}", "pattern": "(?i)([abc])"}));
    let words: [&'static str; 7] = ["apple", "bean", "cherry", "damson", "elder", "fig", "grape"];
    let pairs: Vec<(&'static str, &'static str)> =
        (0..words.len()).flat_map(|a| (a + 1..words.len()).map(move |b| (words[a], words[b]))).collect();
    let shown = pairs.iter().flat_map(|(a, b)| [format!("{a} {b}"), format!("{b} {a}")]);
    let expected = said(&shown.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>());
    let compared = |&(a, b): &(&'static str, &'static str)| Comparison { prompt: &hi, answer: None, a, b };
    let verdicts = pairwise.compare_all(&pairs.iter().map(compared).collect::<Vec<_>>());
    let mut found = 0;
    for (verdict, expected) in verdicts.into_iter().zip(expected.chunks(2)) {
        match (last_letter(&expected[0]), last_letter(&expected[1]).map(swapped)) {
            (Some(a_first), Some(b_first)) => {
                let verdict = verdict.expect("both answers have a letter");
                assert_eq!((verdict.a_first, verdict.b_first), (a_first, b_first), "{expected:?}");
                found += 1;
            }
            _ => assert!(verdict.is_err(), "{expected:?}"),
        }
    }
    assert!(found > 0, "no answer has a letter: choose other words");

    // What the server refuses, and a server that is gone.
    let other = judge(json!({"request": {"top_p": 7}}));
    let error = other.rate(questions[0]).expect_err("top_p is out of range").to_string();
    assert!(error.contains("status 400"), "{error}");
    shutdown.shut_down();
    serving.join().expect("no panic").expect("a good end");
    let error = pointwise.rate(questions[0]).expect_err("it is gone").to_string();
    assert!(error.contains(&base_url) && error.contains("(tried once)"), "{error}");
}
