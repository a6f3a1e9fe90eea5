//! The best completion if it is desirable, and the worst if it is not: for KTO. A tree has one or two branches, so a
//! group of equal rewards is of use, too.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};
use crate::example::{RowContent, TrainingExample};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Unpaired {
    /// The least reward of a desirable response.
    pub desirable_reward: f32,
}

impl Unpaired {
    /// The reward of a response that people labelled. It is on the label's side of the least desirable reward, whatever
    /// that is.
    fn reward_of(&self, is_desirable: bool) -> f32 {
        if is_desirable { self.desirable_reward } else { self.desirable_reward - 1.0 }
    }
}

impl Rule for Unpaired {
    fn learns_from(&self) -> &'static str {
        "responses that are desirable or not, without pairs"
    }

    fn role(&self, _position: usize) -> &'static str {
        "unpaired"
    }

    fn choose(&self, usable: &Usable, _bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let ((best, highest), (worst, lowest)) = (usable.best(), usable.worst());
        let desirable = (highest >= self.desirable_reward).then_some(best);
        let undesirable = (lowest < self.desirable_reward).then_some(worst);
        Ok(desirable.into_iter().chain(undesirable).collect::<Vec<_>>().into())
    }

    fn example<'a>(&self, row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        let responses = match *row {
            RowContent::Unpaired { completion, label } => vec![(completion, self.reward_of(label))],
            RowContent::Preference { chosen, rejected, .. } => {
                vec![(chosen, self.reward_of(true)), (rejected, self.reward_of(false))]
            }
            _ => return None,
        };
        Some(TrainingExample::Responses(responses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;
    use crate::selection::tests::{apply, samples, unreachable_bounds};

    #[test]
    fn unpaired_takes_the_best_if_desirable_and_the_worst_if_not() {
        let config = unreachable_bounds();
        let rule = Unpaired { desirable_reward: 0.5 };
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
}
