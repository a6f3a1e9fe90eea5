//! Scored groups that more than one stage or arm learns from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arriero_buffers::ScoredGroup;

use crate::job::SamplingSettings;

/// Scored groups of the initial weights by prompt, with the settings that made them. They are the same for every arm:
/// arms start from the same weights, and random numbers are keyed by seed, prompt, sample and token.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitialGroups(Arc<Mutex<BTreeMap<u64, Vec<Made>>>>);

/// A group, and how it was made.
type Made = (SamplingSettings, Arc<ScoredGroup>);

impl InitialGroups {
    pub fn keep(&self, settings: &SamplingSettings, scored: &Arc<ScoredGroup>) {
        let mut groups = lock(&self.0);
        let of_prompt = groups.entry(scored.group.prompt.id).or_default();
        if of_prompt.iter().all(|(known, _)| known != settings) {
            of_prompt.push((settings.clone(), Arc::clone(scored)));
        }
    }

    pub fn get(&self, settings: &SamplingSettings, prompt_id: u64) -> Option<Arc<ScoredGroup>> {
        let groups = lock(&self.0);
        let fits = groups.get(&prompt_id)?.iter().find(|(known, _)| known == settings);
        fits.map(|(_, scored)| Arc::clone(scored))
    }
}

/// Scored groups of the running round by stage and prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct StageGroups(Arc<Mutex<BTreeMap<String, ByPrompt>>>);

type ByPrompt = BTreeMap<u64, Arc<ScoredGroup>>;

impl StageGroups {
    /// Forgets what a stage has sampled: it samples anew.
    pub fn forget(&self, stage: &str) {
        lock(&self.0).remove(stage);
    }

    pub fn keep(&self, stage: &str, scored: &Arc<ScoredGroup>) {
        let mut groups = lock(&self.0);
        groups.entry(stage.to_string()).or_default().insert(scored.group.prompt.id, Arc::clone(scored));
    }

    pub fn get(&self, stage: &str, prompt_id: u64) -> Option<Arc<ScoredGroup>> {
        lock(&self.0).get(stage)?.get(&prompt_id).cloned()
    }
}

/// A panic of another holder leaves a map whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
