use arriero_buffers::{Finish, Message};
use serde_json::json;

use super::super::{RewardConfig, group};
use super::*;
use crate::client::test_server::{Reply, TestServer};

fn config(server: &TestServer, options: Value) -> JudgeConfig {
    let mut config = json!({"base_url": server.url("v1/"), "model": "m", "retries": 1});
    config.as_object_mut().expect("a table").extend(options.as_object().expect("a table").clone());
    serde_json::from_value(config).expect("options")
}

fn scorer(server: &TestServer, options: Value) -> Box<dyn Scorer> {
    RewardConfig::Judge(config(server, options)).build().expect("it is valid")
}

fn texts(texts: &[&str]) -> Group {
    group(json!({"answer": "4"}), &texts.iter().map(|&text| (text, Finish::EndOfTurn)).collect::<Vec<_>>())
}

fn rewards(outcomes: &Outcomes) -> Vec<Option<f32>> {
    outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|score| score.reward)).collect()
}

const BOTH: &str = "{a}|{b}";

/// A judge that knows which text is better: the greater one.
fn fair(shown: &str) -> String {
    let (a, b) = shown.split_once('|').expect("two");
    let winner = match a.cmp(b) {
        std::cmp::Ordering::Greater => "A",
        std::cmp::Ordering::Less => "B",
        std::cmp::Ordering::Equal => "tie",
    };
    format!("I thought about it.\nWinner: {winner}")
}

#[test]
fn ratings_are_shares_of_the_scale() {
    let server = TestServer::chat(|shown| format!("Fine.\nRating: {}", shown.len()));
    let options = json!({"template": "{completion}", "scale": [1.0, 5.0], "system": "Be strict.", "temperature": 0.5,
                         "request": {"seed": 3}});
    let scores = scorer(&server, options).score(&texts(&["abc", "a", "abcde"])).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), [0.5, 0.0, 1.0]);
    assert_eq!(scores[2].components["rating"], 5.0);
    let asked = server.requests();
    assert!(asked.iter().all(|asked| asked.head.starts_with("post /v1/chat/completions http")), "{asked:?}");
    let body = &asked[0].body;
    assert_eq!(body["messages"][0], json!({"role": "system", "content": "Be strict."}));
    assert_eq!(
        (&body["model"], &body["temperature"], &body["max_tokens"], &body["seed"]),
        (&json!("m"), &json!(0.5), &json!(512), &json!(3))
    );
}

#[test]
fn our_own_templates_show_everything() {
    let server = TestServer::chat(|shown| {
        assert!(shown.contains("[Request]\nhi\n[End") && shown.contains("from 1 (worst) to 10"), "{shown}");
        assert!(shown.contains("[Answer]\nyes\n[End"), "{shown}");
        "Rating: 10".to_string()
    });
    assert_eq!(scorer(&server, json!({})).score(&texts(&["yes"])).expect("a score")[0].reward, 1.0);
    let server = TestServer::chat(|shown| {
        let one = shown.contains("[Answer A]\nyes\n[End") && shown.contains("[Answer B]\nno\n[End");
        format!("Winner: {}", if one { "A" } else { "B" })
    });
    let found = scorer(&server, json!({"mode": "pairwise"})).score_groups(&[&texts(&["yes", "no"])]);
    assert_eq!(rewards(&found[0]), [Some(1.0), Some(0.0)]);
}

/// c > b = b > a: of three comparisons each, c wins all, each b one and a half, a none.
#[test]
fn win_rates_are_of_all_pairs_in_both_orders() {
    let server = TestServer::chat(fair);
    let mut scorer = scorer(&server, json!({"mode": "pairwise", "template": BOTH}));
    let scores = scorer.score(&texts(&["b", "c", "a", "b"])).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), [0.5, 1.0, 0.0, 0.5]);
    assert!((scores[0].components["ties"] - 1.0 / 3.0).abs() < 1e-6, "{scores:?}");
    assert!(scores.iter().all(|score| score.components["swayed_by_order"] == 0.0));
    // Six pairs in two orders, of which b|c, c|b, b|a and a|b are asked twice, and b|b is one request of two.
    assert_eq!(server.requests().len(), 12 - 4 - 1);
}

#[test]
fn a_judge_that_is_swayed_by_the_order_calls_a_tie() {
    let server = TestServer::chat(|_| "Winner: A".to_string());
    let options = json!({"mode": "pairwise", "template": BOTH});
    let judge = Judge::new(&config(&server, options.clone())).expect("it is valid");
    let verdict = judge.compare(&[Message::user("hi")], "x", "y").expect("a verdict");
    assert_eq!((verdict.a_first, verdict.b_first, verdict.winner()), (Winner::A, Winner::B, Winner::Tie));
    assert!(verdict.prefers_first() && !verdict.prefers_last() && !verdict.is_consistent());
    let scores = scorer(&server, options).score(&texts(&["x", "y"])).expect("scores");
    assert_eq!((scores[0].reward, scores[0].components["swayed_by_order"]), (0.5, 1.0));
}

#[test]
fn completions_can_be_compared_with_the_answer() {
    let server = TestServer::chat(fair);
    let options = json!({"mode": "pairwise", "against": "answer", "template": BOTH});
    let scores = scorer(&server, options.clone()).score(&texts(&["5", "4", "3"])).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), [1.0, 0.5, 0.0]);
    let mut without = texts(&["5"]);
    without.prompt = std::sync::Arc::new(Prompt { checks: Value::Null, ..(*without.prompt).clone() });
    let found = scorer(&server, options).score_groups(&[&without]);
    assert!(matches!(found[0][0], Err(RewardError::MissingCheck { name: "answer", .. })), "{found:?}");
}

