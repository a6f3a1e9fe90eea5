//! Chat templates: a conversation as the text that the model was trained on.
//!
//! The templates are Jinja as Hugging Face's `apply_chat_template` runs it. `source` puts what transformers adds to
//! Jinja into the engine's terms, `environment` has its globals, filters and tests and bounds what a template may cost,
//! `python` has the methods of Python's texts, and `json` writes values as Python does.

mod environment;
mod json;
mod python;
mod source;

use std::collections::BTreeMap;
use std::ops::Range;

use arriero_buffers::Message;
/// A value that a template reads.
pub use minijinja::Value as Data;
use minijinja::value::Serde;
use minijinja::{ErrorKind, Value};

use crate::error::{PolicyError, Result};

/// Why a message cannot stand as it is where there is no template.
pub(crate) const ONLY_TEXT: &str = "the model has no chat template, so that a message can have nothing but its content; this one \
                                    has a name, reasoning or tool calls. Give the model a template, or the data as texts";

/// transformers' mark of the place where a message is to be continued.
const CONTINUED: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A chat template and what it may name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template {
    /// Its Jinja source.
    pub source: String,
    /// The file that it stands in, for errors.
    pub file: String,
    /// The special tokens by their names, such as `bos_token`. What is not here is not defined, as in transformers.
    pub tokens: BTreeMap<String, String>,
}

/// What a template is to make of a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// Nothing stands behind the last turn but what the template writes there.
    #[default]
    Closed,
    /// With the header of the assistant's next turn (`add_generation_prompt`).
    Open,
    /// The last turn is to be continued: nothing stands behind its words (`continue_final_message`).
    Continued,
}

/// What a template reads beside the messages. Read from JSON, objects keep the order of their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extras {
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<Data>,
    /// Documents to answer from.
    pub documents: Option<Data>,
    /// Further names, such as `enable_thinking`.
    pub kwargs: BTreeMap<String, Data>,
}

/// A conversation as a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Where `{% generation %}` and `{% endgeneration %}` stand around the model's own words, in bytes. `None` where the
    /// template has no such marks.
    pub generated: Option<Vec<Range<usize>>>,
}

impl Template {
    /// Renders a conversation.
    ///
    /// # Errors
    /// [`PolicyError::TemplateUnreadable`] if the template cannot be read, [`PolicyError::Template`] if it refuses the
    /// conversation or costs too much.
    pub fn render(&self, messages: &[Message], ending: Ending, extras: &Extras) -> Result<Rendered> {
        let mut messages = messages.to_vec();
        let refused = |cause: String| PolicyError::Template { cause };
        if ending == Ending::Continued {
            let last =
                messages.last_mut().ok_or_else(|| refused("there is no message to continue".to_string()))?;
            last.content += CONTINUED;
        }
        let source = source::rewrite(&self.source).map_err(|(line, cause)| {
            PolicyError::TemplateUnreadable { cause: format!("{}: {cause}", self.place(Some(line))) }
        })?;
        let holds_marks =
            |message: &Message| message.content.contains([environment::OPEN, environment::CLOSE]);
        if source.has_marks && messages.iter().any(holds_marks) {
            return Err(refused("a message holds U+FDD2 or U+FDD3, which are no characters".to_string()));
        }
        let bytes = messages.iter().map(|message| message.content.len()).sum::<usize>() + self.source.len();
        let context = self.context(&messages, ending, extras);
        let text = environment::environment(bytes).and_then(|environment| {
            environment.template_from_named_str(&self.file, &source.text)?.render(context)
        });
        let mut rendered = unmarked(&text.map_err(|error| self.error(&error))?, source.has_marks);
        if ending == Ending::Continued {
            let words = messages.last().map_or("", |last| last.content.trim_end_matches(CONTINUED).trim());
            let cut = Some(&rendered.text)
                .filter(|text| text.contains(words))
                .and_then(|text| text.rfind(CONTINUED.trim_end()))
                .ok_or_else(|| refused("it does not show the message that is to be continued".to_string()))?;
            // A template that trims the message has trimmed the mark's space, too.
            let is_whole = rendered.text[cut..].starts_with(CONTINUED);
            rendered.text.truncate(cut);
            if !is_whole {
                rendered.text.truncate(rendered.text.trim_end().len());
            }
            let length = rendered.text.len();
            for mark in rendered.generated.iter_mut().flatten() {
                *mark = mark.start.min(length)..mark.end.min(length);
            }
        }
        Ok(rendered)
    }

    fn context(&self, messages: &[Message], ending: Ending, extras: &Extras) -> Value {
        let plain = |value: &Option<Data>| value.clone().unwrap_or_else(|| Value::from(()));
        let tokens = self.tokens.iter().map(|(name, token)| (name.clone(), Value::from(&**token)));
        let given = [
            ("messages".to_string(), messages.iter().map(turn).collect::<Value>()),
            ("add_generation_prompt".to_string(), Value::from(ending == Ending::Open)),
            ("tools".to_string(), plain(&extras.tools)),
            ("documents".to_string(), plain(&extras.documents)),
        ];
        let kwargs = extras.kwargs.iter().map(|(name, value)| (name.clone(), value.clone()));
        Value::from_pairs(tokens.chain(given).chain(kwargs))
    }

    /// The file and the line, for errors.
    fn place(&self, line: Option<usize>) -> String {
        let file = if self.file.is_empty() { "chat template" } else { &self.file };
        line.map_or(file.to_string(), |line| format!("{file}, line {line}"))
    }

