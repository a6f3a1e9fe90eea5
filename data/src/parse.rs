//! From a JSON object to a [`Row`].

mod pairs;

use std::collections::BTreeMap;

use arriero_buffers::{Message, Role, Strength};
use serde_json::{Map, Value};

use crate::config::{DataConfig, Format, Template};
use crate::error::{Reason, RowError};
use crate::messages::{
    check_answered, check_roles, completion_messages, described, messages, names, prompt_messages,
};
use crate::row::Row;

/// What scorers know, under the same names.
const CHECKED_FIELDS: &[&str] = &[
    "constraints",
    "instruction_id_list",
    "kwargs",
    "schema",
    "test",
    "entry_point",
    "test_list",
    "test_setup_code",
    "test_imports",
    "cases",
    "prefix",
];
/// Where the right answer stands, in this order.
const ANSWER_FIELDS: &[&str] = &["answer", "solution", "ground_truth"];

type Result<T> = std::result::Result<T, RowError>;

/// How the objects of one file become rows.
#[derive(Debug, Clone)]
pub(crate) struct Parser {
    format: Format,
    fields: BTreeMap<String, String>,
    checks: Vec<String>,
    template: Template,
}

/// A row, and whether its texts stood without roles.
pub(crate) type Parsed = (Row, bool);

/// An object with the names that the configuration gives its fields.
pub(crate) struct Object<'a> {
    row: &'a Map<String, Value>,
    fields: &'a BTreeMap<String, String>,
    checks: &'a [String],
}

