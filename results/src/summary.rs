//! What the final table shows.

use serde::{Deserialize, Serialize};

use crate::evaluation::{Evaluation, PromptOutcome, SuiteResult};
use crate::figure::Figure;
use crate::statistics::{Estimate, mean, proportion, ratio};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// To the end of its plan.
    Completed,
    /// On ctrl-c.
    Interrupted,
    /// On an error.
    Failed,
}

/// A run in numbers: `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run's name.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// Why, where it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The seed.
    pub seed: u64,
    /// The model's path.
    pub model: String,
    /// Device and precision.
    pub compute: String,
    /// Held-out prompts.
    pub held_out: usize,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
    /// The arms, in the order of the experiment.
    pub arms: Vec<ArmSummary>,
}

/// Held-out figures of one version of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Share of prompts whose instructions were all followed; `None` without checkable instructions. An answer that the
    /// token limit cut short is judged as it stands, whatever its reward.
    pub prompt_accuracy: Option<Estimate>,
    /// Share of instructions followed; the interval treats prompts as clusters.
    pub instruction_accuracy: Option<Estimate>,
    /// Mean reward of the responses that have one.
    pub reward: Option<Estimate>,
    /// Mean tokens of a response.
    pub mean_length: f64,
}

/// An arm in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmSummary {
    /// Its name.
    pub arm: String,
    /// The kinds of its stages.
    pub stages: Vec<String>,
    /// Before training.
    pub before: HeldOut,
    /// After training; `None` where the run ended before.
    pub after: Option<HeldOut>,
    /// After minus before, paired by prompt.
    pub change: Option<HeldOut>,
    /// KL(policy ‖ reference) in nats a token, on held-out responses. It is the mean over their tokens of the exact
    /// divergence of the next-token distributions.
    pub kl: Option<f64>,
    /// The suites of the evaluation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<SuiteFigures>,
    /// Tokens sampled for training. Those that an earlier arm had sampled from the same weights are included.
    pub tokens_sampled: u64,
    /// Input tokens trained on, every epoch counted.
    pub tokens_trained: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Groups that were not used, by reason.
    pub dropped: std::collections::BTreeMap<String, u64>,
    /// Seconds sampling, scoring references, training and evaluating. Sampling from the initial weights is
    /// done once and counts for every arm that uses it.
    pub seconds: f64,
    /// Where the weights are.
    pub checkpoint: Option<String>,
}

/// A suite's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteFigures {
    /// Its name.
    pub suite: String,
    /// Before training.
    pub before: Vec<Figure>,
    /// After training; empty where the run ended before.
    pub after: Vec<Figure>,
}

/// The figures of both evaluations' suites.
pub fn suite_figures(before: &Evaluation, after: Option<&Evaluation>) -> Vec<SuiteFigures> {
    let figures = |(place, suite): (usize, &SuiteResult)| SuiteFigures {
        suite: suite.report.suite.clone(),
        before: suite.report.figures.clone(),
        after: after
            .and_then(|after| after.suites.get(place))
            .map_or(Vec::new(), |suite| suite.report.figures.clone()),
    };
    before.suites.iter().enumerate().map(figures).collect()
}

/// Figures of an evaluation.
pub fn held_out(evaluation: &Evaluation) -> HeldOut {
    let figures = figures(&evaluation.outcomes.iter().map(|outcome| (outcome, None)).collect::<Vec<_>>());
    let checked = evaluation.outcomes.iter().filter(|outcome| outcome.instructions > 0);
    HeldOut {
        prompt_accuracy: proportion(checked.map(|outcome| outcome.followed == outcome.instructions)),
        ..figures
    }
}

/// Figures of the paired differences. Both evaluations have the same prompts in the same order.
pub fn change(before: &Evaluation, after: &Evaluation) -> HeldOut {
    figures(&after.outcomes.iter().zip(before.outcomes.iter().map(Some)).collect::<Vec<_>>())
}

fn figures(pairs: &[(&PromptOutcome, Option<&PromptOutcome>)]) -> HeldOut {
    let difference = |of: &dyn Fn(&PromptOutcome) -> f64, pair: &(&PromptOutcome, Option<&PromptOutcome>)| {
        of(pair.0) - pair.1.map_or(0.0, of)
    };
    let all_followed =
        |outcome: &PromptOutcome| f64::from(u8::from(outcome.followed == outcome.instructions));
    let followed = |outcome: &PromptOutcome| outcome.followed as f64;
    let checked = || pairs.iter().filter(|pair| pair.0.instructions > 0);
    let rewards = pairs.iter().map(|pair| difference(&|outcome| f64::from(outcome.reward), pair));
    HeldOut {
        prompt_accuracy: mean(checked().map(|pair| difference(&all_followed, pair))),
        instruction_accuracy: ratio(
            checked().map(|pair| (difference(&followed, pair), pair.0.instructions as f64)),
        ),
        reward: mean(rewards.filter(|reward| reward.is_finite())),
        mean_length: pairs.iter().map(|pair| difference(&|outcome| outcome.tokens as f64, pair)).sum::<f64>()
            / pairs.len().max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(followed: &[usize]) -> Evaluation {
        let outcome = |(prompt_id, &followed): (usize, &usize)| PromptOutcome {
            prompt_id: prompt_id as u64,
            instructions: 2,
            followed,
            reward: followed as f32 / 2.0,
            tokens: 10,
            text: String::new(),
        };
        Evaluation {
            version: 0,
            outcomes: followed.iter().enumerate().map(outcome).collect(),
            kl: 0.0,
            tokens: 0,
            seconds: 0.0,
            suites: Vec::new(),
        }
    }

    #[test]
    fn accuracies_count_whole_prompts_and_single_instructions() {
        let figures = held_out(&evaluation(&[2, 1, 0, 2]));
        assert_eq!(figures.prompt_accuracy.map(|estimate| estimate.value), Some(0.5));
        assert_eq!(figures.instruction_accuracy.map(|estimate| estimate.value), Some(0.625));
        assert_eq!(figures.reward.map(|estimate| estimate.value), Some(0.625));
    }

    /// Differences of whole prompts: 0, 1, 1, 0: the pairing leaves a variance of 1/3.
    #[test]
    fn the_change_is_paired_by_prompt() {
        let figures = change(&evaluation(&[2, 1, 0, 0]), &evaluation(&[2, 2, 2, 1]));
        let accuracy = figures.prompt_accuracy.expect("there are instructions");
        let half = 3.182_446_305 * (1.0f64 / 12.0).sqrt();
        assert_eq!(accuracy.value, 0.5);
        assert!((accuracy.high - 0.5 - half).abs() < 1e-6);
        assert_eq!(figures.instruction_accuracy.map(|estimate| estimate.value), Some(0.5));
    }
}
