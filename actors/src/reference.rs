//! The reference: a frozen policy. It scores every response once, and keeps the result with the response.

use std::sync::Arc;

use arriero_buffers::Tree;
use arriero_policy::model::Model;
use arriero_policy::scoring::score_reference;
use arriero_policy::snapshot::WeightSource;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::Context;
use crate::job::ReferenceJob;
use crate::record::Record;
use crate::report::News;
use crate::role::ActorRole;

#[derive(Debug)]
pub(crate) enum ReferenceMessage {
    /// Score what in the buffer has no score yet, one tree a message.
    Score(ReferenceJob),
}

#[derive(Default)]
pub(crate) struct Reference;

pub(crate) struct ReferenceState {
    context: Context,
    /// Built when first needed, with the arm and the version of its weights. All arms share the initial ones.
    model: Option<(String, u32, Model)>,
}

impl ThreadLocalActor for Reference {
    type Msg = ReferenceMessage;
    type State = ReferenceState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(ReferenceState { context, model: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        ReferenceMessage::Score(job): Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let ReferenceState { context, model } = state;
        if context.shutdown.has_begun() {
            return Ok(());
        }
        let Some(tree) = context.buffer().without_reference() else {
            context.tell(&job.address, News::Referenced);
            return Ok(());
        };
        context.faults.begin(ActorRole::Reference);
        let of =
            |job: &ReferenceJob| if job.version == 0 { String::new() } else { job.address.arm.to_string() };
        let known = model.take().filter(|(arm, version, _)| *arm == of(&job) && *version == job.version);
        let known = match known {
            Some(known) => known,
            None => {
                let weights = match job.version {
                    0 => Arc::clone(&context.initial),
                    version => context.weights.pull(version)?,
                };
                (of(&job), job.version, weights.in_precision(context.computes.reference).model()?.packed())
            }
        };
        let (_, _, model) = model.insert(known);
        // A tree is scored alone, so that its scores do not depend on what else was there.
        let mut trees: [Tree; 1] = [tree];
        score_reference(model, &mut trees, usize::MAX)?;
        let [tree] = trees;
        if job.recorded {
            let record = Record::Reference { address: job.address.clone(), tree: tree.clone() };
            context.push(&context.records, record)?;
        }
        context.buffer().replace(tree);
        context.tell(&job.address, News::ReferenceScored);
        myself.cast(ReferenceMessage::Score(job))?;
        Ok(())
    }
}
