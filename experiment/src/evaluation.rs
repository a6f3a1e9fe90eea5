//! `[evaluation]`: how the held-out prompts are answered, and which benchmarks are asked.

use arriero_eval::{Kind, SuiteConfig};
use arriero_policy::sampling::SamplingConfig;
use serde::{Deserialize, Serialize};

use crate::document::Section;
use crate::error::ExperimentError;
use crate::generator::{GeneratorPlan, MOST_SEQUENCES};

/// Options of the evaluator.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationPlan {
    /// How tokens are drawn. Default: greedily, with the generator's limit and stop strings.
    pub sampling: SamplingConfig,
    /// Sequences decoded at once. Default 64.
    pub batch: usize,
    /// Held-out prompts on whose answers the KL to the reference is measured. Default 64.
    pub kl_prompts: usize,
    /// Benchmarks of the initial weights and of each arm's. Default none.
    pub suites: Vec<SuiteConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvaluationSizes {
    pub batch: usize,
    pub kl_prompts: usize,
}

impl Default for EvaluationSizes {
    fn default() -> Self {
        EvaluationSizes { batch: 64, kl_prompts: 64 }
    }
}

pub(crate) fn evaluation(
    mut section: Section<'_>,
    generator: &GeneratorPlan,
) -> Result<EvaluationPlan, ExperimentError> {
    let EvaluationSizes { batch, kl_prompts } = section.read(&EvaluationSizes::default())?;
    let greedy = SamplingConfig {
        temperature: 0.0,
        max_new_tokens: generator.sampling.max_new_tokens,
        stop: generator.sampling.stop.clone(),
        ..SamplingConfig::default()
    };
    let sampling: SamplingConfig = section.read(&greedy)?;
    section.check(sampling.validate())?;
    section.counts(&[("batch", batch, MOST_SEQUENCES), ("kl_prompts", kl_prompts, usize::MAX)])?;
    let suites = section.children("suites")?.into_iter().map(suite).collect::<Result<Vec<_>, _>>()?;
    let repeated =
        (1..suites.len()).find(|&place| suites[..place].iter().any(|one| one.name() == suites[place].name()));
    if let Some(place) = repeated {
        let name = suites[place].name();
        return Err(section.fail("suites", &format!("has \"{name}\" twice; give one of them another name")));
    }
    section.finish()?;
    Ok(EvaluationPlan { sampling, batch, kl_prompts, suites })
}

/// A suite of the evaluation.
fn suite(mut section: Section<'_>) -> Result<SuiteConfig, ExperimentError> {
    let names: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
    let Some(name) = section.take::<String>("kind")? else {
        return Err(section.fail("kind", &format!("is missing; expected one of {}", names.join(", "))));
    };
    let kind = Kind::parse(&name).map_err(|error| section.fail("kind", &format!("is wrong: {error}")))?;
    let config: SuiteConfig = section.read(&SuiteConfig::new(kind))?;
    if kind.is_of_reward_models() {
        return Err(
            section.fail("kind", "asks a reward model, and a run evaluates a policy; use `arriero eval`")
        );
    }
    section.check(config.validate())?;
    section.finish()?;
    Ok(config)
}
