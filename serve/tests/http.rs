//! The server over real HTTP, with the tiny fixture model: answers against the generator's own, and what
//! becomes of wrong requests and of clients that go away.

mod client;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arriero_buffers::{Completion, Finish, Message, Prompt};
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::sampling::SamplingConfig;
use client::{TestServer, post, raw};
use serde_json::{Value, json};

const PROMPT: &str = "Name a fruit.";

/// What the generator says to `PROMPT`.
fn expected(sampling: SamplingConfig, samples: usize, seed: u64) -> Vec<Completion> {
    let (model, tokenizer) = client::load(&client::fixture());
    let config = GenerationConfig { sampling, samples, batch: samples, seed };
    let mut generator = GroupSampler::new(model, 0, tokenizer, config);
    let prompt = Prompt { id: 0, messages: vec![Message::user(PROMPT)], checks: Value::Null };
    generator.submit(Arc::new(prompt)).expect("it fits");
    generator.run().expect("it generates").remove(0).completions
}

fn sampled(max_new_tokens: usize) -> SamplingConfig {
    SamplingConfig { max_new_tokens, ..SamplingConfig::default() }
}

/// A chat request with `more` on top.
fn chat(more: Value) -> Value {
    let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": PROMPT }] });
    let Value::Object(more) = more else { panic!("an object") };
    body.as_object_mut().expect("an object").extend(more);
    body
}

fn text(choice: &Value) -> &str {
    choice["message"]["content"].as_str().or_else(|| choice["text"].as_str()).expect("a text")
}

/// Every chunk of a streamed answer; it must end with `[DONE]`.
fn chunks(body: &str) -> Vec<Value> {
    let mut events: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{body}");
    events.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

/// The text of a choice of a stream.
fn streamed(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    let piece = |choice: &Value| {
        choice["delta"]["content"]
            .as_str()
            .or_else(|| choice["text"].as_str())
            .unwrap_or_default()
            .to_string()
    };
    choices.filter(|choice| choice["index"] == index).map(piece).collect()
}

#[test]
fn greedy_answers_equal_the_generators() {
    let server = TestServer::start();
    let wanted = expected(SamplingConfig { temperature: 0.0, ..sampled(24) }, 1, 0).remove(0);
    let (status, answer) =
        post(&server, "chat/completions", &chat(json!({ "temperature": 0, "max_tokens": 24 })));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(text(&answer["choices"][0]), wanted.text);
    let finish = if wanted.finish == Finish::Length { "length" } else { "stop" };
    assert_eq!(answer["choices"][0]["finish_reason"], finish);
    assert_eq!(answer["usage"]["completion_tokens"], wanted.drawn_len());
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("tiny")));

    // The rendered conversation, as a text and as tokens, is the same prompt.
    let (_, tokenizer) = client::load(&client::fixture());
    let messages = [Message::user(PROMPT)];
    let prompt_tokens = tokenizer.prompt_tokens(&messages).expect("it renders");
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens.len());
    let rendered = tokenizer.render(&messages).expect("it renders");
    for prompt in [json!(rendered), json!(prompt_tokens), json!([rendered, prompt_tokens])] {
        let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 24 });
        let (status, answer) = post(&server, "completions", &body);
        assert_eq!(status, 200, "{answer}");
        let choices = answer["choices"].as_array().expect("choices");
        assert_eq!(choices.len(), if body["prompt"][1].is_array() { 2 } else { 1 });
        assert!(choices.iter().all(|choice| text(choice) == wanted.text), "{answer}");
    }
}

