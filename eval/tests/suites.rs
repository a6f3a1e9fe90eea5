//! Suites on a model of random weights: what they ask and how they count, not how well it answers.

use std::fs;
use std::path::{Path, PathBuf};

use arriero_buffers::{Branch, Tree};
use arriero_data::OnError;
use arriero_eval::{EvalError, EvaluatedModel, Evaluation, Kind, Outcome, Report, SuiteConfig};
use arriero_policy::device::Compute;
use arriero_policy::scoring::response_logps;
use serde_json::{Value, json};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn tiny() -> EvaluatedModel {
    EvaluatedModel::open(&repository("tests/fixtures/tiny"), Compute::CPU_F32, false).expect("the fixture")
}

/// A file of these rows, in a folder that goes with the first value.
fn file(rows: &[Value]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rows.jsonl");
    let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, lines.concat()).expect("it can be written");
    (folder, path.display().to_string())
}

fn evaluate(config: &SuiteConfig, evaluated: &EvaluatedModel) -> Result<(Report, Vec<Outcome>), EvalError> {
    let mut evaluation = Evaluation::new(config, evaluated, 3)?;
    while evaluation.step()? {}
    evaluation.finish()
}

/// The log-probability of `answer` behind `question`, computed on its own.
fn logp(evaluated: &EvaluatedModel, question: &str, answer: &str) -> f64 {
    let encode = |text: &str| evaluated.tokenizer.text_tokens(text).expect("it encodes");
    let (question, whole) = (encode(question), encode(&format!("{question}{answer}")));
    assert_eq!(whole[..question.len()], question, "nothing merges");
    let branch = Branch { tokens: whole[question.len()..].to_vec(), ..Branch::default() };
    let tree = Tree { prompt: question, branches: vec![branch], ..Tree::default() };
    let model = evaluated.weights.model().expect("it fits");
    response_logps(&model, &[&tree]).expect("it fits").iter().map(|&logp| f64::from(logp)).sum()
}

fn arc(question: &str, choices: &[&str], answer: &str) -> Value {
    let labels: Vec<&str> = ["A", "B", "C", "D"][..choices.len()].to_vec();
    json!({"question": question, "choices": {"text": choices, "label": labels}, "answerKey": answer})
}

#[test]
fn choices_that_share_a_tree_score_as_each_alone() {
    let evaluated = tiny();
    let rows = [
        arc("Which is wet?", &["rain", "a stone", "dust and sand"], "A"),
        arc("Which is hard?", &["rain", "a stone"], "B"),
        arc("What burns?", &["wood", "water", "the old stone bridge", "ice"], "A"),
    ];
    let (_folder, path) = file(&rows);
    for (shots, before) in [(0, String::new()), (1, "Question: Which is wet?\nAnswer: rain\n\n".to_string())]
    {
        // A small batch, so that there are several.
        let config = SuiteConfig {
            path: path.clone(),
            shots: Some(shots),
            batch_tokens: Some(40),
            ..SuiteConfig::new(Kind::Arc)
        };
        let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
        assert!(report.is_complete);
        assert_eq!(outcomes.len(), 3 - shots);
        let mut right = [0.0, 0.0];
        for (outcome, row) in outcomes.iter().zip(&rows[shots..]) {
            let question =
                format!("{before}Question: {}\nAnswer:", row["question"].as_str().expect("a text"));
            assert_eq!(outcome.prompt, question);
            let choices = row["choices"]["text"].as_array().expect("a list");
            let expected: Vec<f64> = choices
                .iter()
                .map(|choice| logp(&evaluated, &question, &format!(" {}", choice.as_str().expect("a text"))))
                .collect();
            let found: Vec<f64> =
                serde_json::from_value(outcome.samples[0].details["logps"].clone()).expect("numbers");
            assert!(
                found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3),
                "{found:?}, {expected:?}"
            );
            let best = |values: Vec<f64>| (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
            let length = |index: usize| choices[index].as_str().expect("a text").len() as f64;
            let by_length = expected.iter().enumerate().map(|(index, logp)| logp / length(index)).collect();
            let label = |index: Option<usize>| row["choices"]["label"][index.expect("some")].clone();
            right[0] += f64::from(u8::from(label(best(expected.clone())) == row["answerKey"]));
            right[1] += f64::from(u8::from(label(best(by_length)) == row["answerKey"]));
        }
        for (name, right) in ["acc", "acc_norm"].iter().zip(right) {
            let figure = report.figure(name).expect("it is there");
            assert!((figure.value - right / outcomes.len() as f64).abs() < 1e-9, "{name}");
            assert_eq!(figure.n, outcomes.len());
        }
    }
}

