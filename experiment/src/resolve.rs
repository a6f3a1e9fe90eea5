//! A plan as TOML, every default written out.

use toml::{Table, Value};

use crate::error::ExperimentError;
use crate::evaluation::{EvaluationPlan, EvaluationSizes};
use crate::mode::{Mode, ModeName};
use crate::plan::Plan;

/// Writes the plan out.
pub(crate) fn resolve(plan: &Plan, model_path: &str) -> Result<String, ExperimentError> {
    let table = || -> Result<Table, toml::ser::Error> {
        let mut root = Table::new();
        let mut put = |key: &str, value: Value| root.insert(key.to_string(), value);
        put("name", Value::String(plan.name.clone()));
        put("seed", Value::try_from(plan.seed)?);
        match plan.mode {
            Mode::Lockstep => put("mode", Value::try_from(ModeName::Lockstep)?),
            Mode::Async { max_staleness } => {
                put("max_staleness", Value::try_from(max_staleness)?);
                put("mode", Value::try_from(ModeName::Async)?)
            }
        };
        let mut model = Table::new();
        model.insert("path".to_string(), Value::String(model_path.to_string()));
        if let Some(adapter) = &plan.model.adapter {
            model.insert("adapter".to_string(), Value::String(adapter.display().to_string()));
        }
        model.insert("tokenizer".to_string(), Value::try_from(plan.model.tokenizer)?);
        model.insert("device".to_string(), Value::try_from(plan.model.device)?);
        model.insert("dtype".to_string(), Value::try_from(plan.model.dtype)?);
        put("model", Value::Table(model));
        put("devices", Value::try_from(plan.devices)?);
        put("prompts", Value::Table(plan.prompts.to_table()?));
        put("reward", merged(&[Table::try_from(&plan.reward)?, Table::try_from(plan.unscored)?]));
        put("generator", Value::Table(plan.generator.to_table()?));
        put("selection", Value::try_from(&plan.selection)?);
        let EvaluationPlan { batch, kl_prompts, .. } = plan.evaluation;
        let sizes = EvaluationSizes { batch, kl_prompts };
        let mut suites = Table::new();
        if !plan.evaluation.suites.is_empty() {
            suites.insert("suites".to_string(), Value::try_from(&plan.evaluation.suites)?);
        }
        let sampling = Table::try_from(&plan.evaluation.sampling)?;
        put("evaluation", merged(&[Table::try_from(sizes)?, sampling, suites]));
        let mut queues = Table::new();
        queues.insert("capacity".to_string(), Value::try_from(plan.queue_capacity)?);
        queues.insert("buffer".to_string(), Value::try_from(plan.buffer_capacity)?);
        put("queues", Value::Table(queues));
        put("checkpoint", Value::try_from(plan.checkpoint)?);
        let arms =
            plan.arms.iter().map(|arm| arm.to_table(&plan.generator, &plan.selection).map(Value::Table));
        let arms = arms.collect::<Result<_, _>>()?;
        put("arm", Value::Array(arms));
        Ok(root)
    };
    let text = table().and_then(|table| toml::to_string(&table));
    text.map_err(|error| ExperimentError::Unwritable { cause: error.to_string() })
}

fn merged(tables: &[Table]) -> Value {
    Value::Table(tables.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}
