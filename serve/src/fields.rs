//! A JSON object read field by field, so that each error names its field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Characters of a wrong value that its error shows.
const SHOWN: usize = 60;

/// An object that is read field by field. A reader ends with [`Fields::finish`], which complains about what nobody
/// read. `null` counts as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Put before names in errors.
    prefix: String,
    values: Map<String, Value>,
}

impl Fields {
    /// A body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid_request(format!("the body is not valid JSON: {error}")))?;
        match value {
            Value::Object(values) => Ok(Fields { prefix: String::new(), values }),
            other => Err(ApiError::invalid_request(format!(
                "the body is {}; expected a JSON object",
                shown(&other)
            ))),
        }
    }

    /// An object inside of another.
    pub fn nested(name: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(values) => Ok(Fields { prefix: format!("{name}."), values }),
            other => Err(ApiError::invalid_field(name, format!("is {}; expected an object", shown(&other)))),
        }
    }

    /// The full name of a field.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// An error about a field; `message` goes on after its name.
    pub fn error(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::invalid_field(&self.name(name), message)
    }

    /// A value as it stands.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// A value that is `expected`.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let wrong = shown(&value);
        let value = serde_json::from_value(value);
        value.map(Some).map_err(|_| self.error(name, format!("is {wrong}; expected {expected}")))
    }

    /// A value that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, ApiError> {
        self.take(name, expected)?.ok_or_else(|| self.error(name, format!("is missing; expected {expected}")))
    }

    /// Accepts fields that clients send and that change nothing here: those with a neutral value, and those that only
    /// label the request, with any value.
    pub fn ignore(&mut self, neutral: &[(&str, Neutral)]) -> Result<(), ApiError> {
        for (name, neutral) in neutral {
            let Some(value) = self.value(name) else { continue };
            if !neutral.accepts(&value) {
                let message = format!("is {}, which this server cannot do; leave it out", shown(&value));
                return Err(self.error(name, message));
            }
        }
        Ok(())
    }

    /// Complains about the first field that nobody read.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.values.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(self.error(name, "is not a parameter of this server; leave it out")),
            None => Ok(()),
        }
    }
}

/// Values that change nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Neutral {
    /// Any: the field only labels the request.
    Label,
    /// 0.
    Zero,
    /// 1.
    One,
    /// `false`.
    False,
    /// An empty list, object or text.
    Empty,
    /// One of these texts.
    Text(&'static [&'static str]),
    /// `{"type": "text"}`.
    PlainText,
    /// `["text"]`.
    TextOnly,
}

impl Neutral {
    fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Neutral::Label, _) => true,
            (Neutral::Zero, Value::Number(number)) => number.as_f64() == Some(0.0),
            (Neutral::One, Value::Number(number)) => number.as_f64() == Some(1.0),
            (Neutral::False, Value::Bool(value)) => !value,
            (Neutral::Empty, Value::Array(values)) => values.is_empty(),
            (Neutral::Empty, Value::Object(values)) => values.is_empty(),
            (Neutral::Empty, Value::String(text)) => text.is_empty(),
            (Neutral::Text(texts), Value::String(text)) => texts.contains(&text.as_str()),
            (Neutral::PlainText, value) => *value == serde_json::json!({ "type": "text" }),
            (Neutral::TextOnly, value) => *value == serde_json::json!(["text"]),
            _ => false,
        }
    }
}

/// A value, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
