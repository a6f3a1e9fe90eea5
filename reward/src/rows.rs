//! A row of a file of completions: from JSON to a prompt, a completion and what scorers check.

use std::sync::Arc;

use arriero_buffers::{Completion, Finish, Group, Message, Prompt, Role};
use serde_json::{Map, Value};

/// Where the completion stands, in this order, unless a field is named.
const COMPLETION_FIELDS: &[&str] = &["completion", "response", "text"];
/// Where the right answer stands, in this order, unless a field is named.
const ANSWER_FIELDS: &[&str] = &["answer", "solution", "ground_truth"];

/// Which fields of a row to read, where they are not the usual ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// The completion's. Default: `completion`, `response` or `text`, else the last message of
    /// `messages` if it is the assistant's.
    pub completion: Option<String>,
    /// The right answer's. Default: `answer`, `solution` or `ground_truth`.
    pub answer: Option<String>,
}

/// Makes a group of one completion from a row.
///
/// The prompt is a text or a list of messages in `prompt`, or the `messages`; it may be missing. The
/// completion is a text, a message, or a list of messages whose last is the assistant's. Of what scorers
/// check, the members named in `checks` are taken from the row itself, and before that the whole of its
/// `checks`. `tokens` are counted where there are some; a `finish` or `finish_reason` of "length" says that
/// the completion was cut off.
///
/// # Errors
/// With a sentence that names the field, what was expected and what was found.
pub fn group(id: u64, row: &Map<String, Value>, fields: &Fields, checks: &[&str]) -> Result<Group, String> {
    let field = |name: &str| row.get(name).filter(|value| !value.is_null());
    let mut messages = match (field("prompt"), field("messages")) {
        (Some(prompt), _) => prompt_messages("prompt", prompt)?,
        (None, Some(list)) => prompt_messages("messages", list)?,
        (None, None) => Vec::new(),
    };
    let written = match &fields.completion {
        Some(name) => Some((name.as_str(), field(name).ok_or_else(|| missing(row, name))?)),
        None => COMPLETION_FIELDS.iter().find_map(|name| Some((*name, field(name)?))),
    };
    let text = match written {
        Some((name, value)) => completion_text(name, value)?,
        None => match messages.pop_if(|last| last.role == Role::Assistant) {
            Some(last) => last.content,
            None => {
                let known = COMPLETION_FIELDS.join("`, `");
                return Err(format!("expected a completion in `{known}`, found {}", names(row)));
            }
        },
    };
    if text.trim().is_empty() {
        return Err("the completion is empty".to_string());
    }
    check_roles(&messages)?;
    let checks = checks_of(row, fields, checks)?;
    let tokens = match field("tokens") {
        Some(tokens) => serde_json::from_value::<Vec<u32>>(tokens.clone())
            .map_err(|error| format!("`tokens` must be a list of token ids: {error}"))?,
        None => Vec::new(),
    };
    let cut = ["finish", "finish_reason"].iter().any(|name| field(name).is_some_and(|why| why == "length"));
    let completion = Completion::given(0, tokens, text, if cut { Finish::Length } else { Finish::EndOfTurn });
    let prompt = Arc::new(Prompt { id, messages, checks });
    Ok(Group { prompt, prompt_tokens: Vec::new(), completions: vec![completion] })
}

fn names(row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().take(20).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "no fields".to_string() } else { names.join(", ") }
}

fn missing(row: &Map<String, Value>, name: &str) -> String {
    format!("expected a field `{name}`, found {}", names(row))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn checks_of(row: &Map<String, Value>, fields: &Fields, names: &[&str]) -> Result<Value, String> {
    let mut checks = match row.get("checks") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(members)) => members.clone(),
        Some(other) => return Err(format!("`checks` must be an object, but is {}", kind(other))),
    };
    let present = |name: &str| row.get(name).filter(|value| !value.is_null());
    for name in names {
        let value = match (*name, &fields.answer) {
            ("answer", Some(field)) => Some(present(field).ok_or_else(|| missing(row, field))?),
            ("answer", None) if !checks.contains_key("answer") => {
                ANSWER_FIELDS.iter().find_map(|name| present(name))
            }
            _ => present(name),
        };
        if let Some(value) = value {
            checks.insert((*name).to_string(), value.clone());
        }
    }
    Ok(if checks.is_empty() { Value::Null } else { Value::Object(checks) })
}

fn prompt_messages(name: &str, value: &Value) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(format!("`{name}` is empty")),
        Value::String(text) => Ok(vec![Message::user(text.as_str())]),
        Value::Array(list) if list.is_empty() => Err(format!("`{name}` is empty")),
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| message(name, index, value)).collect()
        }
        other => Err(format!("`{name}` must be a text or a list of messages, but is {}", kind(other))),
    }
}

fn message(name: &str, index: usize, value: &Value) -> Result<Message, String> {
    let at = |what: String| format!("`{name}`, message {}: {what}", index + 1);
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
    let content = value.get("content").unwrap_or(&Value::Null);
    let content = content_text(content)
        .ok_or_else(|| at(format!("the content must be a text, but is {}", kind(content))))?;
    Message::new(role, content).with_fields_of(value).map_err(at)
}

/// A text, or the texts of a list of parts.
fn content_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect(),
        _ => None,
    }
}

