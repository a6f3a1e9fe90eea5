//! The rejection sampler's rules: from a scored group to a training tree, or to a reason why not.
//!
//! A [`Rule`] is one file here and one line in the registry of [`SelectionRule`];
//! docs/adding-a-selection-rule.md adds one step by step. [`select`] applies it. What rules have in common stands here
//! once: which completions are usable, which are the best and the worst, and how a tree is made of those chosen.

#[cfg(test)]
mod tests;

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::example::{RowContent, TrainingExample};
use crate::experience::{Completion, Finish, ScoredGroup};
use crate::tree::{Branch, Tree};

/// What an algorithm wants to learn from.
pub trait Rule {
    /// What a tree that it makes holds: words that follow "learns from".
    fn learns_from(&self) -> &'static str;

    /// What the completion at `position` among those chosen is to the algorithm: one word for the record.
    fn role(&self, position: usize) -> &'static str;

    /// Chooses among the usable completions of a group. Ties go to the lowest number.
    ///
    /// # Errors
    /// Why the group is not used: a metric's name, in snake case.
    fn choose(&self, usable: &Usable, bounds: &SelectionConfig) -> Result<Choice, &'static str>;

    /// What it learns from a row of a dataset, in place of samples. `None` if it has no use for rows of this type.
    fn example<'a>(&self, _row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        None
    }

    /// True if rows of a dataset, of one type at least, can take the place of samples.
    fn takes_rows(&self) -> bool {
        RowContent::TYPES.iter().any(|row| self.example(row).is_some())
    }

    /// The fewest samples of a prompt that it can work with. The greedy one and rivals do not count.
    fn least_samples(&self) -> usize {
        1
    }

    /// Why it wants several samples, where it does: words that follow the algorithm's name.
    fn wants_several(&self) -> &'static str {
        "compares the samples of a group"
    }

    /// True if the bounds of [`SelectionConfig`] apply.
    fn reads_bounds(&self) -> bool {
        false
    }

    /// True if a completion whose reward is not finite is of no use.
    fn reads_rewards(&self) -> bool {
        true
    }

    /// True if algorithms that ask for it learn online: from fresh samples of the policy, a few steps a round. An
    /// algorithm may say otherwise for itself.
    fn is_online(&self) -> bool {
        false
    }

    /// True if the last completion of a group must be decoded greedily, beside the others.
    fn wants_greedy(&self) -> bool {
        false
    }

    /// `Some` if each sample must have a rival, drawn from a mixture of policy and reference: the reference's weight in
    /// it.
    fn rivals(&self) -> Option<f32> {
        None
    }

    /// How many of a group's completions are the policy's samples. The others come after them and are yardsticks.
    fn samples_of(&self, completions: usize) -> usize {
        match self.rivals() {
            Some(_) => completions / 2,
            None => completions.saturating_sub(usize::from(self.wants_greedy())),
        }
    }

    /// How many completions a group of so many samples has.
    fn completions(&self, samples: usize) -> usize {
        match self.rivals() {
            Some(_) => samples.saturating_mul(2),
            None => samples + usize::from(self.wants_greedy()),
        }
    }
}

/// Makes the modules and [`SelectionRule`] from one line a rule. rustfmt does not see modules that a macro declares:
/// `cargo xtask ci` names their files to it.
macro_rules! registry {
    ($($name:literal => $module:ident::$rule:ident, $about:literal;)*) => {
        $(pub mod $module;)*
        $(pub use $module::$rule;)*

        /// The registry: a rule by its name, with the options that belong to it. It answers all that a [`Rule`] does.
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "rule")]
        pub enum SelectionRule {
            $(#[doc = $about] #[serde(rename = $name)] $rule($rule),)*
        }

        impl SelectionRule {
            /// Every rule's name, in the order of the registry.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name of this rule.
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule(_) => $name,)* }
            }

            /// Every rule with the options of its default, in the order of the registry.
            #[cfg(test)]
            fn all() -> Vec<Self> {
                vec![$(Self::$rule($rule::default()),)*]
            }
        }

        impl Deref for SelectionRule {
            type Target = dyn Rule;

            fn deref(&self) -> &(dyn Rule + 'static) {
                match self { $(Self::$rule(rule) => rule,)* }
            }
        }

        $(impl From<$rule> for SelectionRule {
            fn from(rule: $rule) -> Self {
                Self::$rule(rule)
            }
        })*
    };
}

registry! {
    "best_of_n" => best_of_n::BestOfN, "The best completion, or as many of the best as the bounds say.";
    "everything" => everything::Everything, "All completions, whatever their rewards.";
    "pair" => pair::BestAgainstWorst, "The best against the worst.";
    "ranking" => ranking::Ranking, "The best against the worst; of a row every response that people ranked.";
    "unpaired" => unpaired::Unpaired, "The best if it is desirable, and the worst if it is not.";
    "group" => group::WholeGroup, "All usable completions.";
    "greedy_baseline" => greedy_baseline::GreedyBaseline, "All usable completions, beside the reward of a greedy one.";
    "rivals" => rivals::AgainstRivals, "Completions of the policy, each beside a rival's.";
}

