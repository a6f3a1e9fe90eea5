//! Completions of the policy, each beside a rival's: for XPO and Nash-MD. The second half of a group is drawn from the
//! geometric mixture of the policy and the reference. Where one of the two is not usable, both are left out.

use serde::{Deserialize, Serialize};

use super::{Choice, Rule, SelectionConfig, Usable};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AgainstRivals {
    /// The reference's weight in the mixture: 1 for the reference alone.
    pub reference_weight: f32,
    /// True: rivals become branches, each right after the sample that it stands beside (for XPO). False: only their
    /// rewards are kept (for Nash-MD).
    pub keep_rivals: bool,
}

impl Default for AgainstRivals {
    fn default() -> Self {
        AgainstRivals { reference_weight: 1.0, keep_rivals: true }
    }
}

impl Rule for AgainstRivals {
    fn learns_from(&self) -> &'static str {
        "the samples of a prompt, each beside one of the reference or of its mixture with the policy"
    }

    fn role(&self, position: usize) -> &'static str {
        if self.keep_rivals && position % 2 == 1 { "rival" } else { "policy" }
    }

    fn rivals(&self) -> Option<f32> {
        Some(self.reference_weight)
    }

    fn choose(&self, usable: &Usable, _bounds: &SelectionConfig) -> Result<Choice, &'static str> {
        let half = self.samples_of(usable.of());
        let (mut chosen, mut rival_rewards) = (Vec::new(), Vec::new());
        for (own, rival) in (0..half).map(|own| (own, own + half)) {
            let (Some(_), Some(reward)) = (usable.reward(own), usable.reward(rival)) else { continue };
            chosen.push(own);
            if self.keep_rivals {
                chosen.push(rival);
            } else {
                rival_rewards.push(reward);
            }
        }
        if chosen.is_empty() {
            return Err("no_usable_pair");
        }
        Ok(Choice { chosen, rival_rewards, ..Choice::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::Selection;
    use crate::selection::tests::{accepted, apply, samples, unreachable_bounds};
    use crate::tree::Branch;

    #[test]
    fn each_sample_stands_beside_its_rival() {
        let config = unreachable_bounds();
        let rule = |keep_rivals| AgainstRivals { reference_weight: 0.5, keep_rivals };
        let rewards = [0.0, f32::NAN, 1.0, 0.25, 0.5, 0.75];
        let kept = apply(&rewards, rule(true), &config);
        assert_eq!(samples(&kept), [0, 3, 2, 5]);
        // A rival's log-probabilities are not those of the policy.
        let sampled = |branch: &Branch| !branch.behaviour_logps.is_empty();
        let sampled: Vec<bool> = accepted(&kept).branches.iter().map(sampled).collect();
        assert_eq!(sampled, [true, false, true, false]);
        assert_eq!(["policy", "rival", "policy"], [0, 1, 2].map(|position| rule(true).role(position)));
        let rated = apply(&rewards, rule(false), &config);
        assert_eq!(samples(&rated), [0, 2]);
        assert_eq!(accepted(&rated).rival_rewards, [0.25, 0.75]);
        let none = apply(&[1.0, f32::NAN, f32::NAN, 1.0], rule(true), &config);
        assert_eq!(none, Selection::Dropped("no_usable_pair"));
    }
}
