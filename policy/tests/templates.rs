//! Chat templates against transformers' `apply_chat_template` (vectors/make_templates.py).

use std::collections::BTreeMap;

use arriero_buffers::Message;
use arriero_policy::chat::{Data, Ending, Extras, Template};
use serde::Deserialize;
use serde_json::Value;

/// How `apply_chat_template` is called.
#[derive(Deserialize)]
struct Mode {
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    continue_final_message: bool,
    tools: Option<Data>,
    documents: Option<Data>,
    #[serde(flatten)]
    kwargs: BTreeMap<String, Data>,
}

/// Read on its own, since objects lose the order of their keys in a [`Value`].
#[derive(Deserialize)]
struct Modes {
    modes: BTreeMap<String, Mode>,
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/templates.json")).expect("JSON")
}

fn template(vectors: &Value, source: &str) -> Template {
    let tokens: BTreeMap<String, String> = serde_json::from_value(vectors["tokens"].clone()).expect("texts");
    Template { source: source.to_string(), file: "chat_template.jinja".to_string(), tokens }
}

fn messages(vectors: &Value, name: &str) -> Vec<Message> {
    serde_json::from_value(vectors["conversations"][name].clone()).expect("messages")
}

#[test]
fn expressions_are_what_transformers_makes_of_them() {
    let vectors = vectors();
    let messages = messages(&vectors, "answered");
    let mut wrong = Vec::new();
    for case in vectors["expressions"].as_array().expect("a list") {
        let expression = case["expression"].as_str().expect("a text");
        let found = template(&vectors, &format!("{{{{ {expression} }}}}")).render(
            &messages,
            Ending::Closed,
            &Extras::default(),
        );
        match found {
            Ok(rendered) if rendered.text == case["text"] => {}
            Ok(rendered) => wrong.push(format!("{expression}: {:?}, not {}", rendered.text, case["text"])),
            Err(error) => wrong.push(format!("{expression}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn families_templates_render_as_with_transformers() {
    let vectors = vectors();
    let Modes { modes } = serde_json::from_str(include_str!("vectors/templates.json")).expect("modes");
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for case in vectors["cases"].as_array().expect("a list") {
        let [family, conversation, mode] =
            ["family", "conversation", "mode"].map(|name| case[name].as_str().expect("a text"));
        let Mode { add_generation_prompt, continue_final_message, tools, documents, kwargs } = &modes[mode];
        let ending = match (add_generation_prompt, continue_final_message) {
            (true, _) => Ending::Open,
            (_, true) => Ending::Continued,
            _ => Ending::Closed,
        };
        let extras = Extras { tools: tools.clone(), documents: documents.clone(), kwargs: kwargs.clone() };
        let source = vectors["templates"][family].as_str().expect("a text");
        let found = template(&vectors, source).render(&messages(&vectors, conversation), ending, &extras);
        let found = found.map(|rendered| {
            let marked = rendered.generated.as_ref().map(|generated| {
                generated.iter().map(|range| rendered.text[range.clone()].to_string()).collect::<Vec<_>>()
            });
            (rendered.text, marked)
        });
        let expected = &case["rendered"];
        let is_right = match &found {
            Err(_) => expected.is_null(),
            Ok((text, marked)) => {
                *text == expected["text"]
                    && (expected["marked"].is_null() || expected["marked"] == serde_json::json!(marked))
            }
        };
        cases += 1;
        if !is_right {
            wrong.push(format!("{family}, {conversation}, {mode}:\n  {found:?}, not\n  {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases > 400);
}
