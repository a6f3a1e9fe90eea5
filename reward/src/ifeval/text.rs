//! Counting in a response, as the official checker does it with Python's regular expressions.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::de::IgnoredAny;

static WORD: LazyLock<Regex> = LazyLock::new(|| literal(r"[\p{L}\p{N}_]+"));
static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| literal(r"\[.*?\]"));
static STAR_BULLET: LazyLock<Regex> = LazyLock::new(|| literal(r"(?m)^\s*\*[^\*].*$"));
static DASH_BULLET: LazyLock<Regex> = LazyLock::new(|| literal(r"(?m)^\s*-.*$"));
static HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| literal(r"\*[^\n\*]*\*"));
static DOUBLE_HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| literal(r"\*\*[^\n\*]*\*\*"));
static TITLE: LazyLock<Regex> = LazyLock::new(|| literal(r"<<[^\n]+>>"));
static DIVIDER: LazyLock<Regex> = LazyLock::new(|| literal(r"\s?\*\*\*\s?"));

/// The answers that a constrained response may have.
const CONSTRAINED_RESPONSES: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

fn literal(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of ours compiles")
}

/// The text without white space around it, by Python's notion, which has four control characters more.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// How many runs of letters, digits and underscores.
pub(super) fn words(text: &str) -> usize {
    WORD.find_iter(text).count()
}

/// How many pieces of a line stand in square brackets.
pub(super) fn placeholders(text: &str) -> usize {
    PLACEHOLDER.find_iter(text).count()
}

/// How many lines start with one asterisk or with a dash.
pub(super) fn bullets(text: &str) -> usize {
    STAR_BULLET.find_iter(text).count() + DASH_BULLET.find_iter(text).count()
}

/// How many pieces stand between asterisks; one between two pairs of them counts twice.
pub(super) fn highlights(text: &str) -> usize {
    let filled = |piece: &str| !strip(piece.trim_matches('*')).is_empty();
    HIGHLIGHT.find_iter(text).filter(|found| filled(found.as_str())).count()
        + DOUBLE_HIGHLIGHT.find_iter(text).filter(|found| filled(found.as_str())).count()
}

/// True if a line has something in double angular brackets.
pub(super) fn has_title(text: &str) -> bool {
    let filled = |title: &str| !strip(title.trim_start_matches('<').trim_end_matches('>')).is_empty();
    TITLE.find_iter(text).any(|found| filled(found.as_str()))
}

/// How many paragraphs stand between dividers (`***`); none if one in the middle is blank.
pub(super) fn divided_paragraphs(text: &str) -> Option<usize> {
    let paragraphs: Vec<&str> = DIVIDER.split(text).collect();
    let mut count = paragraphs.len();
    for (index, paragraph) in paragraphs.iter().enumerate() {
        if strip(paragraph).is_empty() {
            if index != 0 && index != paragraphs.len() - 1 {
                return None;
            }
            count -= 1;
        }
    }
    Some(count)
}

/// True if there are so many paragraphs, with an empty line between them, and the nth starts with
/// the word.
pub(super) fn nth_paragraph_starts(text: &str, count: usize, nth: usize, word: &str) -> bool {
    let filled = text.split("\n\n").filter(|paragraph| !strip(paragraph).is_empty()).count();
    if filled != count || nth > filled {
        return false;
    }
    // The blank ones are skipped for their number, but not for the place: so does the checker.
    let paragraph = text.split("\n\n").nth(nth - 1).map_or("", strip);
    let first = paragraph.split_whitespace().next().unwrap_or_default();
    let first = first.trim_start_matches('\'').trim_start_matches('"');
    let first = first.split(['.', ',', '?', '!', '\'', '"']).next().unwrap_or_default();
    first.to_lowercase() == word
}

/// True if one of the three answers stands in the text.
pub(super) fn has_constrained_response(text: &str) -> bool {
    CONSTRAINED_RESPONSES.iter().any(|response| text.contains(response))
}

/// True if two different texts stand around six asterisks.
pub(super) fn is_two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(strip).collect();
    let blank_inside = parts
        .iter()
        .enumerate()
        .any(|(index, part)| part.is_empty() && index != 0 && index != parts.len() - 1);
    let mut filled = parts.iter().filter(|part| !part.is_empty());
    match (filled.next(), filled.next(), filled.next()) {
        (Some(first), Some(second), None) => !blank_inside && first != second,
        _ => false,
    }
}

/// True if the text in small letters starts with the prefix.
pub(super) fn starts_with_lower(text: &str, prefix: &str) -> bool {
    let mut lower = text.chars().flat_map(char::to_lowercase);
    prefix.chars().all(|wanted| lower.next() == Some(wanted))
}

/// True if the whole text is one JSON value, in a Markdown fence or not.
pub(super) fn is_json(text: &str) -> bool {
    let mut text = strip(text);
    for fence in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(fence).unwrap_or(text);
    }
    let text = strip(text.strip_suffix("```").unwrap_or(text));
    // Values are skipped, not built: neither depth nor the size of a number matters, as in Python.
    serde_json::from_str::<IgnoredAny>(&nulls_for_constants(text)).is_ok()
}

/// Python's parser knows NaN, Infinity and -Infinity; null stands for them here.
fn nulls_for_constants(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    let mut quoted = false;
    let mut escaped = false;
    let mut outside = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let constant =
            ["NaN", "-Infinity", "Infinity"].iter().find(|name| !quoted && rest.starts_with(*name));
        if let Some(name) = constant {
            outside.push_str("null");
            rest = &rest[name.len()..];
            continue;
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        outside.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(outside)
}
