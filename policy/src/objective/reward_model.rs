//! Reward models: a score for every response, such that the better one of two has the higher.
//!
//! With r(x, y) the scalar head at the last token of a conversation, for every pair of responses y⁺ > y⁻ of a prompt
//! (Bradley and Terry, 1952; Ouyang et al., 2022, eq. 1):
//!
//! L = − mean over prompts, mean over pairs of [ log σ(r(y⁺) − r(y⁻) − m) ] + c mean (r(y⁺) + r(y⁻))²
//!
//! Llama 3 (Dubey et al., 2024, §4.1.2) has no margin m, and ranks edited > chosen > rejected, all responses of a prompt
//! in one row. Here the row is a tree, whose branches do not see each other: the scores are exactly those of separate rows,
//! in whatever order the responses stand. Llama 2 (Touvron et al., 2023, §3.2.2) has a margin that grows with the strength of
//! the preference. Only differences of scores count, so that c, which draws their sum to 0, fixes where 0 is (Eisenstein
//! et al., 2023, arXiv:2312.09244).

use std::collections::HashMap;

use arriero_buffers::selection::Ranking;
use arriero_buffers::{Branch, Strength, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::terms::ranges;
use super::{
    AlgorithmConfig, Loss, Metrics, MicroBatch, Needs, Objective, Statistics, TokenStatistics, options,
};

/// By how much the better response must score higher before its loss begins to vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MarginKind {
    /// By nothing (Llama 3).
    None,
    /// By the row's `margin` (TRL).
    Data,
    /// By the preference's strength: 1, 2/3, 1/3 or 0 from the strongest to the weakest (Llama 2's "margin small").
    Small,
    /// By the preference's strength: 3, 2, 1 or 0 (Llama 2's "margin large").
    Large,
}

/// How strong a preference must at least be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeastStrength {
    /// Any, and preferences whose strength is not known.
    Any,
    /// Slightly better.
    Slight,
    /// Better: what Llama 3 trains on.
    Better,
    /// Significantly better.
    Significant,
}

impl LeastStrength {
    fn strength(self) -> Option<Strength> {
        match self {
            LeastStrength::Any => None,
            LeastStrength::Slight => Some(Strength::Slight),
            LeastStrength::Better => Some(Strength::Better),
            LeastStrength::Significant => Some(Strength::Significant),
        }
    }
}

options! {
    /// The options of reward models.
    pub struct RewardModelConfig {
        /// m: of the chosen response against the rejected one, and of an edited one against the rejected one; between edited and
        /// chosen it is 0. Default `none` (Llama 3's).
        pub margin: MarginKind = MarginKind::None,
        /// c: weight of the centring. Default 0 (TRL's; 0.01 is what its documentation suggests).
        pub center_rewards_coefficient: f64 = 0.0,
        /// Leave out weaker preferences, and where another than `any` is asked for those of unknown strength. Default `any`.
        pub min_strength: LeastStrength = LeastStrength::Any,
        /// Leave out preferences between similar responses: those whose chosen and rejected response share more than this part
        /// of their pairs of neighbouring tokens (Jaccard's index). Default 1: none is left out.
        pub max_similarity: f64 = 1.0,
    }
}

