//! Every phase, every death in it, and every interruption.

use std::collections::BTreeSet;

use arriero_experiment::Mode;
use arriero_results::Status;

use super::world::{World, every_phase};
use crate::interruption::Interruption;
use crate::role::ActorRole;
use crate::schedule::{Input, Phase};

const MODES: [Mode; 3] =
    [Mode::Lockstep, Mode::Async { max_staleness: 0 }, Mode::Async { max_staleness: 100 }];

/// The run at every moment: before each of its inputs.
fn moments(mode: Mode) -> Vec<World> {
    let mut world = World::new(every_phase(mode), 3);
    let mut moments = Vec::new();
    world.run_until(|world| {
        moments.push(world.clone());
        false
    });
    assert_eq!(world.ending.as_ref().map(|ending| ending.status), Some(Status::Completed));
    moments
}

fn name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Evaluating { .. } => "evaluating",
        Phase::Beginning { .. } => "beginning",
        Phase::Reading { .. } => "reading",
        Phase::Sampling(_) => "sampling",
        Phase::Referencing { .. } => "referencing",
        Phase::Training { .. } => "training",
        Phase::Averaging { .. } => "averaging",
        Phase::Checkpointing { .. } => "checkpointing",
        Phase::Ended => "ended",
    }
}

#[test]
fn the_moments_are_of_every_phase() {
    for mode in MODES {
        let phases: BTreeSet<&str> = moments(mode).iter().map(|world| name(world.schedule.phase())).collect();
        let expected = [
            "evaluating",
            "beginning",
            "reading",
            "sampling",
            "referencing",
            "training",
            "averaging",
            "checkpointing",
        ];
        assert_eq!(phases, BTreeSet::from(expected), "{mode:?}");
    }
}

#[test]
fn whoever_keeps_no_state_is_started_again_and_nothing_is_lost() {
    for mode in MODES {
        for moment in moments(mode) {
            for role in ActorRole::ALL.into_iter().filter(|role| role.can_be_replaced()) {
                let mut world = moment.clone();
                world.die(role);
                assert_eq!(world.restarted, [role]);
                let ending = world.run();
                assert_eq!((ending.status, ending.cause), (Status::Completed, None));
                assert_eq!(ending.arms.len(), 2);
                world.check_account();
            }
        }
    }
}

#[test]
fn the_death_of_who_keeps_state_ends_the_run_at_once_with_its_cause() {
    for mode in MODES {
        for moment in moments(mode) {
            for role in [ActorRole::Learner, ActorRole::Recorder] {
                let mut world = moment.clone();
                world.die(role);
                let ending = world.ending.clone().expect("it is over");
                let cause = format!("the {} died: a fault", role.as_str());
                assert_eq!((ending.status, ending.cause), (Status::Failed, Some(cause)));
                world.check_account();
            }
        }
    }
}

#[test]
fn who_dies_again_and_again_ends_the_run_with_the_last_cause() {
    for mode in MODES {
        for moment in moments(mode) {
            for role in ActorRole::ALL.into_iter().filter(|role| role.can_be_replaced()) {
                let mut world = moment.clone();
                for _ in 0..4 {
                    world.die(role);
                }
                assert_eq!(world.restarted, [role; 3]);
                let ending = world.run();
                let cause = format!("the {} died 4 times, the last time of: a fault", role.as_str());
                assert_eq!((ending.status, ending.cause), (Status::Failed, Some(cause)));
                world.check_account();
            }
        }
    }
}

#[test]
fn who_cannot_be_started_again_ends_the_run() {
    for moment in moments(Mode::Lockstep) {
        let mut world = moment;
        world.die(ActorRole::Generator);
        world.tell(Input::NotRestarted { role: ActorRole::Generator, cause: "no thread".to_string() });
        let ending = world.run();
        let cause = "the generator could not be started again: no thread".to_string();
        assert_eq!((ending.status, ending.cause), (Status::Failed, Some(cause)));
        world.check_account();
    }
}

#[test]
fn an_interruption_keeps_what_was_learned_and_counts_the_rest() {
    for mode in MODES {
        for moment in moments(mode) {
            let mut world = moment.clone();
            world.tell(Input::Interrupt(Interruption::CtrlC));
            // A second one changes nothing.
            if world.ending.is_none() {
                world.tell(Input::Interrupt(Interruption::CtrlC));
            }
            let ending = world.run();
            assert_eq!((ending.status, ending.cause.as_deref()), (Status::Interrupted, Some("ctrl-c")));
            world.check_account();
            // Weights that a step has changed are written.
            let stepped = |arm: &arriero_results::ArmSummary| arm.steps > 0 || arm.tokens_trained > 0;
            for arm in ending.arms.iter().filter(|arm| stepped(arm)) {
                assert!(arm.checkpoint.is_some(), "{}: {:?}", name(moment.schedule.phase()), arm);
            }
        }
    }
}

#[test]
fn a_death_after_an_interruption_does_not_keep_the_run_from_ending() {
    for mode in MODES {
        for moment in moments(mode) {
            for role in ActorRole::ALL {
                let mut world = moment.clone();
                world.tell(Input::Interrupt(Interruption::CtrlC));
                if world.ending.is_some() {
                    continue;
                }
                world.die(role);
                let ending = world.run();
                if role.can_be_replaced() {
                    assert_eq!(ending.status, Status::Interrupted, "{role:?}");
                } else {
                    assert_eq!(ending.status, Status::Failed, "{role:?}");
                }
                world.check_account();
            }
        }
    }
}

#[test]
fn an_interruption_after_a_death_ends_the_run_as_well() {
    for mode in MODES {
        for moment in moments(mode) {
            for role in ActorRole::ALL.into_iter().filter(|role| role.can_be_replaced()) {
                let mut world = moment.clone();
                world.die(role);
                world.tell(Input::Interrupt(Interruption::CtrlC));
                let ending = world.run();
                assert_eq!(ending.status, Status::Interrupted, "{role:?}");
                world.check_account();
            }
        }
    }
}

#[test]
fn an_actor_that_fails_ends_the_run_with_what_it_says() {
    for mode in MODES {
        for moment in moments(mode) {
            let mut world = moment;
            let Some(address) = world.schedule.phase().address().cloned() else { continue };
            world.fail(&address, ActorRole::RewardWorker, "the scorer is not there");
            let ending = world.run();
            assert_eq!(ending.status, Status::Failed);
            let cause = ending.cause.expect("a cause");
            assert!(cause.ends_with("the reward worker failed: the scorer is not there"), "{cause}");
            world.check_account();
        }
    }
}
