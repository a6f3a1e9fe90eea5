//! The whole of Arriero on one screen: no actors, no queues, no threads.
//!
//! Sample a group of completions for each prompt, score them, select, train, once a round. The actor
//! run with the same settings gives the same weights to the last bit; `tests/keystone.rs` holds the
//! two together. What it leaves out: evaluation, recording, several arms.
//!
//! `cargo run --release --example plain_loop -p arriero-policy -- MODEL [sft|dpo]`

use std::path::Path;
use std::sync::Arc;

use arriero_buffers::{ExperienceBuffer, Prompt, ScoredGroup, Selection, SelectionConfig, Tree, select};
use arriero_policy::checkpoint::{Checkpoint, Weights};
use arriero_policy::device::Compute;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::objective::Algorithm;
use arriero_policy::optim::TrainingConfig;
use arriero_policy::scoring::score_reference;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::teacher;
use arriero_policy::trainer::Trainer;
use arriero_reward::{RewardConfig, Scorer};

/// What the loop is told.
pub struct Settings {
    /// What is optimised.
    pub algorithm: Algorithm,
    /// How.
    pub training: TrainingConfig,
    /// How experience is sampled.
    pub generation: GenerationConfig,
    /// What is worth training on.
    pub selection: SelectionConfig,
    /// What is rewarded.
    pub reward: RewardConfig,
    /// How often, each time on the next prompts.
    pub rounds: usize,
}

/// Trains the model at `path` on `prompts`, an equal share of them a round; the trained weights.
pub fn plain_loop(
    path: &Path,
    compute: Compute,
    prompts: &[Arc<Prompt>],
    settings: &Settings,
) -> Result<Weights, Box<dyn std::error::Error>> {
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(path)?;
    let masters = Snapshot::new(0, config.clone(), compute.master(), weights);
    let initial = masters.in_precision(compute);
    let reference: Model = initial.model()?;
    let mut scorer: Box<dyn Scorer> = settings.reward.build()?;
    let (mut weights, mut newest, mut version) = (masters.weights(), Arc::clone(&initial), 0);
    let mut trainer: Option<Trainer> = None;
    // An online algorithm goes on with its optimiser from round to round; another begins anew.
    let goes_on = settings.algorithm.is_online();
    let needs = settings.algorithm.objective().needs();
    for (round, prompts) in prompts.chunks_exact(prompts.len() / settings.rounds).enumerate() {
        let mut generator =
            GroupSampler::new(newest.model()?, version, tokenizer.clone(), settings.generation.clone());
        if needs.selection.wants_greedy() {
            generator = generator.with_greedy_baseline();
        }
        if let Some(weight) = needs.selection.rivals() {
            generator = generator.with_mixture(initial.model()?, weight.into())?;
        }
        for prompt in prompts {
            generator.submit(Arc::clone(prompt))?;
        }
        let mut buffer = ExperienceBuffer::new(prompts.len());
        for group in generator.run()? {
            let scores = scorer.score(&group)?;
            let scored = ScoredGroup { group, scores };
            match select(&scored, needs.selection, &settings.selection, |token| tokenizer.is_special(token)) {
                Selection::Accepted(tree) => buffer.insert(tree)?,
                Selection::Dropped(reason) => eprintln!("prompt {}: {reason}", scored.group.prompt.id),
            }
        }
        let mut trees: Vec<Tree> = buffer.trees().cloned().collect();
        if needs.reference {
            for tree in &mut trees {
                score_reference(&reference, std::slice::from_mut(tree), usize::MAX)?;
                buffer.replace(tree.clone());
            }
        }
        let TrainingConfig { epochs, batch_size, .. } = settings.training;
        let steps = epochs * buffer.len().div_ceil(batch_size);
        let mut current = match trainer.take() {
            Some(before) if goes_on => before,
            before => {
                let critic = before.as_ref().and_then(Trainer::critic);
                let own_reference = before.as_ref().and_then(Trainer::reference);
                let objective =
                    before.map_or_else(|| settings.algorithm.objective(), |before| before.into_parts().0);
                let mut fresh =
                    Trainer::new(&config, &weights, compute, objective, settings.training.clone(), steps)?;
                if let Some(critic) = &critic {
                    fresh = fresh.with_critic(critic)?;
                }
                if let Some(path) = settings.algorithm.teacher() {
                    fresh = fresh.with_teacher(teacher::open(path, &config, &tokenizer, compute)?.into())?;
                }
                if needs.keeps_reference() {
                    // One that follows the policy goes on from round to round.
                    fresh = fresh.with_reference(&own_reference.unwrap_or_else(|| masters.weights()))?;
                }
                fresh
            }
        };
        if goes_on {
            // As if the rounds that are left had as many steps as this one.
            current.reach(current.steps() + steps * (settings.rounds - round));
        }
        for tree in &mut trees {
            current.score_old(tree)?;
            buffer.replace(tree.clone());
        }
        current.begin(&buffer.trees().collect::<Vec<_>>());
        for epoch in 0..epochs {
            for batch in buffer.minibatches(settings.generation.seed, round as u64, epoch as u64, batch_size)
            {
                let report = current.step(&batch)?;
                version += 1;
                eprintln!("step {version}: loss {:.4}", report.metrics["loss"]);
            }
        }
        weights = current.weights();
        newest = current.snapshot(version);
        trainer = Some(current);
    }
    Ok(weights)
}

#[allow(dead_code, reason = "the keystone test includes this file as a module")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: plain_loop MODEL [sft|dpo]")?;
    let algorithm = match arguments.next().as_deref() {
        Some("dpo") => Algorithm::Dpo(Default::default()),
        _ => Algorithm::Sft(Default::default()),
    };
    let prompts: Vec<Arc<Prompt>> = ["Name a fruit.", "Name a river.", "Name a colour.", "Name a bird."]
        .iter()
        .enumerate()
        .map(|(id, text)| Prompt {
            id: id as u64,
            messages: vec![arriero_buffers::Message::user(*text)],
            checks: serde_json::Value::Null,
        })
        .map(Arc::new)
        .collect();
    let settings = Settings {
        algorithm,
        training: TrainingConfig { batch_size: 2, ..TrainingConfig::default() },
        generation: GenerationConfig {
            sampling: arriero_policy::sampling::SamplingConfig::default(),
            samples: 4,
            batch: 16,
            seed: 17,
        },
        selection: SelectionConfig::default(),
        reward: serde_json::from_value(serde_json::json!({ "kind": "contains", "text": "." }))?,
        rounds: 1,
    };
    plain_loop(Path::new(&path), Compute::CPU_F32, &prompts, &settings)?;
    Ok(())
}
