//! Offline stages: a dataset comes into the buffer in portions, and each is trained on before the next is read.
//!
//! A dataset that one portion holds is read once, and all epochs go over it. A larger one is read once an epoch.

use arriero_store::EventLevel;
use ractor::ActorProcessingErr;

use super::{ConductorState, Phase};
use crate::data_reader::{DataReaderMessage, Dropped, Portion, ReadingJob};
use crate::event::PhaseKind;
use crate::experiment::{ArmStage, Stage};
use crate::learner::PortionJob;
use crate::recorder::Record;
use crate::summary::Status;

/// How far an offline stage has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// Passes over the dataset that are complete.
    number: u64,
    /// Rows of this pass that were read.
    pub rows: u64,
    /// Portions that were trained on.
    portions: u64,
    /// Whether the pass has no more rows.
    is_over: bool,
}

impl Pass {
    /// Whether the buffer holds the whole dataset.
    fn is_whole(&self) -> bool {
        self.is_over && self.portions == 0
    }
}

impl ConductorState {
    /// Begins a stage of a round.
    pub(super) fn begin_stage(&mut self) -> Result<(), ActorProcessingErr> {
        self.pass = Pass::default();
        match &self.current_arm().stages[self.stage] {
            ArmStage::Average(stage) => self.average(stage.clone()),
            ArmStage::Train(stage) if stage.data.is_some() => self.read(),
            ArmStage::Train(_) => self.sample(),
        }
    }

    /// The rows that a pass of the running stage has.
    fn rows_of_pass(&self) -> u64 {
        self.context.rows.get(&(self.arm, self.stage)).copied().unwrap_or_default()
    }

    fn read(&mut self) -> Result<(), ActorProcessingErr> {
        let Stage { algorithm, training, data: Some(data), .. } = self.current_stage() else { return Ok(()) };
        let job = ReadingJob {
            data: data.clone(),
            rule: algorithm.objective().needs().selection,
            algorithm: algorithm.clone(),
            from: self.pass.rows,
            rows: self.rows_of_pass(),
            trees: data.portion(training.batch_size),
            budget: training.token_budget(&self.wiring.model, self.wiring.computes.learner),
        };
        self.enter(PhaseKind::Reading, (job.rows - job.from).min(job.trees as u64));
        self.crew.data_reader.cast(DataReaderMessage::Read(Box::new(job.clone())))?;
        self.phase = Phase::Reading { job };
        Ok(())
    }

    /// A portion is in the buffer.
    pub(super) fn have_read(&mut self, portion: Portion) -> Result<(), ActorProcessingErr> {
        let Phase::Reading { job } = &self.phase else { return Ok(()) };
        let (path, read) = (job.data.rows.path.clone(), portion.position - job.from);
        self.progress.seconds += portion.seconds;
        (self.pass.rows, self.pass.is_over) = (portion.position, portion.is_last);
        if self.pass.number == 0 {
            self.record_reading(&portion, read);
        }
        if portion.accepted == 0 {
            if self.pass.portions > 0 {
                return self.after_portion();
            }
            let cause = format!("no row of {path} is of use ({})", listed(&portion));
            self.end(Status::Failed, Some(cause));
            return Ok(());
        }
        let needs_reference = self.current_stage().algorithm.objective().needs().reference;
        if needs_reference { self.reference(portion.accepted) } else { self.train() }
    }

    /// The account of a portion, once: later passes read the same rows.
    fn record_reading(&mut self, portion: &Portion, read: u64) {
        let (arm, stage) = (self.current_arm().name.clone(), self.current_stage().name.clone());
        let (address, part) = (self.address(self.round, &stage), self.pass.portions);
        let accepted = portion.accepted as f64;
        let mut metrics = std::collections::BTreeMap::from(
            [
                ("rows", read as f64),
                ("accepted", accepted),
                ("truncated_responses", portion.truncated as f64),
                ("mean_tokens", portion.tokens as f64 / accepted.max(1.0)),
                ("mean_loss_tokens", portion.loss_tokens as f64 / accepted.max(1.0)),
                ("seconds", portion.seconds),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        for (reason, &Dropped { count, .. }) in &portion.dropped {
            metrics.insert(format!("dropped/{reason}"), count as f64);
            *self.progress.dropped.entry(reason.clone()).or_default() += count;
            self.record(Record::Drops { address: address.clone(), reason: reason.clone(), part, count });
        }
        let step = self.progress.version.into();
        self.record(Record::Metrics { address, series: "data".to_string(), step, part, metrics });
        if !portion.dropped.is_empty() {
            let message = format!("arm {arm}, stage {stage}: rows that are not used: {}", listed(portion));
            self.note(EventLevel::Warning, "data reader", message);
        }
    }

    /// What the learner is to make of the buffer.
    pub(super) fn portion(&self) -> PortionJob {
        let Stage { training, data, .. } = self.current_stage();
        let Some(data) = data else { return PortionJob::whole(training.epochs, true) };
        let shuffle = data.rows.shuffle;
        if self.pass.is_whole() {
            return PortionJob::whole(training.epochs, shuffle);
        }
        let steps = self.rows_of_pass().div_ceil(training.batch_size as u64) as usize;
        let total_steps = Some(training.epochs.saturating_mul(steps));
        PortionJob { number: self.pass.portions, epochs: 1, total_steps, shuffle }
    }

    /// What comes after the training on a buffer: the stage's next portion, or the next stage.
    pub(super) fn after_portion(&mut self) -> Result<(), ActorProcessingErr> {
        let Stage { training, data, .. } = self.current_stage();
        let epochs = training.epochs as u64;
        if data.is_none() || self.pass.is_whole() {
            return self.advance();
        }
        self.pass.portions += 1;
        if self.pass.is_over {
            self.pass = Pass { number: self.pass.number + 1, rows: 0, is_over: false, ..self.pass };
        }
        if self.pass.number == epochs { self.advance() } else { self.read() }
    }
}

/// `reason: count, …`.
fn listed(portion: &Portion) -> String {
    let reasons = portion.dropped.iter().map(|(reason, dropped)| match &dropped.first {
        Some(first) => format!("{reason}: {} (first: {first})", dropped.count),
        None => format!("{reason}: {}", dropped.count),
    });
    reasons.collect::<Vec<_>>().join(", ")
}
