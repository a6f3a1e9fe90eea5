//! Rows of multiple-choice datasets as they are published, and the text in which lm-evaluation-harness asks them.

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fields;
use crate::config::Kind;

/// A question with its choices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// The text that a choice continues.
    pub question: String,
    /// What may stand behind it, after a space.
    pub choices: Vec<String>,
    /// Which of them is right, from 0.
    pub right: usize,
    /// What stands before everything else, examples included; empty for nothing.
    pub preface: String,
    /// What the question is about; empty where the rows do not say.
    pub subject: String,
}

/// Reads a row.
///
/// # Errors
/// With a sentence that says what was expected and what was found.
pub(crate) fn item(kind: Kind, fields: &Fields) -> Result<Item, String> {
    let item = match kind {
        Kind::Hellaswag => hellaswag(parse(fields)?)?,
        Kind::Mmlu => mmlu(parse(fields)?)?,
        _ => arc(parse(fields)?)?,
    };
    if item.choices.len() < 2 {
        return Err(format!("there are {} choices; expected at least 2", item.choices.len()));
    }
    if let Some(empty) = item.choices.iter().position(|choice| choice.trim().is_empty()) {
        return Err(format!("choice {} is empty", empty + 1));
    }
    if item.right >= item.choices.len() {
        return Err(format!("the right choice is {}, of {} (from 0)", item.right, item.choices.len()));
    }
    Ok(item)
}

fn parse<T: DeserializeOwned>(fields: &Fields) -> Result<T, String> {
    T::deserialize(Value::Object(fields.clone())).map_err(|error| {
        let names: Vec<String> = fields.keys().take(20).map(|name| format!("`{name}`")).collect();
        format!("{error}; found {}", names.join(", "))
    })
}

/// `allenai/ai2_arc`.
#[derive(Deserialize)]
struct Arc {
    question: String,
    choices: ArcChoices,
    #[serde(rename = "answerKey")]
    answer_key: String,
}

#[derive(Deserialize)]
struct ArcChoices {
    text: Vec<String>,
    label: Vec<String>,
}

fn arc(row: Arc) -> Result<Item, String> {
    let Arc { question, choices: ArcChoices { text, label }, answer_key } = row;
    if text.len() != label.len() {
        return Err(format!("`choices` has {} texts, but {} labels", text.len(), label.len()));
    }
    let right = label.iter().position(|label| *label == answer_key).ok_or_else(|| {
        format!("`answerKey` is {answer_key:?}, but must be one of the labels {}", label.join(", "))
    })?;
    Ok(Item {
        question: format!("Question: {question}\nAnswer:"),
        choices: text,
        right,
        preface: String::new(),
        subject: String::new(),
    })
}

/// `Rowan/hellaswag`.
#[derive(Deserialize)]
struct Hellaswag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: Value,
}

fn hellaswag(row: Hellaswag) -> Result<Item, String> {
    let Hellaswag { activity_label, ctx_a, ctx_b, endings, label } = row;
    let context = format!("{ctx_a} {}", capitalised(&ctx_b));
    Ok(Item {
        question: plain_words(&format!("{activity_label}: {context}")),
        choices: endings.iter().map(|ending| plain_words(ending)).collect(),
        right: whole_number("label", &label)?,
        preface: String::new(),
        subject: String::new(),
    })
}

/// As Python's `str.capitalize`.
fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &characters.as_str().to_lowercase()
}

/// WikiHow's texts without their marks.
fn plain_words(text: &str) -> String {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\[.*?\]").expect("a pattern of ours compiles"));
    let text = text.trim().replace(" [title]", ". ");
    MARK.replace_all(&text, "").replace("  ", " ")
}

/// `cais/mmlu`.
#[derive(Deserialize)]
struct Mmlu {
    question: String,
    #[serde(default)]
    subject: String,
    choices: Vec<String>,
    answer: Value,
}

fn mmlu(row: Mmlu) -> Result<Item, String> {
    let Mmlu { question, subject, choices, answer } = row;
    if choices.len() > 26 {
        return Err(format!("there are {} choices; expected at most 26", choices.len()));
    }
    let letters: Vec<String> =
        (b'A'..=b'Z').take(choices.len()).map(|letter| char::from(letter).to_string()).collect();
    let right = match answer.as_str().and_then(|text| letters.iter().position(|letter| letter == text.trim()))
    {
        Some(letter) => letter,
        None => whole_number("answer", &answer)?,
    };
    let listed: Vec<String> =
        letters.iter().zip(&choices).map(|(letter, choice)| format!("{letter}. {choice}\n")).collect();
    let preface = match subject.is_empty() {
        true => "The following are multiple choice questions (with answers).\n\n".to_string(),
        false => format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            subject.replace('_', " ")
        ),
    };
    Ok(Item {
        question: format!("{}\n{}Answer:", question.trim(), listed.concat()),
        choices: letters,
        right,
        preface,
        subject,
    })
}

/// A number, or a text of one.
fn whole_number(name: &str, value: &Value) -> Result<usize, String> {
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| format!("`{name}` must be the right choice's number, from 0, but is {value}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: Kind, row: Value) -> Result<Item, String> {
        item(kind, row.as_object().expect("an object"))
    }

    #[test]
    fn rows_become_questions_as_the_harness_asks_them() {
        let arc = read(
            Kind::Arc,
            json!({"id": "x", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}),
        )
        .expect("valid");
        assert_eq!((arc.question.as_str(), arc.right), ("Question: Which?\nAnswer:", 1));
        let row = json!({
            "ind": 4, "activity_label": "Removing ice from car", "ctx_a": "Then [header] he", "ctx_b": "the MAN",
            "ctx": "unused", "endings": [" [substeps] wipes  it.", "goes [title] on."], "label": "1",
        });
        let hellaswag = read(Kind::Hellaswag, row).expect("valid");
        assert_eq!(hellaswag.question, "Removing ice from car: Then he The man");
        assert_eq!(hellaswag.choices, [" wipes it.", "goes.  on."].map(|text| text.replace("  ", " ")));
        let row =
            json!({"question": " Two? ", "subject": "high_school_x", "choices": ["p", "q"], "answer": 1});
        let mmlu = read(Kind::Mmlu, row).expect("valid");
        assert_eq!(mmlu.question, "Two?\nA. p\nB. q\nAnswer:");
        assert_eq!(
            mmlu.preface,
            "The following are multiple choice questions (with answers) about high school x.\n\n"
        );
        assert_eq!((mmlu.choices, mmlu.right), (vec!["A".to_string(), "B".to_string()], 1));
    }

    #[test]
    fn broken_rows_are_named() {
        for (kind, row, cause) in [
            (Kind::Arc, json!({"question": "a"}), "missing field `choices`; found `question`"),
            (
                Kind::Arc,
                json!({"question": "a", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}),
                "`answerKey` is \"C\", but must be one of the labels A, B",
            ),
            (
                Kind::Hellaswag,
                json!({"activity_label": "a", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d"], "label": ""}),
                "`label` must be the right choice's number",
            ),
            (Kind::Mmlu, json!({"question": "a", "choices": ["a"], "answer": 0}), "there are 1 choices"),
            (
                Kind::Mmlu,
                json!({"question": "a", "choices": ["a", "b"], "answer": 2}),
                "the right choice is 2, of 2",
            ),
        ] {
            let error = read(kind, row).expect_err("refused");
            assert!(error.contains(cause), "{error}");
        }
    }
}
