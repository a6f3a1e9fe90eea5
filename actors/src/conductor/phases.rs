//! The phases of a run: what begins each, what its reports add up to, and what comes after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arriero_buffers::Address;
use arriero_store::EventLevel;
use ractor::ActorProcessingErr;

use super::{AfterCheckpoint, ArmProgress, ConductorState, Phase, SamplingPhase};
use crate::evaluator::{Evaluation, EvaluationJob, EvaluatorMessage};
use crate::event::{PhaseKind, RunEvent};
use crate::experiment::{AverageStage, ExperienceOf, ReferenceWeights, StartFrom};
use crate::generator::{GenerationJob, GeneratorMessage};
use crate::learner::{CheckpointJob, LearnerMessage, TrainingJob};
use crate::recorder::Record;
use crate::reference::{ReferenceJob, ReferenceMessage};
use crate::rejection_sampler::SelectionJob;
use crate::sampling_metrics::SamplingMetrics;
use crate::summary::{ArmSummary, Status, change, held_out, suite_figures};
use crate::wiring::Recipe;

/// What evaluations have in the place of a stage's name, and what the series of their metrics is called.
const EVALUATION: &str = "evaluation";

/// Completions without a score that a phase shows; the others are recorded only.
const SHOWN: usize = 10;

impl ConductorState {
    /// The first thing to do after a stage's training.
    pub(super) fn advance(&mut self) -> Result<(), ActorProcessingErr> {
        self.stage += 1;
        if self.stage == self.current_arm().stages.len() {
            self.stage = 0;
            self.round += 1;
        }
        if self.round < self.current_arm().rounds {
            return self.begin_stage();
        }
        // Names of the arm's last stage label what follows.
        self.stage = self.current_arm().stages.len() - 1;
        self.round = self.current_arm().rounds - 1;
        if self.measures_nothing() {
            return self.close_arm_unmeasured();
        }
        self.evaluate(self.progress.version)
    }

    /// The first thing of all.
    pub(super) fn start(&mut self) -> Result<(), ActorProcessingErr> {
        for note in self.context.notes.iter() {
            self.note(EventLevel::Warning, "conductor", note.clone());
        }
        if self.measures_nothing() {
            // A baseline of no prompts.
            self.baseline = Some(Evaluation::default());
            return self.begin_arm();
        }
        self.evaluate(0)
    }

    /// True without held-out prompts and suites.
    fn measures_nothing(&self) -> bool {
        self.context.held_out.is_empty() && self.context.plan.evaluation.suites.is_empty()
    }

    /// The end of an arm without held-out prompts.
    fn close_arm_unmeasured(&mut self) -> Result<(), ActorProcessingErr> {
        let summary = self.summarise(None);
        self.arms.extend(summary);
        self.checkpoint(AfterCheckpoint::NextArm)
    }

    pub(super) fn evaluate(&mut self, version: u32) -> Result<(), ActorProcessingErr> {
        let prompts = Arc::clone(&self.context.held_out);
        let kind = if self.baseline.is_none() { PhaseKind::Baseline } else { PhaseKind::Evaluation };
        self.enter(kind, prompts.len() as u64);
        let job = EvaluationJob { version, prompts };
        self.crew.evaluator.cast(EvaluatorMessage::Evaluate(job.clone()))?;
        self.phase = Phase::Evaluating(job);
        Ok(())
    }

    pub(super) fn begin_arm(&mut self) -> Result<(), ActorProcessingErr> {
        (self.round, self.stage) = (0, 0);
        self.progress = ArmProgress::default();
        self.crew.learner.cast(LearnerMessage::Begin { arm: self.arm })?;
        self.phase = Phase::Beginning;
        Ok(())
    }

    pub(super) fn sample(&mut self) -> Result<(), ActorProcessingErr> {
        if self.catch_up()? {
            return Ok(());
        }
        let total = self.context.round_prompts(self.round).len();
        self.enter(PhaseKind::Sampling, total as u64);
        let sampling = self.begin_sampling(self.round, self.stage, false)?;
        self.phase = Phase::Sampling(Box::new(sampling));
        Ok(())
    }

