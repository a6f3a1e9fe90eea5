//! Code that tries to pass without doing what tests ask, and code that does it: `vectors/forgeries.txt` and
//! `vectors/honest_code.txt`, judged for real.
//!
//! On a machine that cannot confine programs these tests say so and are skipped.
#![cfg(target_os = "linux")]

use std::sync::{Arc, OnceLock};

use arriero_buffers::{Message, Prompt};
use arriero_reward::RewardError;
use arriero_reward::code::{InPlace, TestReport, TestRunner, Tests, Verdict};
use arriero_reward::scorer::code::CodeConfig;
use serde_json::{Map, Value, json};

fn config() -> CodeConfig {
    CodeConfig { memory: 512, ..CodeConfig::default() }
}

fn runner_with(config: &CodeConfig) -> Option<TestRunner> {
    match config.runner() {
        Ok(runner) => Some(runner),
        Err(RewardError::Sandbox(error @ arriero_sandbox::SandboxError::Unavailable { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One of a file's entries.
#[derive(Debug, Clone, Default)]
struct Entry {
    name: String,
    checks: Map<String, Value>,
    tests: Vec<String>,
    code: String,
}

impl Entry {
    fn report(&self, runner: &TestRunner) -> TestReport {
        let mut checks = self.checks.clone();
        checks.insert("test_list".to_string(), json!(self.tests));
        let prompt =
            Prompt { id: 1, messages: vec![Message::user("Write a function.")], checks: checks.into() };
        let tests = Tests::of(&Arc::new(prompt)).expect("tests");
        // What goes on with the prompt's code has no fence, as a base model writes it.
        let completion = match self.code.starts_with(' ') {
            true => self.code.clone(),
            false => format!("```python\n{}```\n", self.code),
        };
        runner.run(&completion, &tests).expect("the sandbox works")
    }
}

/// `=== name`, then parts that begin with `--- part`.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for block in text.split("\n=== ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a name");
        let mut entry = Entry { name: name.to_string(), ..Entry::default() };
        for part in rest.split("--- ").skip(1) {
            let (kind, content) = part.split_once('\n').expect("a part's name");
            let content = format!("{}\n", content.trim_end());
            let mut check = |name: &str, value: &str| {
                entry.checks.insert(name.to_string(), Value::from(value));
            };
            match kind {
                "test" => entry.tests.push(content),
                "code" => entry.code = content,
                "check" => check("test", &content),
                "setup" => check("test_setup_code", &content),
                "entry" => check("entry_point", content.trim()),
                "prefix" => check("prefix", content.trim_end()),
                other => panic!("{name} has a part {other}"),
            }
        }
        entries.push(entry);
    }
    entries
}

/// Runs all of them on two threads.
fn all_reports(text: &str) -> Vec<(Entry, TestReport)> {
    static RUNNER: OnceLock<Option<TestRunner>> = OnceLock::new();
    let Some(runner) = RUNNER.get_or_init(|| runner_with(&config())).as_ref() else { return Vec::new() };
    let entries = entries(text);
    let run_some = |some: &[Entry]| -> Vec<(Entry, TestReport)> {
        some.iter().map(|entry| (entry.clone(), entry.report(runner))).collect()
    };
    let (first, second) = entries.split_at(entries.len() / 2);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| run_some(second));
        let mut all = run_some(first);
        all.extend(others.join().expect("no panic"));
        all
    })
}

#[test]
fn no_forgery_passes_a_test() {
    for (entry, report) in all_reports(include_str!("vectors/forgeries.txt")) {
        assert!(report.code_found && !report.results.is_empty(), "{}", entry.name);
        assert_eq!(report.count(Verdict::Passed), 0, "{}: {:?}", entry.name, report.results);
    }
}

#[test]
fn honest_code_passes_all_of_them() {
    for (entry, report) in all_reports(include_str!("vectors/honest_code.txt")) {
        assert!(report.all_passed(), "{}: {:?}", entry.name, report.results);
    }
}

/// The rule can be HumanEval's own, under which a function that empties its argument passes.
#[test]
fn arguments_changed_in_place_are_an_option() {
    let text = "\n=== empties\n--- test\nxs = [3, 1]\nassert f(xs) == sorted(xs)\n\
                --- test\nxs = [3, 1]\nassert f(xs) == [] and xs == []\n--- code\ndef f(xs):\n    xs.clear()\n    return xs\n";
    let entry = entries(text).remove(0);
    for (in_place, passed) in [(InPlace::WithoutResult, 0), (InPlace::Always, 2)] {
        let Some(runner) = runner_with(&CodeConfig { in_place, ..config() }) else { return };
        let report = entry.report(&runner);
        assert_eq!(report.count(Verdict::Passed), passed, "{in_place:?}: {:?}", report.results);
    }
}