/// The rule's bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectionConfig {
    /// The least reward that a best (chosen) completion must have. Default 0.
    pub min_reward: f32,
    /// The least difference of rewards between chosen and rejected. Default 0: any above zero.
    pub min_margin: f32,
    /// SFT: how many of a prompt's best completions to learn from, each with at least `min_reward`. The number of
    /// samples, or more, takes all that reach it. Default 1: the best of n.
    pub keep_best: usize,
    /// Completions with more tokens than this, drawn by the policy, are not chosen. Default: no limit.
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

/// The completions of a scored group that a rule may choose from: at least one, by their numbers in the group.
#[derive(Debug, Clone, PartialEq)]
pub struct Usable {
    rewards: Vec<(usize, f32)>,
    best: (usize, f32),
    worst: (usize, f32),
    of: usize,
}

impl Usable {
    /// These completions, of a group of `of`. `None` if there are none.
    fn new(rewards: Vec<(usize, f32)>, of: usize) -> Option<Self> {
        let first = *rewards.first()?;
        let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
        let worse = |worst: (usize, f32), next: (usize, f32)| if next.1 < worst.1 { next } else { worst };
        let best = rewards.iter().copied().fold(first, better);
        let worst = rewards.iter().copied().fold(first, worse);
        Some(Usable { rewards, best, worst, of })
    }

    /// Numbers in the group and rewards, in the order of the numbers.
    pub fn rewards(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.rewards.iter().copied()
    }

    /// Numbers in the group, in their order.
    pub fn numbers(&self) -> Vec<usize> {
        self.rewards().map(|(number, _)| number).collect()
    }

    /// The reward of the completion with this number; `None` if it is not usable.
    pub fn reward(&self, number: usize) -> Option<f32> {
        let place = self.rewards.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.rewards[place].1)
    }

    /// Number and reward of the best one; of equals it is the first.
    pub fn best(&self) -> (usize, f32) {
        self.best
    }

    /// Number and reward of the worst one; of equals it is the first.
    pub fn worst(&self) -> (usize, f32) {
        self.worst
    }

    /// How many completions the group has, the others included.
    pub fn of(&self) -> usize {
        self.of
    }
}

/// What a rule chose of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// Numbers of the completions that become branches, in their order in the tree.
    pub chosen: Vec<usize>,
    /// As [`Tree::greedy_reward`].
    pub greedy_reward: Option<f32>,
    /// As [`Tree::rival_rewards`].
    pub rival_rewards: Vec<f32>,
}

impl From<Vec<usize>> for Choice {
    fn from(chosen: Vec<usize>) -> Self {
        Choice { chosen, ..Choice::default() }
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
/// Ties go to the lowest sample number, so that the result does not depend on timing. A completion whose reward is not
/// finite cannot be chosen. A group without a usable completion is dropped.
pub fn select(
    scored: &ScoredGroup,
    rule: SelectionRule,
    config: &SelectionConfig,
    is_format: impl Fn(u32) -> bool,
) -> Selection {
    match choose(scored, &*rule, config) {
        Ok(choice) => Selection::Accepted(tree(scored, &*rule, choice, is_format)),
        Err(reason) => Selection::Dropped(reason),
    }
}

/// What the rule chooses of those that are usable, or why the group is dropped.
fn choose(scored: &ScoredGroup, rule: &dyn Rule, config: &SelectionConfig) -> Result<Choice, &'static str> {
    let completions = &scored.group.completions;
    let is_usable = |&(index, reward): &(usize, f32)| {
        (reward.is_finite() || !rule.reads_rewards()) && completions[index].drawn_len() > 0
    };
    let mut usable: Vec<(usize, f32)> = scored.rewards().enumerate().filter(is_usable).collect();
    if rule.reads_bounds() && !usable.is_empty() {
        usable.retain(|&(index, _)| config.lets_through(completions, index));
        if usable.is_empty() {
            return Err("all_completions_filtered");
        }
    }
    let usable = Usable::new(usable, scored.scores.len()).ok_or("no_usable_completion")?;
    if rule.reads_bounds() && usable.best().1 < config.min_reward {
        return Err("best_below_min_reward");
    }
    rule.choose(&usable, config)
}

/// The tree of the chosen completions.
fn tree(scored: &ScoredGroup, rule: &dyn Rule, choice: Choice, is_format: impl Fn(u32) -> bool) -> Tree {
    let Choice { chosen, greedy_reward, rival_rewards } = choice;
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
    Tree {
        prompt_id: scored.group.prompt.id,
        prompt: scored.group.prompt_tokens.clone(),
        version: chosen.iter().flat_map(versions).min(),
        branches: chosen.into_iter().map(branch).collect(),
        greedy_reward,
        rival_rewards,
        ..Tree::default()
    }
}
