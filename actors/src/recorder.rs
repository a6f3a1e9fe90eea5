//! The recorder: owns the run on disk, and sends every metric to the `metrics` crate as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{
    Address, Completion, Drawn, Role as Speaker, ScoredGroup, Segment, Selection, SelectionRule, Tree,
};
use arriero_store::{
    ArmStore, CheckpointRecord, DropRecord, EventLevel, EventRecord, MetricRecord, SampleKey, SampleRecord,
};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::faults::Role;
use crate::suites::SuiteResult;
use crate::wiring::{TAKE_PATIENCE, Wiring};

const WORKER: &str = "recorder";

/// Records written in one handler call.
const BATCH: usize = 64;

/// Something to write down.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// A logged step.
    Metrics { address: Address, series: String, step: u64, part: u64, metrics: BTreeMap<String, f64> },
    /// A scored group and what became of it.
    Group { address: Address, scored: Arc<ScoredGroup>, rule: SelectionRule, selection: Selection },
    /// A tree with its reference log-probabilities, which its samples did not have when they were recorded.
    Reference { address: Address, tree: Tree },
    /// Something that happened; without an arm it concerns all of them.
    Event { arm: Option<String>, level: EventLevel, actor: &'static str, message: String },
    /// What came of a suite of the evaluation after `step` steps.
    Suite { address: Address, step: u64, result: Box<SuiteResult> },
    /// Groups or rows that were not used; rows of a dataset are counted by the portion that they are a part of.
    Drops { address: Address, reason: String, part: u64, count: u64 },
    /// Weights were written.
    Checkpoint { address: Address, step: u64, path: std::path::PathBuf, manifest: serde_json::Value },
    /// An arm's part of the final table.
    Summary { arm: String, summary: serde_json::Value },
}

pub(crate) enum RecorderMessage {
    /// Look for records.
    Work,
    /// Write all that waits, and make it durable.
    Flush(RpcReplyPort<Result<(), String>>),
}

/// The stores by arm.
pub(crate) struct RecorderArguments {
    pub wiring: Wiring,
    pub stores: BTreeMap<String, ArmStore>,
}

#[derive(Default)]
pub(crate) struct Recorder;

pub(crate) struct RecorderState {
    wiring: Wiring,
    stores: BTreeMap<String, ArmStore>,
}

impl ThreadLocalActor for Recorder {
    type Msg = RecorderMessage;
    type State = RecorderState;
    type Arguments = RecorderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: RecorderArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(RecorderMessage::Work)?;
        Ok(RecorderState { wiring: arguments.wiring, stores: arguments.stores })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RecorderMessage::Work => {
                for _ in 0..BATCH {
                    let Some(lease) = state.wiring.records.take(WORKER, TAKE_PATIENCE) else { break };
                    state.wiring.faults.begin(Role::Recorder);
                    state.write(&lease.item)?;
                    state.wiring.records.done(WORKER);
                }
                myself.cast(RecorderMessage::Work)?;
            }
            RecorderMessage::Flush(reply) => {
                let _ = reply.send(state.flush().map_err(|error| error.to_string()));
            }
        }
        Ok(())
    }
}

impl Drop for RecorderState {
    /// Nobody waits for a recorder that is gone.
    fn drop(&mut self) {
        self.wiring.records.close();
    }
}

impl RecorderState {
    fn flush(&mut self) -> Result<(), ActorProcessingErr> {
        while let Some(lease) = self.wiring.records.take(WORKER, std::time::Duration::ZERO) {
            self.write(&lease.item)?;
            self.wiring.records.done(WORKER);
        }
        for store in self.stores.values_mut() {
            store.flush()?;
        }
        Ok(())
    }

    fn store(&mut self, arm: &str) -> Result<&mut ArmStore, ActorProcessingErr> {
        self.stores.get_mut(arm).ok_or_else(|| format!("there is no store of arm \"{arm}\"").into())
    }