#[test]
fn nonsense_costs_those_that_it_is_about_and_nobody_else() {
    let server =
        TestServer::chat(
            |shown| if shown.contains("bad") { "Hm.".to_string() } else { "Rating: 10".to_string() },
        );
    let found =
        scorer(&server, json!({"template": "{completion}"})).score_groups(&[&texts(&["a", "bad", "b"])]);
    assert_eq!(rewards(&found[0]), [Some(1.0), None, Some(1.0)]);
    let error = found[0][1].as_ref().expect_err("nonsense").to_string();
    assert_eq!(error, "prompt 7, sample 1: the judge answered \"Hm.\"; expected \"Rating: N\"");
    let server =
        TestServer::chat(|shown| if shown.contains("bad") { "Hm.".to_string() } else { fair(shown) });
    let mut scorer = scorer(&server, json!({"mode": "pairwise", "template": BOTH}));
    assert_eq!(
        rewards(&scorer.score_groups(&[&texts(&["bad", "a"]), &texts(&["b", "a"])])[1]),
        [Some(1.0), Some(0.0)]
    );
    let alone = scorer.score_groups(&[&texts(&["a"])]);
    assert!(
        alone[0][0].as_ref().expect_err("alone").to_string().contains("no other completion"),
        "{alone:?}"
    );
}

#[test]
fn servers_that_misbehave_are_named() {
    for (reply, cause) in [
        ((|| Reply::Status(500, "", "oh no")) as fn() -> Reply, "status 500: \"oh no\" (tried 2 times)"),
        (|| Reply::Status(401, "", "no key"), "status 401: \"no key\""),
        (|| Reply::Hang, "no answer within 0.3 s"),
        (|| Reply::Json(json!({"choices": []})), "expected choices[0].message.content"),
        (
            || Reply::Json(json!({"choices": [{"message": {"content": null}}]})),
            "expected choices[0].message.content",
        ),
        (|| Reply::Status(200, "", "{"), "the answer is no JSON"),
    ] {
        let timeout = if cause.starts_with("no answer") { 0.3 } else { 60.0 };
        let server = TestServer::start(move |_, _| reply());
        let found = scorer(&server, json!({"timeout": timeout})).score_groups(&[&texts(&["a"])]);
        let error = found[0][0].as_ref().expect_err("no score").to_string();
        assert!(error.contains(cause), "{error}, not {cause}");
    }
}

#[test]
fn no_question_is_asked_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("answers.jsonl");
    let server =
        TestServer::chat(|shown| if shown == "bad" { "Hm.".to_string() } else { "Rating: 7".to_string() });
    let ask = |texts_asked: &[&str]| {
        let options = json!({"template": "{completion}", "cache": file});
        let _ = scorer(&server, options).score_groups(&[&texts(texts_asked), &texts(texts_asked)]);
        server.requests().len()
    };
    // Nonsense is not kept, the rest is, from one scorer to the next.
    assert_eq!(ask(&["a", "b", "bad"]), 3);
    assert_eq!(ask(&["a", "b", "bad"]), 4);
    // Somebody was killed while writing a line.
    let mut text = std::fs::read_to_string(&file).expect("text");
    assert_eq!(text.lines().count(), 2);
    text.truncate(text.len() - 5);
    std::fs::write(&file, &text).expect("written");
    assert_eq!(ask(&["a", "b"]), 5);
    assert_eq!(ask(&["a", "b"]), 5);
    // Another model's answers are others.
    let other = json!({"template": "{completion}", "cache": file, "model": "other"});
    scorer(&server, other).score(&texts(&["a"])).expect("a score");
    assert_eq!(server.requests().len(), 6);
    std::fs::write(&file, "no cache\n").expect("written");
    let options = json!({"template": "{completion}", "cache": file});
    let error = Judge::new(&config(&server, options)).expect_err("another file").to_string();
    assert!(error.contains("line 1 is no answer"), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    for (options, cause) in [
        (json!({"base_url": ""}), "base_url is \"\""),
        (json!({"base_url": "a"}), "base_url is \"a/chat/completions\""),
        (json!({"model": ""}), "model is \"\""),
        (json!({"scale": [1.0, 1.0]}), "scale is [1, 1]"),
        (json!({"temperature": 3.0}), "temperature is 3"),
        (json!({"max_tokens": 0}), "max_tokens is 0"),
        (json!({"template": "{prompt}"}), "template has no {completion}"),
        (json!({"mode": "pairwise", "template": "{a}"}), "template has no {b}"),
        (json!({"pattern": "Rating"}), "pattern is"),
        (json!({"request": {"n": 2}}), "request has \"n\""),
        (json!({"timeout": 0.0}), "timeout is 0"),
    ] {
        let mut all = json!({"base_url": "http://a/v1", "model": "m"});
        all.as_object_mut().expect("a table").extend(options.as_object().expect("a table").clone());
        let config: JudgeConfig = serde_json::from_value(all).expect("options");
        let error = config.validate().expect_err("out of range");
        assert!(error.contains(cause), "{error}");
    }
}
