//! The rejection sampler's rules: from a scored group to a training tree, or to a reason why not.

use serde::{Deserialize, Serialize};

use crate::experience::{Completion, Finish, Score, ScoredGroup};
use crate::tree::{Branch, Tree};

/// What the algorithm that follows wants to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectionRule {
    /// The best completion, or as many of the best as [`SelectionConfig::keep_best`] says (for SFT).
    BestOfN,
    /// All completions, whatever their rewards, even those that are not finite; of a row of a dataset its response (for
    /// distillation). The bounds of [`SelectionConfig`] do not apply.
    Everything,
    /// The best against the worst (for DPO).
    BestAgainstWorst,
    /// The same, and of a row of a dataset every response that people ranked, the best first (for reward models).
    Ranking,
    /// The best if it is desirable, and the worst if it is not (for KTO): one or two branches, so that a
    /// group of equal rewards is of use, too. The bounds of [`SelectionConfig`] do not apply.
    Unpaired {
        /// The least reward of a desirable response.
        desirable_reward: f32,
    },
    /// All usable completions, in the order of their samples (for GRPO and its kin). The bounds of
    /// [`SelectionConfig`] do not apply.
    Group {
        /// The fewest completions that make a group.
        least: usize,
        /// Drop a group whose rewards are all equal: it has no signal (DAPO's dynamic sampling; Yu et al., 2025).
        drop_equal: bool,
    },
    /// All usable completions but the last, which was decoded greedily: its reward is the others' baseline (for
    /// ReMax). The bounds of [`SelectionConfig`] do not apply.
    GroupAgainstGreedy,
    /// Completions of the policy, each beside a rival's: the second half of a group is drawn from the geometric mixture of
    /// the policy and the reference. Where one of the two is not usable, both are left out. The bounds of
    /// [`SelectionConfig`] do not apply.
    AgainstRivals {
        /// The reference's weight in the mixture: 1 for the reference alone.
        reference_weight: f32,
        /// Make branches of the rivals', each right after the one that it stands beside (for XPO). Else their rewards alone
        /// are kept (for Nash-MD).
        keep_rivals: bool,
    },
}

impl SelectionRule {
    /// The fewest completions of a prompt that it can work with, the greedy one not counted.
    pub fn least_samples(self) -> usize {
        match self {
            SelectionRule::BestOfN
            | SelectionRule::Everything
            | SelectionRule::Unpaired { .. }
            | SelectionRule::GroupAgainstGreedy
            | SelectionRule::AgainstRivals { .. } => 1,
            SelectionRule::BestAgainstWorst | SelectionRule::Ranking => 2,
            SelectionRule::Group { least, .. } => least,
        }
    }

    /// True if the last completion of a group must be decoded greedily, beside the others.
    pub fn wants_greedy(self) -> bool {
        self == SelectionRule::GroupAgainstGreedy
    }

    /// The reference's weight in the mixture that as many rivals again as there are samples must be drawn from, if so.
    pub fn rivals(self) -> Option<f32> {
        match self {
            SelectionRule::AgainstRivals { reference_weight, .. } => Some(reference_weight),
            _ => None,
        }
    }

    /// How many of a group's completions are the policy's samples; the others, which come after them, are yardsticks.
    pub fn samples_of(self, completions: usize) -> usize {
        match self {
            SelectionRule::GroupAgainstGreedy => completions.saturating_sub(1),
            SelectionRule::AgainstRivals { .. } => completions / 2,
            _ => completions,
        }
    }

    /// How many completions a group of so many samples has.
    pub fn completions(self, samples: usize) -> usize {
        match self {
            SelectionRule::GroupAgainstGreedy => samples + 1,
            SelectionRule::AgainstRivals { .. } => samples.saturating_mul(2),
            _ => samples,
        }
    }

