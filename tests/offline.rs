//! Training from files on the tiny model: what a run leaves, that portions change nothing, and data that an algorithm
//! cannot use.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arriero_results::RunSummary;
use serde_json::{Value, json};
use support::{Workplace, fixture};

fn plan_set(set: &[&str]) -> Vec<String> {
    set.iter().map(|assignment| (*assignment).to_string()).collect()
}

/// Runs the offline experiment in a workplace of its own.
fn trained(set: &[&str]) -> (Workplace, RunSummary) {
    let workplace = Workplace::new();
    let plan = workplace.plan_of("offline.toml", &plan_set(set));
    let summary = workplace.run(plan, Vec::new()).unwrap_or_else(|error| panic!("{set:?}: {error}"));
    (workplace, summary)
}

fn weights(summary: &RunSummary) -> Vec<u8> {
    let folder = summary.arms[0].checkpoint.clone().expect("a checkpoint");
    fs::read(Path::new(&folder).join("model.safetensors")).expect("weights")
}

/// The metrics of the steps of a stage.
fn steps(workplace: &Workplace, stage: &str) -> Vec<Value> {
    let file = workplace.runs().join("offline").join(stage).join("5/metrics.jsonl");
    let lines = fs::read_to_string(file).expect("metrics");
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object a line"));
    rows.filter(|row| row["stage"] == stage).collect()
}

/// The program on the offline experiment.
fn arriero(workplace: &Workplace, set: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["run", "tests/fixtures/experiments/offline.toml", "--runs"]).arg(workplace.runs());
    for assignment in set {
        command.args(["--set", assignment]);
    }
    command.output().expect("it starts")
}

/// Runs it, and checks that it was refused before anything was written, and what was said.
fn assert_refused(set: &[&str], expected: &str) {
    let workplace = Workplace::new();
    let output = arriero(&workplace, set);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{set:?}: {said}");
    assert!(said.contains(expected), "{set:?}: expected …{expected}…, found: {said}");
    assert!(!workplace.runs().exists(), "something was written: {said}");
}

/// A file of these rows.
fn file(workplace: &Workplace, name: &str, rows: &[Value]) -> PathBuf {
    let path = workplace.path().join(name);
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, lines).expect("written");
    path
}

