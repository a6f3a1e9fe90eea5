//! What is written is read back equal, and writing it again changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use arriero_buffers::{Address, Drawn, Finish, Role, Segment};
use arriero_store::{
    ArmReader, ArmStore, CheckpointRecord, DropRecord, EventLevel, EventRecord, MetricFilter, MetricRecord,
    OutcomeRecord, PhaseRecord, RunDir, SampleFilter, SampleRecord, SampleSegment, Timed,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

const ARM: &str = "dpo";
const SEED: u64 = u64::MAX;

/// Two readings are equal if their texts are: NaN, which no number equals, has a text.
fn same<T: std::fmt::Debug>(found: &[T], expected: &[T]) -> Result<(), TestCaseError> {
    prop_assert_eq!(format!("{found:#?}"), format!("{expected:#?}"));
    Ok(())
}

fn records<T>(timed: Vec<Timed<T>>) -> Vec<T> {
    timed.into_iter().map(|timed| timed.record).collect()
}

fn store() -> (tempfile::TempDir, ArmStore, ArmReader) {
    let root = tempfile::tempdir().expect("a folder");
    let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
    let store = run.arm(ARM, SEED).expect("it can be made");
    let reader = ArmReader::open(&run.path().join(ARM).join(SEED.to_string())).expect("it is there");
    (root, store, reader)
}

/// Text with what breaks careless code in it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("4\0!".to_owned()),
        Just("é \u{1f42a}\n'\"\\".to_owned()),
        any::<String>()
    ]
}

/// Few names and numbers, so that keys are often, but not always, the same; small ones and the largest.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3u64, Just(1 << 63), Just(u64::MAX)]
}

fn address() -> impl Strategy<Value = Address> {
    (number(), prop_oneof![Just("dpo"), Just("dpo-2"), Just("\u{e9}'")])
        .prop_map(|(round, stage)| Address::new(ARM, SEED, round, stage))
}

fn real() -> impl Strategy<Value = f32> {
    prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), Just(-0.0f32)]
}

/// As columns of numbers hold it: SQLite does not tell −0 from 0.
fn column() -> impl Strategy<Value = f32> {
    real().prop_map(|value| value + 0.0)
}

fn segment() -> impl Strategy<Value = SampleSegment> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant), Just(Role::Tool)];
    let length = prop_oneof![Just(0usize), 1..5usize];
    (role, length, any::<(bool, bool)>()).prop_flat_map(|(role, length, (is_drawn, is_scored))| {
        let logps = || vec(real(), length);
        let versions = || vec(any::<u32>(), length);
        (versions(), logps(), logps(), logps(), versions()).prop_map(
            move |(tokens, logps, sampled_logps, reference_logps, weight_versions)| SampleSegment {
                segment: Segment {
                    role,
                    tokens,
                    drawn: is_drawn.then_some(Drawn { logps, sampled_logps, weight_versions }),
                },
                reference_logps: is_scored.then_some(reference_logps),
            },
        )
    })
}

fn sample() -> impl Strategy<Value = SampleRecord> {
    let finish = prop_oneof![Just(Finish::EndOfTurn), Just(Finish::Stop), Just(Finish::Length)];
    // What is not finite comes back as NaN: a JSON object holds the components.
    let component =
        prop_oneof![any::<f32>().prop_filter("finite", |value| value.is_finite()), Just(f32::NAN)];
    (
        (address(), proptest::option::of(0..3u64), number(), text(), 0..2u32, text()),
        (column(), proptest::collection::btree_map(text(), component, 0..3), vec(segment(), 0..4), finish),
        (proptest::option::of(text()), proptest::option::of(text())),
    )
        .prop_map(
            |((address, evaluation, prompt_id, prompt, sample, text), rest, (selected, dropped))| {
                let (reward, components, segments, finish) = rest;
                SampleRecord {
                    address,
                    evaluation,
                    prompt_id,
                    prompt,
                    sample,
                    text,
                    reward,
                    components,
                    segments,
                    finish,
                    selected,
                    dropped,
                }
            },
        )
}

fn metric() -> impl Strategy<Value = MetricRecord> {
    let value =
        prop_oneof![any::<f64>().prop_map(|value| value + 0.0), Just(f64::NAN), Just(f64::NEG_INFINITY)];
    let metrics = proptest::collection::btree_map("[a-z/]{1,3}", value, 1..4);
    (address(), prop_oneof![Just("dpo"), Just("data")], number(), 0..2u64, metrics).prop_map(
        |(address, series, step, part, metrics)| MetricRecord {
            address,
            series: series.to_owned(),
            step,
            part,
            metrics,
        },
    )
}