    /// What a tree that it makes holds, in words.
    pub fn learns_from(self) -> &'static str {
        match self {
            SelectionRule::BestOfN => "responses of a prompt, the best of its samples",
            SelectionRule::Everything => "all samples of a prompt",
            SelectionRule::BestAgainstWorst => "pairs of a chosen and a rejected response of a prompt",
            SelectionRule::Ranking => "two or three responses of a prompt, ranked",
            SelectionRule::Unpaired { .. } => "responses that are desirable or not, without pairs",
            SelectionRule::Group { .. } => "a group of samples of a prompt, with their rewards",
            SelectionRule::GroupAgainstGreedy => {
                "the samples of a prompt, with their rewards and that of its greedy response"
            }
            SelectionRule::AgainstRivals { .. } => {
                "the samples of a prompt, each beside one of the reference or of its mixture with the policy"
            }
        }
    }

    /// True if rows of a dataset can take the place of samples: their rewards need not be known.
    pub fn takes_rows(self) -> bool {
        match self {
            SelectionRule::BestOfN
            | SelectionRule::Everything
            | SelectionRule::BestAgainstWorst
            | SelectionRule::Ranking
            | SelectionRule::Unpaired { .. } => true,
            SelectionRule::Group { .. }
            | SelectionRule::GroupAgainstGreedy
            | SelectionRule::AgainstRivals { .. } => false,
        }
    }

    /// What a completion with number `position` among those chosen is to the algorithm: one word for the record.
    pub fn role(self, position: usize) -> &'static str {
        match (self, position) {
            (SelectionRule::BestOfN, _) => "best",
            (SelectionRule::AgainstRivals { keep_rivals: true, .. }, position) if position % 2 == 1 => {
                "rival"
            }
            (SelectionRule::AgainstRivals { .. }, _) => "policy",
            (SelectionRule::BestAgainstWorst | SelectionRule::Ranking, 0) => "chosen",
            (SelectionRule::BestAgainstWorst | SelectionRule::Ranking, _) => "rejected",
            (SelectionRule::Unpaired { .. }, _) => "unpaired",
            (
                SelectionRule::Everything | SelectionRule::Group { .. } | SelectionRule::GroupAgainstGreedy,
                _,
            ) => "group",
        }
    }
}

/// The rule's bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectionConfig {
    /// The least reward that a best (chosen) completion must have. Default 0.
    pub min_reward: f32,
    /// The least difference of rewards between chosen and rejected. Default 0: any above zero.
    pub min_margin: f32,
    /// SFT: how many of a prompt's best completions to learn from, each with at least `min_reward`. As many as there are
    /// samples, or more, takes all that reach it. Default 1: the best of n.
    pub keep_best: usize,
    /// Completions of which the policy drew more tokens are not chosen. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Completions that the token limit cut short are not chosen. Default false.
    pub drop_truncated: bool,
    /// Completions with the tokens of an earlier one of the group are not chosen. Default false.
    pub drop_duplicates: bool,
}

impl Default for SelectionConfig {
    fn default() -> Self {
        SelectionConfig {
            min_reward: 0.0,
            min_margin: 0.0,
            keep_best: 1,
            max_tokens: None,
            drop_truncated: false,
            drop_duplicates: false,
        }
    }
}

impl SelectionConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        if self.min_reward.is_nan() {
            return Err("min_reward is nan; it must be a number".to_string());
        }
        if self.min_margin.is_nan() || self.min_margin < 0.0 {
            return Err(format!("min_margin is {}; it must be at least 0", self.min_margin));
        }
        if self.keep_best == 0 {
            return Err("keep_best is 0; it must be at least 1".to_string());
        }
        if self.max_tokens == Some(0) {
            return Err("max_tokens is 0; it must be at least 1, or left out".to_string());
        }
        Ok(())
    }

    /// Whether the filters let the completion of this number be chosen.
    fn lets_through(&self, completions: &[Completion], index: usize) -> bool {
        let completion = &completions[index];
        let is_too_long = self.max_tokens.is_some_and(|most| completion.drawn_len() > most);
        let is_truncated = self.drop_truncated && completion.finish == Finish::Length;
        let mut earlier = completions[..index].iter();
        let is_duplicate =
            self.drop_duplicates && earlier.any(|other| other.tokens().eq(completion.tokens()));
        !(is_too_long || is_truncated || is_duplicate)
    }
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// Train on this.
    Accepted(Tree),
    /// Not used, for this reason (a metric's name: snake case).
    Dropped(&'static str),
}

