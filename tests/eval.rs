//! `arriero eval` from outside: the table, the files, the run store, and what it says of wrong input.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::Workplace;

/// `arriero eval` of the tiny model.
fn eval(workplace: &Workplace, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["eval", "--model", "tests/fixtures/tiny", "--device", "cpu", "--dtype", "f32", "--runs"]);
    command.arg(workplace.runs()).args(arguments).output().expect("it starts")
}

fn file(workplace: &Workplace, name: &str, rows: &[Value]) -> PathBuf {
    let path = workplace.path().join(name);
    let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, lines.concat()).expect("it can be written");
    path
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn ifeval(workplace: &Workplace) -> PathBuf {
    let row = |index: usize| {
        json!({
            "prompt": format!("Write {index} words."),
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        })
    };
    file(workplace, "ifeval.jsonl", &(0..4).map(row).collect::<Vec<_>>())
}

fn arc(workplace: &Workplace) -> PathBuf {
    let row = |answer: &str| json!({"question": "Which?", "choices": {"text": ["rain", "snow"], "label": ["A", "B"]}, "answerKey": answer});
    file(workplace, "arc.jsonl", &[row("A"), row("B"), row("B")])
}

#[test]
fn figures_are_shown_written_and_recorded() {
    let workplace = Workplace::new();
    let (ifeval, arc) = (text(&ifeval(&workplace)), text(&arc(&workplace)));
    let (json, samples) = (workplace.path().join("out.json"), workplace.path().join("samples.jsonl"));
    let output = eval(
        &workplace,
        &[
            "--suite",
            "ifeval,arc",
            "--data",
            &format!("ifeval={ifeval}"),
            "--data",
            &format!("arc={arc}"),
            "--set",
            "max_new_tokens=4",
            "--limit",
            "3",
            "--output",
            &text(&json),
            "--samples",
            &text(&samples),
            "--name",
            "measured",
        ],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8_lossy(&output.stdout);
    for line in ["ifeval", "prompt_strict", "instruction_loose", "arc", "acc_norm"] {
        assert!(table.contains(line), "no {line} in {table}");
    }
    let written: Value =
        serde_json::from_str(&fs::read_to_string(&json).expect("it is there")).expect("JSON");
    assert_eq!((&written["status"], &written["suites"][1]["judged"]), (&json!("completed"), &json!(3)));
    let acc = &written["suites"][1]["figures"][0];
    assert_eq!((&acc["name"], &acc["n"]), (&json!("acc"), &json!(3)));
    // The same two choices thrice, of which one is always taken: 1 or 2 of 3; the error is √(2/9 / 2).
    let error = acc["standard_error"].as_f64().expect("three items");
    assert!((error - (1.0f64 / 9.0).sqrt()).abs() < 1e-9, "{error}");
    assert_eq!(fs::read_to_string(&samples).expect("it is there").lines().count(), 6);
    let run = workplace.runs().join("measured");
    let database = rusqlite::Connection::open(run.join("arc/0/run.db")).expect("it is there");
    let recorded: f64 = database
        .query_row(
            "SELECT value FROM metrics WHERE stage = 'eval' AND name = 'acc/standard_error'",
            [],
            |row| row.get(0),
        )
        .expect("the figure");
    assert_eq!(recorded, error);
    let count: u32 =
        database.query_row("SELECT count(*) FROM samples", [], |row| row.get(0)).expect("the answers");
    assert_eq!(count, 3);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(run.join("summary.json")).expect("it is there"))
            .expect("JSON");
    assert_eq!(summary, written);
    assert!(fs::read_to_string(run.join("experiment.toml")).expect("it is there").contains("kind = \"arc\""));
}

/// The one line of an error of wrong input; nothing was written.
fn refusal(arguments: &[&str]) -> String {
    let workplace = Workplace::new();
    let output = eval(&workplace, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!workplace.runs().exists(), "something was written: {said}");
    let lines: Vec<&str> = said.lines().collect();
    let [line] = lines[..] else { panic!("expected one line, found:\n{said}") };
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {line}")).to_string()
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let workplace = Workplace::new();
    let good = text(&ifeval(&workplace));
    let broken = workplace.path().join("broken.jsonl");
    fs::write(&broken, fs::read_to_string(&good).expect("it is there") + "{\"prompt\": 3}\n")
        .expect("it can be written");
    let broken = text(&broken);
    for (arguments, expected) in [
        (&["--suite", "ifevals"][..], "there is no suite \"ifevals\"; the nearest is \"ifeval\" (all: "),
        (&["--suite", "ifeval", "--data", "no/such.jsonl"], "no/such.jsonl"),
        (&["--suite", "perplexity"], "perplexity: path is missing"),
        (
            &["--suite", "ifeval", "--data", &good, "--set", "temperatur=1"],
            "the nearest valid one is \"temperature\"",
        ),
        (&["--suite", "ifeval", "--data", &good, "--set", "temperature=-1"], "temperature is -1"),
        (&["--suite", "ifeval", "--data", &broken], "broken.jsonl:5: "),
        (&["--suite", "ifeval", "--data", &good, "--name", "a/b"], "a/b"),
        (&["--suite", "preference", "--data", &good], "reward model"),
        (&["--suite", "preference,ifeval", "--data", &format!("preference={good}")], "one by one"),
    ] {
        let said = refusal(arguments);
        assert!(said.contains(expected), "expected …{expected}…, found: {said}");
    }
}

#[test]
fn rows_that_are_left_out_are_named_and_counted() {
    let workplace = Workplace::new();
    let path = ifeval(&workplace);
    fs::write(&path, fs::read_to_string(&path).expect("it is there") + "nonsense\n")
        .expect("it can be written");
    let arguments =
        ["--suite", "ifeval", "--data", &text(&path), "--set", "max_new_tokens=2", "--on-error", "skip"];
    let output = eval(&workplace, &[&arguments[..], &["--set", "max_skipped=0.5"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("left out: ") && said.contains("ifeval.jsonl:5: broken JSON"), "{said}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.lines().any(|line| line.contains("rows left out") && line.trim_end().ends_with('1')),
        "{table}"
    );
    let database =
        rusqlite::Connection::open(workplace.runs().join("eval-tiny/ifeval/0/run.db")).expect("there");
    let dropped: u32 = database
        .query_row("SELECT count FROM drops WHERE reason = 'row_left_out'", [], |row| row.get(0))
        .expect("it is recorded");
    assert_eq!(dropped, 1);
}