    /// Lets the generator sample for a stage of a round: now, or ahead of the learner.
    pub(super) fn begin_sampling(
        &mut self,
        round: usize,
        number: usize,
        is_ahead: bool,
    ) -> Result<SamplingPhase, ActorProcessingErr> {
        let arm = self.current_arm();
        let stage = arm.stages[number].training().ok_or("a stage that averages samples nothing")?;
        let needs = stage.algorithm.objective().needs();
        let recipe = Arc::new(Recipe {
            generator: stage.generator.clone(),
            greedy_baseline: needs.selection.wants_greedy(),
            rivals: needs.selection.rivals(),
            scored_by: stage.reward,
        });
        let name = stage.name.clone();
        let selection = SelectionJob {
            rule: needs.selection,
            bounds: stage.selection.clone(),
            recipe: Arc::clone(&recipe),
            keep: arm.trainings().any(|(_, later)| later.samples_of.as_ref() == Some(&name)),
            algorithm: stage.algorithm.clone(),
            arm: arm.name.clone(),
            stage: name,
            round: round as u64,
        };
        let prompts = self.context.round_prompts(round);
        let job =
            GenerationJob::new((self.progress.version, is_ahead), prompts, recipe, stage.samples_of.clone());
        self.wiring.sampled_for.forget(&selection.stage);
        self.wiring.selection.set(selection.clone());
        self.crew.generator.cast(GeneratorMessage::Generate(job.clone()))?;
        Ok(SamplingPhase {
            job,
            selection,
            needs_reference: needs.reference,
            metrics: SamplingMetrics::default(),
            outcomes: BTreeMap::new(),
            generated: false,
            waited_for: None,
            unscored: 0,
        })
    }

    pub(super) fn report_sampling(
        &mut self,
        tokens: u64,
        seconds: f64,
        last: bool,
    ) -> Result<(), ActorProcessingErr> {
        let Some(sampling) = self.sampling() else { return Ok(()) };
        sampling.metrics.sampled(tokens, seconds);
        sampling.generated |= last;
        self.sampling_progress();
        self.end_sampling()
    }

    pub(super) fn sampling_progress(&self) {
        let Phase::Sampling(sampling) = &self.phase else { return };
        self.context.emit(RunEvent::Progress {
            done: sampling.outcomes.len() as u64,
            total: sampling.job.prompts.len() as u64,
            reward: sampling.metrics.mean_reward(),
            rate: sampling.metrics.tokens_per_second(),
        });
    }

    /// Notes completions without a score. While sampling, too many of them end the run as soon as it is certain.
    pub(super) fn unscored(&mut self, causes: &[String]) {
        let before = if let Phase::Sampling(sampling) = &self.phase { sampling.unscored } else { 0 };
        for (place, cause) in (before..).zip(causes) {
            let (level, actor, message) =
                (EventLevel::Warning, "reward worker", format!("left out: {cause}"));
            if place < SHOWN {
                self.note(level, actor, message);
            } else {
                self.record(Record::Event { arm: None, level, actor, message });
            }
        }
        let Some(sampling) = self.sampling() else { return };
        sampling.unscored += causes.len();
        let completions = sampling.selection.rule.completions(sampling.job.recipe.generator.samples);
        let (unscored, all) = (sampling.unscored, sampling.job.prompts.len() * completions);
        let last = causes.last().map_or("", String::as_str);
        if let Some(cause) = self.context.plan.unscored.too_many(unscored, all, last) {
            self.fail(cause);
        }
    }

    /// Notes what became of a group. A group that is reported twice, because an actor died between
    /// its report and the end of its lease, counts once.
    pub(super) fn settle(
        &mut self,
        prompt_id: u64,
        dropped: Option<&'static str>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(sampling) = self.sampling() else { return Ok(()) };
        sampling.outcomes.insert(prompt_id, dropped);
        self.sampling_progress();
        self.end_sampling()
    }