#[test]
fn perplexity_predicts_each_token_once_with_the_context_it_says() {
    let evaluated = tiny();
    let text = "The rain in the hills feeds the river, and the river feeds the mill below the town.";
    let (_folder, path) = file(&[json!({"text": text}), json!({"text": "Two words."})]);
    let config = SuiteConfig {
        path,
        limit: Some(1),
        window: Some(12),
        stride: Some(5),
        ..SuiteConfig::new(Kind::Perplexity)
    };
    let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
    let first = evaluated.tokenizer.bos_id().unwrap_or(evaluated.tokenizer.eos_ids()[0]);
    let tokens = [&[first][..], &evaluated.tokenizer.encode(text).expect("it encodes")].concat();
    assert!(tokens.len() > 20, "several windows");
    let model = evaluated.weights.model().expect("it fits");
    let mut sum = 0.0;
    for index in 1..tokens.len() {
        // The window that predicts it ends at 12, 17, 22, …
        let end = (0..).map(|count| 12 + 5 * count).find(|end| index < *end).expect("some").min(tokens.len());
        let start = end.saturating_sub(12);
        let branch = Branch { tokens: vec![tokens[index]], ..Branch::default() };
        let tree = Tree { prompt: tokens[start..index].to_vec(), branches: vec![branch], ..Tree::default() };
        sum += f64::from(response_logps(&model, &[&tree]).expect("it fits")[0]);
    }
    assert!((outcomes[0].scores["logp"] - sum).abs() < 1e-3, "{}, {sum}", outcomes[0].scores["logp"]);
    let value = |name: &str| report.figure(name).expect("it is there").value;
    assert!((value("token_perplexity") - (-sum / (tokens.len() - 1) as f64).exp()).abs() < 1e-2);
    assert!((value("byte_perplexity") - (-sum / text.len() as f64).exp()).abs() < 1e-4);
    assert!((value("bits_per_byte") + sum / text.len() as f64 / 2f64.ln()).abs() < 1e-4);
    assert!((value("word_perplexity").ln() + sum / 17.0).abs() < 1e-3);
    assert_eq!(report.figure("token_perplexity").and_then(|figure| figure.standard_error), None);
}

fn ifeval_rows() -> Vec<Value> {
    (0..5)
        .map(|index| {
            json!({
                "key": index,
                "prompt": format!("Write {index} words without a comma."),
                "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
                "kwargs": [{}, {"end_phrase": "never said by chance"}],
            })
        })
        .collect()
}

#[test]
fn answers_are_judged_and_a_stopped_suite_says_so() {
    let evaluated = tiny();
    let (_folder, path) = file(&ifeval_rows());
    let config =
        SuiteConfig { path, max_new_tokens: Some(12), batch: Some(2), ..SuiteConfig::new(Kind::Ifeval) };
    let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
    assert_eq!((report.judged, report.skipped, outcomes.len()), (5, 0, 5));
    let value = |name: &str| report.figure(name).expect("it is there").value;
    assert_eq!(value("prompt_strict"), 0.0);
    let no_commas =
        outcomes.iter().filter(|outcome| !outcome.samples[0].completion.text.contains(',')).count();
    assert!((value("instruction_strict") - no_commas as f64 / 10.0).abs() < 1e-9);
    assert!(report.tokens > 0 && outcomes[3].place.ends_with("rows.jsonl:4"));
    // The same again, whatever the batch; stopped after two steps, it is a part.
    let again = evaluate(&SuiteConfig { batch: Some(5), ..config.clone() }, &evaluated).expect("it works").1;
    let texts = |outcomes: &[Outcome]| {
        outcomes.iter().map(|outcome| outcome.samples[0].completion.text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&outcomes), texts(&again));
    let mut evaluation = Evaluation::new(&config, &evaluated, 3).expect("it works");
    for _ in 0..2 {
        assert!(evaluation.step().expect("it works"));
    }
    let (report, outcomes) = evaluation.finish().expect("it works");
    assert!(!report.is_complete && outcomes.len() < 5 && report.items == 5);
}

#[test]
fn several_samples_of_a_question_are_one_item() {
    let evaluated = tiny();
    let rows = [
        json!({"question": "2+2?", "answer": "2+2=4\n#### 4"}),
        json!({"question": "1?", "answer": "#### 1"}),
    ];
    let (_folder, path) = file(&rows);
    for chat in [true, false] {
        let config = SuiteConfig {
            path: path.clone(),
            chat: Some(chat),
            shots: Some(1),
            samples: Some(3),
            temperature: Some(1.0),
            max_new_tokens: Some(4),
            ..SuiteConfig::new(Kind::Gsm8k)
        };
        let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
        assert_eq!((outcomes.len(), outcomes[0].samples.len(), report.examples), (1, 3, 1));
        let expected = match chat {
            true => "2+2?\n2+2=4\n#### 4\n1?",
            false => "Question: 2+2?\nAnswer: 2+2=4\n#### 4\n\nQuestion: 1?\nAnswer:",
        };
        assert_eq!(outcomes[0].prompt, expected);
    }
}

