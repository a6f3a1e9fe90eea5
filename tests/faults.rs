//! Actors that die on purpose: the run goes on, or ends and names the cause. It never hangs.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use arriero_actors::{ActorRole, Fault};
use arriero_results::Status;
use support::Workplace;

fn weights(folder: &str) -> Vec<u8> {
    std::fs::read(Path::new(folder).join("model.safetensors")).expect("weights")
}

fn dpo() -> Vec<String> {
    vec!["algorithm.kind=dpo".to_string()]
}

/// Whoever holds no state is started again, and the run comes to the same weights as if nothing had been.
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
    let arm = workplace.runs().join("tiny/sft/5");
    let database = rusqlite::Connection::open(arm.join("run.db")).expect("the store");
    let dropped: i64 = database
        .query_row("SELECT sum(count) FROM drops WHERE reason = 'killed_its_reward_worker'", [], |row| {
            row.get(0)
        })
        .expect("a row");
    assert_eq!(dropped, 1);
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
    let database = rusqlite::Connection::open(workplace.runs().join("tiny/dpo/5/run.db")).expect("the store");
    let mut samples: BTreeMap<i64, (i64, i64, i64)> = BTreeMap::new();
    let mut query = database
        .prepare(
            "SELECT prompt_id, count(*), count(selected), count(dropped) FROM samples GROUP BY prompt_id",
        )
        .expect("a query");
    let rows =
        query.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))).expect("rows");
    samples.extend(rows.map(|row| row.expect("a row")));
    assert_eq!(samples.len(), 16);
    let dropped = samples.values().filter(|(_, selected, dropped)| *selected == 0 && *dropped == 4).count();
    let used = samples.values().filter(|(_, selected, dropped)| *selected == 2 && *dropped == 0).count();
    assert_eq!(used + dropped, 16);
    assert_eq!(summary.arms[0].dropped.values().sum::<u64>(), dropped as u64);
    assert!(used > 4, "the experiment is too easy or too hard to show anything: {used} of 16 used");
    // Both responses of a pair have their reference log-probabilities, no other has.
    let referenced: i64 = database
        .query_row(
            "SELECT count(*) FROM samples WHERE (reference_logps IS NOT NULL) = (selected IS NOT NULL)",
            [],
            |row| row.get(0),
        )
        .expect("a row");
    assert_eq!(referenced, 64);
}
