use std::time::{Duration, Instant};

use arriero_buffers::Finish;
use serde_json::json;

use super::super::{RewardConfig, group};
use super::*;
use crate::client::test_server::{Reply, TestServer};

fn scorer(server: &TestServer, options: Value) -> Box<dyn Scorer> {
    let mut config = json!({"kind": "http", "url": server.url("score")});
    config.as_object_mut().expect("a table").extend(options.as_object().expect("a table").clone());
    serde_json::from_value::<RewardConfig>(config).expect("a reward").build().expect("it is valid")
}

fn texts(texts: &[&str]) -> Group {
    group(Value::Null, &texts.iter().map(|&text| (text, Finish::EndOfTurn)).collect::<Vec<_>>())
}

/// Rewards are lengths.
fn lengths(body: &Value) -> Reply {
    let length = |item: &Value| json!(item["completion"].as_str().expect("a text").len());
    Reply::Json(
        json!({"rewards": body["items"].as_array().expect("items").iter().map(length).collect::<Vec<_>>()}),
    )
}

fn rewards(outcomes: &Outcomes) -> Vec<Option<f32>> {
    outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|score| score.reward)).collect()
}

fn error(outcomes: &Outcomes) -> String {
    outcomes[0].as_ref().expect_err("no score").to_string()
}

