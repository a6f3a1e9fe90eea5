use super::*;
use crate::config::{DataConfig, OnError};

/// Embeds texts by whether they are about numbers, and scores by length.
struct Plain;

impl Annotator for Plain {
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let vector = |text: &String| match text.chars().any(|character| character.is_ascii_digit()) {
            true => vec![1.0, 0.0],
            false => vec![0.0, 1.0],
        };
        Ok(texts.iter().map(vector).collect())
    }

    fn score(&mut self, _rule: usize, pairs: &[PromptCompletion]) -> Result<Vec<f64>, String> {
        Ok(pairs.iter().map(|pair| pair.completion.len() as f64).collect())
    }
}

fn source(folder: &tempfile::TempDir, name: &str, rows: &[(&str, &str)]) -> Source {
    let line =
        |(prompt, completion): &(&str, &str)| json!({"prompt": prompt, "completion": completion}).to_string();
    let path = folder.path().join(name);
    std::fs::write(&path, rows.iter().map(line).collect::<Vec<_>>().join("\n")).expect("written");
    let data = DataConfig { path: path.display().to_string(), shuffle: false, ..DataConfig::default() };
    Source { name: name.to_string(), data, weight: None }
}

/// The lines that are written, and the report.
fn prepared(preparation: &Preparation) -> (Vec<Value>, Report) {
    let mut output = Vec::new();
    let report = prepare(preparation, &mut Plain, &mut output).expect("prepared");
    let text = String::from_utf8(output).expect("UTF-8");
    (text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(), report)
}

fn prompts(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["prompt"].as_str().expect("a plain row stays one")).collect()
}

#[test]
fn every_row_is_written_or_counted_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut noisy = source(
        &folder,
        "noisy.jsonl",
        &[
            ("What is the capital of France, please?", "Paris is the capital."),
            ("what is the CAPITAL of France please", "Paris is the capital!"),
            ("Wow?", "Wow!!!"),
            ("May I?", "I'm sorry, no."),
            ("Add 1 and 2.", "The sum is 3."),
            ("Add 2 and 2.", "It is the number 4, which is also 2 times 2."),
            ("Nothing?", " "),
        ],
    );
    noisy.data.on_error = OnError::Skip;
    noisy.data.max_skipped = 0.5;
    let preparation = Preparation {
        sources: vec![noisy],
        rules: Some(RulesConfig {
            max_exclamations: Some(2),
            max_apologies: Some(0.0),
            ..RulesConfig::default()
        }),
        near_duplicates: Some(NearDuplicatesConfig { ngram: 2, ..NearDuplicatesConfig::default() }),
        semantic_duplicates: Some(SemanticDuplicatesConfig { within_topic: true, ..Default::default() }),
        topics: vec![
            Topic { name: "geography".into(), keywords: vec!["capital".into()], ..Topic::default() },
            Topic { name: "sums".into(), description: "1 and 2".into(), ..Topic::default() },
            Topic { name: "talk".into(), description: "words".into(), ..Topic::default() },
        ],
        scores: vec![ScoreRule { name: "quality".into(), ..ScoreRule::default() }],
        ..Preparation::default()
    };
    let (rows, report) = prepared(&preparation);
    // Of the two sums, which embed alike, the longer answer scores higher.
    assert_eq!(prompts(&rows), ["What is the capital of France, please?", "Add 2 and 2."]);
    assert_eq!(rows[1]["topic"], "sums");
    assert_eq!(rows[1]["scores"]["quality"], 44.0);
    let source = &report.sources[0];
    assert_eq!((source.read, source.left, source.written), (7, 2, 2));
    assert_eq!(source.skipped, BTreeMap::from([("empty".to_string(), 1)]));
    let dropped = ["near_duplicate", "semantic_duplicate", "too_many_apologies", "too_many_exclamations"];
    assert_eq!(source.dropped, dropped.map(|reason| (reason.to_string(), 1)).into());
    assert_eq!(report.topics, BTreeMap::from([("geography".to_string(), 1), ("sums".to_string(), 1)]));
    assert_eq!(report.scores["quality"].scored, 4);
    // The same again is the same.
    assert_eq!(prepared(&preparation), (rows, report));
}