fn completion_text(name: &str, value: &Value) -> Result<String, String> {
    let messages = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Object(_) => vec![message(name, 0, value)?],
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| message(name, index, value))
            .collect::<Result<_, _>>()?,
        other => {
            return Err(format!("`{name}` must be a text or a list of messages, but is {}", kind(other)));
        }
    };
    match messages.last() {
        Some(last) if last.role == Role::Assistant => Ok(last.content.clone()),
        Some(last) => {
            Err(format!("`{name}` ends with a message of role {}, not assistant", last.role.as_str()))
        }
        None => Err(format!("`{name}` is empty")),
    }
}

/// A prompt has a user turn, its system message comes first, and nobody speaks twice in a row but a tool.
fn check_roles(messages: &[Message]) -> Result<(), String> {
    if messages.is_empty() {
        return Ok(());
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        return Err("the prompt has no message of the user".to_string());
    }
    for (index, message) in messages.iter().enumerate().skip(1) {
        let before = messages[index - 1].role;
        if message.role == Role::System || (message.role == before && before != Role::Tool) {
            let (role, before) = (message.role.as_str(), before.as_str());
            return Err(format!(
                "roles out of order: message {} is of role {role}, behind {before}",
                index + 1
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: Value) -> Result<Group, String> {
        let row = row.as_object().expect("an object");
        group(3, row, &Fields::default(), &["answer", "kwargs"])
    }

    #[test]
    fn rows_of_several_shapes_say_the_same() {
        let user = json!({"role": "user", "content": "hi"});
        let assistant = json!({"role": "assistant", "content": "yes"});
        for row in [
            json!({"prompt": "hi", "completion": "yes"}),
            json!({"prompt": "hi", "response": "yes", "completion": null}),
            json!({"messages": [user], "text": "yes"}),
            json!({"prompt": [user], "completion": [assistant]}),
            json!({"prompt": [user], "completion": assistant}),
            json!({"messages": [user, assistant]}),
            json!({"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "text": "yes"}),
        ] {
            let group = read(row.clone()).unwrap_or_else(|error| panic!("{row}: {error}"));
            assert_eq!(group.prompt.messages, [Message::user("hi")], "{row}");
            assert_eq!(group.completions[0].text, "yes", "{row}");
        }
        assert!(
            read(json!({"completion": "yes"})).expect("a prompt may be missing").prompt.messages.is_empty()
        );
    }

    #[test]
    fn checks_come_from_the_row_and_from_its_checks() {
        let checks = |row: Value| read(row).expect("valid").prompt.checks.clone();
        assert_eq!(checks(json!({"text": "a"})), Value::Null);
        assert_eq!(checks(json!({"text": "a", "solution": "4", "key": 1})), json!({"answer": "4"}));
        assert_eq!(
            checks(json!({"text": "a", "checks": {"answer": 4}, "solution": "5"})),
            json!({"answer": 4})
        );
        assert_eq!(checks(json!({"text": "a", "kwargs": [{}], "constraints": "x"})), json!({"kwargs": [{}]}));
    }

    #[test]
    fn named_fields_are_read_or_missed() {
        let fields = Fields { completion: Some("out".into()), answer: Some("gold".into()) };
        let row = json!({"out": "a", "completion": "b", "gold": "c", "answer": "d"});
        let found = group(3, row.as_object().expect("an object"), &fields, &["answer"]).expect("valid");
        assert_eq!(
            (found.completions[0].text.as_str(), &found.prompt.checks),
            ("a", &json!({"answer": "c"}))
        );
        let row = json!({"completion": "b"});
        let error =
            group(3, row.as_object().expect("an object"), &fields, &["answer"]).expect_err("no field out");
        assert!(error.contains("`out`, found `completion`"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (row, cause) in [
            (json!({}), "found no fields"),
            (
                json!({"prompt": "hi"}),
                "expected a completion in `completion`, `response`, `text`, found `prompt`",
            ),
            (json!({"completion": " \n"}), "the completion is empty"),
            (json!({"completion": 3}), "must be a text or a list of messages, but is a number"),
            (json!({"completion": []}), "`completion` is empty"),
            (json!({"completion": [{"role": "user", "content": "a"}]}), "ends with a message of role user"),
            (json!({"completion": [{"role": "assistant", "content": 3}]}), "the content must be a text"),
            (json!({"prompt": "", "completion": "a"}), "`prompt` is empty"),
            (
                json!({"prompt": [{"role": "system", "content": "a"}], "completion": "a"}),
                "no message of the user",
            ),
            (
                json!({"prompt": [{"role": "robot", "content": "a"}], "completion": "a"}),
                "the role is \"robot\"",
            ),
            (
                json!({"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "text": "a"}),
                "roles out of order: message 2 is of role user, behind user",
            ),
            (json!({"text": "a", "tokens": ["a"]}), "`tokens` must be a list of token ids"),
            (json!({"text": "a", "checks": 3}), "`checks` must be an object"),
        ] {
            let error = read(row.clone()).expect_err("wrong");
            assert!(error.contains(cause), "{row}: {error}");
        }
    }

    #[test]
    fn tokens_and_the_end_are_taken_over() {
        let group = read(json!({"text": "a", "tokens": [1, 2], "finish": "length"})).expect("valid");
        assert_eq!((group.completions[0].tokens().count(), group.completions[0].finish), (2, Finish::Length));
    }
}
