//! Any order of reports, deaths and interruptions.

use arriero_experiment::Mode;
use arriero_results::Status;
use proptest::prelude::*;

use super::world::{Dice, World, again, average, every_phase, offline, online};
use crate::interruption::Interruption;
use crate::report::{News, Report};
use crate::role::ActorRole;
use crate::schedule::outline::{ArmOutline, Source, StageOutline, Work};
use crate::schedule::phase::GroupOutcome;
use crate::schedule::{Command, Input, Outline, Phase, Schedule};

fn stage(kind: u8, number: usize, accumulates: bool) -> StageOutline {
    let name = format!("stage-{number}");
    let mut stage = match kind {
        0 | 1 => online(&name),
        2 => again(&name),
        3 => offline(&name),
        _ => average(&name),
    };
    if let Work::Train(training) = &mut stage.work {
        training.accumulates = accumulates && !matches!(training.source, Source::Dataset { .. });
        training.reference = training.reference.filter(|_| kind != 1);
    }
    stage
}

fn outlines() -> impl Strategy<Value = Outline> {
    let stages = proptest::collection::vec((0u8..5, any::<bool>()), 1..4);
    let arms = proptest::collection::vec((stages, 1u64..4), 1..4);
    let modes =
        prop_oneof![Just(Mode::Lockstep), (0u32..8).prop_map(|max_staleness| Mode::Async { max_staleness })];
    (arms, modes, 1u64..6, any::<bool>()).prop_map(|(arms, mode, prompts_per_round, measures)| {
        let arms = arms.into_iter().enumerate().map(|(number, (stages, rounds))| {
            let stages = stages.into_iter().enumerate();
            let stages = stages.map(|(number, (kind, accumulates))| stage(kind, number, accumulates));
            ArmOutline::new(&format!("arm-{number}"), rounds, stages.collect()).expect("it has stages")
        });
        let mut outline = Outline::new(1, arms.collect()).expect("it has arms");
        (outline.prompts_per_round, outline.prompts) = (prompts_per_round, prompts_per_round * 3);
        (outline.mode, outline.held_out, outline.measures) = (mode, 2, measures);
        outline
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Reports may come in any order, any actor may die at any time, and somebody may interrupt. The run ends, and no
    /// prompt is lost.
    #[test]
    fn a_run_always_ends_and_loses_no_prompt(
        outline in outlines(),
        seed in any::<u64>(),
        deaths in 0u64..3,
        interrupts in any::<bool>(),
    ) {
        let mut world = World::new(outline, seed);
        let mut fate = Dice(seed ^ 0x5eed);
        world.run_until(|_| fate.roll(40) == 0);
        while world.ending.is_none() {
            // Most runs go on after some deaths, and some runs do not.
            if deaths > 0 && fate.roll(10 / deaths) == 0 {
                let role = ActorRole::ALL[fate.roll(ActorRole::ALL.len() as u64) as usize];
                if role.can_be_replaced() || fate.roll(20) == 0 {
                    world.die(role);
                }
            }
            if interrupts && world.ending.is_none() && fate.roll(30) == 0 {
                world.tell(Input::Interrupt(Interruption::CtrlC));
            }
            if world.ending.is_none() {
                world.run_until(|_| fate.roll(10) == 0);
            }
        }
        let ending = world.ending.clone().expect("it is over");
        world.check_account();
        if !interrupts && deaths == 0 {
            prop_assert_eq!(ending.status, Status::Completed);
            prop_assert_eq!(ending.arms.len(), world.schedule.outline().arms().len());
        }
    }

    /// A schedule that is written down and read back after any input goes on as if it had not been.
    #[test]
    fn a_schedule_can_be_written_down_and_read_back(outline in outlines(), seed in any::<u64>(), at in 0u32..60) {
        let mut world = World::new(outline.clone(), seed);
        let mut left = at;
        world.run_until(|_| { let is_there = left == 0; left = left.saturating_sub(1); is_there });
        let written = serde_json::to_string(world.schedule.state()).expect("it serialises");
        let state = serde_json::from_str(&written).expect("it reads");
        prop_assert_eq!(&state, world.schedule.state());
        let mut restored = world.clone();
        restored.schedule = Schedule::restore(outline, state).expect("it is of this outline");
        prop_assert_eq!(restored.run(), world.run());
    }
}

#[test]
fn a_state_of_another_outline_is_refused() {
    let mut world = World::new(every_phase(Mode::Lockstep), 1);
    world.run_until(|world| matches!(world.schedule.phase(), Phase::Averaging { .. }));
    let other = Outline::new(1, vec![ArmOutline::new("one", 1, vec![online("a")]).expect("a stage")]);
    let error =
        Schedule::restore(other.expect("an arm"), world.schedule.state().clone()).expect_err("another");
    assert!(error.contains("which the experiment does not have"), "{error}");
}

/// Reports of work that is over, and of work that was never asked for, change nothing.
#[test]
fn a_report_of_other_work_changes_nothing() {
    let mut world = World::new(every_phase(Mode::Lockstep), 1);
    world.run_until(|world| matches!(world.schedule.phase(), Phase::Training { .. }));
    let before = world.schedule.state().clone();
    let mut address = world.schedule.phase().address().expect("it trains").clone();
    address.round += 1;
    let stale = [
        News::Begun,
        News::Trained { version: 9 },
        News::Referenced,
        News::Accepted { prompt_id: 1, version: None },
        News::Sampled { tokens: 5, reused: 0, seconds: 1.0 },
    ];
    for news in stale {
        let report = Report { address: address.clone(), news };
        assert!(world.schedule.step(1.0, Input::Report(report)).is_empty());
    }
    assert_eq!(*world.schedule.state(), before);
}

/// Two steps a training, versions 0 to 4: with a bound of 1, a tree of version 0 is too old when version 2 is there.
#[test]
fn what_is_older_than_the_bound_is_discarded_and_counted() {
    let arm = ArmOutline::new("one", 2, vec![online("grpo")]).expect("a stage");
    let mut outline = Outline::new(1, vec![arm]).expect("an arm");
    outline.mode = Mode::Async { max_staleness: 1 };
    (outline.prompts_per_round, outline.prompts) = (4, 8);
    let mut world = World::new(outline, 5);
    world.run_until(|world| {
        world.schedule.phase().address().is_some_and(|address| address.round == 1)
            && matches!(world.schedule.phase(), Phase::Sampling(_))
    });
    let Phase::Sampling(sampling) = world.schedule.phase().clone() else { panic!("it samples") };
    assert!(sampling.is_ahead, "it was begun ahead");
    let version = world.schedule.state().progress.version;
    assert!(version >= 2, "{version}");
    let mut schedule = world.schedule.clone();
    let address = sampling.address.clone();
    let mut commands = Vec::new();
    for prompt_id in 4..8 {
        let version = if prompt_id == 6 { Some(0) } else { Some(version) };
        let report = Report { address: address.clone(), news: News::Accepted { prompt_id, version } };
        commands.extend(schedule.step(9.0, Input::Report(report)));
    }
    let news = News::Sampled { tokens: 1, reused: 0, seconds: 1.0 };
    commands.extend(schedule.step(9.0, Input::Report(Report { address, news })));
    let discarded = commands.iter().find_map(|command| match command {
        Command::Discard { prompts } => Some(prompts.clone()),
        _ => None,
    });
    assert_eq!(discarded, Some(vec![6]));
    let dropped = &schedule.state().progress.dropped;
    assert_eq!(dropped.get("too_stale"), Some(&1));
    assert!(!matches!(sampling.outcomes.get(&6), Some(GroupOutcome::Dropped(_))));
}
