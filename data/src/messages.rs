//! Messages as datasets write them: from JSON to typed turns, and the checks on their order.

use arriero_buffers::{Message, Role};
use serde_json::{Map, Value};

use crate::error::{Reason, RowError};

type Result<T> = std::result::Result<T, RowError>;

/// The names of a row's fields, for errors.
pub fn names(row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().take(20).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "no fields".to_string() } else { names.join(", ") }
}

/// What a value is, for errors.
pub fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(message: String) -> RowError {
    RowError::new(Reason::WrongType, message)
}

/// A prompt: a text, which is a turn of the user, or a list of messages.
///
/// # Errors
/// If the field `name` is neither, or empty.
pub fn prompt_messages(name: &str, value: &Value) -> Result<Vec<Message>> {
    let messages = match value {
        Value::String(text) => vec![Message::user(text.as_str())],
        Value::Array(list) => messages(name, list)?,
        other => {
            return Err(wrong(format!(
                "`{name}` must be a text or a list of messages, but is {}",
                described(other)
            )));
        }
    };
    if messages.iter().all(|message| message.content.trim().is_empty()) {
        return Err(RowError::new(Reason::Empty, format!("`{name}` is empty")));
    }
    Ok(messages)
}

/// An answer: a text (a turn of the assistant), a message, or a list of messages whose last is the assistant's.
///
/// # Errors
/// If the field `name` is none of these, or has an empty turn of the assistant.
pub fn completion_messages(name: &str, value: &Value) -> Result<Vec<Message>> {
    let messages = match value {
        Value::String(text) => vec![Message::assistant(text.as_str())],
        Value::Object(_) => vec![message(name, 0, value)?],
        Value::Array(list) => messages(name, list)?,
        other => {
            return Err(wrong(format!(
                "`{name}` must be a text or a list of messages, but is {}",
                described(other)
            )));
        }
    };
    match messages.last() {
        None => return Err(RowError::new(Reason::Empty, format!("`{name}` is empty"))),
        Some(last) if last.role != Role::Assistant => {
            let message =
                format!("`{name}` ends with a message of role {}, not assistant", last.role.as_str());
            return Err(RowError::new(Reason::RolesOutOfOrder, message));
        }
        Some(_) => {}
    }
    check_answered(name, &messages)?;
    Ok(messages)
}

/// A list of messages.
///
/// # Errors
/// Names the message that is none.
pub fn messages(name: &str, list: &[Value]) -> Result<Vec<Message>> {
    list.iter().enumerate().map(|(index, value)| message(name, index, value)).collect()
}

fn message(name: &str, index: usize, value: &Value) -> Result<Message> {
    let at = |what: String| wrong(format!("`{name}`, message {}: {what}", index + 1));
    let role = match value.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(other) => {
            return Err(at(format!("the role is {other:?}; it must be system, user, assistant or tool")));
        }
        None => return Err(at("expected {\"role\": …, \"content\": …}".to_string())),
    };
    for calls in ["tool_calls", "function_call"] {
        // Without them the turn would say something else.
        if value.get(calls).is_some_and(|calls| !calls.is_null() && *calls != Value::Array(Vec::new())) {
            return Err(at(format!("it has `{calls}`, which are not read; write them into its content")));
        }
    }
    // OpenAI's mark of a turn that is not learned from; 1 is what every turn is.
    if let Some(weight) =
        value.get("weight").filter(|weight| !weight.is_null() && weight.as_f64() != Some(1.0))
    {
        return Err(at(format!(
            "it has the weight {weight}, which is not read: a turn is learned from by its role (loss), or not"
        )));
    }
    let content = value.get("content").unwrap_or(&Value::Null);
    let content = content_text(content)
        .ok_or_else(|| at(format!("the content must be a text, but is {}", described(content))))?;
    let message = Message::new(role, content).with_fields_of(value).map_err(at)?;
    // Other names for it, which transformers reads in this order, too.
    let other =
        || ["thinking", "reasoning"].iter().find_map(|name| value.get(*name)?.as_str()).map(str::to_string);
    Ok(Message { reasoning_content: message.reasoning_content.clone().or_else(other), ..message })
}

/// A text, or the texts of a list of parts.
fn content_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => None,
    }
}

/// No turn of the assistant is empty: it would carry loss on nothing but its end.
pub(crate) fn check_answered(name: &str, messages: &[Message]) -> Result<()> {
    let mut own = messages.iter().filter(|message| message.role == Role::Assistant);
    if own.any(|message| message.content.trim().is_empty()) {
        let which = if messages.len() == 1 { "" } else { ": a turn of the assistant" };
        return Err(RowError::new(Reason::Empty, format!("`{name}`{which} is empty")));
    }
    Ok(())
}

/// A prompt has a user turn, its system message comes first, and nobody but a tool speaks twice in a row.
///
/// # Errors
/// Names the first message that is out of order. No messages are fine.
pub fn check_roles(messages: &[Message]) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        return Err(RowError::new(Reason::NoUserTurn, "the prompt has no message of the user"));
    }
    for (index, message) in messages.iter().enumerate().skip(1) {
        let before = messages[index - 1].role;
        if message.role == Role::System || (message.role == before && before != Role::Tool) {
            let (role, before) = (message.role.as_str(), before.as_str());
            let message =
                format!("roles out of order: message {} is of role {role}, behind {before}", index + 1);
            return Err(RowError::new(Reason::RolesOutOfOrder, message));
        }
    }
    Ok(())
}
