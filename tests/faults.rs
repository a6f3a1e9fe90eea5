//! Actors that die on purpose: the run goes on, or ends and names the cause. It never hangs.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use arriero_actors::{ActorRole, Fault};
use arriero_results::Status;
use arriero_store::{ArmReader, SampleFilter, SampleRecord, Timed};
use support::Workplace;

fn weights(folder: &str) -> Vec<u8> {
    std::fs::read(Path::new(folder).join("model.safetensors")).expect("weights")
}

fn dpo() -> Vec<String> {
    vec!["algorithm.kind=dpo".to_string()]
}

/// An actor that holds no state is started again, and the run comes to the same weights as if nothing had happened.
#[test]
fn a_restarted_actor_changes_nothing() {
    let undisturbed = Workplace::new();
    let expected = undisturbed.run(undisturbed.plan(&dpo()), Vec::new()).expect("the run");
    let expected_weights = weights(&expected.arms[0].checkpoint.clone().expect("a checkpoint"));
    for role in [
        ActorRole::Generator,
        ActorRole::RewardWorker,
        ActorRole::RejectionSampler,
        ActorRole::Reference,
        ActorRole::Evaluator,
    ] {
        for at in [1, 2] {
            let workplace = Workplace::new();
            let fault = Fault { role, at, repeats: 0 };
            let (result, notes) = workplace.run_seen(workplace.plan(&dpo()), vec![fault]);
            let summary = result.unwrap_or_else(|error| panic!("{}: {error}", role.as_str()));
            let note = format!("the {} died and is started again (1 of 3)", role.as_str());
            assert!(
                notes.iter().any(|seen| seen.starts_with(&note) && seen.contains("planned fault")),
                "{notes:?}"
            );
            assert_eq!(summary.status, Status::Completed);
            let found = weights(&summary.arms[0].checkpoint.clone().expect("a checkpoint"));
            assert!(found == expected_weights, "{} at {at}: the weights differ", role.as_str());
            assert_eq!(summary.arms[0].dropped, expected.arms[0].dropped);
        }
    }
}

#[test]
fn an_actor_that_keeps_dying_ends_the_run_with_its_cause() {
    for role in
        [ActorRole::Generator, ActorRole::RejectionSampler, ActorRole::Reference, ActorRole::Evaluator]
    {
        let workplace = Workplace::new();
        let fault = Fault { role, at: 1, repeats: 100 };
        let error =
            workplace.run(workplace.plan(&dpo()), vec![fault]).expect_err("it cannot go on").to_string();
        let expected = format!("run tiny: the {} died 4 times, the last time of:", role.as_str());
        assert!(error.starts_with(&expected) && error.contains("planned fault"), "{error}");
    }
}

/// A group that kills its worker each time is given up, and counted.
#[test]
fn a_poisonous_group_is_dropped_with_a_reason() {
    let workplace = Workplace::new();
    let fault = Fault { role: ActorRole::RewardWorker, at: 2, repeats: 2 };
    let summary = workplace.run(workplace.plan(&[]), vec![fault]).expect("the run goes on");
    assert_eq!(summary.arms[0].dropped.get("killed_its_reward_worker"), Some(&1));
    let store = ArmReader::open(&workplace.runs().join("tiny/sft/5")).expect("the store");
    assert_eq!(store.dropped().expect("counts").get("killed_its_reward_worker"), Some(&1));
}

#[test]
fn the_death_of_who_owns_state_ends_the_run_with_its_cause() {
    for role in [ActorRole::Learner, ActorRole::Recorder] {
        let workplace = Workplace::new();
        let fault = Fault { role, at: 2, repeats: 0 };
        let error = workplace.run(workplace.plan(&[]), vec![fault]).expect_err("it cannot go on").to_string();
        let expected = format!("run tiny: the {} died: ", role.as_str());
        assert!(error.starts_with(&expected) && error.contains("planned fault"), "{error}");
        // What was known by then is on disk.
        let summary = std::fs::read_to_string(workplace.runs().join("tiny/summary.json")).expect("a summary");
        let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!(summary["status"], "failed");
        assert!(summary["cause"].as_str().is_some_and(|cause| cause.contains("planned fault")));
    }
}

/// Every group of the run is accounted for: trained on, or dropped with a reason.
#[test]
fn no_experience_is_lost() {
    let workplace = Workplace::new();
    let summary = workplace.run(workplace.plan(&dpo()), Vec::new()).expect("the run");
    let store = ArmReader::open(&workplace.runs().join("tiny/dpo/5")).expect("the store");
    let records = store.samples(&SampleFilter::default()).expect("samples");
    // Of each prompt: all samples, those that are selected, and those that are dropped.
    let mut samples: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
    for Timed { record, .. } in &records {
        let (all, selected, dropped) = samples.entry(record.prompt_id).or_default();
        *all += 1;
        *selected += u64::from(record.selected.is_some());
        *dropped += u64::from(record.dropped.is_some());
    }
    assert_eq!(samples.len(), 16);
    let dropped = samples.values().filter(|(_, selected, dropped)| *selected == 0 && *dropped == 4).count();
    let used = samples.values().filter(|(_, selected, dropped)| *selected == 2 && *dropped == 0).count();
    assert_eq!(used + dropped, 16);
    assert_eq!(summary.arms[0].dropped.values().sum::<u64>(), dropped as u64);
    assert!(used > 4, "the experiment is too easy or too hard to show anything: {used} of 16 used");
    // Both responses of a pair have their reference log-probabilities, and no other response has.
    let is_referenced =
        |record: &SampleRecord| record.segments.iter().all(|segment| segment.reference_logps.is_some());
    let records = records.iter().map(|sample| &sample.record);
    let right = records.filter(|record| is_referenced(record) == record.selected.is_some());
    assert_eq!(right.count(), 64);
}