/// The records of which none has the key of an earlier one.
fn distinct<T, K: Ord>(records: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut keys = BTreeSet::new();
    records.into_iter().filter(|record| keys.insert(key(record))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn samples_come_back(samples in vec(sample(), 0..6)) {
        let samples =
            distinct(samples, |sample| (sample.address.clone(), sample.evaluation, sample.prompt_id, sample.sample));
        let (_root, mut store, reader) = store();
        for record in samples.iter().chain(&samples) {
            store.sample(record).expect("it can be written");
        }
        store.flush().expect("it can be written");
        let read = |filter: &SampleFilter<'_>| records(reader.samples(filter).expect("it can be read"));
        same(&read(&SampleFilter::default()), &samples)?;
        // A filter leaves those that meet it.
        for wanted in &samples {
            let filter = SampleFilter {
                round: Some(wanted.address.round),
                stage: Some(&wanted.address.stage),
                prompt_id: Some(wanted.prompt_id),
                evaluation: wanted.evaluation,
            };
            let meets = |sample: &&SampleRecord| {
                sample.address == wanted.address
                    && sample.prompt_id == wanted.prompt_id
                    && (wanted.evaluation.is_none() || sample.evaluation == wanted.evaluation)
            };
            same(&read(&filter), &samples.iter().filter(meets).cloned().collect::<Vec<_>>())?;
        }
    }

    #[test]
    fn metrics_come_back(metrics in vec(metric(), 0..8)) {
        let metrics =
            distinct(metrics, |record| (record.address.clone(), record.series.clone(), record.step, record.part));
        let (_root, mut store, reader) = store();
        for record in metrics.iter().chain(&metrics) {
            store.log(record).expect("it can be written");
        }
        store.flush().expect("it can be written");
        let read = reader.metrics(&MetricFilter::default()).expect("it can be read");
        prop_assert!(read.iter().all(|timed| timed.time.is_some_and(|time| time > 1e9)));
        same(&records(read), &metrics)?;
        // A series, one name of it, and its steps up to 1.
        let data = |record: &&MetricRecord| record.series == "data";
        let read = reader.metrics(&MetricFilter { series: Some("data"), ..MetricFilter::default() });
        same(&records(read.expect("it can be read")), &metrics.iter().filter(data).cloned().collect::<Vec<_>>())?;
        let read = reader.metrics(&MetricFilter { steps: Some(0..=1), ..MetricFilter::default() });
        let early: Vec<MetricRecord> = metrics.iter().filter(|record| record.step <= 1).cloned().collect();
        same(&records(read.expect("it can be read")), &early)?;
        if let Some(name) = metrics.first().and_then(|record| record.metrics.keys().next()) {
            let own: Vec<(u64, f64)> = metrics
                .iter()
                .filter(data)
                .filter_map(|record| Some((record.step, *record.metrics.get(name)?)))
                .collect();
            let points = reader.metric("data", name).expect("it can be read");
            same(&points.iter().map(|point| (point.step, point.value)).collect::<Vec<_>>(), &own)?;
        }
    }

    #[test]
    fn the_others_come_back(
        outcomes in vec((address(), number(), number(), any::<(u32, u32, u32)>(), column(), text()), 0..6),
        drops in vec((address(), text(), number(), number()), 0..6),
        events in vec((proptest::option::of(0..3u8), proptest::option::of(address()), 0..3u8, text(), text()), 0..6),
        phases in vec((address(), text(), number(), number(), number(), any::<bool>()), 0..6),
        checkpoints in vec((address(), 0..9u64, number()), 0..4),
    ) {
        let (_root, mut store, reader) = store();
        let outcomes: Vec<OutcomeRecord> = outcomes
            .into_iter()
            .map(|(address, step, prompt_id, (instructions, followed, tokens), reward, text)| OutcomeRecord {
                address,
                step,
                prompt_id,
                instructions: instructions.into(),
                followed: followed.into(),
                reward,
                tokens: tokens.into(),
                text,
            })
            .collect();
        let outcomes = distinct(outcomes, |outcome| (outcome.address.clone(), outcome.step, outcome.prompt_id));
        let drops: Vec<DropRecord> = drops
            .into_iter()
            .map(|(address, reason, part, count)| DropRecord { address, reason, part, count })
            .collect();
        let drops = distinct(drops, |drop| (drop.address.clone(), drop.reason.clone(), drop.part));
        let levels = [EventLevel::Info, EventLevel::Warning, EventLevel::Error];
        let events: Vec<EventRecord> = events
            .into_iter()
            .map(|(key, address, level, actor, message)| {
                let key = key.map(|key| format!("event {key}"));
                EventRecord { key, address, level: levels[usize::from(level)], actor, message }
            })
            .collect();
        // Events without a key are always new.
        let mut keys = BTreeSet::new();
        let events: Vec<EventRecord> = events
            .into_iter()
            .filter(|event| event.key.as_ref().is_none_or(|key| keys.insert(key.clone())))
            .collect();
        let phases: Vec<PhaseRecord> = phases
            .into_iter()
            .map(|(address, kind, part, done, total, is_over)| PhaseRecord {
                address,
                kind,
                part,
                done,
                total,
                is_over,
            })
            .collect();
        let phases = distinct(phases, |phase| (phase.address.clone(), phase.kind.clone(), phase.part));
        let checkpoints: Vec<CheckpointRecord> = checkpoints
            .into_iter()
            .map(|(address, step, number)| CheckpointRecord {
                address,
                step,
                path: PathBuf::from(format!("step-{step}")),
                manifest: json!({"number": number, "text": "\0\u{e9}"}),
            })
            .collect();
        let checkpoints = distinct(checkpoints, |checkpoint| checkpoint.step);

        for is_first in [true, false] {
            for record in &outcomes {
                store.outcome(record).expect("it can be written");
            }
            for record in &drops {
                store.drops(record).expect("it can be written");
            }
            for record in events.iter().filter(|event| is_first || event.key.is_some()) {
                store.event(record).expect("it can be written");
            }
            for record in &phases {
                store.phase(record).expect("it can be written");
            }
            for record in &checkpoints {
                store.record_checkpoint(record).expect("it can be written");
            }
        }
        store.flush().expect("it can be written");

        let mut steps: BTreeMap<u64, Vec<OutcomeRecord>> = BTreeMap::new();
        for outcome in outcomes {
            steps.entry(outcome.step).or_default().push(outcome);
        }
        let found = reader.evaluations().expect("it can be read");
        prop_assert_eq!(found, steps.keys().copied().collect::<Vec<_>>());
        for (step, mut outcomes) in steps {
            outcomes.sort_by_key(|outcome| outcome.prompt_id);
            same(&records(reader.outcomes(step).expect("it can be read")), &outcomes)?;
        }
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for drop in &drops {
            let sum = sums.entry(drop.reason.clone()).or_default();
            *sum = sum.saturating_add(drop.count);
        }
        prop_assert_eq!(reader.dropped().expect("it can be read"), sums);
        same(&records(reader.drops().expect("it can be read")), &drops)?;
        same(&records(reader.events().expect("it can be read")), &events)?;
        let found: Vec<_> = reader.phases().expect("it can be read").into_iter().map(|phase| phase.record).collect();
        same(&found, &phases)?;
        let mut checkpoints = checkpoints;
        checkpoints.sort_by_key(|checkpoint| checkpoint.step);
        same(&records(reader.checkpoints().expect("it can be read")), &checkpoints)?;
    }
}

fn drawn(tokens: &[u32]) -> Segment {
    let logps: Vec<f32> = tokens.iter().map(|&token| -(token as f32)).collect();
    Segment {
        role: Role::Assistant,
        tokens: tokens.to_vec(),
        drawn: Some(Drawn { sampled_logps: logps.clone(), weight_versions: vec![1; logps.len()], logps }),
    }
}

/// Of five tokens, two of them a tool's.
fn two_turns() -> SampleRecord {
    let result = Segment { role: Role::Tool, tokens: vec![8, 9], drawn: None };
    SampleRecord {
        address: Address::new(ARM, SEED, 2, "dpo"),
        evaluation: None,
        prompt_id: u64::MAX,
        prompt: "<user>2+2?".into(),
        sample: 1,
        text: "4".into(),
        reward: 0.75,
        components: BTreeMap::new(),
        segments: [drawn(&[1, 2]), result, drawn(&[3])].map(SampleSegment::from).into(),
        finish: Finish::EndOfTurn,
        selected: Some("best".into()),
        dropped: None,
    }
}

#[test]
fn the_reference_s_words_go_to_the_tokens_that_were_drawn() {
    let (_root, mut store, reader) = store();
    let sample = two_turns();
    let other = SampleRecord { sample: 2, ..two_turns() };
    for record in [&sample, &other] {
        store.sample(record).expect("it can be written");
    }
    let error = store.reference(sample.key(), &[-0.5; 5]).expect_err("two are the tool's").to_string();
    assert_eq!(
        error,
        format!(
            "sample 1 of prompt {} (dpo/{SEED}, round 3, dpo) has 3 drawn tokens, but 5 reference log-probabilities \
             came for it; give one for each token that the policy drew",
            u64::MAX
        )
    );
    store.reference(sample.key(), &[-0.5, -0.25, -0.125]).expect("it can be written");
    // A sample that was not recorded.
    store.reference(SampleRecord { sample: 9, ..two_turns() }.key(), &[]).expect("it is passed over");
    let read = || {
        let mut samples = records(reader.samples(&SampleFilter::default()).expect("it can be read"));
        samples.pop().map(|last| (samples, last)).expect("there are two")
    };
    let mut expected = sample.clone();
    expected.segments[0].reference_logps = Some(vec![-0.5, -0.25]);
    expected.segments[2].reference_logps = Some(vec![-0.125]);
    store.flush().expect("it can be written");
    assert_eq!(read(), (vec![expected.clone()], other.clone()));

    // Recorded again, by an actor that died before the reference came: its words stay.
    store.sample(&sample).expect("it can be written");
    store.flush().expect("it can be written");
    assert_eq!(read(), (vec![expected.clone()], other.clone()));
    // Another first segment, and no last one: what was said of others does not.
    let mut shorter = sample;
    shorter.segments.truncate(2);
    shorter.segments[0] = drawn(&[1, 3]).into();
    store.sample(&shorter).expect("it can be written");
    store.flush().expect("it can be written");
    assert_eq!(read(), (vec![shorter], other));
}

#[test]
fn a_phase_has_its_beginning_its_progress_and_its_end() {
    let (_root, mut store, reader) = store();
    let begins = PhaseRecord {
        address: Address::new(ARM, SEED, 0, "dpo"),
        kind: "sampling".into(),
        part: 0,
        done: 0,
        total: 8,
        is_over: false,
    };
    let over = PhaseRecord { done: 8, is_over: true, ..begins.clone() };
    let read = || {
        let mut phases = reader.phases().expect("it can be read");
        assert_eq!(phases.len(), 1);
        phases.remove(0)
    };
    store.phase(&begins).expect("it can be written");
    store.flush().expect("it can be written");
    let first = read();
    assert_eq!((&first.record, first.ended), (&begins, None));
    store.phase(&PhaseRecord { done: 3, ..begins.clone() }).expect("it can be written");
    store.phase(&over).expect("it can be written");
    store.flush().expect("it can be written");
    let last = read();
    assert_eq!((&last.record, last.begun), (&over, first.begun));
    assert!(last.ended.is_some_and(|ended| ended >= last.begun));
    store.phase(&over).expect("it can be written");
    store.flush().expect("it can be written");
    assert_eq!(read(), last, "told twice");
}

#[test]
fn a_corrected_record_takes_the_place_of_the_first() {
    let (_root, mut store, reader) = store();
    let address = Address::new(ARM, SEED, 0, "dpo");
    let metrics = |loss: f64| MetricRecord {
        address: address.clone(),
        series: "dpo".into(),
        step: 1,
        part: 0,
        metrics: BTreeMap::from([("loss".into(), loss)]),
    };
    store.log(&metrics(0.5)).expect("it can be written");
    store.log(&metrics(0.25)).expect("it can be written");
    let event = |message: &str| EventRecord {
        key: Some("one".into()),
        address: Some(address.clone()),
        level: EventLevel::Warning,
        actor: "generator".into(),
        message: message.into(),
    };
    store.event(&event("it died")).expect("it can be written");
    store.event(&event("it died twice")).expect("it can be written");
    let drop = |count: u64| DropRecord { address: address.clone(), reason: "stale".into(), part: 0, count };
    store.drops(&drop(3)).expect("it can be written");
    store.drops(&drop(2)).expect("it can be written");
    store.flush().expect("it can be written");
    assert_eq!(records(reader.metrics(&MetricFilter::default()).expect("read")), [metrics(0.25)]);
    assert_eq!(records(reader.events().expect("read")), [event("it died twice")]);
    assert_eq!(reader.dropped().expect("read"), BTreeMap::from([("stale".to_owned(), 2)]));
}
