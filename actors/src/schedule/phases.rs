//! The phases of a run: what begins each, what its reports add up to, and what comes after.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arriero_buffers::Address;
use arriero_experiment::ReferenceWeights;
use arriero_results::summary::{change, held_out, suite_figures};
use arriero_results::{ArmSummary, Evaluation, Status};
use arriero_store::EventLevel;

use super::outline::{Source, Work};
use super::phase::{AfterCheckpoint, SamplingPhase};
use super::sampling_metrics::SamplingMetrics;
use super::{ArmProgress, Command, Cursor, Phase, Schedule};
use crate::event::{PhaseKind, RunEvent};
use crate::record::Record;

/// How many completions without a score a phase shows. The others are recorded only.
const SHOWN: u64 = 10;

/// What is measured of an arm, as the stage of an address and the series of metrics.
const EVALUATION: &str = "evaluation";

impl Schedule {
    /// The first thing of all.
    pub(super) fn start(&mut self) {
        for note in self.outline.notes.clone() {
            self.note(EventLevel::Warning, "conductor", note);
        }
        if self.outline.measures {
            return self.evaluate(PhaseKind::Baseline, self.outline.address_of_baseline(), 0);
        }
        // A baseline of no prompts.
        self.state.baseline = Some(Evaluation::default());
        self.begin_arm();
    }

    fn begin_arm(&mut self) {
        let cursor = self.state.cursor;
        let address = self.outline.address_of_arm(cursor, "begin");
        self.state.progress = ArmProgress::default();
        self.commands.push(Command::BeginArm { address: address.clone(), cursor });
        self.state.phase = Phase::Beginning { address };
    }

    /// Begins the stage where the run stands.
    pub(super) fn begin_stage(&mut self) {
        self.state.position = super::DatasetPosition::default();
        match &self.outline.stage(self.state.cursor).work {
            Work::Average { models } => self.average(*models),
            Work::Train(training) => match training.source {
                Source::Dataset { .. } => self.read(),
                Source::Samples { .. } | Source::SamplesOf { .. } => self.sample(),
            },
        }
    }

    /// What comes after a stage.
    pub(super) fn advance(&mut self) {
        if let Some(next) = self.outline.next(self.state.cursor) {
            self.state.cursor = next;
            return self.begin_stage();
        }
        if self.outline.measures {
            let address = self.outline.address_of_arm(self.state.cursor, EVALUATION);
            return self.evaluate(PhaseKind::Evaluation, address, self.state.progress.version);
        }
        let summary = self.summarise(None);
        self.state.arms.extend(summary);
        self.checkpoint(AfterCheckpoint::NextArm);
    }

    fn evaluate(&mut self, kind: PhaseKind, address: Address, version: u32) {
        self.enter(kind, address.clone(), self.outline.held_out);
        self.commands.push(Command::Evaluate { address: address.clone(), version });
        self.state.phase = Phase::Evaluating { address, version };
    }

    fn average(&mut self, models: u64) {
        let address = self.address();
        self.enter(PhaseKind::Averaging, address.clone(), models);
        self.commands.push(Command::Average { cursor: self.state.cursor });
        self.state.phase = Phase::Averaging { address };
    }

    fn sample(&mut self) {
        if self.catch_up() {
            return;
        }
        let address = self.address();
        self.enter(PhaseKind::Sampling, address, self.outline.prompts_of(self.state.cursor.round()));
        let sampling = self.begin_sampling(self.state.cursor, false);
        self.state.phase = Phase::Sampling(Box::new(sampling));
    }

