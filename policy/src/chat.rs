//! Chat templates: a conversation as the text that the model was trained on.
//!
//! The templates are Jinja as Hugging Face's `apply_chat_template` runs it: blocks trimmed, Python's
//! string methods, `raise_exception`.

use arriero_buffers::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};

use crate::error::{PolicyError, Result};

/// Why a message cannot stand as it is where there is no template.
pub(crate) const ONLY_TEXT: &str = "the model has no chat template, so that a message can have nothing but its content; this one \
                                    has a name, reasoning or tool calls. Give the model a template, or the data as texts";

/// The special tokens that a template may name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateTokens {
    /// Beginning of a text.
    pub bos: String,
    /// End of a turn.
    pub eos: String,
}

/// Renders a conversation, `open` with the header of the assistant's next turn at its end.
///
/// # Errors
/// If the template is not valid, or refuses the conversation.
pub fn render(template: &str, messages: &[Message], open: bool, tokens: &TemplateTokens) -> Result<String> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(refused)?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    let rendered = environment.template_from_str(template).and_then(|template| {
        template.render(context! {
            messages => messages.iter().map(turn).collect::<Value>(),
            add_generation_prompt => open,
            bos_token => &*tokens.bos,
            eos_token => &*tokens.eos,
            tools => None::<()>,
            documents => None::<()>,
        })
    });
    rendered.map_err(refused)
}

/// A message as templates see it. What it does not have is not defined there, as in transformers.
fn turn(message: &Message) -> Value {
    Value::from(Serde(message))
}

/// The template's own words stand in the detail; the rest says where.
fn refused(error: minijinja::Error) -> PolicyError {
    PolicyError::Template { cause: error.detail().map_or_else(|| error.to_string(), str::to_string) }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::{Role, ToolCall};

    use super::*;

    const CHAT_ML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + \
                           message['content'].strip() + '<|im_end|>' + '\\n' }}{% endfor %}\n\
                           {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn renders_as_python_does() {
        let text =
            render(CHAT_ML, &[Message::user(" Hi ")], true, &TemplateTokens::default()).expect("rendered");
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_template_sees_what_a_message_has_and_nothing_else() {
        let template = "{% for message in messages %}{{ message.role }}\
                        {% if message.name is defined %} {{ message.name }}{% endif %}\
                        {% if message.reasoning_content is defined %} ({{ message.reasoning_content }}){% endif %}\
                        {% if 'tool_calls' in message %}{% for call in message.tool_calls %} {{ call.function.name }}\
                        {{ call.function.arguments | tojson }} {{ call.id }}{% endfor %}{% endif %}\
                        {% if message.tool_call_id %} {{ message.tool_call_id }}{% endif %}: {{ message.content }};{% endfor %}";
        let mut call = Message { reasoning_content: Some("look".to_string()), ..Message::assistant("") };
        call.tool_calls.push(ToolCall {
            id: Some("c1".to_string()),
            name: "weather".to_string(),
            arguments: serde_json::json!({"city": "Lima"}),
        });
        let answer = Message {
            tool_call_id: Some("c1".to_string()),
            name: Some("weather".to_string()),
            ..Message::new(Role::Tool, "19")
        };
        let messages = [Message::user("Warm?"), call, answer];
        let text = render(template, &messages, false, &TemplateTokens::default()).expect("rendered");
        let expected = "user: Warm?;assistant (look) weather{\"city\":\"Lima\"} c1: ;tool weather c1: 19;";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_refusal_is_in_the_templates_words() {
        let template = "{{ raise_exception('roles must alternate') }}";
        let error = render(template, &[], true, &TemplateTokens::default()).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "the model's chat template refuses this conversation: roles must alternate"
        );
    }
}