#[test]
fn what_is_written_reads_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pairs.jsonl");
    let ask = json!([{"role": "user", "content": "Sky?"}]);
    let pair = json!({"prompt": ask, "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Red."}], "margin": 2.5});
    std::fs::write(&path, pair.to_string()).expect("written");
    let data = DataConfig { path: path.display().to_string(), ..DataConfig::default() };
    let before: Vec<Entry> = data.open(0).expect("opened").map(|entry| entry.expect("a row")).collect();
    let sources = vec![Source { name: "pairs".into(), data: data.clone(), weight: None }];
    let topics = vec![Topic { name: "sky".into(), keywords: vec!["sky".into()], ..Topic::default() }];
    let (rows, _) = prepared(&Preparation { sources, topics, ..Preparation::default() });
    assert_eq!(rows[0]["topic"], "sky");
    std::fs::write(&path, rows[0].to_string()).expect("written");
    let after: Vec<Entry> = data.open(0).expect("opened").map(|entry| entry.expect("a row")).collect();
    assert_eq!(before, after);
}

#[test]
fn weights_repeat_rows_of_the_smaller_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let many: Vec<(String, String)> =
        (0..30).map(|number| (format!("a{number}"), "yes".to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(prompt, answer)| (&**prompt, &**answer)).collect();
    let mut preparation = Preparation {
        sources: vec![source(&folder, "many", &many), source(&folder, "few", &[("b0", "no"), ("b1", "no")])],
        rows: Some(20),
        shuffle: true,
        seed: 3,
        ..Preparation::default()
    };
    for (source, weight) in preparation.sources.iter_mut().zip([3.0, 1.0]) {
        source.weight = Some(weight);
    }
    let (rows, report) = prepared(&preparation);
    let few = prompts(&rows).into_iter().filter(|prompt| prompt.starts_with('b')).count();
    assert_eq!((rows.len(), few), (20, 5));
    assert_eq!((report.sources[0].left_over, report.sources[1].left_over), (15, 0));
    assert_ne!(rows, prepared(&Preparation { seed: 4, ..preparation.clone() }).0);
}

#[test]
fn scores_keep_the_top() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = [("a", "1"), ("b", "22"), ("c", "333"), ("d", "4444")];
    let score = |rule: ScoreRule| {
        let sources = vec![source(&folder, "rows", &rows)];
        let scores = vec![ScoreRule { name: "quality".into(), ..rule }];
        let (rows, _) = prepared(&Preparation { sources, scores, ..Preparation::default() });
        prompts(&rows).concat()
    };
    assert_eq!(score(ScoreRule { top: Some(0.25), ..ScoreRule::default() }), "d");
    assert_eq!(score(ScoreRule { top: Some(0.3), ..ScoreRule::default() }), "cd");
    assert_eq!(score(ScoreRule { min: Some(2.0), max: Some(3.0), ..ScoreRule::default() }), "bc");
}

#[test]
fn mixed_types_and_empty_results_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = source(&folder, "good", &[("a", "b!")]);
    let mut text = good.clone();
    text.data.path = folder.path().join("text").display().to_string();
    std::fs::write(&text.data.path, "{\"text\": \"a\"}").expect("written");
    let refused = |preparation: Preparation| {
        prepare(&preparation, &mut Plain, &mut Vec::new()).expect_err("refused").to_string()
    };
    let error = refused(Preparation { sources: vec![good.clone(), text], ..Preparation::default() });
    assert!(
        error.contains("text:1 is a text row, but") && error.contains("good:1 is a prompt-completion"),
        "{error}"
    );
    let rules = Some(RulesConfig { max_exclamations: Some(0), ..RulesConfig::default() });
    let error = refused(Preparation { sources: vec![good.clone()], rules, ..Preparation::default() });
    assert!(error.starts_with("nothing is left"), "{error}");
    let mut weighted = good.clone();
    weighted.weight = Some(1.0);
    let error = refused(Preparation { sources: vec![good, weighted], ..Preparation::default() });
    assert!(error.contains("weight must be given for all sources or for none"), "{error}");
}