/// Applies `rule` to a scored group. `is_format` tells formatting tokens from text.
///
/// Ties go to the lowest sample number, so that the result does not depend on timing. A reward that
/// is not finite drops its completion from the choice; a group where no usable completion is left
/// is dropped.
pub fn select(
    scored: &ScoredGroup,
    rule: SelectionRule,
    config: &SelectionConfig,
    is_format: impl Fn(u32) -> bool,
) -> Selection {
    let is_bounded =
        matches!(rule, SelectionRule::BestOfN | SelectionRule::BestAgainstWorst | SelectionRule::Ranking);
    let completions = &scored.group.completions;
    let is_usable =
        |index: usize, score: &Score| score.reward.is_finite() && completions[index].drawn_len() > 0;
    let usable = || {
        scored.scores.iter().enumerate().filter(|&(index, score)| {
            let counts = is_usable(index, score)
                || (rule == SelectionRule::Everything && completions[index].drawn_len() > 0);
            counts && (!is_bounded || config.lets_through(completions, index))
        })
    };
    let is_any_usable = || scored.scores.iter().enumerate().any(|(index, score)| is_usable(index, score));
    if is_bounded && usable().next().is_none() && is_any_usable() {
        return Selection::Dropped("all_completions_filtered");
    }
    let better = |best: Option<(usize, f32)>, (index, reward): (usize, f32)| match best {
        Some((_, highest)) if reward <= highest => best,
        _ => Some((index, reward)),
    };
    let worse = |worst: Option<(usize, f32)>, (index, reward): (usize, f32)| match worst {
        Some((_, lowest)) if reward >= lowest => worst,
        _ => Some((index, reward)),
    };
    let rewards = || usable().map(|(index, score)| (index, score.reward));
    let Some((best, highest)) = rewards().fold(None, better) else {
        return Selection::Dropped("no_usable_completion");
    };
    let Some((worst, lowest)) = rewards().fold(None, worse) else {
        return Selection::Dropped("no_usable_completion");
    };
    if is_bounded && highest < config.min_reward {
        return Selection::Dropped("best_below_min_reward");
    }
    let (mut greedy_reward, mut rival_rewards) = (None, Vec::new());
    let chosen = match rule {
        SelectionRule::Everything => usable().map(|(index, _)| index).collect(),
        SelectionRule::BestOfN => {
            let mut ranked: Vec<(usize, f32)> =
                rewards().filter(|&(_, reward)| reward >= config.min_reward).collect();
            // Stable: of equal rewards the lowest sample comes first.
            ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
            ranked.into_iter().map(|(index, _)| index).take(config.keep_best).collect()
        }
        SelectionRule::Unpaired { desirable_reward } => {
            let desirable = (highest >= desirable_reward).then_some(best);
            let undesirable = (lowest < desirable_reward).then_some(worst);
            desirable.into_iter().chain(undesirable).collect()
        }
        SelectionRule::Group { least, drop_equal } => {
            let all: Vec<usize> = rewards().map(|(index, _)| index).collect();
            if all.len() < least {
                return Selection::Dropped("too_few_usable_completions");
            }
            if drop_equal && highest <= lowest {
                return Selection::Dropped("all_rewards_equal");
            }
            all
        }
        SelectionRule::GroupAgainstGreedy => {
            let greedy = scored.scores.len() - 1;
            let Some((_, reward)) = rewards().find(|&(index, _)| index == greedy) else {
                return Selection::Dropped("no_usable_baseline");
            };
            greedy_reward = Some(reward);
            let sampled: Vec<usize> =
                rewards().map(|(index, _)| index).filter(|&index| index != greedy).collect();
            if sampled.is_empty() {
                return Selection::Dropped("no_usable_completion");
            }
            sampled
        }
        SelectionRule::AgainstRivals { keep_rivals, .. } => {
            let half = rule.samples_of(scored.scores.len());
            let usable: Vec<usize> = rewards().map(|(index, _)| index).collect();
            let has = |index: &usize| usable.binary_search(index).is_ok();
            let pairs = (0..half).map(|own| (own, own + half)).filter(|(own, rival)| has(own) && has(rival));
            let pairs: Vec<(usize, usize)> = pairs.collect();
            if pairs.is_empty() {
                return Selection::Dropped("no_usable_pair");
            }
            if keep_rivals {
                pairs.into_iter().flat_map(|(own, rival)| [own, rival]).collect()
            } else {
                rival_rewards = pairs.iter().map(|&(_, rival)| scored.scores[rival].reward).collect();
                pairs.into_iter().map(|(own, _)| own).collect()
            }
        }
        SelectionRule::BestAgainstWorst | SelectionRule::Ranking => {
            if highest <= lowest {
                return Selection::Dropped("all_rewards_equal");
            }
            if highest - lowest < config.min_margin {
                return Selection::Dropped("margin_below_min_margin");
            }
            vec![best, worst]
        }
    };
    let samples = rule.samples_of(scored.scores.len());
    let branch = |index: usize| {
        let mut branch = Branch::of(&scored.group.completions[index], &is_format);
        branch.reward = scored.scores[index].reward;
        if index >= samples {
            // A yardstick's log-probabilities are not those of the policy.
            branch.behaviour_logps.clear();
        }
        branch
    };
    let versions = |index: &usize| scored.group.completions[*index].weight_versions();
    Selection::Accepted(Tree {
        prompt_id: scored.group.prompt.id,
        prompt: scored.group.prompt_tokens.clone(),
        version: chosen.iter().flat_map(versions).min(),
        branches: chosen.into_iter().map(branch).collect(),
        greedy_reward,
        rival_rewards,
        ..Tree::default()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::experience::{Completion, Group, Score};
    use crate::prompt::{Message, Prompt};

    fn scored(rewards: &[f32]) -> ScoredGroup {
        let completion = |sample: u32| {
            let mut completion = Completion { finish: Finish::EndOfTurn, ..Completion::empty(sample) };
            completion.push(10 + sample, -0.5, -0.5, 0);
            completion.push(2, -0.25, -0.25, 0);
            completion
        };
        let prompt = Prompt { id: 4, messages: vec![Message::user("hi")], checks: serde_json::Value::Null };
        ScoredGroup {
            group: Group {
                prompt: Arc::new(prompt),
                prompt_tokens: vec![1, 5],
                completions: (0..rewards.len() as u32).map(completion).collect(),
            },
            scores: rewards.iter().map(|&reward| Score { reward, components: BTreeMap::new() }).collect(),
        }
    }

    fn samples(selection: &Selection) -> Vec<u32> {
        match selection {
            Selection::Accepted(tree) => tree.branches.iter().map(|branch| branch.sample).collect(),
            Selection::Dropped(reason) => panic!("dropped: {reason}"),
        }
    }

    fn apply(rewards: &[f32], rule: SelectionRule, config: &SelectionConfig) -> Selection {
        select(&scored(rewards), rule, config, |token| token == 2)
    }

    #[test]
    fn best_of_n_takes_the_first_of_the_best_and_ignores_what_is_not_finite() {
        let config = SelectionConfig::default();
        let rewards = [0.0, f32::NAN, 1.0, 1.0, f32::INFINITY];
        assert_eq!(samples(&apply(&rewards, SelectionRule::BestOfN, &config)), [2]);
    }

    /// RAFT's selections: the k best, or all that reach a reward; ties and the order go to the lowest sample.
    #[test]
    fn the_best_few_of_a_group_are_kept() {
        let keep =
            |keep_best, min_reward| SelectionConfig { keep_best, min_reward, ..SelectionConfig::default() };
        let rewards = [0.25, 1.0, f32::NAN, 0.5, 1.0, 0.0];
        let kept = |config| samples(&apply(&rewards, SelectionRule::BestOfN, &config));
        assert_eq!(kept(keep(1, 0.0)), [1]);
        assert_eq!(kept(keep(3, 0.0)), [1, 4, 3]);
        assert_eq!(kept(keep(3, 0.75)), [1, 4]);
        assert_eq!(kept(keep(99, 0.25)), [1, 4, 3, 0]);
        let none = apply(&rewards, SelectionRule::BestOfN, &keep(2, 1.5));
        assert_eq!(none, Selection::Dropped("best_below_min_reward"));
    }

    #[test]
    fn filters_leave_completions_out_of_the_choice() {
        let mut scored = scored(&[1.0, 1.0, 0.5, 0.25]);
        let first = &mut scored.group.completions[0];
        first.segments.clear();
        for token in [7, 7, 7, 2] {
            first.push(token, -1.0, -1.0, 0);
        }
        scored.group.completions[1].finish = Finish::Length;
        scored.group.completions[3].segments = scored.group.completions[2].segments.clone();
        let kept = |config: &SelectionConfig, rule| samples(&select(&scored, rule, config, |_| false));
        let all = SelectionConfig { keep_best: 9, ..SelectionConfig::default() };
        assert_eq!(kept(&all, SelectionRule::BestOfN), [0, 1, 2, 3]);
        let short = SelectionConfig { max_tokens: Some(3), ..all.clone() };
        assert_eq!(kept(&short, SelectionRule::BestOfN), [1, 2, 3]);
        let whole = SelectionConfig { drop_truncated: true, ..short.clone() };
        assert_eq!(kept(&whole, SelectionRule::BestOfN), [2, 3]);
        let once = SelectionConfig { drop_duplicates: true, ..short.clone() };
        assert_eq!(kept(&once, SelectionRule::BestOfN), [1, 2]);
        assert_eq!(kept(&once, SelectionRule::BestAgainstWorst), [1, 2]);
        // Whole groups are whole.
        let group = SelectionRule::Group { least: 2, drop_equal: false };
        assert_eq!(kept(&SelectionConfig { max_tokens: Some(1), ..all.clone() }, group), [0, 1, 2, 3]);
        let nothing = SelectionConfig { max_tokens: Some(1), ..all };
        let selection = select(&scored, SelectionRule::BestOfN, &nothing, |_| false);
        assert_eq!(selection, Selection::Dropped("all_completions_filtered"));
    }

    #[test]
    fn best_against_worst_takes_the_first_of_each() {
        let config = SelectionConfig::default();
        let selection = apply(&[0.5, 1.0, 0.0, 0.0, 1.0], SelectionRule::BestAgainstWorst, &config);
        assert_eq!(samples(&selection), [1, 2]);
        let Selection::Accepted(tree) = selection else { unreachable!() };
        assert_eq!((tree.prompt_id, &tree.prompt[..]), (4, &[1, 5][..]));
        assert_eq!(tree.branches[0].is_format, [false, true]);
        assert_eq!(tree.branches[0].behaviour_logps, [-0.5, -0.25]);
    }

    #[test]
    fn unpaired_takes_the_best_if_desirable_and_the_worst_if_not() {
        // Bounds that would drop every group of the other rules.
        let config = SelectionConfig { min_reward: 9.0, min_margin: 9.0, ..SelectionConfig::default() };
        let rule = SelectionRule::Unpaired { desirable_reward: 0.5 };
        for (rewards, expected) in [
            (&[0.0, 1.0, 0.5, 0.0][..], &[1, 0][..]),
            (&[0.5, 1.0], &[1]),
            (&[0.25, 0.0], &[1]),
            (&[1.0, 1.0], &[0]),
            (&[0.0, f32::NAN], &[0]),
        ] {
            assert_eq!(samples(&apply(rewards, rule, &config)), expected, "{rewards:?}");
        }
        assert_eq!(apply(&[f32::NAN], rule, &config), Selection::Dropped("no_usable_completion"));
    }

    #[test]
    fn a_group_takes_all_that_is_usable_whatever_the_bounds() {
        let config = SelectionConfig { min_reward: 9.0, min_margin: 9.0, ..SelectionConfig::default() };
        let rule = SelectionRule::Group { least: 2, drop_equal: false };
        let selection = apply(&[0.5, f32::NAN, -1.0, f32::NEG_INFINITY, 0.5], rule, &config);
        assert_eq!(samples(&selection), [0, 2, 4]);
        let Selection::Accepted(tree) = selection else { unreachable!() };
        assert_eq!(tree.branches.iter().map(|branch| branch.reward).collect::<Vec<_>>(), [0.5, -1.0, 0.5]);
        assert_eq!(tree.greedy_reward, None);
        assert_eq!(samples(&apply(&[0.5, 0.5], rule, &config)), [0, 1]);
        let filter = SelectionRule::Group { least: 2, drop_equal: true };
        assert_eq!(apply(&[0.5, 0.5], filter, &config), Selection::Dropped("all_rewards_equal"));
        let alone = apply(&[0.5, f32::NAN], rule, &config);
        assert_eq!(alone, Selection::Dropped("too_few_usable_completions"));
    }

    #[test]
    fn a_response_that_the_limit_cut_short_says_so() {
        let mut scored = scored(&[0.0, 1.0]);
        scored.group.completions[1].finish = Finish::Length;
        let rule = SelectionRule::Group { least: 2, drop_equal: false };
        let Selection::Accepted(tree) = select(&scored, rule, &SelectionConfig::default(), |_| false) else {
            panic!("dropped")
        };
        assert_eq!(tree.branches.iter().map(|branch| branch.truncated).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn the_greedy_completion_is_the_baseline_and_no_branch() {
        let config = SelectionConfig::default();
        let rule = SelectionRule::GroupAgainstGreedy;
        let selection = apply(&[0.0, f32::NAN, 1.0, 0.25], rule, &config);
        assert_eq!(samples(&selection), [0, 2]);
        let Selection::Accepted(tree) = selection else { unreachable!() };
        assert_eq!(tree.greedy_reward, Some(0.25));
        assert_eq!(apply(&[1.0, f32::NAN], rule, &config), Selection::Dropped("no_usable_baseline"));
        assert_eq!(apply(&[f32::NAN, 1.0], rule, &config), Selection::Dropped("no_usable_completion"));
    }

    #[test]
    fn each_sample_stands_beside_its_rival() {
        let config = SelectionConfig { min_reward: 9.0, min_margin: 9.0, ..SelectionConfig::default() };
        let rule = |keep_rivals| SelectionRule::AgainstRivals { reference_weight: 0.5, keep_rivals };
        let rewards = [0.0, f32::NAN, 1.0, 0.25, 0.5, 0.75];
        let kept = apply(&rewards, rule(true), &config);
        assert_eq!(samples(&kept), [0, 3, 2, 5]);
        let Selection::Accepted(tree) = kept else { unreachable!() };
        // A rival's log-probabilities are not those of the policy.
        let sampled = |branch: &Branch| !branch.behaviour_logps.is_empty();
        assert_eq!(tree.branches.iter().map(sampled).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(["policy", "rival", "policy"], [0, 1, 2].map(|position| rule(true).role(position)));
        let rated = apply(&rewards, rule(false), &config);
        assert_eq!(samples(&rated), [0, 2]);
        let Selection::Accepted(tree) = rated else { unreachable!() };
        assert_eq!(tree.rival_rewards, [0.25, 0.75]);
        let none = apply(&[1.0, f32::NAN, f32::NAN, 1.0], rule(true), &config);
        assert_eq!(none, Selection::Dropped("no_usable_pair"));
    }

    #[test]
    fn everything_is_taken_whatever_its_reward() {
        let config = SelectionConfig { min_reward: 9.0, min_margin: 9.0, ..SelectionConfig::default() };
        let mut scored = scored(&[0.5, f32::NAN, -1.0]);
        scored.group.completions[2].segments.clear();
        let selection = select(&scored, SelectionRule::Everything, &config, |_| false);
        assert_eq!(samples(&selection), [0, 1]);
        scored.scores.iter_mut().for_each(|score| score.reward = f32::NAN);
        let selection = select(&scored, SelectionRule::Everything, &config, |_| false);
        assert_eq!(samples(&selection), [0, 1]);
    }

    #[test]
    fn a_group_without_use_is_dropped_with_its_reason() {
        let config = SelectionConfig { min_reward: 0.5, min_margin: 0.4, ..SelectionConfig::default() };
        let pair = SelectionRule::BestAgainstWorst;
        for (rewards, rule, reason) in [
            (&[][..], pair, "no_usable_completion"),
            (&[f32::NAN], pair, "no_usable_completion"),
            (&[0.4, 0.1], SelectionRule::BestOfN, "best_below_min_reward"),
            (&[0.6, 0.6], pair, "all_rewards_equal"),
            (&[0.6, 0.3], pair, "margin_below_min_margin"),
        ] {
            assert_eq!(apply(rewards, rule, &config), Selection::Dropped(reason));
        }
    }
}
