use std::path::{Path, PathBuf};

use super::*;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments").join(name)
}

fn set(assignments: &[&str]) -> Vec<String> {
    assignments.iter().map(|text| (*text).to_string()).collect()
}

/// Every experiment file of the repository.
fn shipped_files() -> Vec<String> {
    let files = std::fs::read_dir(shipped("")).expect("the folder");
    files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_algorithm_has_an_experiment_file_of_its_name() {
    let files = shipped_files();
    for kind in Algorithm::KINDS {
        assert!(files.contains(&format!("{kind}.toml")), "experiments/{kind}.toml is missing");
    }
}

#[test]
fn a_group_of_one_is_refused_where_samples_are_compared() {
    for kind in ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] {
        let set = set(&[&format!("algorithm.kind={kind}"), "generator.samples=1"]);
        let error = load(&shipped("sft.toml"), &set).expect_err("a group of one").to_string();
        let expected = format!(
            "\"{kind}\" compares the samples of a group, but generator.samples is 1; set it to 2 or more"
        );
        assert!(error.ends_with(&expected), "{error}");
    }
    for (kind, option) in [("reinforce_pp", "baseline=false"), ("remax", "beta=0.0")] {
        let option = format!("algorithm.{option}");
        let set = set(&[&format!("algorithm.kind={kind}"), &option, "generator.samples=1"]);
        load(&shipped("sft.toml"), &set).expect("one sample is enough");
    }
    let set = set(&["algorithm.kind=reinforce_pp", "algorithm.baseline=true", "generator.samples=1"]);
    load(&shipped("sft.toml"), &set).expect_err("the baseline is the group's");
}

#[test]
fn the_token_limit_of_the_generator_is_the_constant_length() {
    for kind in ["grpo", "dr_grpo", "dapo", "remax"] {
        let set = set(&[&format!("algorithm.kind={kind}"), "generator.max_new_tokens=33"]);
        let plan = load(&shipped("sft.toml"), &set).expect("valid");
        assert!(plan.resolved.contains("max_completion_length = 33"), "{}", plan.resolved);
    }
    let set = set(&["algorithm.kind=dapo", "algorithm.epsilon=0.1"]);
    let resolved = load(&shipped("sft.toml"), &set).expect("valid").resolved;
    for line in ["epsilon = 0.1", "epsilon_high = 0.28", "drop_equal_rewards = true"] {
        assert!(resolved.contains(line), "{line} is not in {resolved}");
    }
}

#[test]
fn options_of_online_algorithms_out_of_range_are_refused() {
    for (kind, option, expected) in [
        ("grpo", "epsilon=1.5", "algorithm.epsilon is 1.5; it must be at least 0 and at most 1"),
        ("grpo", "delta=0.5", "algorithm.delta is 0.5; it must be at least 1"),
        ("grpo", "beta=-1", "algorithm.beta is -1; it must be at least 0"),
        ("dr_grpo", "max_completion_length=0", "algorithm.max_completion_length is 0; it must be at least 1"),
        ("grpo", "loss_type=ppo", "algorithm.loss_type is wrong: unknown variant `ppo`"),
        (
            "rloo",
            "reward_clip_range=[1, 0]",
            "algorithm.reward_clip_range is [1, 0]; the first must be at most the second",
        ),
    ] {
        let set = set(&[&format!("algorithm.kind={kind}"), &format!("algorithm.{option}")]);
        let error = load(&shipped("sft.toml"), &set).expect_err("out of range").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn resolved_experiments_read_back_as_the_same_plan() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Rows for the experiment whose own are fetched from a hub.
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"question\": \"1 + 1?\", \"answer\": \"2\"}\n".repeat(8)).expect("written");
    let rows = rows.display();
    let own_rows = set(&[
        "prompts.per_round=1",
        &format!("prompts.train.path={rows}"),
        &format!("prompts.held_out.path={rows}"),
    ]);
    for name in shipped_files() {
        let set = if name == "gsm8k.toml" { &own_rows[..] } else { &[] };
        let plan = load(&shipped(&name), set).unwrap_or_else(|error| panic!("{error}"));
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
