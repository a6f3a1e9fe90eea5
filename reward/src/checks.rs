//! What a prompt gives scorers to check: the members of its `checks`.

use arriero_buffers::Prompt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::RewardError;

/// Input, and the output that is expected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// What the program reads.
    #[serde(default, alias = "input")]
    pub stdin: String,
    /// What it must write; white space at the ends of lines and empty lines at the end do not count.
    #[serde(alias = "output")]
    pub stdout: String,
}

/// The members of [`Prompt::checks`], each for the scorers that read it. Null stands for none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Checks {
    /// Constraints, for `constraints`.
    pub constraints: Vec<Value>,
    /// IFEval's instruction ids.
    pub instruction_id_list: Vec<String>,
    /// IFEval's arguments, one object an instruction; or the same as a text of JSON.
    pub kwargs: Value,
    /// The right answer, for `math` and `exact`: a text, or a number.
    pub answer: Value,
    /// A JSON Schema, for `json`.
    pub schema: Value,
    /// For `code`: HumanEval's function `check`.
    pub test: Option<String>,
    /// The name of the function that `test` is called with.
    pub entry_point: Option<String>,
    /// For `code`: MBPP's assertions.
    pub test_list: Vec<String>,
    /// What runs before `test_list`.
    pub test_setup_code: Option<String>,
    /// What runs before that.
    pub test_imports: Vec<String>,
    /// For `code`: inputs of a program, and the outputs that it must have.
    pub cases: Vec<TestCase>,
    /// For `code`: what stands before the completion's code.
    pub prefix: Option<String>,
}

impl Checks {
    /// Reads a prompt's.
    pub fn of(prompt: &Prompt) -> Result<Self, RewardError> {
        if prompt.checks.is_null() {
            return Ok(Checks::default());
        }
        Checks::deserialize(&prompt.checks)
            .map_err(|cause| RewardError::Checks { prompt: prompt.id, cause: cause.to_string() })
    }

    /// The right answer as a text.
    pub fn answer(&self, prompt: u64) -> Result<String, RewardError> {
        let missing = || RewardError::MissingCheck { prompt, name: "answer", example: r#"{"answer": "42"}"# };
        match &self.answer {
            Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Null | Value::String(_) => Err(missing()),
            other => Err(RewardError::Check {
                prompt,
                name: "answer",
                cause: format!("expected a text or a number, found {other}"),
            }),
        }
    }

    /// IFEval's arguments: one object for each instruction.
    pub fn kwargs(&self, prompt: u64) -> Result<Vec<Map<String, Value>>, RewardError> {
        let error = |cause: String| RewardError::Check { prompt, name: "kwargs", cause };
        let parsed: Value = match &self.kwargs {
            Value::String(json) => serde_json::from_str(json).map_err(|cause| error(cause.to_string()))?,
            other => other.clone(),
        };
        let list = match parsed {
            Value::Null => vec![Value::Null; self.instruction_id_list.len()],
            // One instruction's may stand alone.
            Value::Object(_) if self.instruction_id_list.len() == 1 => vec![parsed],
            Value::Array(list) => list,
            other => return Err(error(format!("expected a list of objects, found {other}"))),
        };
        let object = |value: Value| match value {
            Value::Null => Ok(Map::new()),
            Value::Object(members) => Ok(members),
            other => Err(error(format!("expected an object for each instruction, found {other}"))),
        };
        list.into_iter().map(object).collect()
    }
}
