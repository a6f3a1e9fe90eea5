//! Offline training follows TRL's trainers step by step: runs of the program's experiments on the model that set-up brings
//! (its token ids those of transformers' conversion, as the experiments say), against what `vectors/make_trajectories.py`
//! recorded.

mod support;

use std::fs;
use std::path::Path;

use arriero_experiment as experiment;
use serde_json::Value;
use support::Workplace;

/// How far a number may be from TRL's, as a part of it.
const TOLERANCE: f64 = 5e-3;

/// What rounding in f32 leaves of a reward of 0. Every reward is 0 before the first step.
const ROUNDING: f64 = 2e-5;

/// What is compared: metrics under TRL's names.
const DPO: &[&str] = &[
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "entropy",
    "mean_token_accuracy",
    "grad_norm",
];
const SFT: &[&str] = &["loss", "entropy", "mean_token_accuracy", "grad_norm"];

/// Runs the recorded steps, and returns the largest difference from TRL's numbers as a part of them, with where it is.
fn largest_difference(kind: &str, names: &[&str]) -> (f64, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let vectors = fs::read_to_string(root.join("tests/vectors/trajectories.json")).expect("the vectors");
    let vectors: Value = serde_json::from_str(&vectors).expect("the vectors are JSON");
    let steps = vectors[kind]["loss"].as_array().map_or(0, Vec::len);
    let workplace = Workplace::new();
    let set = [
        "name=trajectory".to_string(),
        "model.dtype=f32".to_string(),
        "model.device=cpu".to_string(),
        format!("data.path={}", root.join("tests/vectors/pairs.jsonl").display()),
        "data.shuffle=false".to_string(),
        "algorithm.learning_rate=1e-6".to_string(),
        "algorithm.schedule=constant".to_string(),
        "algorithm.warmup_ratio=0".to_string(),
        "algorithm.batch_size=8".to_string(),
        format!("algorithm.epochs={steps}"),
        "checkpoint.optimizer=false".to_string(),
    ];
    let file = root.join(format!("experiments/offline-{kind}.toml"));
    let plan = experiment::load(&file, &set).expect("the experiment is valid");
    workplace.run(plan, Vec::new()).expect("the run");
    let folder = workplace.runs().join("trajectory").join(kind).join("0");
    let lines = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object a line"));
    let rows: Vec<Value> = rows.filter(|row| row["stage"] == kind).collect();
    assert_eq!(rows.len(), steps, "optimiser steps");

    let mut worst = (0.0, String::new());
    for (step, row) in rows.iter().enumerate() {
        for &name in names {
            let found = row[name].as_f64().unwrap_or_else(|| panic!("{name} is missing: {row}"));
            let expected = vectors[kind][name][step].as_f64().expect("a number of TRL's");
            let difference = (found - expected).abs();
            let part = if difference <= ROUNDING { 0.0 } else { difference / expected.abs() };
            let place = format!("{kind}, step {}, {name}: {found} against TRL's {expected}", step + 1);
            println!("{part:.6} {place}");
            if part > worst.0 {
                worst = (part, place);
            }
        }
    }
    worst
}

/// Two minutes on two cores.
#[test]
fn every_step_of_dpo_and_sft_follows_trl() {
    for (kind, names) in [("dpo", DPO), ("sft", SFT)] {
        let (difference, place) = largest_difference(kind, names);
        println!("{kind}: the largest difference is {:.4}%: {place}", 100.0 * difference);
        assert!(difference <= TOLERANCE, "{:.3}% off: {place}", 100.0 * difference);
    }
}
