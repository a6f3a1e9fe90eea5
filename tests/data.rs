//! `arriero data`, and runs whose prompts are rows of a dataset.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::Workplace;

fn arriero(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    // No test asks a network for anything.
    command.env("HF_HUB_OFFLINE", "1").output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a successful command printed.
fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn write(folder: &Path, name: &str, lines: &[String]) -> String {
    let path = folder.join(name);
    fs::write(&path, lines.join("\n")).expect("written");
    path.display().to_string()
}

const TINY: &str = "tests/fixtures/tiny";

#[test]
fn inspect_marks_exactly_the_tokens_that_carry_loss() {
    let workplace = Workplace::new();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = [
        turn("system", "s"),
        turn("user", "ab"),
        turn("assistant", "cd"),
        turn("user", "e"),
        turn("assistant", "f"),
    ];
    let path = write(workplace.path(), "talk.jsonl", &[json!({ "messages": talk }).to_string()]);
    let inspect =
        |more: &[&str]| told(&arriero(&[&["data", "inspect", &path, "--model", TINY], more].concat()));

    let text = inspect(&[]);
    assert!(text.contains("talk.jsonl: read as language_modeling"), "{text}");
    assert!(text.contains("with a system message 1") && text.contains("of several turns      1"), "{text}");
    // The tiny model's template closes a turn with a token that its answer learns.
    let marked: Vec<&str> = text.split('⟦').skip(1).filter_map(|rest| rest.split('⟧').next()).collect();
    assert_eq!(marked[0], "marked");
    assert_eq!(marked.len(), 3, "{text}");
    assert!(marked[1].starts_with("cd") && marked[2].starts_with('f'), "{text}");
    assert!(!marked[1..].iter().any(|run| run.contains("ab") || run.contains("user")), "{text}");

    let json: Value = serde_json::from_str(&inspect(&["--json", "--set", "loss=[\"user\"]"])).expect("JSON");
    let tokens = json["samples"][0]["parts"][0]["tokens"].as_array().expect("tokens");
    let learnt: String = tokens
        .iter()
        .filter(|token| token["loss"] == true)
        .filter_map(|token| token["text"].as_str())
        .collect();
    assert!(learnt.contains("ab") && learnt.contains('e') && !learnt.contains("cd"), "{learnt}");
    let count = tokens.iter().filter(|token| token["loss"] == true).count();
    assert_eq!(json["loss_tokens"]["messages"]["sum"], count);
    assert_eq!(json["tokens"]["messages"]["max"], tokens.len());
}

#[test]
fn inspect_names_what_is_wrong_by_its_line() {
    let workplace = Workplace::new();
    let good = json!({"prompt": "a", "chosen": "b", "rejected": "c"}).to_string();
    let lines = [good.clone(), "{".into(), json!({"prompt": "a", "chosen": "b"}).to_string(), good];
    let path = write(workplace.path(), "pairs.jsonl", &lines);
    let inspect = |more: &[&str]| arriero(&[&["data", "inspect", &path, "--model", TINY], more].concat());
    let text = told(&inspect(&["--samples", "0"]));
    assert!(text.contains("rows                  4 read, 2 usable"), "{text}");
    assert!(text.contains("pairs.jsonl:2: broken JSON: EOF while parsing an object at column 1"), "{text}");
    assert!(text.contains("pairs.jsonl:3: read as preference: expected a field `rejected`"), "{text}");
    let json: Value = serde_json::from_str(&told(&inspect(&["--json"]))).expect("JSON");
    assert_eq!(json["rows"]["problems"], json!({"broken_json": 1, "missing_field": 1}));

    for (arguments, expected) in [
        (&["--set", "on_error=stop"][..], "pairs.jsonl:2: broken JSON"),
        (&["--set", "max_skipped=0.4"], "2 of 4 rows were skipped, more than the share of 0.4"),
        (&["--set", "lim=3"], "the nearest valid one is \"limit\""),
    ] {
        let output = inspect(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
    let output = arriero(&["data", "inspect", "nobody/nothing", "--model", TINY]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("HF_HUB_OFFLINE is set") && said(&output).contains("nobody/nothing"),
        "{}",
        said(&output)
    );
}

/// A run of the tiny experiment on questions with answers.
fn run(workplace: &Workplace, set: &[String]) -> Output {
    let runs = workplace.runs().display().to_string();
    let mut arguments = vec!["run", "tests/fixtures/experiments/tiny.toml", "--runs", &runs];
    arguments.extend(set.iter().flat_map(|assignment| ["--set", assignment]));
    arriero(&arguments)
}

fn questions(path: &str, more: &[&str]) -> Vec<String> {
    let path = Value::from(path);
    [
        "prompts={ kind = \"data\" }".to_string(),
        format!("prompts.train={{ path = {path}, split = {{ to = 0.5 }} }}"),
        format!("prompts.held_out={{ path = {path}, split = {{ from = 0.5 }}, limit = 4 }}"),
        "reward={ kind = \"math\" }".to_string(),
        "evaluation.max_new_tokens=4".to_string(),
    ]
    .into_iter()
    .chain(more.iter().map(|assignment| assignment.to_string()))
    .collect()
}

#[test]
fn questions_with_answers_are_prompts_split_by_their_hash() {
    let workplace = Workplace::new();
    let row = |number: usize| {
        json!({"question": format!("{number} + 1?"), "answer": format!("So.\n#### {}", number + 1)})
            .to_string()
    };
    let path = write(workplace.path(), "sums.jsonl", &(0..24).map(row).collect::<Vec<_>>());
    let output = run(&workplace, &questions(&path, &[]));
    told(&output);
    let summary = fs::read_to_string(workplace.runs().join("tiny/summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!((&summary["status"], &summary["held_out"]), (&json!("completed"), &json!(4)));
}

#[test]
fn bad_prompts_stop_a_run_or_are_skipped_and_told() {
    let workplace = Workplace::new();
    let row = |number: usize| json!({"prompt": format!("{number} + 1?"), "answer": number + 1}).to_string();
    let mut lines: Vec<String> = (0..40).map(row).collect();
    lines[3] = "{\"prompt\": ".to_string();
    lines[5] = json!({"prompt": "What?"}).to_string();
    lines[7] = json!({"prompt": [{"role": "assistant", "content": "Hi."}], "answer": "1"}).to_string();
    lines[9] = json!({"prompt": "long ".repeat(300), "answer": "1"}).to_string();
    let path = write(workplace.path(), "sums.jsonl", &lines);
    let stopped = run(&workplace, &questions(&path, &[]));
    assert_eq!(stopped.status.code(), Some(2));
    assert!(said(&stopped).contains("sums.jsonl:"), "{}", said(&stopped));
    assert!(!workplace.runs().exists());

    let skip = |share: &str| {
        let set = |side: &str| {
            [format!("prompts.{side}.on_error=skip"), format!("prompts.{side}.max_skipped={share}")]
        };
        let more: Vec<String> = ["train", "held_out"].into_iter().flat_map(set).collect();
        run(&workplace, &questions(&path, &more.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let few = skip("0.01");
    assert_eq!(few.status.code(), Some(2));
    assert!(said(&few).contains("more than the share of 0.01"), "{}", said(&few));

    let output = skip("0.5");
    told(&output);
    let text = said(&output);
    assert!(text.contains("training prompts: skipped") && text.contains("1 broken_json"), "{text}");
}

#[test]
fn prepare_writes_what_inspect_reads_and_counts_the_rest() {
    let workplace = Workplace::new();
    let row =
        |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion}).to_string();
    let lines = [
        row("Name a colour, any colour at all, please.", "Blue is one."),
        row("Name a colour, any colour at all, please!", "Blue is one!"),
        row("Shout.", "Yes!!!!!!"),
        row("Add 2 and 2.", "4"),
        "{".to_string(),
    ];
    let path = write(workplace.path(), "rows.jsonl", &lines);
    let output = workplace.path().join("out.jsonl");
    let config = format!(
        "output = {}\nshuffle = false\n[[source]]\npath = {}\nname = \"rows\"\non_error = \"skip\"\nmax_skipped = 0.5\n\
         [rules]\nmax_exclamations = 3\n[near_duplicates]\nngram = 2\n[semantic_duplicates]\nthreshold = 0.9999\n\
         [[topic]]\nname = \"sums\"\nkeywords = [\"add\"]\n[[topic]]\nname = \"other\"\ndescription = \"anything\"\n\
         [[score]]\nname = \"size\"\nreward = {{ kind = \"length\", unit = \"characters\", max = 5 }}\n\
         [model]\npath = \"{TINY}\"\ndevice = \"cpu\"\ndtype = \"f32\"\n",
        Value::from(output.display().to_string()),
        Value::from(path),
    );
    let config = write(workplace.path(), "prepare.toml", &[config]);
    let text = told(&arriero(&["data", "prepare", &config]));
    for expected in [
        "5 read, 2 left, 2 written",
        "skipped: broken_json",
        "dropped: near_duplicate",
        "dropped: too_many_exclamations",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let written = fs::read_to_string(&output).expect("the rows");
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&rows[0]["topic"], &rows[1]["topic"]), (&json!("other"), &json!("sums")));
    assert_eq!((&rows[0]["scores"]["size"], &rows[1]["scores"]["size"]), (&json!(0.0), &json!(1.0)));
    let report = fs::read_to_string(workplace.path().join("out.jsonl.report.json")).expect("the report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["sources"][0]["read"], 5);

    let inspected = told(&arriero(&["data", "inspect", &output.display().to_string(), "--model", TINY]));
    assert!(inspected.contains("2 read, 2 usable"), "{inspected}");

    let wrong = arriero(&["data", "prepare", &config, "--set", "near_duplicates.treshold=1"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("the nearest valid one is \"threshold\""), "{}", said(&wrong));
}
