//! All completions, whatever their rewards, even those that are not finite. Of a row of a dataset: its response. For
//! distillation.

use serde::{Deserialize, Serialize};

use super::{BestOfN, Choice, Rule, SelectionConfig, Usable};
use crate::example::{RowContent, TrainingExample};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Everything;

impl Rule for Everything {
    fn learns_from(&self) -> &'static str {
        "all samples of a prompt"
    }

    fn role(&self, _position: usize) -> &'static str {
        "group"
    }

    fn reads_rewards(&self) -> bool {
        false
    }

    fn choose(&self, usable: &Usable, _bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        Ok(usable.numbers().into())
    }

    fn example<'a>(&self, row: &RowContent<'a>) -> Option<TrainingExample<'a>> {
        BestOfN.example(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::select;
    use crate::selection::tests::{samples, scored, unreachable_bounds};

    #[test]
    fn everything_is_taken_whatever_its_reward() {
        let config = unreachable_bounds();
        let mut scored = scored(&[0.5, f32::NAN, -1.0]);
        scored.group.completions[2].segments.clear();
        let selection = select(&scored, Everything.into(), &config, |_| false);
        assert_eq!(samples(&selection), [0, 1]);
        scored.scores.iter_mut().for_each(|score| score.reward = f32::NAN);
        let selection = select(&scored, Everything.into(), &config, |_| false);
        assert_eq!(samples(&selection), [0, 1]);
    }
}
