//! All usable completions but the last, which was decoded greedily: its reward is the others' baseline. For ReMax.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GreedyBaseline;

impl Rule for GreedyBaseline {
    fn learns_from(&self) -> &'static str {
        "the samples of a prompt, with their rewards and that of its greedy response"
    }

    fn role(&self, _position: usize) -> &'static str {
        "group"
    }

    fn wants_greedy(&self) -> bool {
        true
    }

    fn is_online(&self) -> bool {
        true
    }

    fn choose(&self, usable: &Usable, _bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let greedy = usable.of() - 1;
        let greedy_reward = Some(usable.reward(greedy).ok_or("no_usable_baseline")?);
        let chosen: Vec<usize> = usable.numbers().into_iter().filter(|&number| number != greedy).collect();
        if chosen.is_empty() {
            return Err("no_usable_completion");
        }
        Ok(Choice { chosen, greedy_reward, ..Choice::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;
    use crate::selection::tests::{accepted, apply, samples};

    #[test]
    fn the_greedy_completion_is_the_baseline_and_no_branch() {
        let config = SelectionConfig::default();
        let selection = apply(&[0.0, f32::NAN, 1.0, 0.25], GreedyBaseline, &config);
        assert_eq!(samples(&selection), [0, 2]);
        assert_eq!(accepted(&selection).greedy_reward, Some(0.25));
        let without = apply(&[1.0, f32::NAN], GreedyBaseline, &config);
        assert_eq!(without, Selection::Dropped("no_usable_baseline"));
        let alone = apply(&[f32::NAN, 1.0], GreedyBaseline, &config);
        assert_eq!(alone, Selection::Dropped("no_usable_completion"));
    }
}
