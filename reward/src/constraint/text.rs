//! Counting in a text; the rules stand in the parent's documentation.

use serde_json::Value;

/// Marks that may stand after the end of a sentence or of a text.
const CLOSERS: &[char] = &['"', '\'', '”', '’', '»', ')', ']', '>', '*', '_'];
const QUOTES: &[char] = &['"', '\'', '“', '”', '‘', '’'];

fn is_end_mark(c: char) -> bool {
    matches!(c, '.' | '!' | '?')
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric))
}

/// How many sentences.
pub(super) fn sentences(text: &str) -> usize {
    let mut count = 0;
    let mut has_letter = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        has_letter |= c.is_alphabetic();
        if !is_end_mark(c) {
            continue;
        }
        while chars.next_if(|&c| is_end_mark(c) || CLOSERS.contains(&c)).is_some() {}
        let ended = chars.peek().is_none_or(|c| c.is_whitespace());
        if ended && has_letter {
            count += 1;
            has_letter = false;
        }
    }
    count + usize::from(has_letter)
}

/// How many paragraphs.
pub(super) fn paragraphs(text: &str) -> usize {
    let blank = || text.lines().map(|line| line.trim().is_empty());
    let before = std::iter::once(true).chain(blank());
    before.zip(blank()).filter(|&(before, now)| before && !now).count()
}

/// How often the phrase stands as whole words, whatever the case.
pub(super) fn occurrences(text: &str, phrase: &str) -> usize {
    let (text, phrase) = (text.to_lowercase(), phrase.to_lowercase());
    let whole = |&(start, found): &(usize, &str)| {
        !text[..start].ends_with(is_word_char) && !text[start + found.len()..].starts_with(is_word_char)
    };
    text.match_indices(&phrase).filter(whole).count()
}

/// How many lines are bullets with something after the mark.
pub(super) fn bullets(text: &str) -> usize {
    let item = |line: &str| {
        let line = line.trim();
        line.strip_prefix("* ").or(line.strip_prefix("- ")).is_some_and(|item| !item.trim().is_empty())
    };
    text.lines().filter(|line| item(line)).count()
}

/// The numbers of the lines of numbered lists.
pub(super) fn list_numbers(text: &str) -> impl Iterator<Item = usize> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (number, _) = line
            .split_once(". ")
            .into_iter()
            .chain(line.split_once(") "))
            .find(|(number, _)| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))?;
        number.parse().ok()
    })
}

/// True if the first words are the phrase.
pub(super) fn starts_with(text: &str, phrase: &str) -> bool {
    let (text, phrase) = (bare(text), bare(phrase));
    text.strip_prefix(&phrase).is_some_and(|rest| !rest.starts_with(is_word_char))
}

/// True if the last words are the phrase.
pub(super) fn ends_with(text: &str, phrase: &str) -> bool {
    let (text, phrase) = (bare(text), bare(phrase));
    text.strip_suffix(&phrase).is_some_and(|rest| !rest.ends_with(is_word_char))
}

/// In small letters, without quotes, end marks and white space around.
fn bare(text: &str) -> String {
    let around = |c: char| c.is_whitespace() || is_end_mark(c) || QUOTES.contains(&c);
    text.trim_matches(around).to_lowercase()
}

/// True if the text is a JSON object with at least one member, in a Markdown fence or not.
pub(super) fn is_json_object(text: &str) -> bool {
    matches!(serde_json::from_str(unfenced(text)), Ok(Value::Object(members)) if !members.is_empty())
}

/// What stands in a Markdown fence of JSON, or the whole text where there is none.
pub(crate) fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    fenced.map_or(text, |inner| inner.strip_prefix("json").unwrap_or(inner))
}

/// True if some line has a title in double angular brackets.
pub(super) fn has_title(text: &str) -> bool {
    let titled = |line: &str| {
        line.split("<<")
            .skip(1)
            .any(|rest| rest.split_once(">>").is_some_and(|(title, _)| title.contains(char::is_alphanumeric)))
    };
    text.lines().any(titled)
}

/// How many pieces of text stand between asterisks. A piece has no white space at its edges, so that
/// the mark of a bullet opens none.
pub(super) fn highlights(text: &str) -> usize {
    text.lines().map(highlights_in_line).sum()
}

fn highlights_in_line(line: &str) -> usize {
    let mut count = 0;
    let mut rest = line;
    while let Some((_, after)) = rest.split_once('*') {
        let inside = after.trim_start_matches('*');
        let Some((piece, beyond)) = inside.split_once('*') else { break };
        if !piece.is_empty() && piece.trim() == piece {
            count += 1;
            rest = beyond.trim_start_matches('*');
        } else {
            rest = &inside[piece.len()..];
        }
    }
    count
}

/// True if the whole text stands in double quotes.
pub(super) fn is_quotation(text: &str) -> bool {
    let text = text.trim();
    let opened = text.strip_prefix(['"', '“']);
    opened
        .and_then(|text| text.strip_suffix(['"', '”']))
        .is_some_and(|inner| inner.contains(char::is_alphanumeric))
}

/// How many names stand in square brackets.
pub(super) fn placeholders(text: &str) -> usize {
    let named = |rest: &str| {
        rest.split_once(']')
            .is_some_and(|(name, _)| !name.contains('\n') && name.contains(char::is_alphanumeric))
    };
    text.split('[').skip(1).filter(|rest| named(rest)).count()
}

/// The last mark, but for closing quotes, brackets and asterisks.
pub(super) fn last_mark(text: &str) -> Option<char> {
    text.trim_end_matches(|c: char| c.is_whitespace() || CLOSERS.contains(&c)).chars().next_back()
}

/// True if a postscript with a word in it stands somewhere.
pub(super) fn has_postscript(text: &str) -> bool {
    let text = text.to_lowercase();
    ["p.s.", "p. s."].iter().any(|mark| {
        text.match_indices(mark).any(|(start, mark)| {
            !text[..start].ends_with(is_word_char) && words(&text[start + mark.len()..]).next().is_some()
        })
    })
}

/// True if the word has two or more letters, all capitals.
pub(super) fn is_capital(word: &str) -> bool {
    word.chars().filter(|c| c.is_uppercase()).count() >= 2 && !word.contains(char::is_lowercase)
}

/// True if the text has capitals and no small letter.
pub(crate) fn is_all_capital(text: &str) -> bool {
    text.contains(char::is_uppercase) && !text.contains(char::is_lowercase)
}

/// How often the letter stands in the text, in either case.
pub(crate) fn letter_count(text: &str, letter: char) -> usize {
    text.chars().filter(|c| c.to_lowercase().eq(letter.to_lowercase())).count()
}