#[test]
fn every_kind_of_row_is_learned_without_prompts() {
    for (kind, count) in [("dpo", 3), ("sft", 3), ("kto", 3), ("reward_model", 3), ("orpo", 3)] {
        let workplace = Workplace::new();
        let output = arriero(&workplace, &[&format!("algorithm.kind={kind}")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{kind}: {said}");
        // Nothing is measured, and nothing is shown as if it were.
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(table.contains("nothing was measured, since there are no held-out prompts"), "{table}");
        assert!(!table.contains("before") && !table.contains("KL"), "{table}");
        assert_eq!(steps(&workplace, kind).len(), count, "ten rows, four a step: {kind}");
    }
}

#[test]
fn held_out_prompts_are_measured_beside_a_dataset() {
    let (_workplace, summary) =
        trained(&["prompts.kind=instructions", "prompts.held_out=3", "generator.max_new_tokens=4"]);
    assert_eq!(summary.held_out, 3);
    assert!(summary.arms[0].after.is_some_and(|after| after.reward.is_some()));
}

/// Two rows a portion or all at once: the same steps on the same rows, to the last bit.
#[test]
fn portions_change_nothing_where_rows_keep_their_order() {
    for kind in ["algorithm.kind=dpo", "algorithm.kind=kto"] {
        let set = [kind, "algorithm.epochs=3", "algorithm.schedule=cosine", "algorithm.batch_size=2"];
        let (whole, expected) = trained(&set);
        let (parts, found) = trained(&[&set[..], &["data.portion=4"]].concat());
        assert_eq!(expected.arms[0].steps, 15);
        let kind = kind.trim_start_matches("algorithm.kind=");
        let losses = |workplace: &Workplace| -> Vec<Value> {
            steps(workplace, kind).iter().map(|step| step["loss"].clone()).collect()
        };
        assert_eq!(losses(&whole), losses(&parts), "{kind}");
        assert!(weights(&expected) == weights(&found), "{kind}: the weights differ");
    }
}

/// Order is the seed's: equal seeds agree, and another order of the same rows is another run.
#[test]
fn rows_come_in_the_order_of_the_seed() {
    let first_loss = |set: &[&str]| {
        let (workplace, _) = trained(&[&["algorithm.kind=sft", "data.shuffle=true"], set].concat());
        steps(&workplace, "sft")[0]["loss"].clone()
    };
    assert_eq!(first_loss(&[]), first_loss(&[]));
    let in_order = first_loss(&["data.shuffle=false"]);
    let others = ["seed=5", "data.portion=4"].map(|set| first_loss(&[set]));
    assert!(others.iter().all(|loss| *loss != in_order), "{others:?} {in_order}");
}

#[test]
fn data_that_an_algorithm_cannot_use_are_refused_before_anything_is_written() {
    let workplace = Workplace::new();
    let answers: Vec<Value> = ["yes", "no"]
        .map(|answer| json!({"prompt": [{"role": "user", "content": "Well?"}], "completion": [{"role": "assistant", "content": answer}]}))
        .to_vec();
    let labelled = |label: bool| -> Vec<Value> {
        answers
            .iter()
            .cloned()
            .map(|mut row| {
                row["label"] = json!(label);
                row
            })
            .collect()
    };
    let unpaired = format!("data.path={}", file(&workplace, "answers.jsonl", &answers).display());
    let good = format!("data.path={}", file(&workplace, "good.jsonl", &labelled(true)).display());
    let bad = format!("data.path={}", file(&workplace, "bad.jsonl", &labelled(false)).display());
    for (set, expected) in [
        (
            &[&unpaired[..]][..],
            "answers.jsonl:1: this is a row of type prompt-completion, of which \"dpo\" has no use: it learns from pairs of a \
             chosen and a rejected response of a prompt; give it other data, or change kind",
        ),
        (
            &[&unpaired, "algorithm.kind=kto"],
            "answers.jsonl:1: this is a row of type prompt-completion, of which \"kto\" has no use",
        ),
        (&[&good, "algorithm.kind=kto"], "good.jsonl: kto: all 2 responses are desirable"),
        (&[&bad, "algorithm.kind=kto"], "bad.jsonl: kto: all 2 responses are undesirable"),
        (&[&unpaired, "algorithm.kind=reward_model"], "of which \"reward_model\" has no use: it learns from"),
        (
            &["algorithm.kind=ppo"],
            "algorithm.kind \"ppo\" learns from a group of samples of a prompt, with their rewards of its own sampling, \
             which no dataset holds",
        ),
        (&["algorithm.kind=reward_model", "algorithm.margin=data"], "margin"),
        (&["data.path=no-such.jsonl"], "there is no file or folder no-such.jsonl"),
        (&["data.max_length=0"], "data.max_length is 0"),
        (&["data.shufle=false"], "unknown key data.shufle; the nearest valid one is \"shuffle\""),
    ] {
        assert_refused(set, expected);
    }
}

/// A step whose loss or gradient is not finite changes nothing: the weights of the steps before it are written, and the error names the
/// rows.
#[test]
fn a_loss_that_is_not_finite_keeps_the_weights_and_names_the_rows() {
    // So large a step that the weights after it make nothing but NaN.
    let set = [
        "algorithm.kind=sft",
        "algorithm.learning_rate=1e30",
        "algorithm.schedule=constant",
        "algorithm.warmup_ratio=0",
    ];
    let workplace = Workplace::new();
    let output = arriero(&workplace, &set);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in [
        "the learner failed: the gradient norm is not finite because of prompt 5 (response 0), prompt 6 (response 0), prompt 7 (response \
         0), prompt 8 (response 0); no weight was changed",
        "a prompt's number is its row's in tests/fixtures/pairs.jsonl",
    ] {
        assert!(said.contains(expected), "expected …{expected}…, found: {said}");
    }
    let checkpoints = workplace.runs().join("offline/sft/5/checkpoints");
    let kept = fs::read(checkpoints.join("step-1/model.safetensors")).expect("the weights of the first step");
    let summary = fs::read_to_string(workplace.runs().join("offline/summary.json")).expect("a summary");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!((&summary["status"], &summary["arms"][0]["steps"]), (&json!("failed"), &json!(1)));
    assert!(summary["cause"].as_str().is_some_and(|cause| cause.contains("not finite")), "{summary}");

    let (_workplace, first) = trained(&[&set[..], &["data.limit=4"]].concat());
    assert!(weights(&first) == kept, "what was kept is not what the first step made");
}

/// What does not fit is left out with its size and the limit; where nothing is left the run fails.
#[test]
fn rows_that_do_not_fit_are_named_with_their_size_and_the_limit() {
    let row = |words: usize, answer: usize| {
        let message = |role: &str, words: usize| json!([{"role": role, "content": "ab ".repeat(words)}]);
        json!({"prompt": message("user", words), "completion": message("assistant", answer)})
    };
    let folder = Workplace::new();
    let rows = file(&folder, "rows.jsonl", &[row(200, 1), row(1, 200)]);
    let path = format!("data.path={}", rows.display());
    for (set, expected) in [
        (
            &["data.max_length=64", "data.too_long=drop"][..],
            &[
                "prompt_too_long: 1 (first: ",
                "rows.jsonl:1, its prompt has ",
                " tokens, max_length is 64)",
                "response_too_long: 1 (first: ",
                "rows.jsonl:2, prompt and response have ",
            ][..],
        ),
        (&["data.max_length=4096"], &["the model's context is 256"]),
        (
            &["data.path=tests/fixtures/pairs.jsonl", "algorithm.micro_batch_tokens=16"],
            &["over_micro_batch_tokens: 10 (first: ", " tokens, a micro-batch takes 16)"],
        ),
    ] {
        let workplace = Workplace::new();
        let common = [path.as_str(), "algorithm.kind=sft", "data.too_long=drop"];
        let output = arriero(&workplace, &[&common[..], set].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for part in expected {
            assert!(said.contains(part), "{set:?}: expected …{part}…, found: {said}");
        }
    }
}

#[test]
fn a_reward_model_without_a_head_is_refused() {
    let tiny = fixture("tiny");
    let path = format!("reward.path={}", tiny.display());
    assert_refused(&["reward={ kind = \"reward_model\" }", &path], "score.weight");
}

/// Epochs over the rows of a file, whose last batch is a smaller one; KTO's KL of prompts with others' responses; a reference
/// that follows the policy: step by step as in TRL (`vectors/make_tiny_trajectories.py`).
#[test]
fn every_step_follows_trl() {
    let vectors = include_str!("vectors/tiny_trajectories.json");
    let cases: Vec<Value> = serde_json::from_str(vectors).expect("the vectors are JSON");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let kind = case["kind"].as_str().expect("a kind");
        let mut set = vec![
            format!("algorithm.kind={kind}"),
            "algorithm.epochs=3".to_string(),
            "algorithm.schedule=constant".to_string(),
            "algorithm.warmup_ratio=0".to_string(),
        ];
        if kind == "kto" {
            set.push("data.path=tests/fixtures/labels.jsonl".to_string());
        }
        let options = case["options"].as_object().expect("options");
        set.extend(options.iter().map(|(name, value)| format!("algorithm.{name}={value}")));
        let (workplace, _) = trained(&set.iter().map(String::as_str).collect::<Vec<_>>());
        let found = steps(&workplace, kind);
        for (name, expected) in case["steps"].as_object().expect("metrics") {
            let expected = expected.as_array().expect("one a step");
            assert_eq!(found.len(), expected.len(), "{set:?}");
            for (step, (row, expected)) in found.iter().zip(expected).enumerate() {
                let Some(expected) = expected.as_f64() else { continue };
                let ours = row[name].as_f64().unwrap_or_else(|| panic!("{name} is missing: {row}"));
                // Where a number is near 0, it is a difference of numbers near 100, in f32.
                let error = (ours - expected).abs() / expected.abs().max(0.1);
                assert!(error < 1e-3, "{set:?}, step {}, {name}: {ours} against TRL's {expected}", step + 1);
            }
        }
    }
}
