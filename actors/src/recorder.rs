//! The recorder: owns the run on disk, and sends every metric to the `metrics` crate as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{Address, ScoredGroup, Selection, SelectionRule};
use arriero_store::{
    ArmStore, CheckpointRecord, DropRecord, EventRecord, MetricRecord, OutcomeRecord, PhaseRecord, SampleKey,
    SampleRecord,
};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::context::{Context, TAKE_PATIENCE};
use crate::record::Record;
use crate::role::ActorRole;
use arriero_results::SuiteResult;

const WORKER: &str = "recorder";

/// Records written in one handler call.
const BATCH: usize = 64;

pub(crate) enum RecorderMessage {
    /// Look for records.
    Work,
    /// Write all that waits, and make it durable.
    Flush(RpcReplyPort<Result<(), String>>),
}

/// The stores by arm.
pub(crate) struct RecorderArguments {
    pub context: Context,
    pub stores: BTreeMap<String, ArmStore>,
}

#[derive(Default)]
pub(crate) struct Recorder;

pub(crate) struct RecorderState {
    context: Context,
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
        Ok(RecorderState { context: arguments.context, stores: arguments.stores })
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
                    let Some(lease) = state.context.records.take(WORKER, TAKE_PATIENCE) else { break };
                    state.context.faults.begin(ActorRole::Recorder);
                    state.write(&lease.item)?;
                    state.context.records.done(WORKER);
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
        self.context.records.close();
    }
}

impl RecorderState {
    fn flush(&mut self) -> Result<(), ActorProcessingErr> {
        while let Some(lease) = self.context.records.take(WORKER, std::time::Duration::ZERO) {
            self.write(&lease.item)?;
            self.context.records.done(WORKER);
        }
        for store in self.stores.values_mut() {
            store.flush()?;
        }
        Ok(())
    }

    fn store(&mut self, address: &Address) -> Result<&mut ArmStore, ActorProcessingErr> {
        let arm = &*address.arm;
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
                self.store(address)?.log(&record)?;
            }
            Record::Group { address, scored, rule, selection } => {
                for sample in sample_records(address, scored, *rule, selection) {
                    self.store(address)?.sample(&sample)?;
                }
            }
            Record::Reference { address, tree } => {
                for branch in &tree.branches {
                    let key = SampleKey { address, prompt_id: tree.prompt_id, sample: branch.sample };
                    self.store(address)?.reference(key, &branch.reference_logps)?;
                }
            }
            Record::Event { address, level, actor, message } => {
                let event = EventRecord {
                    key: None,
                    address: address.clone(),
                    level: *level,
                    actor: (*actor).to_string(),
                    message: message.clone(),
                };
                match address {
                    Some(address) => self.store(address)?.event(&event)?,
                    None => {
                        for store in self.stores.values_mut() {
                            store.event(&event)?;
                        }
                    }
                }
            }
            Record::Phase { address, kind, part, done, total, is_over } => {
                // What concerns no arm alone concerns each of them.
                let arms: Vec<Arc<str>> = match &*address.arm {
                    "" => self.stores.keys().map(|arm| arm.as_str().into()).collect(),
                    _ => vec![Arc::clone(&address.arm)],
                };
                for arm in arms {
                    let record = PhaseRecord {
                        address: Address { arm, ..address.clone() },
                        kind: kind.as_str().to_string(),
                        part: *part,
                        done: *done,
                        total: *total,
                        is_over: *is_over,
                    };
                    self.store(&record.address)?.phase(&record)?;
                }
            }
            Record::Outcomes { address, step, outcomes } => {
                for outcome in outcomes.iter() {
                    let record = OutcomeRecord {
                        address: address.clone(),
                        step: *step,
                        prompt_id: outcome.prompt_id,
                        instructions: outcome.instructions as u64,
                        followed: outcome.followed as u64,
                        reward: outcome.reward,
                        tokens: outcome.tokens as u64,
                        text: outcome.text.clone(),
                    };
                    self.store(address)?.outcome(&record)?;
                }
            }
            Record::Suite { address, step, result } => {
                let SuiteResult { report, outcomes } = &**result;
                let stage = format!("{}/{}", address.stage, report.suite).into();
                let address = Address { stage, ..address.clone() };
                arriero_eval::record::record(self.store(&address)?, &address, *step, report, outcomes)?;
            }
            Record::Drops { address, reason, part, count } => {
                let (reason, part, count) = (reason.clone(), *part, *count);
                let record = DropRecord { address: address.clone(), reason, part, count };
                self.store(address)?.drops(&record)?;
            }
            Record::Checkpoint { address, step, path, manifest } => {
                let (path, manifest) = (path.clone(), manifest.clone());
                let record = CheckpointRecord { address: address.clone(), step: *step, path, manifest };
                self.store(address)?.record_checkpoint(&record)?;
            }
            Record::Summary { address, summary } => self.store(address)?.write_summary(summary)?,
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
        segments: completion.segments.iter().cloned().map(Into::into).collect(),
        finish: completion.finish,
        selected: mark(completion.sample).map(str::to_string),
        dropped: dropped.or_else(|| unusable(score.reward)).map(str::to_string),
    });
    records.collect()
}