    pub(super) fn end_sampling(&mut self) -> Result<(), ActorProcessingErr> {
        let is_over = |sampling: &SamplingPhase| {
            sampling.generated && sampling.outcomes.len() >= sampling.job.prompts.len()
        };
        match &self.phase {
            Phase::Sampling(sampling) if is_over(sampling) => self.drop_stale(),
            _ => return Ok(()),
        }
        let Phase::Sampling(sampling) = &mut self.phase else { return Ok(()) };
        let reasons = sampling.reasons();
        let accepted = sampling.outcomes.values().filter(|outcome| outcome.is_none()).count() as u64;
        let metrics = sampling.metrics.finish(accepted, &reasons);
        let (tokens, seconds) = (sampling.metrics.tokens(), sampling.metrics.seconds());
        let waited = sampling.seconds();
        let needs_reference = sampling.needs_reference;
        if self.progress.version == 0 && self.arm == 0 && tokens > 0 {
            self.seconds_per_initial_token = seconds / tokens as f64;
        }
        let SelectionJob { arm, stage, round, .. } = sampling.selection.clone();
        self.progress.tokens_sampled += tokens;
        self.progress.seconds += waited;
        let address = Address::new(arm.as_str(), self.context.plan.seed, round, stage.as_str());
        self.record(Record::Metrics {
            address: address.clone(),
            series: "rejection_sampling".to_string(),
            step: self.progress.version.into(),
            part: 0,
            metrics,
        });
        for (&reason, &count) in &reasons {
            self.count_dropped(address.clone(), reason, count);
        }
        if accepted == 0 {
            let message = format!(
                "arm {arm}, stage {stage}: no group of this round is of use, so there is nothing to train on ({})",
                reasons
                    .iter()
                    .map(|(reason, count)| format!("{reason}: {count}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            self.note(EventLevel::Warning, "rejection sampler", message);
            return self.advance();
        }
        if needs_reference { self.reference(accepted) } else { self.train() }
    }

    pub(super) fn reference(&mut self, total: u64) -> Result<(), ActorProcessingErr> {
        self.enter(PhaseKind::Reference, total);
        let stage = self.current_stage();
        let is_initial = stage.reference == ReferenceWeights::Initial || stage.from == StartFrom::Initial;
        let job = ReferenceJob {
            arm: self.current_arm().name.clone(),
            stage: stage.name.clone(),
            round: self.round as u64,
            version: if is_initial { 0 } else { self.progress.version },
            recorded: stage.data.is_none(),
        };
        self.crew.reference.cast(ReferenceMessage::Score(job.clone()))?;
        self.phase = Phase::Referencing { job, total, done: 0, began: Instant::now() };
        Ok(())
    }

    pub(super) fn train(&mut self) -> Result<(), ActorProcessingErr> {
        let stage = self.current_stage().clone();
        let fresh = self.wiring.buffer().len();
        let trees = match stage.experience {
            ExperienceOf::Round => fresh,
            ExperienceOf::All => {
                let kept = self.progress.kept.entry(stage.name.clone()).or_default();
                *kept += fresh;
                *kept
            }
        };
        let portion = self.portion();
        let steps = portion.epochs.saturating_mul(trees.div_ceil(stage.training.batch_size));
        self.enter(PhaseKind::Training, steps as u64);
        let (arm, rounds) = (self.current_arm().name.clone(), self.current_arm().rounds as u64);
        let job = TrainingJob { arm, stage, round: self.round as u64, rounds, portion };
        self.crew.learner.cast(LearnerMessage::Train(Box::new(job)))?;
        self.phase = Phase::Training { done: 0, steps: steps as u64, trees, fresh };
        Ok(())
    }

    pub(super) fn average(&mut self, stage: AverageStage) -> Result<(), ActorProcessingErr> {
        self.enter(PhaseKind::Averaging, stage.of.len() as u64);
        self.crew.learner.cast(LearnerMessage::Average(Box::new(stage)))?;
        self.phase = Phase::Averaging;
        Ok(())
    }

    pub(super) fn report_step(&mut self, metrics: &BTreeMap<String, f64>, tokens: u64, seconds: f64) {
        let Phase::Training { done, .. } = &mut self.phase else { return };
        *done += 1;
        self.progress.tokens_trained += tokens;
        self.progress.seconds += seconds;
        let rate = (seconds > 0.0).then(|| tokens as f64 / seconds);
        let event = RunEvent::Step { done: *done, metrics: metrics.clone(), rate };
        self.context.emit(event);
    }

    pub(super) fn evaluated(&mut self, evaluation: Evaluation) -> Result<(), ActorProcessingErr> {
        let figures = held_out(&evaluation);
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
        let (arms, seed) = (&self.context.plan.arms, self.context.plan.seed);
        let places: Vec<Address> = match &self.baseline {
            None => arms.iter().map(|arm| Address::new(arm.name.as_str(), seed, 0, EVALUATION)).collect(),
            Some(_) => vec![self.address(self.round, EVALUATION)],
        };
        for address in &places {
            self.record(Record::Metrics {
                address: address.clone(),
                series: EVALUATION.to_string(),
                step: evaluation.version.into(),
                part: 0,
                metrics: metrics.clone(),
            });
        }
        self.record_suites(&evaluation, &places);
        self.context.emit(RunEvent::Evaluated { figures });
        if self.baseline.is_none() {
            self.baseline = Some(evaluation);
            return self.begin_arm();
        }
        self.progress.seconds += evaluation.seconds;
        let summary = self.summarise(Some(&evaluation));
        self.arms.extend(summary);
        self.checkpoint(AfterCheckpoint::NextArm)
    }

    fn record_suites(&mut self, evaluation: &Evaluation, places: &[Address]) {
        for (address, result) in
            places.iter().flat_map(|place| evaluation.suites.iter().map(move |suite| (place, suite)))
        {
            let (address, result, step) = (address.clone(), result.clone(), evaluation.version.into());
            self.record(Record::Suite { address, step, result: Box::new(result) });
        }
    }

    /// The running arm in numbers; nothing before the baseline is known.
    pub(super) fn summarise(&self, after: Option<&Evaluation>) -> Option<ArmSummary> {
        let baseline = self.baseline.as_ref()?;
        let arm = self.current_arm();
        Some(ArmSummary {
            arm: arm.name.clone(),
            stages: arm.stages.iter().map(|stage| stage.name().to_string()).collect(),
            before: held_out(baseline),
            after: after.map(held_out),
            change: after.map(|after| change(baseline, after)),
            kl: after.map(|after| after.kl),
            suites: suite_figures(baseline, after),
            tokens_sampled: self.progress.tokens_sampled,
            tokens_trained: self.progress.tokens_trained,
            steps: self.progress.version.into(),
            dropped: self.progress.dropped.clone(),
            seconds: self.progress.seconds,
            checkpoint: None,
        })
    }

    pub(super) fn checkpoint(&mut self, then: AfterCheckpoint) -> Result<(), ActorProcessingErr> {
        let arm = self.current_arm().name.clone();
        let Some(root) = self.context.checkpoint_root(&arm) else {
            self.end(Status::Failed, Some(format!("there is no run folder of arm \"{arm}\"")));
            return Ok(());
        };
        let in_training = matches!(self.phase, Phase::Training { .. } | Phase::Evaluating(_));
        let state = serde_json::json!({
            "format": 1,
            "seed": self.context.plan.seed,
            "arm": arm,
            "round": self.round,
            "stage": self.stage,
            // A round's prompts are consumed when its training has begun.
            "prompts_consumed": (self.round + usize::from(in_training)) * self.context.plan.prompts.per_round(),
            "in_training": in_training,
            // Rows of the stage's dataset that this pass over it has read.
            "rows_read": self.pass.rows,
        });
        let job = CheckpointJob { root, optimizer: self.context.plan.checkpoint.optimizer, state };
        self.enter(PhaseKind::Checkpoint, 1);
        self.crew.learner.cast(LearnerMessage::Checkpoint(job))?;
        self.phase = Phase::Checkpointing { then };
        Ok(())
    }

    pub(super) fn checkpointed(
        &mut self,
        directory: PathBuf,
        version: u32,
        state: serde_json::Value,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(self.phase, Phase::Checkpointing { .. }) {
            return Ok(());
        }
        let Phase::Checkpointing { then } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        let arm = self.current_arm().name.clone();
        self.progress.checkpointed = true;
        let stage = self.current_arm().stages[self.stage].name();
        self.record(Record::Checkpoint {
            address: self.address(self.round, stage),
            step: version.into(),
            path: directory.clone(),
            manifest: state,
        });
        if let Some(summary) = self.arms.iter_mut().find(|summary| summary.arm == arm) {
            summary.checkpoint = Some(directory.display().to_string());
            // After ctrl-c the learner has finished one more step than it had reported.
            summary.steps = version.into();
        }
        match then {
            AfterCheckpoint::End(status, cause) => self.end(status, Some(cause)),
            AfterCheckpoint::NextArm => {
                self.context.emit(RunEvent::ArmDone { arm });
                if self.arm + 1 < self.context.plan.arms.len() {
                    self.arm += 1;
                    self.begin_arm()?;
                } else {
                    self.end(Status::Completed, None);
                }
            }
        }
        Ok(())
    }
}
