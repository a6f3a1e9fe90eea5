//! The best completion against the worst. Of a row of a dataset: every response that people ranked, the best first. For
//! reward models.

use serde::{Deserialize, Serialize};

use super::{BestAgainstWorst, Choice, Rule, SelectionConfig, Usable};
use crate::example::{RowContent, TrainingExample};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranking;

impl Rule for Ranking {
    fn learns_from(&self) -> &'static str {
        "two or three responses of a prompt, ranked"
    }

    fn role(&self, position: usize) -> &'static str {
        BestAgainstWorst.role(position)
    }

    fn least_samples(&self) -> usize {
        BestAgainstWorst.least_samples()
    }

    fn wants_several(&self) -> &'static str {
        BestAgainstWorst.wants_several()
    }

    fn reads_bounds(&self) -> bool {
        BestAgainstWorst.reads_bounds()
    }

    fn choose(&self, usable: &Usable, bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        BestAgainstWorst.choose(usable, bounds)
    }

    /// Edited > chosen > rejected, as Llama 3 ranks them (arXiv:2407.21783, 4.1.2).
    fn example<'a>(&self, row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        match *row {
            RowContent::Preference { chosen, rejected, edited } => {
                let edited = edited.into_iter().map(|edited| (edited, 2.0));
                Some(TrainingExample::Responses(edited.chain([(chosen, 1.0), (rejected, 0.0)]).collect()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::tests::apply;

    /// Of samples it learns as [`BestAgainstWorst`] does, drops included.
    #[test]
    fn samples_are_ranked_as_a_pair() {
        let config = SelectionConfig { min_margin: 0.4, ..SelectionConfig::default() };
        for rewards in [&[0.5, 1.0, 0.0, 0.0, 1.0][..], &[0.6, 0.3], &[0.6, 0.6], &[f32::NAN]] {
            assert_eq!(apply(rewards, Ranking, &config), apply(rewards, BestAgainstWorst, &config));
        }
        assert_eq!(["chosen", "rejected"], [0, 1].map(|position| Ranking.role(position)));
    }
}
