use serde_json::json;

use super::*;

struct Outcome {
    result: Result<FileReport, FileError>,
    rows: Vec<Value>,
    skipped: Vec<(u64, String)>,
}

fn score(reward: Value, on_error: OnError, max_skipped: f64, input: &[u8]) -> Outcome {
    let config: RewardConfig = serde_json::from_value(reward).expect("a reward");
    let options = FileOptions { on_error, max_skipped, ..FileOptions::default() };
    let mut output = Vec::new();
    let mut skipped = Vec::new();
    let result = score_file(input, &mut output, &config, &options, |line, cause| {
        skipped.push((line, cause.to_string()))
    });
    let output = String::from_utf8(output).expect("text");
    let rows = output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Outcome { result, rows, skipped }
}

const BAD: &[u8] = b"\xef\xbb\xbf{\"answer\": \"4\", \"completion\": \"4\"}\r\n\
    {\"answer\": \"4\", \"completion\": }\n\
    \n\
    {\"answer\": \"4\", \"completion\": \"\xff\"}\n\
    {\"completion\": \"4\"}\n\
    {\"answer\": \"4\"}\n\
    {\"answer\": \"4\", \"completion\": \"\"}\n\
    [1]\n\
    {\"answer\": \"4\", \"completion\": \"5\"}";

#[test]
fn bad_rows_are_named_and_counted() {
    let Outcome { result, rows, skipped } = score(json!({"kind": "math"}), OnError::Skip, 0.75, BAD);
    let report = result.expect("6 of 8 may be skipped");
    assert_eq!((report.scored, report.skipped, report.reward), (2, 6, 0.5));
    let rewards: Vec<&Value> = rows.iter().map(|row| &row["reward"]).collect();
    assert_eq!(rewards, [&json!(1.0), &json!(0.0)]);
    let expected = [
        (2, "broken JSON: expected value at column 31"),
        (4, "invalid UTF-8 at byte 32 of the line"),
        (5, "no `answer`"),
        (6, "expected a completion"),
        (7, "the completion is empty"),
        (8, "expected a JSON object"),
    ];
    for ((line, cause), (expected_line, expected)) in skipped.iter().zip(expected) {
        assert_eq!(*line, expected_line);
        assert!(cause.contains(expected), "line {line}: {cause}");
    }
    assert_eq!(skipped.len(), expected.len());
}

#[test]
fn bad_rows_stop_the_run_or_break_it_at_the_end() {
    let error = score(json!({"kind": "math"}), OnError::Stop, 1.0, BAD).result.expect_err("line 2");
    assert!(error.to_string().starts_with("line 2: broken JSON"), "{error}");
    let error = score(json!({"kind": "math"}), OnError::Skip, 0.7, BAD).result.expect_err("too many");
    assert!(error.to_string().starts_with("6 of 8 rows were skipped"), "{error}");
    for empty in [&b""[..], b"\n \n"] {
        let error = score(json!({"kind": "math"}), OnError::Skip, 1.0, empty).result.expect_err("no rows");
        assert!(matches!(error, FileError::NoRows), "{error}");
    }
}

#[test]
fn ifeval_rows_gain_verdicts() {
    let input = json!({
        "key": 7,
        "prompt": "…",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": null}, {"num_words": 2, "relation": "at least", "keywords": null}],
        "response": "Well,\ntwo words",
    });
    let Outcome { result, rows, .. } =
        score(json!({"kind": "ifeval"}), OnError::Stop, 0.0, input.to_string().as_bytes());
    assert_eq!(result.expect("one row").instruction_accuracy, Some([0.5, 1.0]));
    let row = &rows[0];
    assert_eq!((&row["strict"], &row["loose"], &row["reward"]), (&json!(false), &json!(true), &json!(0.0)));
    assert_eq!(row["components"]["loose_instructions"], 1.0);
    let verdict = json!({"id": "punctuation:no_comma", "strict": false, "loose": true});
    assert_eq!(row["instructions"][0], verdict);
    assert_eq!(row["key"], 7);
}

