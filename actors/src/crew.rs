//! The actors that the conductor supervises, each on a thread of its own.

use std::collections::HashMap;
use std::time::Duration;

use ractor::thread_local::{ThreadLocalActor, ThreadLocalActorSpawner};
use ractor::{ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, SpawnErr};

use crate::conductor::ConductorMessage;
use crate::data_reader::{DataReader, DataReaderMessage};
use crate::evaluator::{Evaluator, EvaluatorMessage};
use crate::faults::Role;
use crate::generator::{Generator, GeneratorMessage};
use crate::learner::{Learner, LearnerArguments, LearnerMessage};
use crate::recorder::{Recorder, RecorderArguments, RecorderMessage};
use crate::reference::{Reference, ReferenceMessage};
use crate::rejection_sampler::{RejectionSampler, RejectionSamplerMessage};
use crate::reward_worker::{RewardWorker, RewardWorkerMessage};
use crate::run::RunContext;
use crate::wiring::Wiring;

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
    /// Starts everybody. Also returns who is who.
    pub async fn assemble(
        context: &RunContext,
        wiring: &Wiring,
        conductor: &ActorRef<ConductorMessage>,
    ) -> Result<(Self, HashMap<ActorId, Role>), ActorProcessingErr> {
        let supervisor = || conductor.get_cell();
        let learner = LearnerArguments {
            wiring: wiring.clone(),
            compute: context.computes.learner,
            masters: context.masters.clone(),
        };
        let recorder = RecorderArguments { wiring: wiring.clone(), stores: context.take_stores() };
        let crew = Crew {
            recorder: spawn::<Recorder>(recorder, supervisor()).await?,
            learner: spawn::<Learner>(learner, supervisor()).await?,
            reference: spawn::<Reference>(wiring.clone(), supervisor()).await?,
            evaluator: spawn::<Evaluator>(wiring.clone(), supervisor()).await?,
            rejection_sampler: spawn::<RejectionSampler>(wiring.clone(), supervisor()).await?,
            reward_worker: spawn::<RewardWorker>(wiring.clone(), supervisor()).await?,
            generator: spawn::<Generator>(wiring.clone(), supervisor()).await?,
            data_reader: spawn::<DataReader>(wiring.clone(), supervisor()).await?,
        };
        let roles = Role::ALL.iter().map(|&role| (crew.cell(role).get_id(), role)).collect();
        Ok((crew, roles))
    }

    /// Starts an actor that owns no state in the place of one that died.
    pub async fn restart(
        &mut self,
        role: Role,
        wiring: &Wiring,
        conductor: &ActorRef<ConductorMessage>,
    ) -> Result<ActorId, ActorProcessingErr> {
        let (wiring, supervisor) = (wiring.clone(), conductor.get_cell());
        match role {
            Role::DataReader => self.data_reader = spawn::<DataReader>(wiring, supervisor).await?,
            Role::Generator => self.generator = spawn::<Generator>(wiring, supervisor).await?,
            Role::RewardWorker => self.reward_worker = spawn::<RewardWorker>(wiring, supervisor).await?,
            Role::RejectionSampler => {
                self.rejection_sampler = spawn::<RejectionSampler>(wiring, supervisor).await?;
            }
            Role::Reference => self.reference = spawn::<Reference>(wiring, supervisor).await?,
            Role::Evaluator => self.evaluator = spawn::<Evaluator>(wiring, supervisor).await?,
            Role::Learner | Role::Recorder => return Err("it owns state that is lost".into()),
        }
        Ok(self.cell(role).get_id())
    }

    fn cell(&self, role: Role) -> ActorCell {
        match role {
            Role::DataReader => self.data_reader.get_cell(),
            Role::Generator => self.generator.get_cell(),
            Role::RewardWorker => self.reward_worker.get_cell(),
            Role::RejectionSampler => self.rejection_sampler.get_cell(),
            Role::Reference => self.reference.get_cell(),
            Role::Learner => self.learner.get_cell(),
            Role::Evaluator => self.evaluator.get_cell(),
            Role::Recorder => self.recorder.get_cell(),
        }
    }

    /// Asks everybody to stop after the message in hand, and waits for them: libtorch must not be computing
    /// on another thread while the process ends.
    pub async fn stop(&self) {
        for role in Role::ALL {
            self.cell(role).stop(None);
        }
        for cell in Role::ALL.map(|role| self.cell(role)) {
            if cell.get_status() != ActorStatus::Stopped {
                let _ = cell.wait(Some(STOP_PATIENCE)).await;
            }
        }
    }
}

/// An actor without a name, since names are global to the process and a process may have many runs,
/// on a thread of its own, since tensors are bound to one and its work blocks.
async fn spawn<A: ThreadLocalActor>(
    arguments: A::Arguments,
    supervisor: ActorCell,
) -> Result<ActorRef<A::Msg>, SpawnErr> {
    let (actor, _) = A::spawn_linked(None, arguments, supervisor, ThreadLocalActorSpawner::new()).await?;
    Ok(actor)
}
