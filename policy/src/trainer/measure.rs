//! What a trainer computes of trees: the statistics that its objective is given, the old policy's scores, and the
//! objective's metrics without a step.

use std::collections::BTreeMap;

use arriero_buffers::{Branch, Tree};
use tch::{Kind, Tensor, no_grad};

use super::Trainer;
use crate::config::SCORE;
use crate::error::{PolicyError, Result};
use crate::forest::Forest;
use crate::head::{self, Output, Rows, divergence};
use crate::objective::{Divergence, Metrics, MicroBatch, Statistics, TeacherStatistics, TokenStatistics};
use crate::scoring::to_host;

/// A scalar head with the hidden states that it reads, `[response tokens, hidden]`.
pub(super) struct ScalarHead {
    pub hidden: Tensor,
    pub head: Tensor,
    /// f32, to add to.
    pub gradient: Tensor,
}

/// What a teacher makes of a forest.
pub(super) struct TeacherSide {
    /// `[response tokens, the teacher's hidden]`.
    pub hidden: Tensor,
    /// `[vocab, the teacher's hidden]`.
    pub output: Output,
    pub divergence: Divergence,
}

impl Trainer {
    /// True if the objective wants trees scored before the first step: see [`Trainer::score_old`].
    pub fn scores_old(&self) -> bool {
        let needs = self.objective.needs();
        needs.old || matches!(needs.statistics, Statistics::ProbabilitiesAndValues(_))
    }

    /// Scores a tree under the weights as they are: the log-probabilities and the values of the old policy that the
    /// objective needs. To be called before the first step, with each tree alone, so that its scores do not depend on
    /// what else was there.
    ///
    /// # Errors
    /// If the tree does not fit the model.
    pub fn score_old(&self, tree: &mut Tree) -> Result<()> {
        if !self.scores_old() {
            return Ok(());
        }
        let needs = self.objective.needs();
        let (logps, values) = no_grad(|| {
            let forest = self.pack(&[tree])?;
            let hidden = self.model.predictors(&forest);
            let values = self.values(&forest, &hidden).map(|values| to_host(&values));
            let logps = needs.old.then(|| {
                let rows = head::statistics(&hidden, self.model.output(), &forest.targets);
                to_host(&rows.statistics.logps)
            });
            Ok((logps, values))
        })?;
        let keep = |flat: &[f32], put: fn(&mut Branch, Vec<f32>), branches: &mut [Branch]| {
            let pieces: Vec<Vec<f32>> =
                Branch::split_by_loss_tokens(&*branches, flat).map(<[f32]>::to_vec).collect();
            branches.iter_mut().zip(pieces).for_each(|(branch, piece)| put(branch, piece));
        };
        if let Some(logps) = logps {
            keep(&logps, |branch, logps| branch.old_logps = logps, &mut tree.branches);
        }
        if let Some(values) = values {
            keep(&values, |branch, values| branch.old_values = values, &mut tree.branches);
        }
        Ok(())
    }

    /// The objective's metrics on trees under the weights as they are; nothing is learned.
    ///
    /// # Errors
    /// If a sequence does not fit the model.
    pub fn evaluate(&self, batch: &[&Tree]) -> Result<BTreeMap<String, f64>> {
        let scored = self.with_reference_scores(batch)?;
        let views: Option<Vec<&Tree>> = scored.as_ref().map(|trees| trees.iter().collect());
        let batch = views.as_deref().unwrap_or(batch);
        let batch = MicroBatch::whole(batch);
        let mut metrics = Metrics::default();
        for trees in self.pieces(batch.trees)? {
            no_grad(|| {
                let forest = self.pack(trees)?;
                let hidden = self.model.predictors(&forest);
                let values = self.values(&forest, &hidden);
                let teacher = self.teacher_side(&forest)?;
                let statistics = self.statistics(&hidden, &forest, values.as_ref(), teacher.as_ref()).1;
                metrics.merge(&self.objective.loss(&statistics, &MicroBatch { trees, ..batch }).metrics);
                Ok(())
            })?;
        }
        Ok(metrics.values())
    }

    /// The scalar head that the objective reads, where there is one: on `hidden`, or on what a critic's own decoder made of
    /// the forest.
    pub(super) fn scalar_head(&self, hidden: &Tensor, own: Option<&Tensor>) -> Option<ScalarHead> {
        let (head, gradient) = match (&self.critic, self.model.score()) {
            (Some(critic), _) => critic.head(),
            (None, Some(head)) => (head.shallow_clone(), self.parameters.gradient(SCORE)?),
            (None, None) => return None,
        };
        Some(ScalarHead { hidden: own.unwrap_or(hidden).shallow_clone(), head, gradient })
    }

    /// What the scalar head gives, without a record for the backward: f32 `[response tokens]`.
    fn values(&self, forest: &Forest, hidden: &Tensor) -> Option<Tensor> {
        let own = self.critic.as_ref().and_then(|critic| critic.hidden(forest));
        let scalar = self.scalar_head(hidden, own.as_ref())?;
        Some(head::values(&scalar.hidden, &scalar.head))
    }

    /// What the teacher makes of a forest, where the objective compares the policy with one.
    pub(super) fn teacher_side(&self, forest: &Forest) -> Result<Option<TeacherSide>> {
        let Statistics::ProbabilitiesAndDivergence(divergence) = self.objective.needs().statistics else {
            return Ok(None);
        };
        let teacher = self.teacher.as_ref().ok_or(PolicyError::NoTeacher)?;
        let hidden = no_grad(|| teacher.predictors(forest));
        Ok(Some(TeacherSide { hidden, output: teacher.output().share(), divergence }))
    }

    /// What the objective is given: leaves, with what the vocabulary's backward needs.
    pub(super) fn statistics(
        &self,
        hidden: &Tensor,
        forest: &Forest,
        values: Option<&Tensor>,
        teacher: Option<&TeacherSide>,
    ) -> (Option<Rows>, TokenStatistics) {
        let leaf = |statistic: &Tensor| statistic.detach().copy().set_requires_grad(true);
        let is_wanted = self.objective.needs().statistics != Statistics::Scores;
        let rows = is_wanted.then(|| head::statistics(hidden, self.model.output(), &forest.targets));
        let nothing = || Tensor::zeros([0], (Kind::Float, self.compute.device));
        let found = |pick: &dyn Fn(&TokenStatistics) -> Tensor| {
            rows.as_ref().map_or_else(nothing, |rows| pick(&rows.statistics))
        };
        let statistics = TokenStatistics {
            logps: found(&|statistics| leaf(&statistics.logps)),
            entropies: found(&|statistics| leaf(&statistics.entropies)),
            top1: found(&|statistics| statistics.top1.shallow_clone()),
            values: values.map(leaf),
            teacher: teacher.map(|TeacherSide { hidden: theirs, output, divergence }| {
                let policy = (hidden, self.model.output());
                let found = divergence::statistics(policy, (theirs, output), &forest.targets, *divergence);
                TeacherStatistics { divergences: leaf(&found.divergences), logps: found.logps }
            }),
        };
        (rows, statistics)
    }
}
