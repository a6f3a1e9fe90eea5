//! Each format by an example, and what is wrong with bad rows.

mod common;

use arriero_buffers::{Message, Role, Strength};
use arriero_data::{DataConfig, DataError, Format, OnError, Row, Template};
use common::{file, open_all};
use serde_json::{Value, json};

fn user(text: &str) -> Message {
    Message::user(text)
}

fn assistant(text: &str) -> Message {
    Message::assistant(text)
}

/// The one row of a file, and whether it is plain.
fn read_with(row: &Value, config: DataConfig) -> Result<(Row, bool), DataError> {
    let (_folder, path) = file(&row.to_string());
    let entries = open_all(&DataConfig { path, ..config })?;
    assert_eq!(entries.len(), 1);
    Ok((entries[0].row.clone(), entries[0].is_plain))
}

fn read(row: &Value) -> (Row, bool) {
    read_with(row, DataConfig::default()).unwrap_or_else(|error| panic!("{row}: {error}"))
}

fn pair(prompt: Vec<Message>, chosen: &str, rejected: &str) -> Row {
    Row::Preference {
        prompt,
        chosen: vec![assistant(chosen)],
        rejected: vec![assistant(rejected)],
        edited: None,
        strength: None,
        margin: None,
    }
}

#[test]
fn a_message_keeps_its_name_its_reasoning_and_the_call_that_it_answers() {
    let written = [
        json!({"role": "user", "content": "Warm?", "name": "Ada", "reasoning_content": null}),
        json!({"role": "tool", "content": "19", "tool_call_id": "c1"}),
        json!({"role": "assistant", "content": "Yes.", "reasoning_content": "19 is warm."}),
    ];
    let (Row::Conversation { messages }, _) = read(&json!({"messages": written})) else { panic!("messages") };
    let expected = [
        Message { name: Some("Ada".into()), ..user("Warm?") },
        Message { tool_call_id: Some("c1".into()), ..Message::new(Role::Tool, "19") },
        Message { reasoning_content: Some("19 is warm.".into()), ..assistant("Yes.") },
    ];
    assert_eq!(messages, expected);
    let wrong = json!({"messages": [{"role": "user", "content": "Warm?", "name": 3}, written[2]]});
    let error = read_with(&wrong, DataConfig::default()).expect_err("no name").to_string();
    assert!(error.contains("`messages`, message 1: `name`"), "{error}");
}

#[test]
fn other_names_of_reasoning_and_empty_extras_are_read() {
    let user = json!({"role": "user", "content": "2+2?", "weight": null});
    for (name, weight) in [("thinking", 1), ("reasoning", 1), ("reasoning_content", 1)] {
        let answer = json!({"role": "assistant", "content": "4", name: "easy", "weight": weight});
        let row =
            json!({"messages": [user, answer], "tools": [], "chat_template_kwargs": {}, "documents": ["d"]});
        let (Row::Conversation { messages }, _) = read(&row) else { panic!("messages") };
        assert_eq!(messages[1].reasoning_content.as_deref(), Some("easy"), "{name}");
    }
    // Texts without roles pass no template.
    let (_, is_plain) = read(&json!({"prompt": "a", "completion": "b", "tools": [1]}));
    assert!(is_plain);
}

#[test]
fn where_no_row_is_left_the_reasons_are_counted() {
    let rows = "{\"prompt\":\"a\",\"completion\":\"b\",\"label\":\"true\"}\n{\"prompt\":\"\",\"completion\":\"b\",\"label\":true}\n";
    let (_folder, path) = file(rows);
    let config = DataConfig {
        path,
        shuffle: false,
        on_error: OnError::Skip,
        max_skipped: 1.0,
        ..DataConfig::default()
    };
    let error = open_all(&config).expect_err("no row is left").to_string();
    assert!(
        error.contains("of 2, 2 were skipped: 2 of 2 rows (1 empty, 1 wrong_type), the first: "),
        "{error}"
    );
    assert!(error.contains(":1: read as unpaired_preference: `label` must be true or false"), "{error}");
}

