use arriero_buffers::Finish;
use serde_json::{Value, json};

use super::super::{RewardConfig, group};
use super::*;

/// A program in the shell's language, which every Unix has. `answer` reads a line and sets its id and completion.
fn scorer(script: &str, options: Value) -> Box<dyn Scorer> {
    const ANSWER: &str = r#"
        next() { IFS= read -r line || exit 0; id=${line#*\"id\":}; id=${id%%[,\}]*}; }
    "#;
    let mut config = json!({"kind": "program", "command": ["sh", "-c", format!("{ANSWER}\n{script}")]});
    config.as_object_mut().expect("a table").extend(options.as_object().expect("a table").clone());
    serde_json::from_value::<RewardConfig>(config).expect("a reward").build().expect("it is valid")
}

fn texts(texts: &[&str]) -> Group {
    group(Value::Null, &texts.iter().map(|&text| (text, Finish::EndOfTurn)).collect::<Vec<_>>())
}

fn rewards(outcomes: &Outcomes) -> Vec<Option<f32>> {
    outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|score| score.reward)).collect()
}

fn error(outcome: &Result<Score, RewardError>) -> String {
    outcome.as_ref().expect_err("no score").to_string()
}

const LENGTHS: &str = r#"while :; do next; text=${line#*\"completion\":\"}; text=${text%%\"*};
    echo "{\"id\":$id,\"reward\":${#text},\"components\":{\"half\":0.5}}"; done"#;

#[test]
fn a_long_lived_process_answers_lines_in_their_order() {
    // A counter that lives on shows that there is one process.
    let script = r#"n=0; while :; do next; n=$((n+1)); echo "{\"id\":$id,\"reward\":$n}"; done"#;
    let mut scorer = scorer(script, json!({"batch": 2}));
    let group = texts(&["a", "b", "c"]);
    let found = scorer.score_groups(&[&group, &group]);
    assert_eq!(rewards(&found[0]), [Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(rewards(&found[1]), [Some(4.0), Some(5.0), Some(6.0)]);
    assert_eq!(scorer.score(&group).expect("scores")[2].reward, 9.0);
}

#[test]
fn components_and_the_order_of_answers_are_its_own() {
    let mut scored = scorer(LENGTHS, json!({}));
    let scores = scored.score(&texts(&["abc", "", "ab"])).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), [3.0, 0.0, 2.0]);
    assert_eq!(scores[0].components["half"], 0.5);
    let swapped = r#"while :; do next; one=$id; next; echo "{\"id\":$id,\"reward\":2}"; echo "{\"id\":$one,\"reward\":1}"; done"#;
    let mut scored = scorer(swapped, json!({}));
    assert_eq!(rewards(&scored.score_groups(&[&texts(&["a", "b"])])[0]), [Some(1.0), Some(2.0)]);
}

#[test]
fn a_group_is_one_line_if_asked_for() {
    let script = r#"while :; do next; echo "{\"id\":$id,\"rewards\":[1,{\"reward\":2}]}"; done"#;
    let mut scorer = scorer(script, json!({"unit": "group"}));
    assert_eq!(rewards(&scorer.score_groups(&[&texts(&["a", "b"])])[0]), [Some(1.0), Some(2.0)]);
    let found = scorer.score_groups(&[&texts(&["a"])]);
    assert!(error(&found[0][0]).contains("it has 2 rewards for 1 completions"), "{:?}", found[0]);
}

/// Each ends the process, or makes it useless, at the completion "bad"; the others are scored all the same.
#[test]
fn what_dies_writes_garbage_or_hangs_is_named_and_the_rest_is_scored() {
    for (fault, cause) in [
        (
            "echo oh no >&2; exit 3",
            "the program ended (exit status: 3) and left 1 lines unanswered; the end of its stderr:\noh no",
        ),
        ("kill -9 $$", "the program ended (signal: 9 (SIGKILL))"),
        ("echo hello", "the program wrote \"hello\", which is no answer: expected a line such as"),
        ("printf 'a\\377\\n'", "which is no answer"),
        ("echo '{\"id\":99,\"reward\":1}'", "no line with \"id\": 99 waits for an answer"),
        ("echo '[1]'", "the program wrote \"[1]\", which is no answer"),
        ("sleep 100", "the program gave no answer for 1 s; it wrote nothing to stderr"),
        ("exec >&-; sleep 100", "the program closed its output and left 1 lines unanswered"),
    ] {
        let script = format!(
            r#"while :; do next; case $line in *bad*) {fault};; esac; echo "{{\"id\":$id,\"reward\":1}}"; done"#
        );
        let timeout = if fault == "sleep 100" { 1.0 } else { 60.0 };
        let mut scorer = scorer(&script, json!({"timeout": timeout}));
        let found = scorer.score_groups(&[&texts(&["a", "bad", "b"]), &texts(&["c"])]);
        assert_eq!(rewards(&found[0]), [Some(1.0), None, Some(1.0)], "{fault}: {found:?}");
        assert_eq!(rewards(&found[1]), [Some(1.0)], "{fault}: {found:?}");
        let error = error(&found[0][1]);
        assert!(error.starts_with("prompt 7, sample 1: ") && error.contains(cause), "{fault}: {error}");
    }
}

