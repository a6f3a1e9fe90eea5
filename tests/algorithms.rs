//! Every algorithm's description, page and experiment; and how one is added.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::{arriero, refusal};

/// The files that the diff of a page changes, with how many lines each gains. The diff still fits: new files are not there
/// yet, lines are added where it says, and nothing is taken away.
fn additions(page: &str) -> Vec<(String, usize)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join(page)).expect("the page");
    let diff = page.split("```diff\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a diff");
    let mut changed = Vec::new();
    for part in diff.split("diff --git ").skip(1) {
        let target = part.lines().find_map(|line| line.strip_prefix("+++ b/")).expect("a file");
        let hunks: Vec<&str> = part.split("\n@@ ").skip(1).collect();
        let lines = hunks.iter().flat_map(|hunk| hunk.lines().skip(1));
        let added = lines.clone().filter(|line| line.starts_with('+')).count();
        assert!(!lines.clone().any(|line| line.starts_with('-')), "{target}: something is taken away");
        if part.contains("new file mode") {
            assert!(!root.join(target).exists(), "{target} is there already");
        } else {
            let text =
                fs::read_to_string(root.join(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
            let kept: Vec<&str> = lines.filter_map(|line| line.strip_prefix(' ')).collect();
            assert!(text.contains(&kept.join("\n")), "{target} has changed around the line to add: {kept:?}");
        }
        changed.push((target.to_string(), added));
    }
    changed
}

#[test]
fn the_documented_algorithm_is_one_file_one_line_and_one_experiment() {
    let changed = additions("docs/adding-an-algorithm.md");
    let files: Vec<&str> = changed.iter().map(|(target, _)| &target[..]).collect();
    assert_eq!(files, ["experiments/rrhf.toml", "policy/src/objective.rs", "policy/src/objective/rrhf.rs"]);
    assert_eq!(changed[1].1, 1, "one line registers it");
}

#[test]
fn the_documented_selection_rule_is_one_file_and_one_line() {
    let changed = additions("docs/adding-a-selection-rule.md");
    let files: Vec<&str> = changed.iter().map(|(target, _)| &target[..]).collect();
    assert_eq!(files, ["buffers/src/selection.rs", "buffers/src/selection/max_variance.rs"]);
    assert_eq!(changed[0].1, 1, "one line registers it");
}

/// What a heading of a page is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches(['#', ' ']).to_lowercase();
    kept.chars()
        .filter(|letter| letter.is_alphanumeric() || "_- ".contains(*letter))
        .collect::<String>()
        .replace(' ', "-")
}

/// Every algorithm of the list has a page of options, an experiment that is valid, and its place in the documentation.
#[test]
fn every_algorithm_is_described_documented_and_has_an_experiment() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = said(arriero().arg("algorithms").output().expect("it starts"));
    let index = fs::read_to_string(root.join("docs/algorithms.md")).expect("the page");
    let kinds: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(kinds.len() > 15, "{list}");
    for line in list.lines() {
        let (kind, about) = line.split_once(' ').expect("a kind and a line about it");
        assert!(about.trim().len() > 20, "{line}");
        let page = said(arriero().args(["algorithms", kind]).output().expect("it starts"));
        let experiment = format!("experiments/{kind}.toml");
        for part in [about.trim(), "Learns from: ", "Needs besides: ", "= ", &experiment] {
            assert!(page.contains(part), "{part} is missing in {page}");
        }
        let is_documented = page.contains("no options of its own") || page.contains("efault");
        assert!(is_documented && !page.contains("See `"), "an option does not tell its default: {page}");

        let plan = arriero_experiment::load(&root.join(&experiment), &[]);
        let plan = plan.unwrap_or_else(|error| panic!("{error}"));
        let mut stages = plan.arms.iter().flat_map(|arm| arm.trainings());
        assert!(
            stages.any(|(_, stage)| stage.algorithm.kind() == kind),
            "{experiment} is of another algorithm"
        );

        let row = index.lines().find(|row| row.starts_with(&format!("| `{kind}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/algorithms.md does not list {kind}"));
        let link = row.split("](").nth(1).and_then(|rest| rest.split(')').next()).expect("a link");
        let (file, part) = link.split_once('#').unwrap_or((link, ""));
        let text = fs::read_to_string(root.join("docs").join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
        assert!(part.is_empty() || headings.any(|heading| heading == part), "{file} has no heading {part}");
    }
    let unknown = arriero().args(["algorithms", "dppo"]).output().expect("it starts");
    assert!(refusal(&unknown).starts_with("there is no algorithm \"dppo\"; the nearest is "));
}
