//! Where a completion's final answer stands.

use std::sync::LazyLock;

use regex::Regex;

use super::text::{balanced, literal};

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    literal(r"-?(?:[$€£]\s?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?(?:\s?%)?|-?\.\d+%?")
});
static PHRASE: LazyLock<Regex> =
    LazyLock::new(|| literal(r"(?i)\banswer\b[\s*:=]*(?:(?:is|are|would be|should be)\b)?[\s*:=]*([^\n]*)"));

/// The final answer of a text, as it stands there.
///
/// What stands between the last `<answer>` tags is taken for the whole text. Then comes the later of
/// the last `\boxed{…}` and the last `####`, then what "answer is" introduces last, then the last
/// number. A `\boxed` that was cut off gives no answer.
pub fn final_answer(text: &str) -> Option<String> {
    let text = match text.rfind("<answer>") {
        Some(start) => {
            let inside = &text[start + "<answer>".len()..];
            inside.find("</answer>").map_or(inside, |end| &inside[..end])
        }
        None => text,
    };
    let boxed = ["\\boxed", "\\fbox"].iter().filter_map(|name| Some((text.rfind(name)?, name.len()))).max();
    let hashes = text.rfind("####");
    match (boxed, hashes) {
        (Some((start, length)), hashes) if hashes.is_none_or(|hashes| hashes < start) => {
            boxed_content(&text[start + length..])
        }
        (_, Some(start)) => {
            let line = text[start..].trim_start_matches('#').lines().next().unwrap_or_default().trim();
            (!line.is_empty()).then(|| line.to_string())
        }
        _ => phrase(text).or_else(|| numbers_last(text)),
    }
}

fn boxed_content(behind: &str) -> Option<String> {
    let behind = behind.trim_start();
    let content = match behind.strip_prefix('{') {
        Some(inside) => &inside[..balanced(inside)?],
        None => behind.split(|c: char| c.is_whitespace() || c == '$').next().unwrap_or_default(),
    };
    (!content.trim().is_empty()).then(|| content.trim().to_string())
}

/// What "the answer is" introduces, where it is said last.
fn phrase(text: &str) -> Option<String> {
    let found = PHRASE.captures_iter(text).filter_map(|captures| captures.get(1)).last()?.as_str().trim();
    let sentence = found.split_once(". ").map_or(found, |(sentence, _)| sentence);
    let value = sentence.rsplit('=').next().unwrap_or(sentence).trim();
    let value = value.trim_end_matches(['.', '*', '!', ' ']);
    if super::quantity::Quantity::read(&super::normal::normalise(value)).is_some()
        || value.contains('\\')
        || value.contains('(')
    {
        return Some(value.to_string());
    }
    match NUMBER.find(value) {
        Some(number) => Some(number.as_str().to_string()),
        // A word, an option, a name.
        None => (!value.is_empty() && value.split_whitespace().count() <= 3).then(|| value.to_string()),
    }
}

fn numbers_last(text: &str) -> Option<String> {
    NUMBER.find_iter(text).last().map(|number| number.as_str().to_string())
}
