//! The actors that the conductor supervises, each on a thread of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arriero_policy::snapshot::Snapshot;
use arriero_store::ArmStore;
use ractor::thread_local::{ThreadLocalActor, ThreadLocalActorSpawner};
use ractor::{ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, SpawnErr};

use crate::context::Context;
use crate::data_reader::{DataReader, DataReaderMessage};
use crate::evaluator::{Evaluator, EvaluatorMessage};
use crate::generator::{Generator, GeneratorMessage};
use crate::learner::{Learner, LearnerArguments, LearnerMessage};
use crate::recorder::{Recorder, RecorderArguments, RecorderMessage};
use crate::reference::{Reference, ReferenceMessage};
use crate::rejection_sampler::{RejectionSampler, RejectionSamplerMessage};
use crate::reward_worker::{RewardWorker, RewardWorkerMessage};
use crate::role::ActorRole;

/// How long an actor may take over the message in hand when the run ends.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Crew {
    pub data_reader: ActorRef<DataReaderMessage>,
    pub generator: ActorRef<GeneratorMessage>,
    pub reward_worker: ActorRef<RewardWorkerMessage>,
    pub rejection_sampler: ActorRef<RejectionSamplerMessage>,
    pub reference: ActorRef<ReferenceMessage>,
    pub learner: ActorRef<LearnerMessage>,
    pub evaluator: ActorRef<EvaluatorMessage>,
    pub recorder: ActorRef<RecorderMessage>,
}

impl Crew {
    /// Starts everybody. Also returns who is who. `masters` are the weights that every arm starts from, in f32. There
    /// is one store an arm.
    pub async fn assemble(
        context: &Context,
        masters: Arc<Snapshot>,
        stores: BTreeMap<String, ArmStore>,
        conductor: ActorCell,
    ) -> Result<(Self, HashMap<ActorId, ActorRole>), ActorProcessingErr> {
        let supervisor = || conductor.clone();
        let compute = context.computes.learner;
        let learner = LearnerArguments { context: context.clone(), compute, masters };
        let recorder = RecorderArguments { context: context.clone(), stores };
        let crew = Crew {
            recorder: spawn::<Recorder>(recorder, supervisor()).await?,
            learner: spawn::<Learner>(learner, supervisor()).await?,
            reference: spawn::<Reference>(context.clone(), supervisor()).await?,
            evaluator: spawn::<Evaluator>(context.clone(), supervisor()).await?,
            rejection_sampler: spawn::<RejectionSampler>(context.clone(), supervisor()).await?,
            reward_worker: spawn::<RewardWorker>(context.clone(), supervisor()).await?,
            generator: spawn::<Generator>(context.clone(), supervisor()).await?,
            data_reader: spawn::<DataReader>(context.clone(), supervisor()).await?,
        };
        let roles = ActorRole::ALL.iter().map(|&role| (crew.cell(role).get_id(), role)).collect();
        Ok((crew, roles))
    }

    /// Starts an actor that owns no state in the place of one that died.
    pub async fn restart(
        &mut self,
        role: ActorRole,
        context: &Context,
        supervisor: ActorCell,
    ) -> Result<ActorId, ActorProcessingErr> {
        let context = context.clone();
        match role {
            ActorRole::DataReader => self.data_reader = spawn::<DataReader>(context, supervisor).await?,
            ActorRole::Generator => self.generator = spawn::<Generator>(context, supervisor).await?,
            ActorRole::RewardWorker => {
                self.reward_worker = spawn::<RewardWorker>(context, supervisor).await?
            }
            ActorRole::RejectionSampler => {
                self.rejection_sampler = spawn::<RejectionSampler>(context, supervisor).await?;
            }
            ActorRole::Reference => self.reference = spawn::<Reference>(context, supervisor).await?,
            ActorRole::Evaluator => self.evaluator = spawn::<Evaluator>(context, supervisor).await?,
            ActorRole::Learner | ActorRole::Recorder => return Err("it owns state that is lost".into()),
        }
        Ok(self.cell(role).get_id())
    }

    fn cell(&self, role: ActorRole) -> ActorCell {
        match role {
            ActorRole::DataReader => self.data_reader.get_cell(),
            ActorRole::Generator => self.generator.get_cell(),
            ActorRole::RewardWorker => self.reward_worker.get_cell(),
            ActorRole::RejectionSampler => self.rejection_sampler.get_cell(),
            ActorRole::Reference => self.reference.get_cell(),
            ActorRole::Learner => self.learner.get_cell(),
            ActorRole::Evaluator => self.evaluator.get_cell(),
            ActorRole::Recorder => self.recorder.get_cell(),
        }
    }

    /// Asks everybody to stop after the message in hand, and waits for them. No thread may still compute with libtorch
    /// while the process ends.
    pub async fn stop(&self) {
        for role in ActorRole::ALL {
            self.cell(role).stop(None);
        }
        for cell in ActorRole::ALL.map(|role| self.cell(role)) {
            if cell.get_status() != ActorStatus::Stopped {
                let _ = cell.wait(Some(STOP_PATIENCE)).await;
            }
        }
    }
}

/// Starts an actor without a name: names are global to the process, and a process may have many runs. The actor has a
/// thread of its own: tensors are bound to one, and its work blocks.
async fn spawn<A: ThreadLocalActor>(
    arguments: A::Arguments,
    supervisor: ActorCell,
) -> Result<ActorRef<A::Msg>, SpawnErr> {
    let (actor, _) = A::spawn_linked(None, arguments, supervisor, ThreadLocalActorSpawner::new()).await?;
    Ok(actor)
}
