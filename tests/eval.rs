//! `arriero eval` from outside: the table, the files, the run store, and what it says of wrong input.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arriero_store::{ArmReader, SampleFilter};
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
    let store = ArmReader::open(&run.join("arc/0")).expect("it is there");
    let recorded = store.metric("eval", "acc/standard_error").expect("the figure");
    assert_eq!(recorded.iter().map(|point| point.value).collect::<Vec<_>>(), [error]);
    assert_eq!(store.samples(&SampleFilter::default()).expect("the answers").len(), 3);
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
    let store = ArmReader::open(&workplace.runs().join("eval-tiny/ifeval/0")).expect("there");
    assert_eq!(store.dropped().expect("it is recorded").get("row_left_out"), Some(&1));
    let [event] = &store.events().expect("it is told")[..] else { panic!("not one event") };
    assert!(event.record.message.contains("ifeval.jsonl:5: broken JSON"), "{event:?}");
}

/// Ctrl-c while answers are generated: what is judged by then is kept, and marked.
#[test]
fn ctrl_c_keeps_what_is_done_and_says_so() {
    let workplace = Workplace::new();
    let row = json!({"prompt": "Go on.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]});
    let data = text(&file(&workplace, "many.jsonl", &vec![row; 4000]));
    let json = workplace.path().join("out.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["eval", "--model", "tests/fixtures/tiny", "--device", "cpu", "--suite", "ifeval"]);
    command.args(["--data", &data, "--set", "max_new_tokens=150", "--runs"]).arg(workplace.runs());
    command.arg("--output").arg(&json).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // This file is there once ctrl-c is listened to.
    let partial = workplace.path().join("out.json.partial");
    while !partial.exists() {
        assert_eq!(child.try_wait().expect("it is ours"), None, "it ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill is there").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    let written: Value =
        serde_json::from_str(&fs::read_to_string(&json).expect("it is there")).expect("JSON");
    assert_eq!(
        (&written["status"], &written["suites"][0]["is_complete"]),
        (&json!("interrupted"), &json!(false))
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("of 4000)"));
    assert!(!partial.exists());
}

#[test]
fn an_experiment_measures_its_arms_with_suites() {
    let workplace = Workplace::new();
    let suites = format!(
        "evaluation.suites=[{{ kind = \"arc\", path = {:?} }}, {{ kind = \"ifeval\", path = {:?}, max_new_tokens = 4 }}]",
        text(&arc(&workplace)),
        text(&ifeval(&workplace)),
    );
    let run = |set: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.args(["run", "tests/fixtures/experiments/tiny.toml", "--set", set, "--runs"]);
        command.arg(workplace.runs()).output().expect("it starts")
    };
    let output = run(&suites);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("arc acc ") && table.contains("ifeval prompt_strict "), "{table}");
    let folder = workplace.runs().join("tiny");
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("summary.json")).expect("there")).expect("JSON");
    let suite = &summary["arms"][0]["suites"][0];
    assert_eq!(
        (&suite["suite"], &suite["before"][0]["n"], &suite["after"][0]["n"]),
        (&json!("arc"), &json!(3), &json!(3))
    );
    let store = ArmReader::open(&folder.join("sft/5")).expect("it is there");
    let steps = summary["arms"][0]["steps"].as_u64();
    let filter = SampleFilter { stage: Some("evaluation/ifeval"), ..SampleFilter::default() };
    let answers = store.samples(&filter).expect("the answers");
    assert_eq!(answers.len(), 8);
    for (step, when) in [(Some(0), "before"), (steps, "after")] {
        let answers = answers.iter().filter(|answer| answer.record.evaluation == step);
        assert_eq!(answers.count(), 4, "four {when}");
    }
    drop(store);
    fs::remove_dir_all(&folder).expect("it is there");
    // Wrong suites are refused before anything is written.
    for (set, expected) in [
        ("evaluation.suites=[{ kind = \"arcs\" }]", "the nearest is \"arc\""),
        ("evaluation.suites=[{ kind = \"arc\", path = \"no/such.jsonl\" }]", "no/such.jsonl"),
        ("evaluation.suites=[{ kind = \"arc\", shot = 3 }]", "the nearest valid one is \"shots\""),
    ] {
        let output = run(set);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(expected), "{said}");
        assert!(!folder.exists(), "{said}");
    }
}