#[test]
fn trl_types_are_found_out() {
    let ask = json!([{"role": "user", "content": "Sky?"}]);
    let says = |text: &str| json!([{"role": "assistant", "content": text}]);
    let whole = |text: &str| json!([ask[0], says(text)[0]]);
    let completion = Row::Completion { prompt: vec![user("Sky?")], completion: vec![assistant("Blue.")] };
    let unpaired = |prompt: &str, completion: &str| Row::Unpaired {
        prompt: vec![user(prompt)],
        completion: vec![assistant(completion)],
        label: true,
    };
    let steps = Row::Stepwise {
        prompt: vec![user("Sky?")],
        steps: vec!["Look up.".into(), "Red.".into()],
        labels: vec![true, false],
    };
    // TRL's "Dataset formats and types", standard and conversational.
    for (row, expected, is_plain) in [
        (json!({"text": "The sky is blue."}), Row::Text("The sky is blue.".into()), true),
        (
            json!({"messages": whole("Blue.")}),
            Row::Conversation { messages: vec![user("Sky?"), assistant("Blue.")] },
            false,
        ),
        (json!({"prompt": "Sky?"}), Row::Prompt { messages: vec![user("Sky?")], checks: Value::Null }, true),
        (json!({"prompt": ask}), Row::Prompt { messages: vec![user("Sky?")], checks: Value::Null }, false),
        (json!({"prompt": "Sky?", "completion": "Blue."}), completion.clone(), true),
        (json!({"prompt": ask, "completion": says("Blue.")}), completion, false),
        (
            json!({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
            pair(vec![user("The sky is")], " blue.", " green."),
            true,
        ),
        (
            // As in TRL, the space before the place where they part is the answers'.
            json!({"chosen": "The sky is blue.", "rejected": "The sky is green."}),
            pair(vec![user("The sky is")], " blue.", " green."),
            true,
        ),
        (
            json!({"prompt": ask, "chosen": says("Blue."), "rejected": says("Green.")}),
            pair(vec![user("Sky?")], "Blue.", "Green."),
            false,
        ),
        (
            json!({"chosen": whole("Blue."), "rejected": whole("Green.")}),
            pair(vec![user("Sky?")], "Blue.", "Green."),
            false,
        ),
        (
            // UltraFeedback's: the prompt as a text, and again in both conversations.
            json!({"prompt": "Sky?", "chosen": whole("Blue."), "rejected": whole("Green.")}),
            pair(vec![user("Sky?")], "Blue.", "Green."),
            false,
        ),
        (
            json!({"prompt": "The sky is", "completion": " blue.", "label": true}),
            unpaired("The sky is", " blue."),
            true,
        ),
        (json!({"prompt": ask, "completion": says("Blue."), "label": 1}), unpaired("Sky?", "Blue."), false),
        (
            json!({"prompt": "Sky?", "completions": ["Look up.", "Red."], "labels": [true, false]}),
            steps,
            true,
        ),
    ] {
        assert_eq!(read(&row), (expected, is_plain), "{row}");
        // What is written reads back as the same.
        let again = read(&read(&row).0.to_json()).0;
        assert_eq!(again, read(&row).0, "{row}");
    }
}

#[test]
fn other_datasets_are_found_out() {
    let before = "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:";
    let hh = json!({"chosen": format!("{before} Yes.\nTwice."), "rejected": format!("{before} No. ")});
    let turns = vec![user("A?"), assistant("B."), user("C?")];
    assert_eq!(read(&hh), (pair(turns, "Yes.\nTwice.", "No."), false));

    let hh = json!({
        "chosen": "\n\nHuman: A?\n\nAssistant: B.",
        "rejected": "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: D.",
    });
    let Row::Preference { prompt, chosen, rejected, .. } = read(&hh).0 else { panic!("a preference") };
    // What they share ends where an answer begins.
    assert_eq!((prompt, chosen.len(), rejected.len()), (vec![user("A?")], 1, 3));

    let gsm8k = json!({"question": "1 + 1?", "answer": "One and one.\n#### 2"});
    let checks = json!({"answer": "One and one.\n#### 2"});
    assert_eq!(read(&gsm8k), (Row::Prompt { messages: vec![user("1 + 1?")], checks }, false));

    let ifeval = json!({"key": 7, "prompt": "Hi.", "instruction_id_list": ["a:b"], "kwargs": [{}]});
    let checks = json!({"instruction_id_list": ["a:b"], "kwargs": [{}]});
    assert_eq!(read(&ifeval), (Row::Prompt { messages: vec![user("Hi.")], checks }, false));
}

#[test]
fn degrees_and_edited_answers_are_read() {
    let row = json!({
        "prompt": "A?", "chosen": "B", "rejected": "C", "edited": "D", "strength": "Slightly better", "margin": 0.5,
    });
    let (Row::Preference { edited, strength, margin, .. }, _) = read(&row) else { panic!("a preference") };
    assert_eq!((edited, strength, margin), (Some(vec![assistant("D")]), Some(Strength::Slight), Some(0.5)));
    assert_eq!(Strength::parse("significantly_better"), Some(Strength::Significant));
    assert!(Strength::Marginal < Strength::Significant);
}

#[test]
fn fields_formats_templates_and_system_messages_are_as_configured() {
    let alpaca = json!({"instruction": "Sky?", "output": "Blue."});
    let fields = [("prompt", "instruction"), ("completion", "output")];
    let fields: std::collections::BTreeMap<_, _> =
        fields.into_iter().map(|(own, theirs)| (own.to_string(), theirs.to_string())).collect();
    let config = DataConfig {
        fields: fields.clone(),
        template: Template::Always,
        system: Some("Be brief.".into()),
        ..DataConfig::default()
    };
    let (Row::Completion { prompt, .. }, is_plain) = read_with(&alpaca, config).expect("a completion") else {
        panic!("a completion")
    };
    assert_eq!(prompt[0], Message::new(Role::System, "Be brief."));
    assert_eq!((prompt.len(), is_plain), (2, false));

    let row = json!({"prompt": "1 + 1?", "solution": "2", "level": 3, "checks": {"schema": {}}});
    let config = DataConfig { checks: vec!["level".into()], ..DataConfig::default() };
    let (Row::Prompt { checks, .. }, _) = read_with(&row, config).expect("a prompt") else {
        panic!("a prompt")
    };
    assert_eq!(checks, json!({"answer": "2", "level": 3, "schema": {}}));

    // GSM8K's rows to learn from, rather than to be asked.
    let row = json!({"question": "1 + 1?", "answer": "2"});
    let fields = [("prompt".to_string(), "question".to_string()), ("completion".into(), "answer".into())];
    let config =
        DataConfig { fields: fields.into(), format: Format::PromptCompletion, ..DataConfig::default() };
    assert!(matches!(read_with(&row, config).expect("read").0, Row::Completion { .. }));

    let config = DataConfig { format: Format::Preference, ..DataConfig::default() };
    let error = read_with(&row, config).expect_err("no pair").to_string();
    assert!(
        error.contains("read as preference: expected a field `chosen`, found `answer`, `question`"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let u = json!({"role": "user", "content": "a"});
    let a = json!({"role": "assistant", "content": "b"});
    let s = json!({"role": "system", "content": "c"});
    for (row, reason, cause) in [
        ("{\"prompt\": }".to_string(), "broken_json", "broken JSON: expected value at column 12"),
        ("[1]".into(), "broken_json", "expected a JSON object"),
        (json!({"a": 1}).to_string(), "missing_field", "no known format has these fields: `a`"),
        (json!({"prompt": " "}).to_string(), "empty", "`prompt` is empty"),
        (json!({"prompt": 3}).to_string(), "wrong_type", "a text or a list of messages, but is a number"),
        (json!({"prompt": "a", "completion": " "}).to_string(), "empty", "`completion` is empty"),
        (json!({"prompt": [s], "completion": "b"}).to_string(), "no_user_turn", "no message of the user"),
        (
            json!({"prompt": [u, u], "completion": "b"}).to_string(),
            "roles_out_of_order",
            "message 2 is of role user, behind user",
        ),
        (
            json!({"messages": [u, a], "tools": [{"type": "function"}]}).to_string(),
            "unusable",
            "it has `tools`, which is not handed to the chat template",
        ),
        (
            json!({"prompt": [u], "completion": [a], "chat_template_kwargs": {"enable_thinking": false}})
                .to_string(),
            "unusable",
            "it has `chat_template_kwargs`",
        ),
        (
            json!({"messages": [u, {"role": "assistant", "content": "b", "weight": 0}]}).to_string(),
            "wrong_type",
            "message 2: it has the weight 0, which is not read",
        ),
        (json!({"prompt": [u, s]}).to_string(), "roles_out_of_order", "message 2 is of role system"),
        (json!({"prompt": [u, a]}).to_string(), "roles_out_of_order", "ends with a turn of the assistant"),
        (
            json!({"prompt": [u, a], "completion": [a]}).to_string(),
            "roles_out_of_order",
            "ends with a turn of the assistant",
        ),
        (
            json!({"prompt": [u], "completion": [u, a]}).to_string(),
            "roles_out_of_order",
            "begins with a message of role user",
        ),
        (
            json!({"prompt": [u], "completion": [a, u]}).to_string(),
            "roles_out_of_order",
            "ends with a message of role user",
        ),
        (json!({"messages": [u]}).to_string(), "empty", "no turn of the assistant"),
        (
            json!({"messages": [u, {"role": "assistant", "content": ""}]}).to_string(),
            "empty",
            "a turn of the assistant is empty",
        ),
        (
            json!({"messages": [u, {"role": "assistant", "content": "", "tool_calls": [{}]}]}).to_string(),
            "wrong_type",
            "it has `tool_calls`",
        ),
        (json!({"prompt": "a", "chosen": "b", "rejected": "b"}).to_string(), "equal_answers", "are the same"),
        (json!({"chosen": [u, a], "rejected": "b"}).to_string(), "wrong_type", "they are a list and a text"),
        (
            json!({"chosen": "x", "rejected": "y"}).to_string(),
            "missing_field",
            "do not begin with the same words",
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c", "strength": "very"}).to_string(),
            "wrong_type",
            "`strength` must be",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": "good"}).to_string(),
            "wrong_type",
            "must be true or false",
        ),
        (
            json!({"prompt": "a", "completions": ["b"], "labels": []}).to_string(),
            "wrong_type",
            "1 steps, but 0 labels",
        ),
        (
            json!({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}).to_string(),
            "roles_out_of_order",
            "ends with a message of role user",
        ),
        (
            json!({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"})
                .to_string(),
            "empty",
            "`chosen`: a turn of the assistant is empty",
        ),
    ] {
        let (_folder, path) = file(&row);
        let error = open_all(&DataConfig { path, ..DataConfig::default() }).expect_err(&row);
        let DataError::Row { place, error } = error else { panic!("{row}: {error}") };
        assert!(place.ends_with("rows.jsonl:1"), "{place}");
        assert_eq!(error.reason.as_str(), reason, "{row}: {error}");
        assert!(error.message.contains(cause), "{row}: {error}");
    }
}

#[test]
fn bad_rows_are_counted_and_skipped_or_stop_the_run() {
    let long = "x".repeat(11 << 20);
    let good = json!({"prompt": "a", "completion": "b"}).to_string();
    let long = json!({"prompt": long, "completion": "b"}).to_string();
    let mut text = format!("{{broken\n\n{good}\n{long}\n{{\"prompt\": \"a\"}}\n").into_bytes();
    text.extend(b"{\"prompt\": \"\xff\", \"completion\": \"b\"}\n");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).expect("written");
    for shuffle in [false, true] {
        let path = path.display().to_string();
        let skip =
            DataConfig { path, shuffle, on_error: OnError::Skip, max_skipped: 0.8, ..DataConfig::default() };
        let mut rows = skip.open(1).expect("one good row");
        let good: Vec<u64> = rows.by_ref().map(|entry| entry.expect("under the limit").number).collect();
        assert_eq!(good, [3]);
        let counts = rows.counts();
        assert_eq!((counts.read, counts.given), (5, 1));
        let reasons: Vec<_> = counts.skipped.iter().map(|(reason, count)| (*reason, *count)).collect();
        assert_eq!(reasons, [("broken_json", 1), ("invalid_utf8", 1), ("missing_field", 1), ("too_long", 1)]);
        let mut places: Vec<&str> =
            counts.examples.iter().filter_map(|(place, _)| place.rsplit(':').next()).collect();
        places.sort_unstable();
        assert_eq!(places, ["1", "4", "5", "6"]);

        let few = DataConfig { max_skipped: 0.5, ..skip.clone() };
        let error = open_all(&few).expect_err("too many").to_string();
        assert!(error.starts_with("4 of 5 rows were skipped"), "{error}");
        let stop = DataConfig { on_error: OnError::Stop, ..skip };
        assert!(matches!(open_all(&stop), Err(DataError::Row { .. })));
    }
}

#[test]
fn wrong_options_and_missing_files_are_refused() {
    let (_folder, path) = file(&json!({"text": "a"}).to_string());
    let config = DataConfig { path, ..DataConfig::default() };
    let bad = |change: fn(&mut DataConfig)| {
        let mut config = config.clone();
        change(&mut config);
        open_all(&config).expect_err("refused").to_string()
    };
    assert!(bad(|config| config.path.clear()).contains("path is missing"));
    assert!(bad(|config| config.path = "no/such/file/here.jsonl".into()).contains("no/such/file/here.jsonl"));
    assert!(bad(|config| config.split.to = 0.0).contains("split is from 0 to 0"));
    assert!(bad(|config| config.max_skipped = 2.0).contains("max_skipped is 2"));
    assert!(bad(|config| config.limit = Some(0)).contains("limit is 0"));
    assert!(bad(|config| config.loss.clear()).contains("loss is empty"));
    assert!(
        bad(|config| _ = config.fields.insert("reponse".into(), "a".into()))
            .contains("fields names \"reponse\"")
    );
    let (_folder, path) = file("\n \n");
    let error = open_all(&DataConfig { path, ..DataConfig::default() }).expect_err("no rows");
    assert!(matches!(error, DataError::NoRows { .. }), "{error}");
}
