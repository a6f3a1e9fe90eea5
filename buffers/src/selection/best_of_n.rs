//! The best completion, or as many of the best as [`SelectionConfig::keep_best`] says: for SFT.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};
use crate::example::{RowContent, TrainingExample};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestOfN;

impl Rule for BestOfN {
    fn learns_from(&self) -> &'static str {
        "responses of a prompt, the best of its samples"
    }

    fn role(&self, _position: usize) -> &'static str {
        "best"
    }

    fn reads_bounds(&self) -> bool {
        true
    }

    fn choose(&self, usable: &Usable, bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let mut ranked: Vec<(usize, f32)> =
            usable.rewards().filter(|&(_, reward)| reward >= bounds.min_reward).collect();
        // Stable: of equal rewards the lowest number comes first.
        ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let best: Vec<usize> = ranked.into_iter().map(|(number, _)| number).take(bounds.keep_best).collect();
        Ok(best.into())
    }

    /// The best answer of a row, whatever its type.
    fn example<'a>(&self, row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        let answer = match *row {
            RowContent::Unpaired { label: false, .. } => {
                return Some(TrainingExample::Nothing("undesirable"));
            }
            RowContent::Conversation(messages) => return Some(TrainingExample::Conversation(messages)),
            RowContent::Text(text) => return Some(TrainingExample::Text(text)),
            RowContent::Completion(completion) | RowContent::Unpaired { completion, .. } => completion,
            RowContent::Preference { chosen, edited, .. } => edited.unwrap_or(chosen),
        };
        Some(TrainingExample::Responses(vec![(answer, 1.0)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;
    use crate::selection::tests::{apply, samples};

    #[test]
    fn best_of_n_takes_the_first_of_the_best_and_ignores_what_is_not_finite() {
        let config = SelectionConfig::default();
        let rewards = [0.0, f32::NAN, 1.0, 1.0, f32::INFINITY];
        assert_eq!(samples(&apply(&rewards, BestOfN, &config)), [2]);
    }

    /// RAFT's selections: the k best, or all that reach a reward. Of equal rewards the lowest sample comes first.
    #[test]
    fn the_best_few_of_a_group_are_kept() {
        let keep =
            |keep_best, min_reward| SelectionConfig { keep_best, min_reward, ..SelectionConfig::default() };
        let rewards = [0.25, 1.0, f32::NAN, 0.5, 1.0, 0.0];
        let kept = |config| samples(&apply(&rewards, BestOfN, &config));
        assert_eq!(kept(keep(1, 0.0)), [1]);
        assert_eq!(kept(keep(3, 0.0)), [1, 4, 3]);
        assert_eq!(kept(keep(3, 0.75)), [1, 4]);
        assert_eq!(kept(keep(99, 0.25)), [1, 4, 3, 0]);
        let none = apply(&rewards, BestOfN, &keep(2, 1.5));
        assert_eq!(none, Selection::Dropped("best_below_min_reward"));
    }
}
