//! The best completion against the worst: for DPO and the other algorithms on pairs.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};
use crate::example::{RowContent, TrainingExample};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestAgainstWorst;

impl Rule for BestAgainstWorst {
    fn learns_from(&self) -> &'static str {
        "pairs of a chosen and a rejected response of a prompt"
    }

    fn role(&self, position: usize) -> &'static str {
        if position == 0 { "chosen" } else { "rejected" }
    }

    fn least_samples(&self) -> usize {
        2
    }

    fn wants_several(&self) -> &'static str {
        "learns from pairs"
    }

    fn reads_bounds(&self) -> bool {
        true
    }

    fn choose(&self, usable: &Usable, bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let ((best, highest), (worst, lowest)) = (usable.best(), usable.worst());
        if highest <= lowest {
            return Err("all_rewards_equal");
        }
        if highest - lowest < bounds.min_margin {
            return Err("margin_below_min_margin");
        }
        Ok(vec![best, worst].into())
    }

    fn example<'a>(&self, row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        match *row {
            RowContent::Preference { chosen, rejected, .. } => {
                Some(TrainingExample::Responses(vec![(chosen, 1.0), (rejected, 0.0)]))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::tests::{accepted, apply, samples};

    #[test]
    fn best_against_worst_takes_the_first_of_each() {
        let config = SelectionConfig::default();
        let selection = apply(&[0.5, 1.0, 0.0, 0.0, 1.0], BestAgainstWorst, &config);
        assert_eq!(samples(&selection), [1, 2]);
        let tree = accepted(&selection);
        assert_eq!((tree.prompt_id, &tree.prompt[..]), (4, &[1, 5][..]));
        assert_eq!(tree.branches[0].is_format, [false, true]);
        assert_eq!(tree.branches[0].behaviour_logps, [-0.5, -0.25]);
    }
}
