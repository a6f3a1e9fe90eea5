//! Win rates by an LLM that compares answers: this project's own server with the tiny fixture model, whose verdicts mean
//! nothing but are the same each time. What the suite makes of them is counted again here from what the judge says.

use std::path::Path;

use arriero_buffers::Message;
use arriero_eval::{EvaluatedModel, Evaluation, Kind, SuiteConfig};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::model::Model;
use arriero_reward::scorer::judge::{Comparison, JudgeConfig, Winner};
use arriero_reward::{Judge, RewardConfig};
use arriero_serve::{ServeConfig, Server};
use serde_json::{Value, json};

const PROMPTS: usize = 12;

#[test]
fn a_pair_is_seen_in_both_orders_and_a_judge_that_leans_is_found_out() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&path).expect("the fixture");
    let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
    let server = Server::bind(ServeConfig::local("tiny"), model, tokenizer).expect("it starts");
    let (base_url, shutdown) = (format!("http://{}/v1", server.address()), server.shutdown_handle());
    let serving = std::thread::spawn(|| server.run());

    // The tiny model never says a verdict in so many words; the last of the letters a, b and c in what it says is one.
    let judge = json!({
        "kind": "judge", "mode": "pairwise", "base_url": base_url, "model": "tiny", "max_tokens": 48, "retries": 0,
        "template": "{a} {b}", "pattern": "(?i)([abc])",
    });
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, rows: Vec<Value>| {
        let path = folder.path().join(name);
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(&path, lines).expect("it can be written");
        path.display().to_string()
    };
    let prompt = |index: usize| format!("Say something about the number {index}.");
    let row = |index: usize| json!({"prompt": prompt(index)});
    let other = |index: usize| json!({"prompt": prompt(index), "completion": format!("It is {index}.")});
    let suite = SuiteConfig {
        path: write("prompts.jsonl", (0..PROMPTS).map(row).collect()),
        against: Some(write("theirs.jsonl", (0..PROMPTS).map(other).collect())),
        judge: Some(serde_json::from_value::<RewardConfig>(judge.clone()).expect("a reward")),
        max_new_tokens: Some(6),
        on_error: arriero_data::OnError::Skip,
        max_skipped: 0.9,
        ..SuiteConfig::new(Kind::Winrate)
    };
    let evaluated = EvaluatedModel::open(&path, Compute::CPU_F32, false).expect("the fixture");
    let mut evaluation = Evaluation::new(&suite, &evaluated, 3).expect("it is valid");
    while evaluation.step().expect("it works") {}
    let (report, outcomes) = evaluation.finish().expect("enough pairs were judged");

    let mut options = judge;
    options.as_object_mut().expect("a table").remove("kind");
    let config: JudgeConfig = serde_json::from_value(options).expect("options");
    let judge = Judge::new(&config).expect("it is valid");
    let (mut wins, mut losses, mut consistent, mut decided, mut first_won) = (0, 0, 0, 0, 0);
    for outcome in &outcomes {
        let sample = &outcome.samples[0];
        let ours = sample.completion.text.as_str();
        let theirs = sample.details["theirs"].as_str().expect("their answer");
        assert_eq!(theirs, format!("It is {}.", outcome.id));
        let messages = [Message::user(prompt(outcome.id as usize))];
        let verdict = judge
            .compare_all(&[Comparison { prompt: &messages, answer: None, a: ours, b: theirs }])
            .remove(0)
            .expect("what was judged once is judged again");
        let both = (verdict.a_first, verdict.b_first);
        let score = match both {
            (Winner::A, Winner::A) => (1.0, 0.0, 0.0),
            (Winner::B, Winner::B) => (0.0, 0.0, 1.0),
            _ => (0.0, 1.0, 0.0),
        };
        assert_eq!((sample.scores["win"], sample.scores["tie"], sample.scores["loss"]), score, "{both:?}");
        wins += usize::from(score.0 == 1.0);
        losses += usize::from(score.2 == 1.0);
        consistent += usize::from(both.0 == both.1);
        decided += usize::from(both.0 != Winner::Tie) + usize::from(both.1 != Winner::Tie);
        // Ours stood first the first time, theirs the second time.
        first_won += usize::from(both.0 == Winner::A) + usize::from(both.1 == Winner::B);
    }
    let judged = outcomes.len();
    assert_eq!(report.judged + report.skipped as usize, PROMPTS);
    assert!(judged >= 4 && decided >= 4, "the judge said too little: {judged} judged, {decided} decided");
    assert!(consistent < judged, "a judge of random weights that never contradicts itself");
    let share = |count: usize, of: usize| count as f64 / of as f64;
    let ties = judged - wins - losses;
    for (name, expected) in [
        ("win_rate", share(2 * wins + ties, 2 * judged)),
        ("win", share(wins, judged)),
        ("tie", share(ties, judged)),
        ("loss", share(losses, judged)),
        ("consistent", share(consistent, judged)),
        ("first_place_wins", share(first_won, decided)),
    ] {
        let found = report.figure(name).unwrap_or_else(|| panic!("no {name}")).value;
        assert!((found - expected).abs() < 1e-9, "{name}: {found}, expected {expected}");
    }
    shutdown.shut_down();
    serving.join().expect("it ends").expect("it served");
}
