//! The actor run gives the same weights as a plain loop, to the last bit.

#[path = "../policy/examples/plain_loop.rs"]
mod plain_loop;

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arriero_experiment::{ArmStage, Plan, Split};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::checkpoint::write_hf;
use arriero_policy::device::Compute;
use arriero_policy::generate::GenerationConfig;
use plain_loop::{Settings, plain_loop};
use support::{Workplace, fixture};

/// What the loop is told by the same experiment.
fn settings(plan: &Plan) -> Settings {
    let [arm] = &plan.arms[..] else { panic!("one arm") };
    let [ArmStage::Train(stage)] = &arm.stages[..] else { panic!("one stage") };
    Settings {
        algorithm: stage.algorithm.clone(),
        training: stage.training.clone(),
        generation: GenerationConfig {
            sampling: plan.generator.sampling.clone(),
            samples: plan.generator.samples,
            batch: plan.generator.batch,
            seed: plan.seed,
        },
        selection: plan.selection.clone(),
        reward: plan.reward.clone(),
        rounds: arm.rounds,
    }
}

/// The tiny model with other weights, in a folder: a teacher.
fn another_tiny() -> PathBuf {
    let Checkpoint { config, tokenizer, weights } = Checkpoint::open(&fixture("tiny")).expect("the model");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("keystone-teacher");
    let weights = weights.into_iter().map(|(name, tensor)| (name, tensor * 1.5)).collect();
    write_hf(&folder, &config, &tokenizer, &weights).expect("written");
    folder
}

#[test]
fn the_actor_run_equals_the_plain_loop_bit_for_bit() {
    // The last one asks for the trainer's log-probabilities under the weights before the round.
    let corrected = "{ kind = \"grpo\", importance_sampling_mode = \"token_mask\", beta = 0.1 }";
    let plainly = |kind: &str| format!("{{ kind = \"{kind}\" }}");
    let taught = format!("{{ kind = \"distill\", teacher = \"{}\" }}", another_tiny().display());
    let (xpo, nash_md) = (plainly("xpo"), plainly("nash_md"));
    // A reference that follows the policy, and KTO's KL, which a reference of the trainer's own estimates.
    let synced = "{ kind = \"dpo\", sync_ref_model = true, ref_model_sync_steps = 2 }".to_string();
    let corrected = corrected.to_string();
    let (sft, dpo, kto, remax) = (plainly("sft"), plainly("dpo"), plainly("kto"), plainly("remax"));
    for algorithm in [sft, dpo, kto, synced, remax, corrected, xpo, nash_md, taught] {
        let workplace = Workplace::new();
        let set = [
            "rounds=2".to_string(),
            format!("algorithm={algorithm}"),
            "algorithm.epochs=2".to_string(),
            "algorithm.learning_rate=1e-3".to_string(),
            "algorithm.batch_size=4".to_string(),
        ];
        let plan = workplace.plan(&set);
        let prompts: Vec<_> =
            plan.load_prompts(Split::Train).expect("prompts").prompts.into_iter().map(Arc::new).collect();
        let expected =
            plain_loop(&plan.model.path, Compute::CPU_F32, &prompts, &settings(&plan)).expect("the loop");

        let summary = workplace.run(plan.clone(), Vec::new()).expect("the run");
        assert!(summary.arms[0].steps > 4, "too few steps to tell anything: {}", summary.arms[0].steps);
        let written = summary.arms[0].checkpoint.clone().expect("a checkpoint");

        // Through the same writer: what is compared is bytes on disk.
        let Checkpoint { config, tokenizer, weights } =
            Checkpoint::open(&plan.model.path).expect("the model");
        let again = workplace.path().join("expected");
        write_hf(&again, &config, &tokenizer, &expected).expect("written");
        let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).expect("weights");
        assert!(bytes(&again) == bytes(written.as_ref()), "{algorithm}: the weights differ");
        let untrained = workplace.path().join("untrained");
        write_hf(&untrained, &config, &tokenizer, &weights).expect("written");
        assert!(bytes(&again) != bytes(&untrained), "{algorithm}: nothing was learned");
    }
}

/// The second arm finds the first groups sampled already, and comes to the same end as the first.
#[test]
fn equal_arms_end_with_equal_weights() {
    let workplace = Workplace::new();
    let summary = workplace.run(workplace.plan_of("two-equal-arms.toml", &[]), Vec::new()).expect("the run");
    let [first, second] = &summary.arms[..] else { panic!("two arms") };
    let bytes = |arm: &arriero_results::ArmSummary| {
        let folder = arm.checkpoint.clone().expect("a checkpoint");
        fs::read(Path::new(&folder).join("model.safetensors")).expect("weights")
    };
    assert!(bytes(first) == bytes(second), "the arms' weights differ");
    assert_eq!(first.tokens_sampled, second.tokens_sampled);
    assert!(first.tokens_sampled > 0 && first.steps > 0);
    assert_eq!(first.after, second.after);
}

/// Groups of ReMax have one answer more than GRPO's, so the initial ones cannot be shared. Neither arm notices the
/// other.
#[test]
fn arms_whose_groups_differ_come_to_the_same_end_in_either_order() {
    let trained = |kinds: [&str; 2]| {
        let workplace = Workplace::new();
        let set: Vec<String> = (0..2).map(|arm| format!("arm.{arm}.stage.0.kind={}", kinds[arm])).collect();
        let summary =
            workplace.run(workplace.plan_of("two-equal-arms.toml", &set), Vec::new()).expect("the run");
        let arms = summary.arms.iter().map(|arm| {
            let folder = arm.checkpoint.clone().expect("a checkpoint");
            let weights = fs::read(Path::new(&folder).join("model.safetensors")).expect("weights");
            (arm.tokens_sampled, weights)
        });
        arms.collect::<Vec<_>>()
    };
    let (one, other) = (trained(["grpo", "remax"]), trained(["remax", "grpo"]));
    for (kind, alone, after) in [("grpo", &one[0], &other[1]), ("remax", &other[0], &one[1])] {
        assert_eq!(alone.0, after.0, "{kind}: tokens sampled");
        assert!(alone.1 == after.1, "{kind}: the weights depend on the arm before");
    }
    assert!(one[1].0 > one[0].0, "the greedy answers are not paid for");
}