impl<'a> Object<'a> {
    /// What a field is called in the file.
    fn name(&self, field: &'a str) -> &'a str {
        self.fields.get(field).map_or(field, String::as_str)
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        let name = self.fields.get(field).map_or(field, String::as_str);
        self.row.get(name).filter(|value| !value.is_null())
    }

    fn need(&self, field: &'a str) -> Result<&'a Value> {
        self.get(field).ok_or_else(|| {
            let message = format!("expected a field `{}`, found {}", self.name(field), names(self.row));
            RowError::new(Reason::MissingField, message)
        })
    }

    fn wrong(&self, field: &'a str, expected: &str, found: &Value) -> RowError {
        let message = format!("`{}` must be {expected}, but is {}", self.name(field), described(found));
        RowError::new(Reason::WrongType, message)
    }

    fn text(&self, field: &'a str) -> Result<&'a str> {
        let value = self.need(field)?;
        let text = value.as_str().ok_or_else(|| self.wrong(field, "a text", value))?;
        if text.trim().is_empty() {
            return Err(RowError::new(Reason::Empty, format!("`{}` is empty", self.name(field))));
        }
        Ok(text)
    }

    fn boolean(&self, field: &'a str, value: &Value) -> Result<bool> {
        match value {
            Value::Bool(label) => Ok(*label),
            Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
            Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
            other => Err(self.wrong(field, "true or false (or 1 or 0)", other)),
        }
    }

    fn list(&self, field: &'a str) -> Result<&'a Vec<Value>> {
        let value = self.need(field)?;
        value.as_array().ok_or_else(|| self.wrong(field, "a list", value))
    }
}

impl Parser {
    /// For a file whose first row is `first`, unless the configuration says what rows are.
    pub fn new(config: &DataConfig, first: &Map<String, Value>) -> Result<Self> {
        let DataConfig { format, fields, checks, template, .. } = config;
        let format = match format {
            Format::Auto => detect(&Object { row: first, fields, checks })?,
            format => *format,
        };
        Ok(Parser { format, fields: fields.clone(), checks: checks.clone(), template: *template })
    }

    /// What rows are read as.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Reads a row.
    pub fn parse(&self, row: &Map<String, Value>) -> Result<Parsed> {
        let object = Object { row, fields: &self.fields, checks: &self.checks };
        let read = self.read(&object).and_then(|(row, is_plain)| {
            // Texts that are taken as they are pass no template.
            if !is_plain || self.template == Template::Always {
                self.check_extras(&object)?;
            }
            Ok((row, is_plain))
        });
        read.map_err(|error| error.at(&format!("read as {}", self.format.as_str())))
    }

    /// What TRL would hand to the chat template, and this program does not, must not be there: the text would be another.
    fn check_extras(&self, object: &Object<'_>) -> Result<()> {
        for field in ["tools", "chat_template_kwargs"] {
            let given = object.get(field).filter(|value| match value {
                Value::Array(list) => !list.is_empty(),
                Value::Object(members) => !members.is_empty(),
                Value::String(text) => !matches!(text.trim(), "" | "[]" | "{}" | "null"),
                _ => true,
            });
            if given.is_some() && !self.checks.iter().any(|name| name == field) {
                let message = format!(
                    "it has `{field}`, which is not handed to the chat template; write it into the system message, or leave \
                     the column out"
                );
                return Err(RowError::new(Reason::Unusable, message));
            }
        }
        Ok(())
    }

    fn read(&self, object: &Object<'_>) -> Result<Parsed> {
        match self.format {
            // The parser was made with what `auto` found.
            Format::Auto | Format::LanguageModeling => language_modeling(object),
            Format::PromptOnly => prompt_only(object, "prompt"),
            Format::PromptCompletion => {
                let (prompt, completion, plain) = prompt_and_completion(object)?;
                Ok((Row::Completion { prompt, completion }, plain))
            }
            Format::Preference => pairs::preference(object),
            Format::UnpairedPreference => {
                let (prompt, completion, plain) = prompt_and_completion(object)?;
                let label = object.boolean("label", object.need("label")?)?;
                Ok((Row::Unpaired { prompt, completion, label }, plain))
            }
            Format::StepwiseSupervision => stepwise(object),
            Format::Hh => pairs::transcripts(object),
            Format::Gsm8k => {
                object.text("answer")?;
                let (row, _) = prompt_only(object, "question")?;
                Ok((row, false))
            }
            Format::Ifeval => {
                object.list("instruction_id_list")?;
                object.list("kwargs")?;
                let (row, _) = prompt_only(object, "prompt")?;
                Ok((row, false))
            }
        }
    }
}

/// Reads a row in the form that [`Entry::to_json`](crate::Entry::to_json) gives it.
pub(crate) fn own(row: &Map<String, Value>, config: &DataConfig) -> Result<Row> {
    let plain =
        DataConfig { format: Format::Auto, fields: BTreeMap::new(), checks: Vec::new(), ..config.clone() };
    let parser = Parser::new(&plain, row)?;
    Ok(parser.parse(row)?.0)
}

/// What a row with these fields is.
fn detect(object: &Object<'_>) -> Result<Format> {
    let has = |field: &str| object.get(field).is_some();
    let is_transcript = |field: &str| {
        object.get(field).and_then(Value::as_str).is_some_and(|text| text.trim_start().starts_with("Human:"))
    };
    Ok(if has("chosen") && has("rejected") {
        if !has("prompt") && is_transcript("chosen") { Format::Hh } else { Format::Preference }
    } else if has("prompt") && has("instruction_id_list") && has("kwargs") && !has("completion") {
        Format::Ifeval
    } else if has("prompt") && has("completions") && has("labels") {
        Format::StepwiseSupervision
    } else if has("prompt") && has("completion") {
        if has("label") { Format::UnpairedPreference } else { Format::PromptCompletion }
    } else if has("prompt") {
        Format::PromptOnly
    } else if has("messages") || has("text") {
        Format::LanguageModeling
    } else if has("question") && has("answer") {
        Format::Gsm8k
    } else {
        return Err(RowError::new(
            Reason::MissingField,
            format!(
                "no known format has these fields: {}; expected `messages`, `text`, `prompt` (with `completion`, \
                 `label`, or `completions` and `labels`), `chosen` and `rejected`, or `question` and `answer`; \
                 other names are given by fields, as in fields = {{ prompt = \"instruction\", completion = \
                 \"output\" }}",
                names(object.row)
            ),
        ));
    })
}

fn language_modeling(object: &Object<'_>) -> Result<Parsed> {
    if object.get("messages").is_none() {
        return Ok((Row::Text(object.text("text")?.to_string()), true));
    }
    let list = object.list("messages")?;
    let messages = messages(object.name("messages"), list)?;
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        let message = format!("`{}` has no turn of the assistant to learn from", object.name("messages"));
        return Err(RowError::new(Reason::Empty, message));
    }
    check_answered(object.name("messages"), &messages)?;
    check_roles(&messages)?;
    Ok((Row::Conversation { messages }, false))
}

fn prompt_only<'a>(object: &Object<'a>, field: &'a str) -> Result<Parsed> {
    let (messages, plain) = prompt(object, field)?;
    Ok((Row::Prompt { messages, checks: checks(object)? }, plain))
}

/// The turns of a prompt, and whether it is a text.
fn prompt<'a>(object: &Object<'a>, field: &'a str) -> Result<(Vec<Message>, bool)> {
    let value = object.need(field)?;
    let messages = prompt_messages(object.name(field), value)?;
    check_roles(&messages)?;
    if messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let message = format!("`{}` ends with a turn of the assistant, who speaks next", object.name(field));
        return Err(RowError::new(Reason::RolesOutOfOrder, message));
    }
    Ok((messages, value.is_string()))
}

