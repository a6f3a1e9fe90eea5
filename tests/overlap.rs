//! `mode = "async"`: the generator samples while the learner trains.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use arriero_actors::{ActorRole, Fault};
use arriero_buffers::{Message, Prompt};
use arriero_experiment::Plan;
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::sampling::SamplingConfig;
use arriero_results::{RunSummary, Status};
use arriero_store::{ArmReader, MetricFilter, SampleFilter};
use support::{Workplace, fixture};

/// Four rounds of two steps each.
fn plan(workplace: &Workplace, set: &[&str]) -> Plan {
    let own = [
        "rounds=4",
        "prompts.train=32",
        "algorithm={kind=\"grpo\", importance_sampling_mode=\"token_truncate\"}",
        "algorithm.learning_rate=1e-3",
        "algorithm.batch_size=4",
    ];
    let all: Vec<String> = own.iter().chain(set).map(|assignment| (*assignment).to_string()).collect();
    workplace.plan(&all)
}

fn store(workplace: &Workplace) -> ArmReader {
    ArmReader::open(&workplace.runs().join("tiny/grpo/5")).expect("the store")
}

fn weights(summary: &RunSummary) -> Vec<u8> {
    let folder = summary.arms[0].checkpoint.clone().expect("a checkpoint");
    fs::read(std::path::Path::new(&folder).join("model.safetensors")).expect("weights")
}

/// Every prompt of the run was trained on, or dropped with a reason, and nothing else is in the store.
fn check_that_nothing_is_lost(store: &ArmReader, summary: &RunSummary) {
    let samples = store.samples(&SampleFilter::default()).expect("samples");
    let prompts = |is_selected: bool| {
        let samples = samples.iter().filter(|sample| !is_selected || sample.record.selected.is_some());
        let prompts: BTreeSet<(u64, u64)> =
            samples.map(|sample| (sample.record.address.round, sample.record.prompt_id)).collect();
        prompts.len() as u64
    };
    let dropped: u64 = summary.arms[0].dropped.values().sum();
    assert_eq!(prompts(false), 32);
    assert_eq!(prompts(true), 32 - dropped);
    assert_eq!(store.dropped().expect("counts"), summary.arms[0].dropped);
}

#[test]
fn without_staleness_it_is_lockstep_to_the_last_bit() {
    for file in ["tiny.toml", "rounds.toml"] {
        let [lockstep, overlapping] =
            [&["mode=lockstep"][..], &["mode=async", "max_staleness=0"]].map(|mode| {
                let workplace = Workplace::new();
                let plan = match file {
                    "tiny.toml" => plan(&workplace, mode),
                    file => {
                        let mode: Vec<String> = mode.iter().map(|text| (*text).to_string()).collect();
                        workplace.plan_of(file, &mode)
                    }
                };
                let summary = workplace.run(plan, Vec::new()).expect("the run");
                (weights(&summary), summary)
            });
        assert!(lockstep.0 == overlapping.0, "{file}: the weights differ");
        let [lockstep, overlapping] = [lockstep.1, overlapping.1];
        assert!(lockstep.arms[0].steps > 4);
        assert_eq!(lockstep.arms[0].after, overlapping.arms[0].after);
        assert_eq!(lockstep.arms[0].tokens_sampled, overlapping.arms[0].tokens_sampled);
    }
}