    /// Lets the generator sample for a stage: now, or ahead of the learner.
    pub(super) fn begin_sampling(&mut self, cursor: Cursor, is_ahead: bool) -> SamplingPhase {
        let completions = match self.training(cursor).map(|training| &training.source) {
            Some(Source::Samples { completions, .. } | Source::SamplesOf { completions }) => *completions,
            Some(Source::Dataset { .. }) | None => 0,
        };
        let version = self.state.progress.version;
        self.commands.push(Command::Sample { cursor, version, is_ahead });
        SamplingPhase {
            address: self.outline.address(cursor),
            cursor,
            version,
            is_ahead,
            total: self.outline.prompts_of(cursor.round()),
            completions,
            metrics: SamplingMetrics::default(),
            outcomes: BTreeMap::new(),
            is_sampled: false,
            waited_since: None,
            unscored: 0,
        }
    }

    pub(super) fn sampling_progress(&mut self) {
        let Some(sampling) = self.state.sampling_now() else { return };
        let (done, total) = (sampling.outcomes.len() as u64, sampling.total);
        let (reward, rate) = (sampling.metrics.mean_reward(), sampling.metrics.tokens_per_second());
        self.progress(done, total, reward, rate);
    }

    /// Notes completions without a score. While sampling, too many of them end the run as soon as it is certain.
    pub(super) fn unscored(&mut self, address: &Address, causes: &[String]) {
        let before = self.state.sampling_now().map_or(0, |sampling| sampling.unscored);
        for (place, cause) in (before..).zip(causes) {
            let (level, actor) = (EventLevel::Warning, "reward worker");
            let message = format!("left out: {cause}");
            if place < SHOWN {
                self.note(level, actor, message);
            } else {
                self.record(Record::Event { address: None, level, actor, message });
            }
        }
        let Some(sampling) = self.state.sampling_at(address) else { return };
        sampling.unscored += causes.len() as u64;
        let (unscored, all) = (sampling.unscored, sampling.total * sampling.completions);
        let last = causes.last().map_or("", String::as_str);
        if let Some(cause) = self.outline.unscored.too_many(unscored as usize, all as usize, last) {
            self.fail(cause);
        }
    }

    pub(super) fn end_sampling(&mut self) {
        if !self.state.sampling_now().is_some_and(SamplingPhase::is_over) {
            return;
        }
        self.drop_stale();
        let Some(sampling) = self.state.sampling_now() else { return };
        let (address, cursor) = (sampling.address.clone(), sampling.cursor);
        let (reasons, accepted) = (sampling.dropped(), sampling.accepted());
        let metrics = sampling.metrics.finish(accepted, &reasons);
        let (tokens, seconds) = (sampling.metrics.tokens(), sampling.metrics.seconds());
        let waited = sampling.seconds(self.now);
        if self.state.progress.version == 0 && cursor.arm() == 0 && tokens > 0 {
            self.state.seconds_per_initial_token = seconds / tokens as f64;
        }
        self.state.progress.tokens_sampled += tokens;
        self.state.progress.seconds += waited;
        self.record(Record::Metrics {
            address: address.clone(),
            series: "rejection_sampling".to_string(),
            step: self.state.progress.version.into(),
            part: 0,
            metrics,
        });
        for (reason, count) in &reasons {
            self.count_dropped(&address, reason, *count);
        }
        if accepted == 0 {
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
            let message = format!(
                "arm {}, stage {}: no group of this round is of use, so there is nothing to train on ({})",
                address.arm,
                address.stage,
                reasons.join(", ")
            );
            self.note(EventLevel::Warning, "rejection sampler", message);
            return self.advance();
        }
        self.learn(accepted);
    }

    /// What comes after `trees` have come into the buffer: the reference, where it is needed, then the learner.
    pub(super) fn learn(&mut self, trees: u64) {
        match self.training(self.state.cursor).and_then(|training| training.reference) {
            Some(weights) => self.score_reference(weights, trees),
            None => self.train(trees),
        }
    }

    fn score_reference(&mut self, weights: ReferenceWeights, total: u64) {
        let version = match weights {
            ReferenceWeights::Initial => 0,
            ReferenceWeights::Start => self.state.progress.version,
        };
        let address = self.address();
        self.enter(PhaseKind::Reference, address.clone(), total);
        self.state.phase = Phase::Referencing { address, version, total, done: 0, began: self.now };
        self.command_reference(version);
    }

