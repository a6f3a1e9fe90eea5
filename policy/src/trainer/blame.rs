//! Which responses make a loss or a gradient that is not finite.

use arriero_buffers::Tree;

use super::Trainer;
use crate::error::PolicyError;
use crate::objective::{MicroBatch, TokenStatistics};
use crate::scoring::to_host;

/// Each response by the numbers of its prompt and of itself.
fn names_of(trees: &[&Tree]) -> Vec<(u64, u32)> {
    let names = |tree: &&Tree| {
        let prompt = tree.prompt_id;
        tree.branches.iter().map(move |branch| (prompt, branch.sample)).collect::<Vec<_>>()
    };
    trees.iter().flat_map(names).collect()
}

/// The responses of which the model itself gives a number that is not finite; all, where it gives none.
pub(super) fn broken(statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Vec<(u64, u32)> {
    let all = names_of(batch.trees);
    let numbers = [Some(&statistics.logps), statistics.values.as_ref()].into_iter().flatten();
    let is_sound: Vec<bool> = numbers.fold(vec![true; all.len()], |sound, numbers| {
        // The scores of a reward model stand without probabilities of tokens.
        if numbers.numel() == 0 {
            return sound;
        }
        let sums = to_host(&batch.sum_per_response(&numbers.detach()));
        sound.iter().zip(sums).map(|(sound, sum)| *sound && sum.is_finite()).collect()
    });
    if is_sound.iter().all(|&sound| sound) {
        return all;
    }
    all.into_iter().zip(is_sound).filter(|(_, sound)| !sound).map(|(name, _)| name).collect()
}

impl Trainer {
    /// The error of a part of a batch whose `what` is not finite: it names the responses of the trees whose share of the
    /// loss, or its gradient, is not finite on its own. Where each is finite alone, it names all.
    pub(super) fn blame(&mut self, what: &'static str, part: &MicroBatch<'_>) -> PolicyError {
        let mut sequences = Vec::new();
        for tree in part.trees {
            self.zero_gradients();
            let trees = [*tree];
            let alone = self
                .pack(&trees)
                .and_then(|forest| self.accumulate(&forest, &MicroBatch { trees: &trees, ..*part }));
            let norms =
                [Some(&mut self.parameters), self.critic.as_mut().map(|critic| &mut critic.parameters)];
            let is_finite = norms.into_iter().flatten().all(|one| one.clip(f64::INFINITY).is_finite());
            match alone {
                Err(PolicyError::NotFinite { sequences: own, .. }) => sequences.extend(own),
                _ if !is_finite => sequences.extend(names_of(&trees)),
                _ => {}
            }
        }
        self.zero_gradients();
        if sequences.is_empty() {
            sequences = names_of(part.trees);
        }
        PolicyError::NotFinite { what, sequences }
    }
}