    /// The template's own words stand in the detail; the kind says whose fault it is.
    fn error(&self, error: &minijinja::Error) -> PolicyError {
        let place = self.place(error.line());
        let cause = match error.kind() {
            ErrorKind::OutOfFuel => {
                format!("{place}: it takes more work than a conversation of this length may")
            }
            kind => format!("{place}: {}", error.detail().map_or_else(|| kind.to_string(), str::to_string)),
        };
        match error.kind() {
            ErrorKind::SyntaxError | ErrorKind::UnknownFilter | ErrorKind::UnknownTest => {
                PolicyError::TemplateUnreadable { cause }
            }
            _ => PolicyError::Template { cause },
        }
    }
}

/// A message as templates see it. What it does not have is not defined there, as in transformers, which also gives
/// reasoning the name that gpt-oss reads.
fn turn(message: &Message) -> Value {
    let Some(reasoning) = &message.reasoning_content else { return Value::from(Serde(message)) };
    let fields = Value::from(Serde(message));
    let own = fields.try_iter().into_iter().flatten().map(|name| {
        let value = fields.get_item(&name).unwrap_or_default();
        (name, value)
    });
    Value::from_pairs([(Value::from("thinking"), Value::from(&**reasoning))].into_iter().chain(own))
}

/// Takes the marks of the model's own words out of a text.
fn unmarked(marked: &str, has_marks: bool) -> Rendered {
    if !has_marks {
        return Rendered { text: marked.to_string(), generated: None };
    }
    let mut text = String::with_capacity(marked.len());
    let (mut generated, mut open) = (Vec::new(), Vec::new());
    for part in marked.split_inclusive([environment::OPEN, environment::CLOSE]) {
        let words = part.trim_end_matches([environment::OPEN, environment::CLOSE]);
        text += words;
        if part.ends_with(environment::OPEN) {
            open.push(text.len());
        } else if part.ends_with(environment::CLOSE)
            && let Some(start) = open.pop()
        {
            generated.push(start..text.len());
        }
    }
    Rendered { text, generated: Some(generated) }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::{Role, ToolCall};

    use super::*;

    fn template(source: &str) -> Template {
        Template { source: source.to_string(), ..Template::default() }
    }

    fn text(source: &str, messages: &[Message], ending: Ending) -> String {
        template(source).render(messages, ending, &Extras::default()).expect("rendered").text
    }

    fn error(source: &str) -> PolicyError {
        template(source)
            .render(&[Message::user("Hi")], Ending::Open, &Extras::default())
            .expect_err("refused")
    }

    const CHAT_ML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + \
                           message['content'].strip() + '<|im_end|>' + '\\n' }}{% endfor %}\n\
                           {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn renders_as_python_does() {
        let text = text(CHAT_ML, &[Message::user(" Hi ")], Ending::Open);
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_message_is_continued_where_its_words_end() {
        let messages = [Message::user("Hi"), Message::assistant("Good ")];
        // The template strips, so that the last space is gone.
        assert_eq!(
            text(CHAT_ML, &messages, Ending::Continued),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nGood"
        );
        let plain = "{% for m in messages %}{{ m.content }};{% endfor %}";
        assert_eq!(text(plain, &messages, Ending::Continued), "Hi;Good ");
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
        let expected = "user: Warm?;assistant (look) weather{\"city\": \"Lima\"} c1: ;tool weather c1: 19;";
        assert_eq!(text(template, &messages, Ending::Closed), expected);
    }

    #[test]
    fn the_models_own_words_are_marked() {
        let source = "{% for m in messages %}{{ m.role }}:\n{% if m.role == 'assistant' %}\n{% generation %}\n\
                      {{ m.content }};{% endgeneration %}\n{% else %}{{ m.content }};{% endif %}{% endfor %}";
        let messages =
            [Message::user("é"), Message::assistant("b"), Message::user("c"), Message::assistant("d")];
        let rendered =
            template(source).render(&messages, Ending::Closed, &Extras::default()).expect("rendered");
        assert_eq!(rendered.text, "user:\né;assistant:\nb;user:\nc;assistant:\nd;");
        let marked: Vec<&str> =
            rendered.generated.unwrap_or_default().into_iter().map(|range| &rendered.text[range]).collect();
        assert_eq!(marked, ["b;", "d;"]);
    }

    #[test]
    fn errors_tell_the_template_from_the_conversation_and_have_the_line() {
        assert_eq!(
            error("\n{{ raise_exception('roles must alternate') }}").to_string(),
            "the model's chat template refuses this conversation: chat template, line 2: roles must alternate"
        );
        for source in ["{% for %}", "{{ 'a'|no_such_filter }}", "{% if 1 is no_such_test %}{% endif %}"] {
            let error = error(source).to_string();
            assert!(
                error.starts_with("the model's chat template cannot be read: chat template, line 1: "),
                "{error}"
            );
        }
    }

    #[test]
    fn what_would_not_end_or_fill_the_memory_is_refused() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ ('x' * 1000000 * 1000000)|length }}",
            "{% set x = 'x' * 100000 %}{{ (range(100000)|list)|join(x)|length }}",
            "{{ x.join(messages) }}{{ 'a'.center(10000000000) }}",
            "{{ 'a'.zfill(10000000000) }}",
            "{{ '%99999999999d' % 1 }}",
            "{{ '{:>99999999999}'.format(1) }}",
        ] {
            error(source);
        }
        let long = format!("{{{{ 1{} }}}}", "+1".repeat(1_900));
        assert_eq!(text(&long, &[], Ending::Closed), "1901");
    }
}
