//! The recorder: owns the run on disk, and sends every metric to the `metrics` crate as well.

use std::collections::BTreeMap;

use arriero_buffers::{Address, ScoredGroup, Selection, SelectionRule};
use arriero_store::{ArmStore, MetricRecord, SampleKey, SampleRecord};
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
            Record::Metrics { address, series, step, metrics } => {
                publish(&address.arm, series, metrics);
                let record = MetricRecord {
                    arm: address.arm.to_string(),
                    stage: series.clone(),
                    step: *step,
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
                    let (stage, round) = (&*address.stage, address.round);
                    let key = SampleKey { stage, round, prompt_id: tree.prompt_id, sample: branch.sample };
                    self.store(address)?.reference(key, &branch.reference_logps)?;
                }
            }
            Record::Event { address: Some(address), level, actor, message } => {
                self.store(address)?.event(*level, actor, message)?;
            }
            Record::Event { address: None, level, actor, message } => {
                for store in self.stores.values_mut() {
                    store.event(*level, actor, message)?;
                }
            }
            Record::PhaseBegan { .. } | Record::PhaseEnded { .. } | Record::Outcomes { .. } => {}
            Record::Suite { address, step, result } => {
                let SuiteResult { report, outcomes } = &**result;
                let stage = format!("evaluation/{}", report.suite);
                let store = self.store(address)?;
                arriero_eval::record::record(store, &address.arm, &stage, *step, report, outcomes)?;
            }
            Record::Drops { address, reason, count } => {
                self.store(address)?.drops(&address.stage, reason, *count)?;
            }
            Record::Checkpoint { address, step, path, manifest } => {
                self.store(address)?.record_checkpoint(*step, path, manifest)?;
            }
            Record::Summary { address, summary } => self.store(address)?.write_summary(summary)?,
        }
        Ok(())
    }
}

/// Sets the gauges `arriero_NAME{arm, stage}`.
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
        stage: address.stage.to_string(),
        round: address.round,
        prompt_id: group.prompt.id,
        prompt: prompt.clone(),
        sample: completion.sample,
        text: completion.text.clone(),
        reward: score.reward,
        components: score.components.clone(),
        tokens: completion.drawn_tokens().collect(),
        logps: completion.logps().collect(),
        sampled_logps: completion.sampled_logps().collect(),
        reference_logps: None,
        weight_versions: completion.weight_versions().collect(),
        finish: completion.finish,
        selected: mark(completion.sample).map(str::to_string),
        dropped: dropped.or_else(|| unusable(score.reward)).map(str::to_string),
    });
    records.collect()
}
