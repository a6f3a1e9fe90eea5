use std::path::{Path, PathBuf};

use super::*;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments").join(name)
}

fn set(assignments: &[&str]) -> Vec<String> {
    assignments.iter().map(|text| (*text).to_string()).collect()
}

#[test]
fn resolved_experiments_read_back_as_the_same_plan() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["quickstart.toml", "sft.toml", "dpo.toml"] {
        let plan = load(&shipped(name), &[]).unwrap_or_else(|error| panic!("{error}"));
        let resolved = folder.path().join("resolved.toml");
        std::fs::write(&resolved, &plan.resolved).expect("written");
        assert_eq!(load(&resolved, &[]).unwrap_or_else(|error| panic!("{error}")), plan);
        // Presets are written out.
        if name == "quickstart.toml" {
            assert!(plan.resolved.contains("nll_coefficient = 0.2"), "{}", plan.resolved);
        }
    }
}

#[test]
fn one_word_swaps_the_algorithm() {
    for (file, other) in [("sft.toml", "dpo"), ("dpo.toml", "sft")] {
        let own = load(&shipped(file), &[]).expect("valid");
        let swapped = load(&shipped(file), &set(&[&format!("algorithm.kind={other}")])).expect("valid");
        assert_eq!(swapped.arms[0].stages[0].algorithm.kind(), other);
        assert_eq!(swapped.arms[0].stages[0].training, own.arms[0].stages[0].training);
        assert_eq!(swapped.prompts, own.prompts);
    }
}

#[test]
fn arms_are_set_by_name_or_number() {
    let by_name = load(&shipped("quickstart.toml"), &set(&["arm.rs-dpo.stage.0.beta=0.3"])).expect("valid");
    let by_number = load(&shipped("quickstart.toml"), &set(&["arm.1.stage.0.beta=0.3"])).expect("valid");
    assert_eq!(by_name, by_number);
    let Algorithm::Dpo(config) = &by_name.arms[1].stages[0].algorithm else { panic!("not DPO") };
    assert_eq!(config.beta, Some(0.3));
    let error = load(&shipped("quickstart.toml"), &set(&["arm.rs-ppo.rounds=2"])).expect_err("no such arm");
    assert_eq!(
        error.to_string(),
        "--set arm.rs-ppo.rounds=2: \"rs-ppo\" is none of the 2 arm tables; use its name, or its number from 0"
    );
}

#[test]
fn stages_of_one_kind_are_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("stages.toml");
    let stages = "[[arm]]\n[[arm.stage]]\nkind = \"sft\"\n[[arm.stage]]\nkind = \"dpo\"\n[[arm.stage]]\nkind = \"sft\"\n";
    std::fs::write(&file, stages).expect("written");
    let plan = load(&file, &[]).expect("valid");
    let names: Vec<&str> = plan.arms[0].stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["sft", "dpo", "sft-2"]);
    assert_eq!((plan.name.as_str(), plan.arms[0].name.as_str()), ("stages", "sft-dpo-sft-2"));
}

#[test]
fn two_arms_of_one_name_are_refused() {
    let error =
        load(&shipped("quickstart.toml"), &set(&["arm.1.name=rs-sft"])).expect_err("the name is taken");
    assert_eq!(
        error.to_string(),
        "--set arm.1.name=rs-sft: arm.1.name \"rs-sft\" is the name of two arms; choose another"
    );
}

#[test]
fn options_of_adapters_are_read_written_out_and_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plan = load(&shipped("dpo.toml"), &set(&["algorithm.lora.r=5"])).expect("valid");
    let lora = plan.arms[0].stages[0].training.lora.clone().expect("adapters");
    assert_eq!((lora.r, lora.alpha, lora.target_modules.len()), (5, 8.0, 2));
    let resolved = folder.path().join("resolved.toml");
    std::fs::write(&resolved, &plan.resolved).expect("written");
    assert_eq!(load(&resolved, &[]).unwrap_or_else(|error| panic!("{error}")), plan);
    assert_eq!(load(&shipped("dpo.toml"), &[]).expect("valid").arms[0].stages[0].training.lora, None);
    for (assignment, expected) in [
        ("algorithm.lora.r=0", "algorithm.lora.r is 0; it must be at least 1 and at most 65536"),
        ("algorithm.lora.rank=4", "algorithm.lora is wrong: unknown field `rank`, expected one of `r`"),
        ("algorithm.lora.alpha=0", "algorithm.lora.alpha is 0; it must be above 0"),
    ] {
        let error = load(&shipped("dpo.toml"), &set(&[assignment])).expect_err("out of range").to_string();
        assert!(error.contains(expected), "{error}");
    }
}
