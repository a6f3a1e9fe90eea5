//! Sampling and decoding.

use std::sync::Arc;
use std::time::Duration;

use arriero_buffers::{Message, Prompt};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::snapshot::Snapshot;
use arriero_policy::tokenizer::Tokenizer;

use crate::data::{answer_tokens, distinct_prompts, read_pairs};
use crate::{Figures, Given, Result, figures, timed};

const PROMPTS: usize = 16;
const SAMPLES: usize = 8;
const MAX_NEW_TOKENS: usize = 128;

/// Tokens of a prompt, and decode steps, as llama-batched-bench is told.
const DECODE_PROMPT: usize = 40;
const DECODE_STEPS: usize = 64;
/// Room for the steps in which prompts still join.
const DECODE_JOINING: usize = 64;

/// The model in the compute precision, which shares its weights with the snapshot, and the tokenizer.
fn open(given: &Given) -> Result<(Arc<Snapshot>, Tokenizer)> {
    let Checkpoint { config, weights, tokenizer } = Checkpoint::open(&given.model)?;
    let compute = given.compute()?;
    Ok((Snapshot::new(0, config, compute.master(), weights).in_precision(compute), tokenizer))
}

fn generator(
    model: Model,
    tokenizer: &Tokenizer,
    samples: usize,
    batch: usize,
    tokens: usize,
    seed: u64,
) -> GroupSampler {
    let sampling = SamplingConfig { max_new_tokens: tokens, ..SamplingConfig::default() };
    GroupSampler::new(model, 0, tokenizer.clone(), GenerationConfig { sampling, samples, batch, seed })
}

/// Groups of samples until all of them have come to their end.
pub fn sampling(given: &Given) -> Result<Figures> {
    let (snapshot, tokenizer) = open(given)?;
    let prompts = distinct_prompts(&read_pairs(&given.pairs)?);
    let mut seconds = Vec::new();
    let mut tokens = 0;
    for step in 0..=given.steps {
        let model = snapshot.model()?;
        let limit = if step == 0 { 8 } else { MAX_NEW_TOKENS };
        let (time, sampled) = timed(given.compute()?.device, || -> Result<u64> {
            let mut generator = generator(model, &tokenizer, SAMPLES, given.batch as usize, limit, step);
            for prompt in prompts.iter().take(PROMPTS) {
                generator.submit(Arc::clone(prompt))?;
            }
            generator.run()?;
            Ok(generator.sampled_tokens())
        });
        let sampled = sampled?;
        if step > 0 {
            seconds.push(time);
            tokens += sampled;
        }
    }
    Ok(figures(seconds, tokens))
}

/// Decode steps, sampling included, while the whole batch is there: prompts that join or sequences that leave end the
/// measurement. A step of the figures is [`DECODE_STEPS`] tokens of every sequence.
pub fn decode(given: &Given) -> Result<Figures> {
    let (snapshot, tokenizer) = open(given)?;
    let batch = given.batch as usize;
    let prompts = decode_prompts(given, &tokenizer, batch)?;
    let mut seconds = Vec::new();
    for round in 0..=given.steps {
        let limit = DECODE_STEPS + DECODE_JOINING;
        let mut generator = generator(snapshot.model()?, &tokenizer, 1, batch, limit, round);
        for (id, tokens) in prompts.iter().enumerate() {
            let messages = vec![Message::user("")];
            let prompt = Prompt { id: id as u64, messages, checks: serde_json::Value::Null };
            generator.submit_tokens(Arc::new(prompt), tokens.clone())?;
        }
        let (mut steps, mut time) = (0, Duration::ZERO);
        while steps < DECODE_STEPS {
            let before = generator.sampled_tokens();
            let (step, groups) = timed(given.compute()?.device, || generator.step());
            let left = !groups?.is_empty();
            let drawn = (generator.sampled_tokens() - before) as usize;
            if left || generator.is_idle() {
                let found = format!("a sequence ended after {steps} of {DECODE_STEPS} steps");
                return Err(format!("{found}: decode wants a model without an end of turn").into());
            }
            // As long as prompts join, a step draws their first tokens beside the others' next ones.
            (steps, time) = if drawn == batch { (steps + 1, time + step) } else { (0, Duration::ZERO) };
        }
        if round > 0 {
            seconds.push(time);
        }
    }
    let tokens = (DECODE_STEPS * batch * seconds.len()) as u64;
    Ok(figures(seconds, tokens))
}

/// Prompts of [`DECODE_PROMPT`] tokens each, cut from the pairs' answers.
fn decode_prompts(given: &Given, tokenizer: &Tokenizer, batch: usize) -> Result<Vec<Vec<u32>>> {
    let mut text = Vec::new();
    for pair in read_pairs(&given.pairs)? {
        text.extend(answer_tokens(tokenizer, &pair.chosen)?);
        text.extend(answer_tokens(tokenizer, &pair.rejected)?);
    }
    let prompts: Vec<Vec<u32>> = text.chunks_exact(DECODE_PROMPT).map(<[u32]>::to_vec).collect();
    if prompts.is_empty() {
        return Err(format!("{} holds less than {DECODE_PROMPT} tokens", given.pairs.display()).into());
    }
    Ok(prompts.iter().cycle().take(batch).cloned().collect())
}