impl AlgorithmConfig for RewardModelConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(RewardModel { options: self.clone() })
    }

    fn validate(&self) -> Result<(), String> {
        ranges::at_least_zero("center_rewards_coefficient", self.center_rewards_coefficient)?;
        ranges::share("max_similarity", self.max_similarity)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RewardModel {
    options: RewardModelConfig,
}

impl Objective for RewardModel {
    fn needs(&self) -> Needs {
        Needs { statistics: Statistics::Scores, ..Needs::of(Ranking) }
    }

    fn refuses(&self, tree: &Tree) -> Option<&'static str> {
        if let Some(reason) = self.too_weak(tree) {
            return Some(reason);
        }
        if self.margin(tree).is_some_and(|margin| !margin.is_finite()) {
            return Some("margin_not_finite");
        }
        match &tree.branches[..] {
            [.., chosen, rejected]
                if self.options.max_similarity < 1.0
                    && similarity(&chosen.tokens, &rejected.tokens) > self.options.max_similarity =>
            {
                Some("responses_too_similar")
            }
            _ => None,
        }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        if let Some(tree) = experience.iter().find(|tree| tree.branches.len() < 2) {
            return Err(format!(
                "prompt {} has {} responses, expected a better and a worse one: a reward model learns from pairs; \
                 give it pairs, or change algorithm.kind",
                tree.prompt_id,
                tree.branches.len()
            ));
        }
        let of_use = || experience.iter().filter(|tree| self.too_weak(tree).is_none());
        match of_use().find(|tree| self.margin(tree).is_none()) {
            None => Ok(()),
            Some(tree) => {
                let (kind, lacks) = match self.options.margin {
                    MarginKind::Data => ("data", "margin"),
                    MarginKind::Small => ("small", "preference strength"),
                    _ => ("large", "preference strength"),
                };
                Err(format!(
                    "margin is \"{kind}\", but prompt {} has no {lacks}; use data that say it, or margin = \"none\"",
                    tree.prompt_id
                ))
            }
        }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let centring = self.options.center_rewards_coefficient;
        let Some(scores) = scores(statistics, batch) else {
            // The trainer gives what `Needs` asks for.
            return Loss { value: Tensor::from(f64::NAN), metrics: Metrics::default() };
        };
        let Pairs { better, worse, margins, weights } = self.pairs(&scores, batch);
        let differences = &better - &worse;
        let mut losses = -(&differences - margins).log_sigmoid();
        if centring != 0.0 {
            losses += (&better + &worse).square() * centring;
        }
        let value = (losses * weights).sum(Kind::Double);

        let mut metrics = metrics(&scores, &differences);
        metrics.add_part("loss", &value, batch);
        Loss { value, metrics }
    }
}

/// All ordered pairs of a micro-batch's responses: f64 `[pairs]` each.
struct Pairs {
    /// Scores.
    better: Tensor,
    worse: Tensor,
    margins: Tensor,
    /// Each prompt counts the same, however many pairs it has.
    weights: Tensor,
}

impl RewardModel {
    /// m of a tree's chosen response against the rejected one; `None` where the data do not say it.
    fn margin(&self, tree: &Tree) -> Option<f64> {
        let steps = |tree: &Tree| {
            Some(match tree.strength? {
                Strength::Marginal => 0.0,
                Strength::Slight => 1.0,
                Strength::Better => 2.0,
                Strength::Significant => 3.0,
            })
        };
        match self.options.margin {
            MarginKind::None => Some(0.0),
            MarginKind::Data => tree.margin.map(f64::from),
            MarginKind::Small => steps(tree).map(|steps| steps / 3.0),
            MarginKind::Large => steps(tree),
        }
    }

    /// Why the strength of a preference is not enough.
    fn too_weak(&self, tree: &Tree) -> Option<&'static str> {
        let least = self.options.min_strength.strength()?;
        match tree.strength {
            None => Some("preference_strength_unknown"),
            Some(strength) if strength < least => Some("preference_below_min_strength"),
            Some(_) => None,
        }
    }

    fn pairs(&self, scores: &Tensor, batch: &MicroBatch<'_>) -> Pairs {
        let [mut better, mut worse] = [const { Vec::new() }; 2];
        let [mut margins, mut weights] = [const { Vec::new() }; 2];
        let mut first = 0;
        for tree in batch.trees {
            let responses = tree.branches.len() as i64;
            let count = (responses * (responses - 1) / 2) as f64;
            for low in 1..responses {
                for high in 0..low {
                    // The margin is one against the rejected response, the last.
                    let is_last = low + 1 == responses;
                    better.push(first + high);
                    worse.push(first + low);
                    margins.push(if is_last { self.margin(tree).unwrap_or(0.0) } else { 0.0 });
                    weights.push(1.0 / (count * batch.totals.trees.max(1) as f64));
                }
            }
            first += responses;
        }
        let device = scores.device();
        let of = |places: &[i64]| scores.index_select(0, &Tensor::from_slice(places).to_device(device));
        let doubles = |numbers: &[f64]| Tensor::from_slice(numbers).to_device(device);
        let (better, worse) = (of(&better), of(&worse));
        Pairs { better, worse, margins: doubles(&margins), weights: doubles(&weights) }
    }
}

