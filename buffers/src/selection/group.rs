//! All usable completions, in the order of their samples: for GRPO and its kin.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeGroup {
    /// The fewest completions that make a group.
    pub least: usize,
    /// Drop a group whose rewards are all equal: it has no signal (DAPO's dynamic sampling; Yu et al., 2025).
    pub drop_equal: bool,
}

impl Default for WholeGroup {
    fn default() -> Self {
        WholeGroup { least: 1, drop_equal: false }
    }
}

impl Rule for WholeGroup {
    fn learns_from(&self) -> &'static str {
        "a group of samples of a prompt, with their rewards"
    }

    fn role(&self, _position: usize) -> &'static str {
        "group"
    }

    fn least_samples(&self) -> usize {
        self.least
    }

    fn is_online(&self) -> bool {
        true
    }

    fn choose(&self, usable: &Usable, _bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let all = usable.numbers();
        if all.len() < self.least {
            return Err("too_few_usable_completions");
        }
        if self.drop_equal && usable.best().1 <= usable.worst().1 {
            return Err("all_rewards_equal");
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;
    use crate::selection::tests::{accepted, apply, samples, unreachable_bounds};

    #[test]
    fn a_group_takes_all_that_is_usable_whatever_the_bounds() {
        let config = unreachable_bounds();
        let rule = WholeGroup { least: 2, drop_equal: false };
        let selection = apply(&[0.5, f32::NAN, -1.0, f32::NEG_INFINITY, 0.5], rule, &config);
        assert_eq!(samples(&selection), [0, 2, 4]);
        let tree = accepted(&selection);
        assert_eq!(tree.branches.iter().map(|branch| branch.reward).collect::<Vec<_>>(), [0.5, -1.0, 0.5]);
        assert_eq!(tree.greedy_reward, None);
        assert_eq!(samples(&apply(&[0.5, 0.5], rule, &config)), [0, 1]);
        let filter = WholeGroup { least: 2, drop_equal: true };
        assert_eq!(apply(&[0.5, 0.5], filter, &config), Selection::Dropped("all_rewards_equal"));
        let alone = apply(&[0.5, f32::NAN], rule, &config);
        assert_eq!(alone, Selection::Dropped("too_few_usable_completions"));
    }
}