/// In f32: bf16 rounds by the size of the batch.
#[test]
fn a_seed_gives_the_same_answers_whatever_else_goes_on() {
    let server = TestServer::start();
    let wanted: Vec<String> =
        expected(sampled(40), 3, 7).into_iter().map(|completion| completion.text).collect();
    assert!(wanted[0] != wanted[1] && wanted[1] != wanted[2] && wanted[0] != wanted[2], "{wanted:?}");
    let ask = |seed: i64, n: usize| {
        let (status, answer) =
            post(&server, "chat/completions", &chat(json!({ "seed": seed, "n": n, "max_tokens": 40 })));
        assert_eq!(status, 200, "{answer}");
        let choices = answer["choices"].as_array().expect("choices").clone();
        assert!(choices.iter().enumerate().all(|(index, choice)| choice["index"] == index));
        choices.iter().map(|choice| text(choice).to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ask(7, 3), wanted);
    assert_eq!(ask(7, 1), wanted[..1]);
    assert_ne!(ask(-7, 1), wanted[..1]);
    std::thread::scope(|scope| {
        let ask = &ask;
        let others: Vec<_> = (0..6).map(|other| scope.spawn(move || ask(100 + other, 2))).collect();
        for n in [2, 3, 1] {
            assert_eq!(ask(7, n), wanted[..n], "with others around");
        }
        others.into_iter().for_each(|other| drop(other.join().expect("answered")));
    });
}

#[test]
fn chunks_make_the_whole_answer() {
    let server = TestServer::start();
    for path in ["chat/completions", "completions"] {
        let mut body = chat(json!({ "seed": 3, "n": 2, "max_tokens": 60 }));
        if path == "completions" {
            body = json!({ "prompt": ["one", "two"], "seed": 3, "max_tokens": 60 });
        }
        let (_, whole) = post(&server, path, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let (status, answer) = raw(&server, "POST", path, body.to_string().as_bytes());
        assert_eq!(status, 200, "{answer}");
        let mut chunks = chunks(&answer);
        let usage = chunks.pop().expect("the usage");
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
        for index in 0..2 {
            let choice = &whole["choices"][index];
            assert_eq!(streamed(&chunks, index as u64), text(choice));
            let reasons =
                chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
            let reasons: Vec<&Value> =
                reasons.map(|choice| &choice["finish_reason"]).filter(|reason| !reason.is_null()).collect();
            assert_eq!(reasons, [&choice["finish_reason"]]);
        }
        assert!(chunks.len() > 20, "few chunks: {}", chunks.len());
    }
}

#[test]
fn stop_strings_are_cut_and_never_streamed() {
    let server = TestServer::start();
    let seed = 5;
    let whole = expected(sampled(60), 1, seed).remove(0).text;
    let characters: Vec<char> = whole.chars().collect();
    // From the middle of the text, where it first stands; across several tokens.
    let stop: String = characters[characters.len() / 2..][..6].iter().collect();
    let wanted = &whole[..whole.find(&stop).expect("it is there")];
    for stops in [json!(stop), json!(["never ever", stop, "nor this", "and not that"])] {
        let mut body = chat(json!({ "seed": seed, "max_tokens": 60, "stop": stops }));
        let (status, answer) = post(&server, "chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(text(&answer["choices"][0]), wanted);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert!(answer["usage"]["completion_tokens"].as_u64() < Some(60), "it went on");
        body["stream"] = json!(true);
        let (_, answer) = raw(&server, "POST", "chat/completions", body.to_string().as_bytes());
        assert_eq!(streamed(&chunks(&answer), 0), wanted);
    }
}

#[test]
fn logprobs_are_the_engines() {
    let server = TestServer::start();
    let sampling = SamplingConfig { temperature: 0.7, ..sampled(30) };
    let wanted = expected(sampling, 1, 11).remove(0);
    let sum: f64 = wanted.logps().map(f64::from).sum();
    let mut body = chat(json!({
        "seed": 11, "temperature": 0.7, "max_tokens": 30, "logprobs": true, "top_logprobs": 3,
    }));
    let (status, whole) = post(&server, "chat/completions", &body);
    assert_eq!(status, 200, "{whole}");
    body["stream"] = json!(true);
    let (_, answer) = raw(&server, "POST", "chat/completions", body.to_string().as_bytes());
    let chunks = chunks(&answer);
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    let streamed: Vec<Value> = pieces.flatten().cloned().collect();
    for tokens in [whole["choices"][0]["logprobs"]["content"].as_array().expect("tokens"), &streamed] {
        assert_eq!(tokens.len(), wanted.drawn_len());
        let number = |value: &Value| value.as_f64().expect("a number");
        let found: f64 = tokens.iter().map(|token| number(&token["logprob"])).sum();
        assert!((found - sum).abs() < 1e-4, "{found} against {sum}");
        for token in tokens {
            let top: Vec<f64> = token["top_logprobs"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|top| number(&top["logprob"]))
                .collect();
            assert!(top.len() == 3 && top[0] >= top[1] && top[1] >= top[2], "{token}");
            assert!(number(&token["logprob"]) <= top[0], "{token}");
        }
        let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().expect("bytes"));
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect();
        // Markers such as the end of the turn have an entry, but are no text.
        let (_, tokenizer) = client::load(&client::fixture());
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            tokenizer.decode(&wanted.tokens().collect::<Vec<_>>(), false).expect("decoded")
        );
    }

    let body = json!({ "prompt": "one two", "max_tokens": 5, "temperature": 0, "logprobs": 2 });
    let (_, answer) = post(&server, "completions", &body);
    let logprobs = &answer["choices"][0]["logprobs"];
    for index in 0..answer["usage"]["completion_tokens"].as_u64().expect("a count") as usize {
        let token = logprobs["tokens"][index].as_str().expect("a text");
        let top = logprobs["top_logprobs"][index].as_object().expect("an object");
        let best = top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(Some(best), logprobs["token_logprobs"][index].as_f64(), "{token}: greedy takes the best");
    }
    assert_eq!(logprobs["text_offset"][0], 0);
}

#[test]
fn wrong_requests_are_refused_by_name_and_the_server_goes_on() {
    let server = TestServer::start();
    let chats = [
        (json!({ "n": 0 }), "n", "n is 0; it must be at least 1 and at most 8"),
        (json!({ "n": 9 }), "n", "at most 8"),
        (json!({ "n": "two" }), "n", "n is \"two\"; expected a whole number"),
        (json!({ "n": 1.5 }), "n", "n is 1.5; expected"),
        (json!({ "max_tokens": -1 }), "max_tokens", "max_tokens is -1; expected a whole number"),
        (json!({ "max_tokens": 0 }), "max_tokens", "at least 1"),
        (json!({ "max_tokens": 5, "max_completion_tokens": 6 }), "max_tokens", "max_completion_tokens is 6"),
        (json!({ "max_completion_tokens": 100_000 }), "max_tokens", "exceed the model's context of 256"),
        (json!({ "temperature": "hot" }), "temperature", "temperature is \"hot\"; expected a number"),
        (json!({ "temperature": -1 }), "temperature", "temperature is -1"),
        (json!({ "top_p": 0 }), "top_p", "above 0"),
        (json!({ "min_p": 2 }), "min_p", "between 0 and 1"),
        (json!({ "top_k": -2 }), "top_k", "top_k is -2"),
        (json!({ "seed": 1.5 }), "seed", "seed is 1.5"),
        (json!({ "stop": [""] }), "stop", "empty"),
        (json!({ "stop": [1] }), "stop", "expected a text or a list"),
        (json!({ "stop": vec!["x"; 17] }), "stop", "17"),
        (json!({ "stream": "yes" }), "stream", "true or false"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options", "stream is not true"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x", "not a parameter"),
        (json!({ "top_logprobs": 3 }), "top_logprobs", "logprobs is not true"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs", "at most 20"),
        (json!({ "presence_penalty": 0.5 }), "presence_penalty", "cannot do"),
        (json!({ "tools": [{ "type": "function" }] }), "tools", "cannot do"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format", "cannot do"),
        (json!({ "temprature": 1 }), "temprature", "temprature is not a parameter"),
        (json!({ "messages": null }), "messages", "messages is missing"),
        (json!({ "messages": [] }), "messages", "messages is empty"),
        (json!({ "messages": "hi" }), "messages", "expected a list"),
        (json!({ "messages": ["hi"] }), "messages[0]", "expected an object"),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "messages[0].role", "\"king\""),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content", "missing"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[0].content[0].type",
            "image_url",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "one two three ".repeat(200) }] }),
            "messages",
            "the model's context has 256",
        ),
    ];
    let good = |number: usize| {
        let (status, answer) =
            post(&server, "chat/completions", &chat(json!({ "max_tokens": 2, "seed": number })));
        assert_eq!(status, 200, "{answer}");
    };
    let refused = |path: &str, body: &[u8], status: u16, param: Value, message: &str| {
        let (found, answer) = raw(&server, "POST", path, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(found, status, "{shown}: {answer}");
        let error = &serde_json::from_str::<Value>(&answer).expect("JSON")["error"];
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{shown}: {error}");
        assert_eq!(error["param"], param, "{shown}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{shown}: {error}");
    };
    for (number, (more, param, message)) in chats.into_iter().enumerate() {
        refused("chat/completions", chat(more).to_string().as_bytes(), 400, json!(param), message);
        good(number);
    }
    for (body, param, message) in [
        (json!({}), "prompt", "prompt is missing"),
        (json!({ "prompt": [] }), "prompt", "empty list"),
        (json!({ "prompt": "" }), "prompt", "is empty"),
        (json!({ "prompt": {} }), "prompt", "expected a text"),
        (json!({ "prompt": [1, -1] }), "prompt", "expected a text"),
        (json!({ "prompt": [1, "x"] }), "prompt", "expected a text"),
        (json!({ "prompt": [1, 5000] }), "prompt", "token 5000; the model has 320"),
        (json!({ "prompt": vec!["x"; 5], "n": 8 }), "prompt", "40 answers; this server takes 24"),
        (json!({ "prompt": "x", "echo": true }), "echo", "cannot do"),
        (json!({ "prompt": "x", "logprobs": true }), "logprobs", "whole number"),
    ] {
        refused("completions", body.to_string().as_bytes(), 400, json!(param), message);
    }
    for body in ["", "{", "[1]", "{\"messages\": [", "\u{fffd}"] {
        refused("chat/completions", body.as_bytes(), 400, Value::Null, "the body is");
    }
    refused("chat/completions", b"\xff\xfe", 400, Value::Null, "the body is not valid JSON");
    refused("chat/completions", &vec![b' '; 2 * 1024 * 1024 + 1], 413, Value::Null, "2097152 bytes");
    let other = chat(json!({ "model": "gpt-4o" })).to_string();
    refused("chat/completions", other.as_bytes(), 404, json!("model"), "this server has \"tiny\"");
    refused("embeddings", b"{}", 404, Value::Null, "there is no /v1/embeddings");
    refused("models", b"{}", 405, Value::Null, "does not take POST");
    good(0);
}

