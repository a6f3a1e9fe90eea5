//! Offline stages: a dataset comes into the buffer in portions, and each is trained on before the next is read.
//!
//! A dataset that one portion holds is read once, and all epochs go over it. A larger one is read once an epoch.

use std::collections::BTreeMap;

use arriero_results::Status;
use arriero_store::EventLevel;
use serde::{Deserialize, Serialize};

use super::outline::{Source, TrainingOutline};
use super::{Command, Phase, Schedule};
use crate::event::PhaseKind;
use crate::job::PortionJob;
use crate::record::Record;
use crate::report::{LeftOut, Portion};

/// How far an offline stage has come with its dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DatasetPosition {
    /// Passes over the dataset that are complete.
    passes: u64,
    /// Rows of this pass that were read.
    pub rows: u64,
    /// Portions that were trained on.
    pub portions: u64,
    /// Whether the pass has no more rows.
    is_over: bool,
}

impl DatasetPosition {
    /// Whether the buffer holds the whole dataset.
    fn is_whole(&self) -> bool {
        self.is_over && self.portions == 0
    }
}

impl Schedule {
    pub(super) fn read(&mut self) {
        let Some(TrainingOutline { source: Source::Dataset { rows, portion, .. }, .. }) =
            self.training(self.state.cursor)
        else {
            return;
        };
        let (from, rows, portion) = (self.state.position.rows, *rows, *portion);
        let address = self.address();
        self.enter(PhaseKind::Reading, address.clone(), (rows - from).min(portion));
        self.state.phase = Phase::Reading { address, from, trees: 0 };
        self.command_reading();
    }

    /// Lets the data reader fill the buffer from where the pass stands.
    pub(super) fn command_reading(&mut self) {
        let (cursor, from) = (self.state.cursor, self.state.position.rows);
        if let Some(TrainingOutline { source: Source::Dataset { rows, .. }, .. }) = self.training(cursor) {
            let rows = *rows;
            self.commands.push(Command::Read { cursor, from, rows });
        }
    }

    pub(super) fn have_read_some(&mut self, now: u64) {
        if let Phase::Reading { trees, .. } = &mut self.state.phase {
            *trees = now;
        }
    }

    /// A portion is in the buffer.
    pub(super) fn have_read(&mut self, portion: &Portion) {
        let Phase::Reading { from, .. } = &self.state.phase else { return };
        let read = portion.position - from;
        self.have_done(portion.accepted);
        self.state.progress.seconds += portion.seconds;
        (self.state.position.rows, self.state.position.is_over) = (portion.position, portion.is_last);
        if self.state.position.passes == 0 {
            self.record_reading(portion, read);
        }
        if portion.accepted > 0 {
            return self.learn(portion.accepted);
        }
        if self.state.position.portions > 0 {
            return self.after_portion();
        }
        let path = match self.training(self.state.cursor) {
            Some(TrainingOutline { source: Source::Dataset { path, .. }, .. }) => path.clone(),
            _ => String::new(),
        };
        self.end(Status::Failed, Some(format!("no row of {path} is of use ({})", listed(portion))));
    }

    /// The account of a portion, once: later passes read the same rows.
    fn record_reading(&mut self, portion: &Portion, read: u64) {
        let address = self.address();
        let accepted = portion.accepted as f64;
        let mut metrics = BTreeMap::from(
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
        for (reason, &LeftOut { count, .. }) in &portion.dropped {
            metrics.insert(format!("dropped/{reason}"), count as f64);
            self.count_dropped(&address, reason, count);
        }
        let (step, part) = (self.state.progress.version.into(), self.state.position.portions);
        let series = "data".to_string();
        self.record(Record::Metrics { address: address.clone(), series, step, part, metrics });
        if !portion.dropped.is_empty() {
            let (arm, stage) = (&address.arm, &address.stage);
            let message = format!("arm {arm}, stage {stage}: rows that are not used: {}", listed(portion));
            self.note(EventLevel::Warning, "data reader", message);
        }
    }

    /// What the learner is to make of the buffer.
    pub(super) fn portion(&self, training: &TrainingOutline) -> PortionJob {
        let epochs = training.epochs as usize;
        let Source::Dataset { rows, shuffle, .. } = &training.source else {
            return PortionJob::whole(epochs, true);
        };
        if self.state.position.is_whole() {
            return PortionJob::whole(epochs, *shuffle);
        }
        let steps = rows.div_ceil(training.batch_size) as usize;
        let total_steps = Some(epochs.saturating_mul(steps));
        PortionJob { number: self.state.position.portions, epochs: 1, total_steps, shuffle: *shuffle }
    }

    /// What comes after the training on a buffer: the stage's next portion, or the next stage.
    pub(super) fn after_portion(&mut self) {
        let Some(training) = self.training(self.state.cursor) else { return };
        let (epochs, is_offline) = (training.epochs, matches!(training.source, Source::Dataset { .. }));
        let position = &mut self.state.position;
        if !is_offline || position.is_whole() {
            return self.advance();
        }
        position.portions += 1;
        if position.is_over {
            *position = DatasetPosition { passes: position.passes + 1, rows: 0, is_over: false, ..*position };
        }
        if position.passes == epochs { self.advance() } else { self.read() }
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