#[test]
fn a_reward_model_orders_pairs() {
    let path = repository("policy/tests/vectors/reward_model");
    let evaluated = EvaluatedModel::open(&path, Compute::CPU_F32, true).expect("the vectors");
    let text = fs::read_to_string(repository("policy/tests/vectors/values.json")).expect("the vectors");
    let vectors: Value = serde_json::from_str(&text).expect("JSON");
    // The first two conversations that transformers scored, as a pair of whole conversations would not share a
    // prompt: each answer is paired with another to the same prompt.
    let turns = vectors["conversations"][0].as_array().expect("turns");
    let message = |turn: &Value| json!({"role": turn[0], "content": turn[1]});
    let messages: Vec<Value> = turns.iter().map(message).collect();
    let (answer, prompt) = messages.split_last().expect("turns");
    let other = json!({"role": "assistant", "content": "Nobody knows."});
    let rows = [
        json!({"prompt": prompt, "chosen": [answer], "rejected": [other]}),
        json!({"prompt": prompt, "chosen": [other], "rejected": [answer]}),
    ];
    let (_folder, path) = file(&rows);
    let config = SuiteConfig { path, ..SuiteConfig::new(Kind::Preference) };
    let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
    let score = |item: usize, side: usize| outcomes[item].samples[side].scores["score"];
    let expected = vectors["scores"][0].as_f64().expect("a number");
    assert!((score(0, 0) - expected).abs() < 1e-4 && (score(1, 1) - expected).abs() < 1e-4);
    assert!((score(0, 1) - score(1, 0)).abs() < 1e-5);
    assert_eq!(report.figure("accuracy").map(|figure| figure.value), Some(0.5));
    assert!(report.figure("margin").expect("it is there").value.abs() < 1e-6);
    // −log σ(m), of m and −m.
    let margin = score(0, 0) - score(0, 1);
    let loss = ((-margin).exp().ln_1p() + margin.exp().ln_1p()) / 2.0;
    assert!((report.figure("loss").expect("it is there").value - loss).abs() < 1e-6);
}

#[test]
fn answers_are_compared_with_a_files() {
    let evaluated = tiny();
    let prompts = ["Say a.", "Say b."].map(|prompt| json!({"prompt": prompt}));
    let (_folder, path) = file(&prompts);
    let theirs = ["Say b.", "Say a."].map(|prompt| json!({"prompt": prompt, "completion": "qqqq"}));
    let (_other, against) = file(&theirs);
    let judge =
        |text: &str| serde_json::from_value(json!({"kind": "contains", "text": text})).expect("a reward");
    for (text, wins) in [("qqqq", 0.0), ("never said by chance", 0.5)] {
        let config = SuiteConfig {
            path: path.clone(),
            against: Some(against.clone()),
            judge: Some(judge(text)),
            max_new_tokens: Some(3),
            ..SuiteConfig::new(Kind::Winrate)
        };
        let (report, outcomes) = evaluate(&config, &evaluated).expect("it works");
        assert_eq!(report.figure("win_rate").map(|figure| figure.value), Some(wins));
        assert_eq!(outcomes[0].samples[0].details["theirs"], "qqqq");
    }
    // Against itself every pair is a tie.
    let config = SuiteConfig {
        path,
        against: Some(repository("tests/fixtures/tiny").display().to_string()),
        judge: Some(judge("e")),
        max_new_tokens: Some(3),
        ..SuiteConfig::new(Kind::Winrate)
    };
    let (report, _) = evaluate(&config, &evaluated).expect("it works");
    assert_eq!(report.figure("tie").map(|figure| figure.value), Some(1.0));
}

#[test]
fn what_cannot_be_asked_is_named_and_counted() {
    let evaluated = tiny();
    let mut rows = ifeval_rows();
    rows[2] = json!({"prompt": "no instructions", "instruction_id_list": [], "kwargs": []});
    rows.push(
        json!({"prompt": "x ".repeat(3000), "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
    );
    let (folder, path) = file(&rows);
    let config =
        SuiteConfig { path: path.clone(), max_new_tokens: Some(3), ..SuiteConfig::new(Kind::Ifeval) };
    let error = evaluate(&config, &evaluated).expect_err("line 3 is wrong").to_string();
    assert!(
        error.starts_with(&format!("ifeval: {path}:3: ")) && error.contains("instruction_id_list"),
        "{error}"
    );
    let skip = SuiteConfig { on_error: OnError::Skip, max_skipped: 0.5, ..config.clone() };
    let (report, outcomes) = evaluate(&skip, &evaluated).expect("two of six may be left out");
    assert_eq!((report.skipped, report.judged, outcomes.len()), (2, 4, 4));
    assert!(report.skipped_rows[1].contains(":6: "), "{:?}", report.skipped_rows);
    let error =
        evaluate(&SuiteConfig { max_skipped: 0.1, ..skip }, &evaluated).expect_err("too many").to_string();
    assert!(error.contains("2 of 6 rows were left out"), "{error}");
    fs::write(folder.path().join("rows.jsonl"), "{\"prompt\": \n").expect("it can be written");
    let error = evaluate(&config, &evaluated).expect_err("broken").to_string();
    assert!(error.contains("rows.jsonl:1: broken JSON"), "{error}");
    let missing = SuiteConfig { path: "no/such/file.jsonl".into(), ..config };
    let error = evaluate(&missing, &evaluated).expect_err("nothing there").to_string();
    assert!(error.contains("no/such/file.jsonl"), "{error}");
}