#[test]
fn completions_go_in_batches_and_rewards_come_back_in_their_order() {
    let server = TestServer::start(|_, body| lengths(body));
    let mut scorer = scorer(&server, json!({"batch": 2, "max_in_flight": 3}));
    let found = scorer.score_groups(&[&texts(&["a", "bb", "ccc"]), &texts(&["", "eeeee"])]);
    assert_eq!(rewards(&found[0]), [Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(rewards(&found[1]), [Some(0.0), Some(5.0)]);
    let mut sizes: Vec<usize> =
        server.requests().iter().map(|asked| asked.body["items"].as_array().expect("items").len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2, 2]);
    assert!(server.most_at_once() <= 3);
}

/// Ids tell which reward is whose, and another question's are refused.
#[test]
fn an_answer_is_bound_to_its_question() {
    let reversed = |body: &Value| {
        let answer = |item: &Value| json!({"id": item["id"], "reward": item["completion"].as_str().expect("a text").len()});
        let items = body["items"].as_array().expect("items");
        Reply::Json(json!({"rewards": items.iter().rev().map(answer).collect::<Vec<_>>()}))
    };
    let server = TestServer::start(move |_, body| reversed(body));
    let mut asked = scorer(&server, json!({"batch": 2, "require_ids": true}));
    for _ in 0..2 {
        let found = asked.score_groups(&[&texts(&["a", "bb", "ccc"])]);
        assert_eq!(rewards(&found[0]), [Some(1.0), Some(2.0), Some(3.0)]);
    }
    let ids = |asked: &crate::client::test_server::ReceivedRequest| -> Vec<u64> {
        let items = asked.body["items"].as_array().expect("items");
        items.iter().map(|item| item["id"].as_u64().expect("a number")).collect()
    };
    let mut ids: Vec<u64> = server.requests().iter().flat_map(ids).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    // The answers of the first request, for ever.
    let stale = TestServer::start(|_, _| Reply::Json(json!({"rewards": [{"id": 0, "reward": 1}]})));
    let mut asked = scorer(&stale, json!({}));
    assert_eq!(rewards(&asked.score_groups(&[&texts(&["a"])])[0]), [Some(1.0)]);
    let found = asked.score_groups(&[&texts(&["b"])]);
    assert!(error(&found[0]).contains("an item with \"id\": 0, but was asked about 1 to 1"), "{found:?}");
    let plain = TestServer::start(|_, body| lengths(body));
    let found = scorer(&plain, json!({"require_ids": true})).score_groups(&[&texts(&["b"])]);
    assert!(error(&found[0]).contains("which has no \"id\""), "{found:?}");
}

/// Whatever it redirects to, and however, nobody else is asked, and no secret leaves for elsewhere.
#[test]
fn redirects_are_reported_and_not_followed() {
    let elsewhere = TestServer::start(|_, _| Reply::Json(json!({"rewards": [1, 1]})));
    for status in [301, 302, 303, 307, 308] {
        let location: &'static str = format!("Location: {}\r\n", elsewhere.url("taken")).leak();
        let server = TestServer::start(move |_, _| Reply::Status(status, location, "[1, 1]"));
        let mut asked = scorer(&server, json!({"api_key_env": "PATH", "headers": {"X-Secret": "$PATH"}}));
        let found = asked.score_groups(&[&texts(&["a", "b"])]);
        assert_eq!(rewards(&found[0]), [None, None], "{status}");
        let error = error(&found[0]);
        let expected = format!(
            "status {status}: it redirects to \"{}\". Redirects are not followed",
            elsewhere.url("taken")
        );
        assert!(error.contains(&expected) && error.contains("name it in the configuration"), "{error}");
        assert_eq!(server.requests().len(), 1, "a redirect is not tried again");
    }
    let own = TestServer::start(|_, _| Reply::Status(302, "Location: /other\r\n", ""));
    let found = scorer(&own, json!({})).score_groups(&[&texts(&["a"])]);
    assert!(error(&found[0]).contains("it redirects to \"/other\""), "{found:?}");
    let nowhere = TestServer::start(|_, _| Reply::Status(304, "", ""));
    let found = scorer(&nowhere, json!({})).score_groups(&[&texts(&["a"])]);
    assert!(error(&found[0]).contains("status 304: it redirects to nowhere"), "{found:?}");
    assert_eq!((elsewhere.requests().len(), own.requests().len()), (0, 1));
}

#[test]
fn whole_groups_are_asked_about_if_wanted() {
    let server = TestServer::start(|_, _| Reply::Json(json!([[1, 2], {"rewards": [3]}])));
    let found =
        scorer(&server, json!({"unit": "group"})).score_groups(&[&texts(&["a", "b"]), &texts(&["c"])]);
    assert_eq!((rewards(&found[0]), rewards(&found[1])), (vec![Some(1.0), Some(2.0)], vec![Some(3.0)]));
}

#[test]
fn secrets_come_from_the_environment_and_stay_there() {
    // PATH is set wherever tests run.
    let path = std::env::var("PATH").expect("a PATH").to_lowercase();
    let server = TestServer::start(|_, body| lengths(body));
    let options = json!({"api_key_env": "PATH", "headers": {"X-Own": "$PATH", "X-Plain": "Plain"}});
    let config: RewardConfig = serde_json::from_value(
        json!({"kind": "http", "url": server.url("score"), "api_key_env": "PATH", "headers": {"X-Own": "$PATH"}}),
    )
    .expect("a reward");
    assert!(!serde_json::to_string(&config).expect("plain data").to_lowercase().contains(&path));
    scorer(&server, options).score(&texts(&["a"])).expect("a score");
    let head = &server.requests()[0].head;
    assert!(head.contains(&format!("authorization: bearer {path}\n")), "{head}");
    assert!(head.contains(&format!("x-own: {path}\n")) && head.contains("x-plain: plain\n"), "{head}");
    let unset: RewardConfig = serde_json::from_value(
        json!({"kind": "http", "url": "http://a/b", "api_key_env": "NO_SUCH_VARIABLE_HERE"}),
    )
    .expect("a reward");
    let error = unset.build().err().expect("it is not set").to_string();
    assert!(error.contains("api_key_env names NO_SUCH_VARIABLE_HERE, an environment"), "{error}");
}

#[test]
fn what_may_pass_is_tried_again() {
    let server = TestServer::start(|before, body| match before {
        0 => Reply::Status(500, "", "oh no"),
        1 => Reply::Raw(b""),
        2 => Reply::Status(429, "Retry-After: 1\r\n", "slower"),
        _ => lengths(body),
    });
    let found = scorer(&server, json!({})).score(&texts(&["abc"])).expect("the fourth try");
    assert_eq!(found[0].reward, 3.0);
    let asked = server.requests();
    assert_eq!(asked.len(), 4);
    assert!(asked[3].at - asked[2].at >= Duration::from_secs(1), "it did not wait as long as asked");
    assert!(asked[2].at - asked[1].at > asked[1].at - asked[0].at, "pauses do not grow");
}

#[test]
fn failures_are_named() {
    for (reply, cause, tries) in [
        ((|| Reply::Status(503, "", "busy")) as fn() -> Reply, "status 503: \"busy\" (tried 2 times)", 2),
        (|| Reply::Hang, "no answer within 0.3 s (tried 2 times)", 2),
        (|| Reply::Status(429, "Retry-After: 86400\r\n", ""), "status 429: \"\" (tried once)", 1),
        (|| Reply::Status(404, "", "no such page"), "status 404: \"no such page\"", 1),
        (|| Reply::Status(200, "", "<html>"), "the answer is no JSON: \"<html>\"", 1),
        (|| Reply::Raw(b"garbage\r\n\r\n"), "/score: ", 1),
        (|| Reply::Json(json!({"rewards": [1]})), "answered 1 rewards for 2 items", 1),
        (|| Reply::Json(json!({"reward": 1})), "expected {\"rewards\": […]}", 1),
        (|| Reply::Json(json!({"rewards": ["a", null]})), "answered \"\\\"a\\\"\": expected a number", 1),
    ] {
        let timeout = if cause.starts_with("no answer") { 0.3 } else { 60.0 };
        let server = TestServer::start(move |_, _| reply());
        let found =
            scorer(&server, json!({"retries": 1, "timeout": timeout})).score_groups(&[&texts(&["a", "b"])]);
        assert_eq!(rewards(&found[0]), [None, None], "{cause}");
        let error = error(&found[0]);
        assert!(error.starts_with("prompt 7, sample 0: ") && error.contains(cause), "{error}, not {cause}");
        assert!(server.requests().len() >= tries, "{cause}: {} tries", server.requests().len());
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let config = json!({"kind": "http", "url": format!("http://{free}/"), "retries": 0});
    let config: RewardConfig = serde_json::from_value(config).expect("a reward");
    let found = config.build().expect("it is valid").score_groups(&[&texts(&["a"])]);
    assert!(error(&found[0]).contains("(tried once)"), "{found:?}");
}

#[test]
fn a_failed_batch_leaves_the_others_alone() {
    let server = TestServer::start(|_, body| match body.to_string().contains("bad") {
        true => Reply::Status(400, "", "no"),
        false => lengths(body),
    });
    let found = scorer(&server, json!({"batch": 1})).score_groups(&[&texts(&["a", "bad", "cc"])]);
    assert_eq!(rewards(&found[0]), [Some(1.0), None, Some(2.0)]);
}

#[test]
fn tries_keep_to_the_rate() {
    let server = TestServer::start(|_, body| lengths(body));
    let began = Instant::now();
    // 600 a minute: five of them begin at least 0.1 s apart.
    scorer(&server, json!({"batch": 1, "requests_per_minute": 600.0}))
        .score(&texts(&["a"; 5]))
        .expect("scores");
    assert!(began.elapsed() >= Duration::from_millis(390), "{:?}", began.elapsed());
}

#[test]
fn whoever_waits_can_stop_it() {
    let server = TestServer::start(|_, _| Reply::Hang);
    let mut scorer = scorer(&server, json!({"timeout": 500.0}));
    let cancellation = CancellationToken::default();
    scorer.set_cancellation(&cancellation);
    let waiting = std::thread::spawn(move || scorer.score_groups(&[&texts(&["a", "b"])]).remove(0));
    while server.requests().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    cancellation.cancel();
    let found = waiting.join().expect("no panic");
    assert!(found.iter().all(|outcome| outcome == &Err(RewardError::Interrupted)), "{found:?}");
}

#[test]
fn options_out_of_range_are_refused() {
    for (options, cause) in [
        (json!({}), "url is \"\""),
        (json!({"url": "ftp://a/b"}), "url is \"ftp://a/b\""),
        (json!({"url": "http:///b"}), "url is"),
        (json!({"url": "http://me:secret@a/b"}), "url has a password"),
        (json!({"url": "http://a b/"}), "no URL"),
        (json!({"url": "http://a/", "batch": 0}), "batch is 0"),
        (json!({"url": "http://a/", "timeout": -1.0}), "timeout is -1"),
        (json!({"url": "http://a/", "max_in_flight": 0}), "max_in_flight is 0"),
        (json!({"url": "http://a/", "requests_per_minute": 0.0}), "requests_per_minute is 0"),
        (json!({"url": "http://a/", "headers": {"a b": "c"}}), "headers has \"a b\""),
        (json!({"url": "http://a/", "headers": {"a": "c\u{1}d"}}), "headers has \"a\""),
    ] {
        let config: HttpConfig = serde_json::from_value(options).expect("options");
        let error = config.validate().expect_err("out of range");
        assert!(error.contains(cause) && !error.contains("secret"), "{error}");
    }
}
