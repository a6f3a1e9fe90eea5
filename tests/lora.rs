//! Runs that train adapters.

mod support;

use std::fs;
use std::path::Path;

use arriero_policy::checkpoint::{Checkpoint, Weights, read_adapter};
use arriero_results::RunSummary;
use serde_json::Value;
use support::{Workplace, fixture};

fn checkpoint(summary: &RunSummary) -> &Path {
    Path::new(summary.arms[0].checkpoint.as_deref().expect("a checkpoint"))
}

fn state(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("state.json")).expect("the state")).expect("JSON")
}

fn set(assignments: &[&str]) -> Vec<String> {
    assignments.iter().map(|text| (*text).to_string()).collect()
}

/// Over two rounds: the adapter of the checkpoint, merged into the run's model, is the checkpoint's model.
#[test]
fn the_adapter_that_is_written_leads_from_the_model_to_the_checkpoint() {
    let workplace = Workplace::new();
    let assignments = ["rounds=2", "algorithm.lora.r=4", "algorithm.lora.target_modules=[\"all-linear\"]"];
    let summary = workplace.run(workplace.plan(&set(&assignments)), Vec::new()).expect("the run");
    assert!(summary.arms[0].steps > 1);
    let folder = checkpoint(&summary);
    let before = Checkpoint::open(&fixture("tiny")).expect("the model");
    let after = Checkpoint::open(folder).expect("the checkpoint");
    let adapter = read_adapter(&folder.join("adapter"), &before.config).expect("the adapter");
    let merged: Weights = adapter.merge(&before.config, &before.weights).expect("it fits");
    for (name, tensor) in &after.weights {
        assert_eq!(*tensor, merged[name], "{name}");
        assert_eq!(*tensor != before.weights[name], name.ends_with("_proj.weight"), "{name}");
    }
    assert_eq!(state(folder)["adapter"], "adapter");
    // Moments of A and B of seven matrices in two layers; those of the weights would be ten times as large.
    let optimizer = fs::metadata(folder.join("optimizer.safetensors")).expect("the moments").len();
    let model = fs::metadata(folder.join("model.safetensors")).expect("the weights").len();
    assert!(optimizer < model, "{optimizer} bytes of moments, {model} of weights");
}

#[test]
fn an_adapter_on_other_weights_than_the_models_is_not_written_and_that_is_said() {
    let workplace = Workplace::new();
    let stages =
        "arm=[{stage=[{kind=\"sft\", learning_rate=1e-3}, {kind=\"sft\", learning_rate=1e-3, lora={}}]}]";
    let file = workplace.path().join("two-stages.toml");
    let tiny = fs::read_to_string(fixture("experiments/tiny.toml")).expect("the experiment");
    fs::write(&file, tiny.split("[algorithm]").next().expect("what stands before it")).expect("written");
    let plan = arriero_experiment::load(&file, &set(&[stages])).expect("valid");
    let summary = workplace.run(plan, Vec::new()).expect("the run");
    let folder = checkpoint(&summary);
    assert!(!folder.join("adapter").exists());
    let said = state(folder)["adapter"].as_str().expect("a sentence").to_string();
    assert!(said.starts_with("not written: it fits the weights that training it began with"), "{said}");
}

#[test]
fn a_target_that_the_model_lacks_is_wrong_input() {
    let workplace = Workplace::new();
    let plan = workplace.plan(&set(&["algorithm.lora.target_modules=[\"query\"]"]));
    let error = workplace.run(plan, Vec::new()).expect_err("no such layer");
    assert!(error.is_input() && !workplace.runs().exists());
    let expected =
        "lora.target_modules names \"query\", which is no linear layer of this model; known: q_proj";
    assert!(error.to_string().starts_with(expected), "{error}");
}
