//! What the policy is asked.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The only type of tool call that there is.
const FUNCTION: &str = "function";

/// Who speaks in a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The answer of a tool that the model called.
    Tool,
}

impl Role {
    /// The name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of a conversation. The names of its fields are those of OpenAI's messages and of transformers' chat templates.
///
/// Empty fields are left out of its JSON. `null` counts as empty, except as the content of a message without tool
/// calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedMessage")]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. May be empty beside tool calls.
    pub content: String,
    /// What the model thought before it spoke, where that is told apart from `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools that the model calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// [`ToolCall::id`] of the call that a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of the speaker: of a tool, or of one person among several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A message as it is read, before its content is looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedMessage {
    role: Role,
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

impl TryFrom<UncheckedMessage> for Message {
    type Error = &'static str;

    fn try_from(unchecked: UncheckedMessage) -> Result<Self, &'static str> {
        let UncheckedMessage { role, content, reasoning_content, tool_calls, tool_call_id, name } = unchecked;
        let tool_calls = tool_calls.unwrap_or_default();
        let content = match content {
            None if tool_calls.is_empty() => {
                return Err("missing field `content`; only a message with tool calls can do without");
            }
            content => content.unwrap_or_default(),
        };
        Ok(Message { role, content, reasoning_content, tool_calls, tool_call_id, name })
    }
}

impl Message {
    /// A message of this speaker with nothing but its content.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message {
            role,
            content: content.into(),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Message::new(Role::User, content)
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message::new(Role::Assistant, content)
    }

    /// The same, with what the object `written` says beside role and content. Unknown fields are passed over, for
    /// readers that are less strict than deserialisation.
    ///
    /// # Errors
    /// A sentence that names the field that is wrong.
    pub fn with_fields_of(self, written: &Value) -> Result<Self, String> {
        fn field<T: DeserializeOwned>(written: &Value, name: &str) -> Result<Option<T>, String> {
            let Some(value) = written.get(name) else { return Ok(None) };
            Option::<T>::deserialize(value).map_err(|error| format!("`{name}`: {error}"))
        }
        Ok(Message {
            reasoning_content: field(written, "reasoning_content")?,
            tool_calls: field(written, "tool_calls")?.unwrap_or_default(),
            tool_call_id: field(written, "tool_call_id")?,
            name: field(written, "name")?,
            ..self
        })
    }

    /// True if it only says who speaks and what is said.
    pub fn is_plain(&self) -> bool {
        self.reasoning_content.is_none()
            && self.tool_calls.is_empty()
            && self.tool_call_id.is_none()
            && self.name.is_none()
    }
}

/// A call of a tool by the model. Its JSON is OpenAI's: `{"id": …, "type": "function", "function": {"name": …,
/// "arguments": …}}`. It is also read from `{"name": …, "arguments": …}`, as transformers' templates take both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenCall", into = "WrittenCall")]
pub struct ToolCall {
    /// What the tool's answer names it by. `None` where the data have no such name.
    pub id: Option<String>,
    /// The tool.
    pub name: String,
    /// Its arguments: an object, as chat templates expect. OpenAI's API gives a text that holds an object, which is
    /// read as that object. Any other value stays as it was written.
    pub arguments: Value,
}

/// A call as JSON has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<WrittenFunction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<Value>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFunction {
    name: String,
    arguments: Value,
}

impl TryFrom<WrittenCall> for ToolCall {
    type Error = String;

    fn try_from(written: WrittenCall) -> Result<Self, String> {
        let WrittenCall { id, kind, function, name, arguments } = written;
        if let Some(kind) = kind.filter(|kind| kind != FUNCTION) {
            return Err(format!("a tool call has the type {kind:?}; it must be \"{FUNCTION}\""));
        }
        let WrittenFunction { name, arguments } = match (function, name, arguments) {
            (Some(function), None, None) => function,
            (None, Some(name), Some(arguments)) => WrittenFunction { name, arguments },
            _ => {
                return Err(
                    "a tool call must be {\"function\": {\"name\": …, \"arguments\": …}}, or without the function around it"
                        .to_string(),
                );
            }
        };
        let object =
            arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        Ok(ToolCall { id, name, arguments: object.map_or(arguments, Value::Object) })
    }
}

impl From<ToolCall> for WrittenCall {
    fn from(ToolCall { id, name, arguments }: ToolCall) -> Self {
        WrittenCall {
            id,
            kind: Some(FUNCTION.to_string()),
            function: Some(WrittenFunction { name, arguments }),
            name: None,
            arguments: None,
        }
    }
}

/// A conversation that the policy is to continue, and what its scorer needs to know about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Unique within an experiment. It keys the random numbers of the completions, so it must not depend on batch or
    /// worker.
    pub id: u64,
    /// The conversation so far; the policy speaks next.
    pub messages: Vec<Message>,
    /// What the scorer checks a completion against. Only the scorer looks inside.
    #[serde(default)]
    pub checks: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_message_is_written_as_ever() {
        let json = r#"{"role":"user","content":"hi"}"#;
        assert_eq!(serde_json::to_string(&Message::user("hi")).expect("plain"), json);
        let read: Message = serde_json::from_str(json).expect("a message");
        assert!(read.is_plain());
        assert_eq!(read, Message::user("hi"));
        let empty = r#"{"role":"user","content":"hi","tool_calls":[],"name":null}"#;
        assert_eq!(serde_json::from_str::<Message>(empty).expect("a message"), read);
    }

    #[test]
    fn tool_calls_and_their_answers_come_back_as_they_were() {
        let call = r#"{"role":"assistant","content":"","reasoning_content":"Look it up.","tool_calls":[{"id":"c1","type":"function","function":{"name":"weather","arguments":{"city":"Lima"}}}]}"#;
        let answer = r#"{"role":"tool","content":"19 °C","tool_call_id":"c1","name":"weather"}"#;
        for json in [call, answer] {
            let message: Message = serde_json::from_str(json).expect("a message");
            assert!(!message.is_plain());
            assert_eq!(serde_json::to_string(&message).expect("plain"), json);
        }
        let expected = ToolCall {
            id: Some("c1".to_string()),
            name: "weather".to_string(),
            arguments: serde_json::json!({"city": "Lima"}),
        };
        let message: Message = serde_json::from_str(call).expect("a message");
        assert_eq!(message.tool_calls, std::slice::from_ref(&expected));

        // OpenAI's API has null for the content, and a text for the arguments.
        let openai = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Lima\"}"}}]}"#;
        let message: Message = serde_json::from_str(openai).expect("a message");
        assert_eq!((&*message.content, &message.tool_calls[..]), ("", &[expected][..]));
        // A model may write what is no object.
        let call: ToolCall = serde_json::from_str(r#"{"name":"f","arguments":"{city"}"#).expect("a call");
        assert_eq!((call.id, call.arguments), (None, Value::from("{city")));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (json, cause) in [
            (r#"{"role":"user","content":"hi","mood":"glad"}"#, "unknown field `mood`"),
            (r#"{"role":"user","name":"Ada"}"#, "missing field `content`"),
            (r#"{"role":"user","content":null}"#, "missing field `content`"),
            (
                r#"{"role":"assistant","tool_calls":[{"type":"code","name":"f","arguments":{}}]}"#,
                "the type \"code\"",
            ),
            (r#"{"role":"assistant","tool_calls":[{"name":"f"}]}"#, "a tool call must be"),
        ] {
            let error = serde_json::from_str::<Message>(json).expect_err("refused").to_string();
            assert!(error.contains(cause), "{json}: {error}");
        }
    }
}
