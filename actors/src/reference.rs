//! The reference: a frozen policy, which scores every response once and keeps the result with it.

use std::sync::Arc;

use arriero_buffers::{Address, Tree};
use arriero_policy::model::Model;
use arriero_policy::scoring::score_reference;
use arriero_policy::snapshot::WeightSource;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::conductor::ConductorMessage;
use crate::faults::Role;
use crate::recorder::Record;
use crate::wiring::Wiring;

/// Where the trees belong, for the record.
#[derive(Debug, Clone)]
pub(crate) struct ReferenceJob {
    pub arm: String,
    pub stage: String,
    pub round: u64,
    /// Of the reference's weights: the initial ones have 0, the policy's are pulled.
    pub version: u32,
    /// Whether the responses were recorded as samples; rows of a dataset are not.
    pub recorded: bool,
}

#[derive(Debug)]
pub(crate) enum ReferenceMessage {
    /// Score what in the buffer has no score yet, one tree a message.
    Score(ReferenceJob),
}

#[derive(Default)]
pub(crate) struct Reference;

pub(crate) struct ReferenceState {
    wiring: Wiring,
    /// Built when first needed, with the arm and the version of its weights; all arms share the initial ones.
    model: Option<(String, u32, Model)>,
}

impl ThreadLocalActor for Reference {
    type Msg = ReferenceMessage;
    type State = ReferenceState;
    type Arguments = Wiring;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        wiring: Wiring,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(ReferenceState { wiring, model: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        ReferenceMessage::Score(job): Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let ReferenceState { wiring, model } = state;
        if wiring.shutdown.has_begun() {
            return Ok(());
        }
        let Some(tree) = wiring.buffer().without_reference() else {
            wiring.tell(ConductorMessage::Referenced);
            return Ok(());
        };
        wiring.faults.begin(Role::Reference);
        let of = |job: &ReferenceJob| if job.version == 0 { String::new() } else { job.arm.clone() };
        let known = model.take().filter(|(arm, version, _)| *arm == of(&job) && *version == job.version);
        let known = match known {
            Some(known) => known,
            None => {
                let weights = match job.version {
                    0 => Arc::clone(&wiring.initial),
                    version => wiring.weights.pull(version)?,
                };
                (of(&job), job.version, weights.in_precision(wiring.computes.reference).model()?.packed())
            }
        };
        let (_, _, model) = model.insert(known);
        // A tree is scored alone, so that its scores do not depend on what else was there.
        let mut trees: [Tree; 1] = [tree];
        score_reference(model, &mut trees, usize::MAX)?;
        let [tree] = trees;
        if job.recorded {
            let address = Address::new(job.arm.as_str(), wiring.plan.seed, job.round, job.stage.as_str());
            let record = Record::Reference { address, tree: tree.clone() };
            wiring.push(&wiring.records, record)?;
        }
        wiring.buffer().replace(tree);
        wiring.tell(ConductorMessage::ReferenceScored);
        myself.cast(ReferenceMessage::Score(job))?;
        Ok(())
    }
}