    fn write(&mut self, record: &Record) -> Result<(), ActorProcessingErr> {
        match record {
            Record::Metrics { address, series, step, part, metrics } => {
                publish(&address.arm, series, metrics);
                let record = MetricRecord {
                    address: address.clone(),
                    series: series.clone(),
                    step: *step,
                    part: *part,
                    metrics: metrics.clone(),
                };
                self.store(&address.arm)?.log(&record)?;
            }
            Record::Group { address, scored, rule, selection } => {
                for sample in sample_records(address, scored, *rule, selection) {
                    self.store(&address.arm)?.sample(&sample)?;
                }
            }
            Record::Reference { address, tree } => {
                for branch in &tree.branches {
                    let key = SampleKey { address, prompt_id: tree.prompt_id, sample: branch.sample };
                    self.store(&address.arm)?.reference(key, &branch.reference_logps)?;
                }
            }
            Record::Event { arm, level, actor, message } => {
                let event = EventRecord {
                    key: None,
                    address: None,
                    level: *level,
                    actor: (*actor).to_string(),
                    message: message.clone(),
                };
                match arm {
                    Some(arm) => self.store(arm)?.event(&event)?,
                    None => {
                        for store in self.stores.values_mut() {
                            store.event(&event)?;
                        }
                    }
                }
            }
            Record::Suite { address, step, result } => {
                let SuiteResult { report, outcomes } = &**result;
                let stage = format!("evaluation/{}", report.suite).into();
                let address = Address { stage, ..address.clone() };
                arriero_eval::record::record(self.store(&address.arm)?, &address, *step, report, outcomes)?;
            }
            Record::Drops { address, reason, part, count } => {
                let (reason, part, count) = (reason.clone(), *part, *count);
                let record = DropRecord { address: address.clone(), reason, part, count };
                self.store(&address.arm)?.drops(&record)?;
            }
            Record::Checkpoint { address, step, path, manifest } => {
                let (path, manifest) = (path.clone(), manifest.clone());
                let record = CheckpointRecord { address: address.clone(), step: *step, path, manifest };
                self.store(&address.arm)?.record_checkpoint(&record)?;
            }
            Record::Summary { arm, summary } => self.store(arm)?.write_summary(summary)?,
        }
        Ok(())
    }
}

/// Sets the gauges `arriero_NAME{arm, stage}`, where the stage is the series.
fn publish(arm: &str, stage: &str, values: &BTreeMap<String, f64>) {
    for (name, value) in values {
        let name: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
        metrics::gauge!(format!("arriero_{name}"), "arm" => arm.to_string(), "stage" => stage.to_string())
            .set(*value);
    }
}

fn sample_records(
    address: &Address,
    scored: &ScoredGroup,
    rule: SelectionRule,
    selection: &Selection,
) -> Vec<SampleRecord> {
    let group = &scored.group;
    let (selected, dropped): (Vec<u32>, Option<&'static str>) = match selection {
        Selection::Accepted(tree) => (tree.branches.iter().map(|branch| branch.sample).collect(), None),
        Selection::Dropped(reason) => (Vec::new(), Some(reason)),
    };
    let prompt: String =
        group.prompt.messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
    let mark = |sample: u32| {
        let position = selected.iter().position(|&chosen| chosen == sample)?;
        Some(rule.role(position))
    };
    // Why a sample is not used although its group is.
    let unusable = |reward: f32| (!reward.is_finite()).then_some("reward_not_finite");
    let records = group.completions.iter().zip(&scored.scores).map(|(completion, score)| SampleRecord {
        address: address.clone(),
        evaluation: None,
        prompt_id: group.prompt.id,
        prompt: prompt.clone(),
        sample: completion.sample,
        text: completion.text.clone(),
        reward: score.reward,
        components: score.components.clone(),
        segments: vec![segment(completion).into()],
        finish: completion.finish,
        selected: mark(completion.sample).map(str::to_string),
        dropped: dropped.or_else(|| unusable(score.reward)).map(str::to_string),
    });
    records.collect()
}

/// A completion of one turn, all of which the policy drew.
fn segment(completion: &Completion) -> Segment {
    Segment {
        role: Speaker::Assistant,
        tokens: completion.tokens.clone(),
        drawn: Some(Drawn {
            logps: completion.logps.clone(),
            sampled_logps: completion.sampled_logps.clone(),
            weight_versions: completion.weight_versions.clone(),
        }),
    }
}