#[test]
fn what_clients_routinely_send_is_accepted() {
    let server = TestServer::start();
    let (status, answer) = post(
        &server,
        "chat/completions",
        &chat(json!({
            "user": "me", "presence_penalty": 0, "frequency_penalty": 0.0, "tools": null, "tool_choice": "auto",
            "logit_bias": {}, "response_format": { "type": "text" }, "metadata": { "a": "b" }, "store": false,
            "parallel_tool_calls": true, "max_completion_tokens": 3, "top_logprobs": 0, "stop": null, "seed": null,
            "something_new": null, "top_k": 5, "min_p": 0.1,
            "messages": [
                { "role": "developer", "content": "Be brief." },
                { "role": "user", "content": [{ "type": "text", "text": "Hello" }, { "type": "text", "text": "!" }] },
                { "role": "assistant", "content": "Hi.", "refusal": null, "tool_calls": null, "annotations": [] },
                { "role": "user", "content": "Go on." },
            ],
        })),
    );
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(1));
    let (status, models) = raw(&server, "GET", "models", b"");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
    assert_eq!(raw(&server, "GET", "models/tiny", b"").0, 200);
    assert_eq!(raw(&server, "GET", "models/other", b"").0, 404);
}

/// A long greedy answer has its place beside `others` that have theirs; where it streams, its first token is there.
fn begin_long(server: &TestServer, stream: bool, others: usize) -> BufReader<TcpStream> {
    let taken = |places: usize| {
        let (_, health) = client::get(server, "/health");
        health.contains(&format!("\"sequences\":{places},"))
    };
    eventually("what came before has left", || taken(others));
    let body = json!({ "prompt": "one", "temperature": 0, "max_tokens": 150_000, "stream": stream });
    let mut reader = BufReader::new(client::send(server, "POST", "completions", body.to_string().as_bytes()));
    if stream {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).expect("it is read") > 0, "it ended early");
        }
    }
    // What is sent after it does not take the place that it is to have.
    eventually("it has its place", || taken(others + 1));
    reader
}

fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happens() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_server_says_so_and_a_client_that_leaves_frees_its_place() {
    let server = TestServer::start_long(1, 0);
    let small = json!({ "prompt": "two", "max_tokens": 1 });
    for stream in [true, false] {
        let client = begin_long(&server, stream, 0);
        let mut refusal = (0, Value::Null);
        eventually("the long answer takes the only place", || {
            refusal = post(&server, "completions", &small);
            refusal.0 == 429
        });
        assert_eq!(refusal.1["error"]["code"], "queue_full", "{}", refusal.1);
        drop(client);
        eventually("the place is free again", || post(&server, "completions", &small).0 == 200);
    }
    let (_, health) = client::get(&server, "/health");
    assert!(health.contains("\"status\":\"ok\""), "{health}");
}

#[test]
fn a_request_that_waits_is_cancelled_too() {
    let server = TestServer::start_long(1, 1);
    let first = begin_long(&server, true, 0);
    let second = begin_long(&server, false, 1);
    let small = json!({ "prompt": "two", "max_tokens": 1 });
    eventually("both places are taken", || post(&server, "completions", &small).0 == 429);
    drop(second);
    // It would wait for the first one's end; leaving, it makes room for another that waits.
    eventually("the waiting one's place is free", || {
        let (_, health) = client::get(&server, "/health");
        health.contains("\"sequences\":1")
    });
    drop(first);
    eventually("all is free", || post(&server, "completions", &small).0 == 200);
}

#[test]
fn the_end_lets_answers_finish_and_the_second_call_does_not() {
    let server = TestServer::start_long(4, 0);
    let body = json!({ "prompt": "one", "temperature": 0, "max_tokens": 1500, "stream": true });
    let mut reader =
        BufReader::new(client::send(&server, "POST", "completions", body.to_string().as_bytes()));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        reader.read_line(&mut line).expect("it is read");
    }
    server.stop();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("it is read");
    assert!(rest.trim_end().ends_with("data: [DONE]"), "…{}", &rest[rest.len().saturating_sub(200)..]);
    server.join();

    let server = TestServer::start_long(4, 0);
    let mut reader = begin_long(&server, true, 0);
    server.stop();
    server.stop();
    let mut rest = Vec::new();
    // The connection is cut; how that reads is the system's affair.
    let _ = reader.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    server.join();
}