/// What scorers check: the members of `checks`, then the fields that scorers know, then those that the configuration
/// names. Null counts as none.
fn checks(object: &Object<'_>) -> Result<Value> {
    let mut checks = match object.get("checks") {
        None => Map::new(),
        Some(Value::Object(members)) => members.clone(),
        Some(other) => return Err(object.wrong("checks", "an object", other)),
    };
    let answer = ANSWER_FIELDS.iter().find_map(|field| object.get(field)).map(|value| ("answer", value));
    let known = CHECKED_FIELDS.iter().filter_map(|field| Some((*field, object.get(field)?)));
    for (name, value) in known.chain(answer) {
        checks.entry(name).or_insert_with(|| value.clone());
    }
    for name in object.checks {
        checks.insert(name.clone(), object.need(name)?.clone());
    }
    Ok(if checks.is_empty() { Value::Null } else { Value::Object(checks) })
}

/// An answer that follows `prompt`, and whether it is a text.
fn answer<'a>(object: &Object<'a>, field: &'a str, prompt: &[Message]) -> Result<(Vec<Message>, bool)> {
    let value = object.need(field)?;
    let answer = completion_messages(object.name(field), value)?;
    follows(object.name(field), prompt, &answer)?;
    Ok((answer, value.is_string()))
}

/// An answer begins with the assistant's turn, and goes on in order.
fn follows(name: &str, prompt: &[Message], answer: &[Message]) -> Result<()> {
    if let Some(first) = answer.first().filter(|first| first.role != Role::Assistant) {
        let message =
            format!("`{name}` begins with a message of role {}, not assistant", first.role.as_str());
        return Err(RowError::new(Reason::RolesOutOfOrder, message));
    }
    let whole: Vec<Message> = prompt.iter().chain(answer).cloned().collect();
    check_roles(&whole).map_err(|error| error.at(&format!("prompt and `{name}`")))
}

fn prompt_and_completion(object: &Object<'_>) -> Result<(Vec<Message>, Vec<Message>, bool)> {
    let (prompt, plain_prompt) = prompt(object, "prompt")?;
    let (completion, plain_completion) = answer(object, "completion", &prompt)?;
    Ok((prompt, completion, plain_prompt && plain_completion))
}

fn stepwise(object: &Object<'_>) -> Result<Parsed> {
    let (prompt, plain) = prompt(object, "prompt")?;
    let text = |value: &Value| match value.as_str() {
        Some(step) if step.trim().is_empty() => {
            Err(RowError::new(Reason::Empty, format!("`{}` has an empty step", object.name("completions"))))
        }
        Some(step) => Ok(step.to_string()),
        None => Err(object.wrong("completions", "a list of texts", value)),
    };
    let steps: Vec<String> = object.list("completions")?.iter().map(text).collect::<Result<_>>()?;
    let label = |value: &Value| object.boolean("labels", value);
    let labels: Vec<bool> = object.list("labels")?.iter().map(label).collect::<Result<_>>()?;
    if steps.is_empty() {
        return Err(RowError::new(Reason::Empty, format!("`{}` is empty", object.name("completions"))));
    }
    if steps.len() != labels.len() {
        let message =
            format!("there are {} steps, but {} labels; expected one a step", steps.len(), labels.len());
        return Err(RowError::new(Reason::WrongType, message));
    }
    Ok((Row::Stepwise { prompt, steps, labels }, plain))
}

/// The strength and the margin of a preference.
fn degree(object: &Object<'_>) -> Result<(Option<Strength>, Option<f64>)> {
    let strength = match object.get("strength") {
        None => None,
        Some(value) => {
            let parsed = value.as_str().and_then(Strength::parse);
            let expected = "significantly better, better, slightly better or marginally better";
            Some(parsed.ok_or_else(|| {
                let message = format!("`{}` must be {expected}, but is {value}", object.name("strength"));
                RowError::new(Reason::WrongType, message)
            })?)
        }
    };
    let margin = match object.get("margin") {
        None => None,
        Some(value) => Some(value.as_f64().ok_or_else(|| object.wrong("margin", "a number", value))?),
    };
    Ok((strength, margin))
}