/// The score of each response, f64 `[responses]`: what the head says at its last token.
fn scores(statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Option<Tensor> {
    let values = statistics.values.as_ref()?;
    let ranges = Branch::loss_token_ranges(batch.responses());
    let last: Vec<i64> = ranges.map(|range| range.end as i64 - 1).collect();
    let last = Tensor::from_slice(&last).to_device(values.device());
    Some(values.index_select(0, &last).to_kind(Kind::Double))
}

/// The part of their pairs of neighbouring tokens that two texts share, counted with their repetitions.
fn similarity(one: &[u32], other: &[u32]) -> f64 {
    let count = |tokens: &[u32]| {
        let mut counts: HashMap<(Option<u32>, u32), usize> = HashMap::new();
        let before = std::iter::once(None).chain(tokens.iter().copied().map(Some));
        for pair in before.zip(tokens.iter().copied()) {
            *counts.entry(pair).or_default() += 1;
        }
        counts
    };
    let (ours, theirs) = (count(one), count(other));
    let shared: usize = ours.iter().map(|(pair, count)| *count.min(theirs.get(pair).unwrap_or(&0))).sum();
    let all = one.len() + other.len() - shared;
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}

/// `differences` are the better less the worse score of each pair.
fn metrics(scores: &Tensor, differences: &Tensor) -> Metrics {
    let mut metrics = Metrics::default();
    let numbers = |tensor: &Tensor| crate::weights::to_host(&tensor.detach());
    for score in numbers(scores).into_iter().map(f64::from) {
        metrics.add("mean_reward", score, 1.0);
        metrics.lower("min_reward", score);
        metrics.raise("max_reward", score);
    }
    for difference in numbers(differences).into_iter().map(f64::from) {
        metrics.add("margin", difference, 1.0);
        metrics.add("accuracy", f64::from(u8::from(difference > 0.0)), 1.0);
        metrics.predict("calibration_error", 1.0 / (1.0 + (-difference.abs()).exp()), difference > 0.0);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Branch;

    use super::*;

    fn tree(strength: Option<Strength>, margin: Option<f32>, responses: &[&[u32]]) -> Tree {
        let branch = |tokens: &&[u32]| Branch { tokens: tokens.to_vec(), ..Branch::default() };
        Tree {
            prompt: vec![1],
            branches: responses.iter().map(branch).collect(),
            strength,
            margin,
            ..Tree::default()
        }
    }

    fn objective(value: serde_json::Value) -> Box<dyn Objective> {
        serde_json::from_value::<RewardModelConfig>(value).expect("options").objective()
    }

    #[test]
    fn similarity_is_the_shared_part_of_neighbouring_tokens() {
        // (·1 12 23) and (·1 12 24 43): two of five.
        assert_eq!(similarity(&[1, 2, 3], &[1, 2, 4, 3]), 0.4);
        assert_eq!(similarity(&[1, 2, 3], &[1, 2, 3]), 1.0);
        assert_eq!(similarity(&[7], &[8]), 0.0);
        // A repetition counts as often as both have it: ·5 55 of ·5 55 55 55.
        assert_eq!(similarity(&[5, 5], &[5, 5, 5, 5]), 0.5);
    }

    #[test]
    fn weak_similar_and_broken_preferences_are_left_out_with_their_reason() {
        let plain = tree(None, None, &[&[2, 3, 4], &[2, 3, 5]]);
        let with = |strength| Tree { strength: Some(strength), ..plain.clone() };
        assert_eq!(objective(serde_json::json!({})).refuses(&plain), None);
        let least = objective(serde_json::json!({ "min_strength": "better" }));
        assert_eq!(least.refuses(&plain), Some("preference_strength_unknown"));
        assert_eq!(least.refuses(&with(Strength::Slight)), Some("preference_below_min_strength"));
        assert_eq!(least.refuses(&with(Strength::Better)), None);
        // ·2 23 of ·2 23 34 35.
        let similar = |most: f64| objective(serde_json::json!({ "max_similarity": most })).refuses(&plain);
        assert_eq!((similar(0.5), similar(0.49)), (None, Some("responses_too_similar")));
        let margin = Tree { margin: Some(f32::NAN), ..plain.clone() };
        assert_eq!(
            objective(serde_json::json!({ "margin": "data" })).refuses(&margin),
            Some("margin_not_finite")
        );
    }

    #[test]
    fn what_it_cannot_learn_from_is_named() {
        let alone = tree(None, None, &[&[2]]);
        let error = objective(serde_json::json!({})).check(&[&alone]).expect_err("no pair");
        assert!(error.contains("prompt 0 has 1 responses, expected a better and a worse one"), "{error}");
        let pair = tree(None, None, &[&[2], &[3]]);
        let error = objective(serde_json::json!({ "margin": "large" })).check(&[&pair]).expect_err("unknown");
        assert!(error.contains("prompt 0 has no preference strength"), "{error}");
    }
}