    /// Lets the reference score what has no scores yet.
    pub(super) fn command_reference(&mut self, version: u32) {
        let cursor = self.state.cursor;
        let source = self.training(cursor).map(|training| &training.source);
        let recorded = !matches!(source, Some(Source::Dataset { .. }));
        self.commands.push(Command::ScoreReference { cursor, version, recorded });
    }

    pub(super) fn reference_scored(&mut self) {
        let Phase::Referencing { done, total, .. } = &mut self.state.phase else { return };
        *done += 1;
        let (done, total) = (*done, *total);
        self.progress(done, total, None, None);
    }

    pub(super) fn referenced(&mut self) {
        let Phase::Referencing { began, total, .. } = self.state.phase else { return };
        self.state.progress.seconds += self.now - began;
        self.train(total);
    }

    /// Lets the learner train on the buffer's `fresh` trees.
    pub(super) fn train(&mut self, fresh: u64) {
        let cursor = self.state.cursor;
        let outline = Arc::clone(&self.outline);
        let Work::Train(training) = &outline.stage(cursor).work else { return };
        let trees = if training.accumulates {
            let kept = self.state.progress.kept.entry(Arc::clone(&outline.stage(cursor).name)).or_default();
            *kept += fresh;
            *kept
        } else {
            fresh
        };
        let portion = self.portion(training);
        let steps = (portion.epochs as u64).saturating_mul(trees.div_ceil(training.batch_size));
        let address = self.address();
        self.enter(PhaseKind::Training, address.clone(), steps);
        self.commands.push(Command::Train { cursor, portion });
        self.state.phase = Phase::Training { address, done: 0, steps, trees, fresh };
    }

    pub(super) fn stepped(
        &mut self,
        version: u32,
        metrics: BTreeMap<String, f64>,
        tokens: u64,
        seconds: f64,
    ) {
        let Phase::Training { done, .. } = &mut self.state.phase else { return };
        *done += 1;
        let done = *done;
        let progress = &mut self.state.progress;
        progress.version = version;
        progress.tokens_trained += tokens;
        progress.seconds += seconds;
        self.have_done(done);
        let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
        self.show(RunEvent::Step { done, metrics, rate });
        self.look_ahead();
    }

    pub(super) fn evaluated(&mut self, evaluation: Evaluation) {
        let figures = held_out(&evaluation);
        let is_baseline = self.state.baseline.is_none();
        // The baseline is that of every arm.
        let addresses: Vec<Address> = match is_baseline {
            true => {
                let arms = self.outline.arms().iter();
                arms.map(|arm| Address::new(Arc::clone(&arm.name), self.outline.seed, 0, EVALUATION))
                    .collect()
            }
            false => vec![self.outline.address_of_arm(self.state.cursor, EVALUATION)],
        };
        self.record_evaluation(&evaluation, &figures, &addresses);
        self.show(RunEvent::Evaluated { figures });
        if is_baseline {
            self.state.baseline = Some(evaluation);
            return self.begin_arm();
        }
        self.state.progress.seconds += evaluation.seconds;
        let summary = self.summarise(Some(&evaluation));
        self.state.arms.extend(summary);
        self.checkpoint(AfterCheckpoint::NextArm);
    }