#[test]
fn a_row_keeps_what_it_had() {
    let config: RewardConfig =
        serde_json::from_value(json!({"kind": "contains", "text": "b"})).expect("a reward");
    let mut output = Vec::new();
    let input = "{\"z\": 1.50, \"completion\": \"b\", \"big\": 123456789012345678901234567890, \"o\": {\"a\": {}}}\n\
                 {\"completion\": \"a\", \"reward\": 9}\n";
    let options = FileOptions::default();
    let report = score_file(input.as_bytes(), &mut output, &config, &options, |_, _| {}).expect("two rows");
    let output = String::from_utf8(output).expect("text");
    assert_eq!(
        output,
        "{\"z\": 1.50, \"completion\": \"b\", \"big\": 123456789012345678901234567890, \"o\": {\"a\": {}},\
         \"components\":{\"contains\":1.0},\"reward\":1.0}\n\
         {\"completion\":\"a\",\"components\":{\"contains\":0.0},\"reward\":0.0}\n"
    );
    assert_eq!(report.replaced, BTreeMap::from([("reward".to_string(), 1)]));
}

#[test]
fn rows_of_one_prompt_are_one_group_where_they_are_compared() {
    let reward = json!({
        "kind": "composite",
        "parts": [{"normalise": "group", "reward": {"kind": "contains", "text": "yes"}}],
    });
    let input = "{\"prompt\": \"a\", \"completion\": \"yes\"}\n{\"prompt\": \"a\", \"completion\": \"no\"}\n\
                 {\"prompt\": \"b\", \"completion\": \"yes\"}\n";
    let rows = score(reward, OnError::Stop, 0.0, input.as_bytes()).rows;
    let rewards: Vec<f64> = rows.iter().filter_map(|row| row["reward"].as_f64()).collect();
    assert!((rewards[0] - 0.707).abs() < 1e-3 && (rewards[1] + 0.707).abs() < 1e-3, "{rewards:?}");
    assert_eq!(rewards[2], 0.0);
}

#[test]
fn long_completions_and_odd_options_are_fine_or_refused() {
    let long = "word, ".repeat(10 << 20 >> 3);
    let input = json!({"completion": long}).to_string();
    let repetition = score(json!({"kind": "repetition"}), OnError::Stop, 0.0, input.as_bytes());
    assert!(repetition.rows[0]["reward"].as_f64().expect("a number") < -0.99);
    let error = score(json!({"kind": "repetition"}), OnError::Skip, 1.5, b"{}").result.expect_err("no share");
    assert!(error.to_string().contains("max_skipped is 1.5"), "{error}");
    let error = score(json!({"kind": "regex"}), OnError::Skip, 1.0, b"{}").result.expect_err("no pattern");
    assert!(matches!(error, FileError::Config(_)), "{error}");
}

/// A program of the shell's that counts its lines, and ends at "bad".
fn counting() -> Value {
    let script = r#"n=0; while IFS= read -r line; do id=${line#*\"id\":}; id=${id%%,*}; n=$((n+1))
        case $line in *bad*) echo "oh no" >&2; exit 3;; esac
        echo "{\"id\":$id,\"reward\":$n}"; done"#;
    json!({"kind": "program", "command": ["sh", "-c", script], "batch": 3})
}

#[test]
fn rows_go_to_a_program_in_batches_and_failures_keep_their_lines() {
    let texts = ["a", "b", "bad", "c", "d"];
    let rows: Vec<String> = texts.iter().map(|text| json!({"completion": text}).to_string()).collect();
    let input = format!("{}\n{{\n{}\n", rows[..3].join("\n"), rows[3..].join("\n"));
    let Outcome { result, rows, skipped } = score(counting(), OnError::Skip, 0.5, input.as_bytes());
    let report = result.expect("two of six may be skipped");
    assert_eq!((report.scored, report.skipped), (4, 2));
    let completions: Vec<&Value> = rows.iter().map(|row| &row["completion"]).collect();
    assert_eq!(completions, ["a", "b", "c", "d"]);
    // It began anew behind "bad".
    let rewards: Vec<&Value> = rows.iter().map(|row| &row["reward"]).collect();
    assert_eq!(rewards, [1.0, 2.0, 1.0, 2.0]);
    let [(3, program), (4, json)] = &skipped[..] else { panic!("{skipped:?}") };
    assert!(program.contains("the program ended (exit status: 3)") && program.contains("oh no"), "{program}");
    assert!(json.starts_with("broken JSON"), "{json}");
    let error = score(counting(), OnError::Stop, 0.0, input.as_bytes()).result.expect_err("line 3");
    assert!(error.to_string().starts_with("line 3: the program ended"), "{error}");
}