/// The same weights under another number, in the middle of every answer: nothing changes but the number.
#[test]
fn tokens_name_the_weights_that_drew_them() {
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&fixture("tiny")).expect("the model");
    let model = || Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
    let sampling = SamplingConfig { max_new_tokens: 6, ..SamplingConfig::default() };
    let options = GenerationConfig { sampling, samples: 3, batch: 8, seed: 1 };
    let answers = |renewed_after: Option<usize>| {
        let mut generator = GroupSampler::new(model(), 2, tokenizer.clone(), options.clone());
        let prompt =
            Prompt { id: 0, messages: vec![Message::user("Say it.")], checks: serde_json::Value::Null };
        generator.submit(Arc::new(prompt)).expect("it fits");
        let mut groups = Vec::new();
        for step in 0.. {
            if Some(step) == renewed_after {
                generator.renew(model(), 7);
            }
            groups.extend(generator.step().expect("a step"));
            if generator.is_idle() {
                break;
            }
        }
        groups.remove(0).completions
    };
    // A request's first step draws two tokens of each answer: one as it is admitted, one as it is decoded.
    for (mut renewed, whole) in answers(Some(2)).into_iter().zip(answers(None)) {
        let versions: Vec<u32> = (0..whole.drawn_len()).map(|place| if place < 3 { 2 } else { 7 }).collect();
        assert_eq!(renewed.weight_versions().collect::<Vec<_>>(), versions);
        // All else is the same.
        let Some(drawn) = &mut renewed.segments[0].drawn else { panic!("the policy drew it") };
        drawn.weight_versions = whole.weight_versions().collect();
        assert_eq!(renewed, whole);
    }
}

/// A round has two steps. With a bound of 1 sampling begins before the last of them, with more before the first.
#[test]
fn no_tree_is_older_than_the_bound() {
    for bound in [1, 2, 100] {
        let workplace = Workplace::new();
        let set = ["mode=async".to_string(), format!("max_staleness={bound}")];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let summary = workplace.run(plan(&workplace, &set), Vec::new()).expect("the run");
        assert_eq!(summary.status, Status::Completed);
        let store = store(&workplace);
        let ages = store.metric("grpo", "staleness/max").expect("numbers");
        let oldest = ages.iter().map(|point| point.value).reduce(f64::max).expect("a step");
        assert!(oldest <= f64::from(bound.min(2)), "a tree of age {oldest} under the bound {bound}");
        let events = store.events().expect("events");
        let begun = events.iter().filter(|event| {
            let message = &event.record.message;
            message.starts_with("sampling of grpo, round ") && message.contains(" begins ahead")
        });
        assert_eq!(begun.count(), 3, "nothing overlapped");
        // The correction's ratios are those of the trainer to the sampler.
        let name = Some("sampling/importance_sampling_ratio/mean");
        let corrected = store.metrics(&MetricFilter { name, ..MetricFilter::default() }).expect("numbers");
        assert_eq!(corrected.len() as u64, summary.arms[0].steps);
        check_that_nothing_is_lost(&store, &summary);
    }
}

#[test]
fn whoever_holds_no_state_is_started_again() {
    for (role, at) in [
        (ActorRole::Generator, 2),
        (ActorRole::Generator, 3),
        (ActorRole::RewardWorker, 12),
        (ActorRole::RejectionSampler, 12),
        (ActorRole::Evaluator, 2),
    ] {
        let workplace = Workplace::new();
        let fault = Fault { role, at, repeats: 0 };
        let plan = plan(&workplace, &["mode=async", "max_staleness=9"]);
        let (result, notes) = workplace.run_seen(plan, vec![fault]);
        let summary = result.unwrap_or_else(|error| panic!("{}: {error}", role.as_str()));
        assert_eq!(summary.status, Status::Completed);
        let note = format!("the {} died and is started again", role.as_str());
        assert!(notes.iter().any(|seen| seen.starts_with(&note)), "{notes:?}");
        check_that_nothing_is_lost(&store(&workplace), &summary);
    }
}

/// The learner dies over a step while the generator samples: the run fails, and accounts for both.
#[test]
fn a_run_that_fails_accounts_for_what_was_sampled_ahead() {
    let workplace = Workplace::new();
    let fault = Fault { role: ActorRole::Learner, at: 4, repeats: 0 };
    let plan = plan(&workplace, &["mode=async", "max_staleness=9"]);
    let error = workplace.run(plan, vec![fault]).expect_err("it cannot go on").to_string();
    assert!(error.contains("planned fault"), "{error}");
    let store = store(&workplace);
    // Three steps of four trees were taken; the fourth's, and the third round's eight prompts, were not used.
    let dropped = store.dropped().expect("counts");
    assert!(dropped.contains_key("run_failed"), "{dropped:?}");
    assert_eq!(dropped.values().sum::<u64>(), 12);
}