    fn record_evaluation(
        &mut self,
        evaluation: &Evaluation,
        figures: &arriero_results::HeldOut,
        addresses: &[Address],
    ) {
        let step = u64::from(evaluation.version);
        let mut metrics = BTreeMap::from([
            ("held_out/kl".to_string(), evaluation.kl),
            ("held_out/mean_length".to_string(), figures.mean_length),
            ("held_out/tokens_sampled".to_string(), evaluation.tokens as f64),
            ("seconds".to_string(), evaluation.seconds),
        ]);
        for (name, estimate) in [
            ("prompt_accuracy", figures.prompt_accuracy),
            ("instruction_accuracy", figures.instruction_accuracy),
            ("reward", figures.reward),
        ] {
            if let Some(estimate) = estimate {
                metrics.insert(format!("held_out/{name}"), estimate.value);
            }
        }
        for address in addresses {
            let (address, metrics) = (address.clone(), metrics.clone());
            self.record(Record::Metrics { address, series: EVALUATION.to_string(), step, part: 0, metrics });
        }
        let outcomes = Arc::new(evaluation.outcomes.clone());
        for address in addresses {
            let (address, outcomes) = (address.clone(), Arc::clone(&outcomes));
            self.record(Record::Outcomes { address, step, outcomes });
        }
        for address in addresses {
            for result in &evaluation.suites {
                let (address, result) = (address.clone(), Box::new(result.clone()));
                self.record(Record::Suite { address, step, result });
            }
        }
    }

    /// The running arm in numbers. `None` until the baseline is known.
    pub(super) fn summarise(&self, after: Option<&Evaluation>) -> Option<ArmSummary> {
        let baseline = self.state.baseline.as_ref()?;
        let arm = self.outline.arm(self.state.cursor);
        let progress = &self.state.progress;
        Some(ArmSummary {
            arm: arm.name.to_string(),
            stages: arm.stage_names(),
            before: held_out(baseline),
            after: after.map(held_out),
            change: after.map(|after| change(baseline, after)),
            kl: after.map(|after| after.kl),
            suites: suite_figures(baseline, after),
            tokens_sampled: progress.tokens_sampled,
            tokens_trained: progress.tokens_trained,
            steps: progress.version.into(),
            dropped: progress.dropped.clone(),
            seconds: progress.seconds,
            checkpoint: None,
        })
    }

    pub(super) fn checkpoint(&mut self, then: AfterCheckpoint) {
        let cursor = self.state.cursor;
        let address = self.outline.address_of_arm(cursor, "checkpoint");
        let in_training = matches!(self.state.phase, Phase::Training { .. } | Phase::Evaluating { .. });
        let state = serde_json::json!({
            "format": 1,
            "seed": self.outline.seed,
            "arm": &*self.outline.arm(cursor).name,
            "round": cursor.round(),
            "stage": cursor.stage(),
            // A round's prompts are consumed when its training has begun.
            "prompts_consumed": (cursor.round() + u64::from(in_training)) * self.outline.prompts_per_round,
            "in_training": in_training,
            // Rows of the stage's dataset that this pass over it has read.
            "rows_read": self.state.position.rows,
        });
        self.enter(PhaseKind::Checkpoint, address.clone(), 1);
        self.commands.push(Command::Checkpoint { address: address.clone(), state });
        self.state.phase = Phase::Checkpointing { address, then };
    }

    pub(super) fn checkpointed(&mut self, directory: &Path, version: u32, state: serde_json::Value) {
        let Phase::Checkpointing { address, then } = self.state.phase.clone() else { return };
        self.state.phase = Phase::Idle;
        self.have_done(1);
        self.state.progress.is_checkpointed = true;
        self.record(Record::Checkpoint {
            address: address.clone(),
            step: version.into(),
            path: directory.to_path_buf(),
            manifest: state,
        });
        if let Some(summary) = self.state.arms.iter_mut().find(|summary| *summary.arm == *address.arm) {
            summary.checkpoint = Some(directory.display().to_string());
            // After an interruption the learner has finished one more step than it had reported.
            summary.steps = version.into();
        }
        match then {
            AfterCheckpoint::End(status, cause) => self.end(status, Some(cause)),
            AfterCheckpoint::NextArm => {
                self.show(RunEvent::ArmDone { arm: address.arm.to_string() });
                match self.outline.next_arm(self.state.cursor) {
                    Some(next) => {
                        self.state.cursor = next;
                        self.begin_arm();
                    }
                    None => self.end(Status::Completed, None),
                }
            }
        }
    }
}
