use std::path::{Path, PathBuf};

use arriero_policy::objective::Algorithm;
use arriero_policy::optim::AcrossRounds;

use super::*;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments").join(name)
}

fn set(assignments: &[&str]) -> Vec<String> {
    assignments.iter().map(|text| (*text).to_string()).collect()
}

fn first_stage(plan: &Plan) -> &Stage {
    plan.arms[0].stages[0].training().expect("it trains")
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
    // A path in a file counts from the working folder, which is another here.
    let tasks = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/code_prompts.jsonl");
    let shipped_rows =
        set(&[&format!("prompts.train.path={tasks}"), &format!("prompts.held_out.path={tasks}")]);
    for name in shipped_files() {
        let set = match name.as_str() {
            "gsm8k.toml" => &own_rows[..],
            "code.toml" => &shipped_rows[..],
            _ => &[],
        };
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
        assert_eq!(first_stage(&swapped).algorithm.kind(), other);
        assert_eq!(first_stage(&swapped).training, first_stage(&own).training);
        assert_eq!(swapped.prompts, own.prompts);
    }
}

#[test]
fn arms_are_set_by_name_or_number() {
    let by_name = load(&shipped("quickstart.toml"), &set(&["arm.rs-dpo.stage.0.beta=0.3"])).expect("valid");
    let by_number = load(&shipped("quickstart.toml"), &set(&["arm.1.stage.0.beta=0.3"])).expect("valid");
    assert_eq!(by_name, by_number);
    let Algorithm::Dpo(config) = &by_name.arms[1].trainings().next().expect("it trains").1.algorithm else {
        panic!("not DPO")
    };
    assert_eq!(config.beta, 0.3);
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
    let names: Vec<&str> = plan.arms[0].stages.iter().map(ArmStage::name).collect();
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
    let lora = first_stage(&plan).training.lora.clone().expect("adapters");
    assert_eq!((lora.r, lora.alpha, lora.target_modules.len()), (5, 8.0, 2));
    let resolved = folder.path().join("resolved.toml");
    std::fs::write(&resolved, &plan.resolved).expect("written");
    assert_eq!(load(&resolved, &[]).unwrap_or_else(|error| panic!("{error}")), plan);
    let plain = load(&shipped("dpo.toml"), &[]).expect("valid");
    assert_eq!(first_stage(&plain).training.lora, None);
    for (assignment, expected) in [
        ("algorithm.lora.r=0", "algorithm.lora.r is 0; it must be at least 1 and at most 65536"),
        ("algorithm.lora.rank=4", "algorithm.lora is wrong: unknown field `rank`, expected one of `r`"),
        ("algorithm.lora.alpha=0", "algorithm.lora.alpha is 0; it must be above 0"),
    ] {
        let error = load(&shipped("dpo.toml"), &set(&[assignment])).expect_err("out of range").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The file of Llama 3's rounds with these options for its stages.
fn rounds(set: &[&str]) -> Result<Plan, ExperimentError> {
    let set: Vec<String> = set.iter().map(|text| (*text).to_string()).collect();
    load(&shipped("llama3-rounds.toml"), &set)
}

#[test]
fn options_of_rounds_that_do_not_go_together_are_refused() {
    let stage = |option: &str| format!("arm.0.stage.{option}");
    for (option, expected) in [
        ("0.reward=reward_model", "reward is \"reward_model\", but no stage before this one trains one"),
        ("1.reward=judge", "reward is wrong: unknown variant `judge`"),
        ("2.data=dpo", "data is \"dpo\"; expected \"sampled\", the name of an earlier stage of the arm"),
        (
            "2.generator={samples=3}",
            "generator says how samples are made, but this stage learns from reward_model",
        ),
        (
            "2.reward=reward_model",
            "reward says how samples are made, but this stage learns from reward_model",
        ),
        ("2.kind=remax", "data is \"reward_model\", but only one of it and \"remax\" has a greedy answer"),
        ("1.optimizer=continue", "optimizer is \"continue\", but each round starts from the initial weights"),
        (
            "2.experience=all",
            "experience is \"all\", but trees of earlier rounds were scored by another reference",
        ),
        ("1.generator.samples=0", "generator.samples is 0; it must be at least 1"),
        (
            "1.generator.temperatur=1",
            "unknown key arm.0.stage.1.generator.temperatur; the nearest valid one is",
        ),
        ("2.from=base", "from is wrong: unknown variant `base`, expected `previous` or `initial`"),
    ] {
        let option = stage(option);
        let error = rounds(&[&option]).expect_err(&option).to_string();
        // What no longer fits the option stands in the file.
        let place =
            if option.ends_with("remax") { "llama3-rounds.toml:" } else { &format!("--set {option}: ") };
        assert!(error.contains(place) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_stage_has_the_files_sampling_and_bounds_but_for_what_it_says_itself() {
    let plan = rounds(&["selection.min_reward=0.5", "generator.top_p=0.9"]).expect("valid");
    let [preferences, sampling, dpo] =
        &plan.arms[0].trainings().map(|(_, stage)| stage).collect::<Vec<_>>()[..]
    else {
        panic!("three stages");
    };
    assert_eq!(preferences.generator, plan.generator);
    assert_eq!(preferences.selection.min_reward, 0.5);
    assert_eq!(sampling.generator.sampling.top_p, 0.9);
    assert!(sampling.generator.samples > plan.generator.samples);
    // Scores of a reward model have no zero.
    assert_eq!(sampling.selection.min_reward, f32::NEG_INFINITY);
    assert_eq!((dpo.samples_of.as_deref(), dpo.samples()), (Some("reward_model"), false));
    assert_eq!(dpo.selection.min_reward, 0.5);
}

#[test]
fn only_online_algorithms_go_on_with_their_optimiser() {
    for kind in Algorithm::KINDS {
        let plan = load(&shipped(&format!("{kind}.toml")), &[]).unwrap_or_else(|error| panic!("{error}"));
        let stage = first_stage(&plan);
        let goes_on = stage.training.optimizer == Some(AcrossRounds::Continue);
        assert_eq!(goes_on, stage.algorithm.is_online(), "{kind}");
    }
    for (kind, online) in [
        ("sft", false),
        ("dpo", false),
        ("kto", false),
        ("reward_model", false),
        ("ppo", true),
        ("remax", true),
        ("online_dpo", true),
    ] {
        let plan = load(&shipped(&format!("{kind}.toml")), &[]).expect("valid");
        assert_eq!(first_stage(&plan).algorithm.is_online(), online, "{kind}");
    }
}

#[test]
fn averages_name_what_is_there() {
    let arm = |of: &str| {
        let arms = format!(
            "arm=[{{name=\"one\", stage=[{{kind=\"sft\"}}]}}, {{name=\"two\", stage=[{{kind=\"reward_model\"}}, \
             {{kind=\"sft\"}}, {{kind=\"average\", {of}}}]}}]"
        );
        rounds(&[&arms])
    };
    let plan =
        arm("of=[\"sft\", {arm=\"one\"}, \"initial\", {stage=\"sft\", rounds=3}], weights=[1, 2, 3, 4.5]");
    let plan = plan.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plan.arms[1].stages[2].name(), "average");
    assert_eq!(plan.arms[1].results_of("sft"), 3);
    assert!(plan.arms[1].averages_arm("one"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let resolved = folder.path().join("resolved.toml");
    std::fs::write(&resolved, &plan.resolved).expect("written");
    assert_eq!(load(&resolved, &[]).unwrap_or_else(|error| panic!("{error}")), plan);
    for (of, expected) in [
        ("weights=[1]", "of is missing; list what to average"),
        (
            "of=[\"dpo\"]",
            "of names \"dpo\", which is no stage before this one (those are: reward_model, sft)",
        ),
        ("of=[{arm=\"two\"}]", "of names the arm \"two\", which is none of those before this one"),
        ("of=[{path=\"no/such\"}]", "of names no/such, where there is nothing"),
        ("of=[\"sft\", \"reward_model\"]", "of has reward models and others"),
        ("of=[{stage=\"sft\", rounds=0}]", "of has rounds = 0; it must be at least 1"),
        ("of=[\"sft\"], weights=[1, 2]", "weights has 2 numbers, but \"of\" has 1 entries"),
        ("of=[\"sft\"], weights=[-1]", "weights has -1; a weight must be at least 0"),
        ("of=[\"sft\"], weights=[0]", "weights adds up to 0"),
        ("of=[7]", "of is wrong: expected \"initial\", \"previous\", the name of an earlier stage"),
        ("of=[\"sft\"], learning_rate=1", "unknown key arm.1.stage.2.learning_rate"),
    ] {
        let error = arm(of).expect_err(of).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn staleness_belongs_to_async() {
    let load = |set: &[&str]| load(&shipped("grpo.toml"), &super::tests::set(set));
    assert_eq!(load(&[]).expect("valid").mode, Mode::Lockstep);
    let plan = load(&["mode=async", "max_staleness=0"]).expect("valid");
    assert_eq!(plan.mode, Mode::Async { max_staleness: 0 });
    assert!(plan.resolved.contains("mode = \"async\"\n") && plan.resolved.contains("max_staleness = 0\n"));
    let error = load(&["max_staleness=2"]).expect_err("lockstep").to_string();
    assert!(error.contains("max_staleness is an option of mode = \"async\""), "{error}");
    let error = load(&["mode=asink"]).expect_err("no such mode").to_string();
    assert!(
        error.contains("mode is wrong: unknown variant `asink`, expected `lockstep` or `async`"),
        "{error}"
    );
}