#[test]
fn answers_that_are_none_leave_the_process_alone() {
    let script = r#"n=0; while :; do next; n=$((n+1));
        case $n in 2) echo "{\"id\":$id,\"reward\":\"good\"}";; *) echo "{\"id\":$id,\"reward\":$n}";; esac; done"#;
    let found = scorer(script, json!({})).score_groups(&[&texts(&["a", "b", "c"])]);
    assert_eq!(rewards(&found[0]), [Some(1.0), None, Some(3.0)]);
    assert!(error(&found[0][1]).contains("must be a finite number"), "{found:?}");
    let twice =
        r#"while :; do next; echo "{\"id\":$id,\"reward\":1}"; echo "{\"id\":$id,\"reward\":1}"; done"#;
    let found = scorer(twice, json!({"restarts": 0})).score_groups(&[&texts(&["a", "b"])]);
    assert!(error(&found[0][1]).contains("answered the same line twice"), "{found:?}");
}

#[test]
fn a_program_that_never_answers_is_not_started_for_ever() {
    let starts = tempfile::NamedTempFile::new().expect("a file");
    let script = format!("echo start >> '{}'; exit 1", starts.path().display());
    let mut scorer = scorer(&script, json!({"restarts": 2}));
    for _ in 0..3 {
        let found = scorer.score_groups(&[&texts(&["a", "b", "c", "d", "e"])]);
        let last = error(found[0].last().expect("five"));
        assert!(last.contains("it was started 3 times without giving an answer"), "{last}");
    }
    assert_eq!(std::fs::read_to_string(starts.path()).expect("text").lines().count(), 3);
}

#[test]
fn a_large_line_does_not_jam_the_pipes() {
    // Neither side could write all of it without the other reading.
    let long = "x".repeat(1 << 20);
    let script = r#"n=0; while IFS= read -r line; do
        echo "{\"id\":$n,\"reward\":${#line},\"components\":{}}"; n=$((n+1)); done"#;
    let found = scorer(script, json!({})).score_groups(&[&texts(&[&long, &long, &long])]);
    assert!(rewards(&found[0]).iter().all(|reward| reward.is_some_and(|reward| reward > 1e6)), "{found:?}");
}

#[test]
fn whoever_waits_can_stop_it() {
    let mut scorer = scorer("sleep 1000", json!({"timeout": 1000.0}));
    let cancellation = CancellationToken::default();
    scorer.set_cancellation(&cancellation);
    let group = texts(&["a", "b"]);
    let waiting = std::thread::spawn(move || scorer.score_groups(&[&group]).remove(0));
    std::thread::sleep(Duration::from_millis(100));
    cancellation.cancel();
    let found = waiting.join().expect("no panic");
    assert!(found.iter().all(|outcome| outcome == &Err(RewardError::Interrupted)), "{found:?}");
}

#[test]
fn what_it_has_started_ends_with_it() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let script = format!(
        "sleep 1000 & echo $! > '{}'; while :; do next; echo \"{{\\\"id\\\":$id,\\\"reward\\\":1}}\"; done",
        file.path().display()
    );
    let mut scorer = scorer(&script, json!({}));
    scorer.score(&texts(&["a"])).expect("a score");
    drop(scorer);
    let pid: String = std::fs::read_to_string(file.path()).expect("text").trim().to_string();
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Whoever adopts it may take a moment to bury it.
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        state().is_empty() || state().contains(") Z ")
    });
    assert!(gone || !std::path::Path::new("/proc/self").exists(), "{}", state());
}

#[test]
fn options_out_of_range_are_refused() {
    for (options, cause) in [
        (json!({}), "command is empty"),
        (json!({"command": [""]}), "command is empty"),
        (json!({"command": ["no-such-program-here"]}), "there is no program \"no-such-program-here\""),
        (json!({"command": ["./no/such"]}), "there is no program"),
        (json!({"command": ["sh"], "batch": 0}), "batch is 0"),
        (json!({"command": ["sh"], "timeout": 0.0}), "timeout is 0"),
        (json!({"command": ["sh"], "timeout": 1e300}), "timeout is 1"),
    ] {
        let config: ProgramConfig = serde_json::from_value(options).expect("options");
        let error = config.validate().expect_err("out of range");
        assert!(error.contains(cause), "{error}");
    }
}
