//! Whether a completion is JSON, and what a JSON Schema asks for.

use arriero_buffers::{Completion, Prompt};
use jsonschema::Validator;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::per_completion::{PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::checks::Checks;
use crate::constraint::text::unfenced;
use crate::error::RewardError;

/// The options of the `json` reward.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JsonConfig {
    /// A JSON Schema (drafts 4 to 2020-12, by its `$schema`; references to other documents are not
    /// followed), as a table or as a text of JSON. Default none. A prompt's own `schema` wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Whether the whole completion must be JSON. Default false: a Markdown fence may stand around.
    pub bare: bool,
    /// The reward of JSON that does not fit the schema, from 0 to 1. Default 0.
    pub valid_reward: f64,
}

impl ScorerConfig for JsonConfig {
    fn validate(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.valid_reward) {
            return Err(format!("valid_reward is {}, but must be from 0 to 1", self.valid_reward));
        }
        self.schema.as_ref().map_or(Ok(()), |schema| validator(schema).map(drop))
    }

    /// A prompt's own schema must be one.
    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        match Checks::of(prompt)?.schema {
            Value::Null => Ok(()),
            schema => own_validator(prompt, &schema).map(drop),
        }
    }

    fn check_names(&self) -> Vec<&'static str> {
        vec!["schema"]
    }

    /// Reward 1 for JSON that fits the schema, if there is one; else 0.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let JsonConfig { schema, bare, valid_reward } = self.clone();
        let common = schema.as_ref().map(validator).transpose().map_err(RewardError::Config)?;
        // Prompts' schemas tend to repeat: the last one is kept.
        let mut own: Option<(Value, Validator)> = None;
        Ok(Box::new(PerCompletion {
            name: "json",
            score: move |prompt: &Prompt, completion: &Completion| {
                let checks = Checks::of(prompt)?;
                let validator = match &checks.schema {
                    Value::Null => common.as_ref(),
                    schema => {
                        if own.as_ref().is_none_or(|(known, _)| known != schema) {
                            own = Some((schema.clone(), own_validator(prompt, schema)?));
                        }
                        own.as_ref().map(|(_, validator)| validator)
                    }
                };
                let text = if bare { completion.text.trim() } else { unfenced(&completion.text) };
                let value: Option<Value> = serde_json::from_str(text).ok();
                let valid = number(value.is_some());
                let Some(validator) = validator else { return Ok(score(valid, [("valid_json", valid)])) };
                let fits = value.is_some_and(|value| validator.is_valid(&value));
                let reward = if fits { 1.0 } else { valid * valid_reward };
                Ok(score(reward, [("valid_json", valid), ("fits_schema", number(fits))]))
            },
        }))
    }
}

fn own_validator(prompt: &Prompt, schema: &Value) -> Result<Validator, RewardError> {
    validator(schema).map_err(|cause| RewardError::Check { prompt: prompt.id, name: "schema", cause })
}

fn validator(schema: &Value) -> Result<Validator, String> {
    let parsed = match schema {
        Value::String(json) => {
            serde_json::from_str(json).map_err(|error| format!("schema is no JSON: {error}"))?
        }
        other => other.clone(),
    };
    jsonschema::validator_for(&parsed).map_err(|error| format!("schema is no JSON Schema: {error}"))
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::json;

    use super::super::group;
    use super::*;

    fn rewards(config: &JsonConfig, checks: Value) -> Vec<f32> {
        let texts =
            [r#"{"n": 1}"#, "```json\n{\"n\": 2}\n```", r#"{"n": "1"}"#, "{n: 1}", r#"Sure: {"n": 1}"#];
        let group = group(checks, &texts.map(|text| (text, Finish::EndOfTurn)));
        let scores = config.scorer().expect("valid").score(&group).expect("scores");
        scores.iter().map(|score| score.reward).collect()
    }

    #[test]
    fn json_is_checked_alone_or_by_a_schema() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let plain = JsonConfig::default();
        assert_eq!(rewards(&plain, Value::Null), [1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(
            rewards(&JsonConfig { bare: true, ..plain.clone() }, Value::Null),
            [1.0, 0.0, 1.0, 0.0, 0.0]
        );
        let config = JsonConfig { schema: Some(schema.clone()), valid_reward: 0.25, ..plain.clone() };
        assert_eq!(rewards(&config, Value::Null), [1.0, 1.0, 0.25, 0.0, 0.0]);
        let text = JsonConfig { schema: Some(Value::String(schema.to_string())), ..plain.clone() };
        assert_eq!(rewards(&text, Value::Null), [1.0, 1.0, 0.0, 0.0, 0.0]);
        let own = json!({"schema": {"properties": {"n": {"minimum": 2}}}});
        assert_eq!(rewards(&config, own), [0.25, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_wrong_schema_is_refused() {
        for schema in [json!({"type": "objekt"}), json!("{"), json!(3)] {
            let config = JsonConfig { schema: Some(schema.clone()), ..JsonConfig::default() };
            assert!(config.validate().expect_err("no schema").contains("schema is no JSON"), "{schema}");
            let group = group(json!({"schema": schema}), &[("1", Finish::EndOfTurn)]);
            let error = JsonConfig::default().scorer().expect("valid").score(&group).expect_err("no schema");
            assert!(error.to_string().contains("prompt 7: `schema`"), "{error}");
        }
    }
}
