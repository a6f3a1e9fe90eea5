//! The code in a completion.

use regex::Regex;
use std::sync::LazyLock;

/// A block between Markdown fences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The first word behind the fence, in lower case.
    pub language: String,
    /// What stands between the fences; to the end of the text if it was cut off.
    pub code: String,
}

/// A fence: at least three of its marks, and what it says.
static FENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(`{3,}|~{3,})[ \t]*([^`\r\n]*)$").expect("a valid pattern"));
/// What an item of a list begins with.
static ITEM: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?:[-*+]|[0-9]{1,9}[.)])( +|$)").expect("a valid pattern"));
/// Spaces by which a fence may be set in.
const MOST_INDENT: usize = 3;
static DEFINED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)").expect("a valid pattern"));

/// All blocks of a text, in their order.
///
/// As in CommonMark (0.31, sections 4.5 and 5.2), a fence may be set in by up to three spaces, from the text of the
/// list's item that it stands in, and what it is set in by is taken off the lines of its block.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Fence, Block)> = None;
    // Where the text of the list's items begins that the line may be part of.
    let mut items: Vec<usize> = Vec::new();
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end_matches(['\n', '\r']);
        match open.take() {
            Some((fence, block)) if fence.is_closed_by(bare) => blocks.push(block),
            Some((fence, mut block)) => {
                block.code.push_str(without_indent(line, fence.indent));
                open = Some((fence, block));
            }
            None => open = opening(bare, &mut items),
        }
    }
    blocks.extend(open.map(|(_, block)| block));
    blocks
}

/// A fence that is open.
struct Fence {
    mark: String,
    /// Spaces before it.
    indent: usize,
    /// Of these, those of the list's item that it stands in.
    item: usize,
}

impl Fence {
    fn is_closed_by(&self, line: &str) -> bool {
        let marks = line.trim_start_matches(' ');
        let near = line.len() - marks.len() <= self.item + MOST_INDENT;
        let closing = FENCE.captures(marks).filter(|found| found[2].trim().is_empty());
        near && closing.is_some_and(|found| found[1].starts_with(&self.mark))
    }
}

/// The block that a line begins, if it begins one. `items` are brought up to the line.
fn opening(line: &str, items: &mut Vec<usize>) -> Option<(Fence, Block)> {
    let mut rest = line.trim_start_matches(' ');
    if rest.trim().is_empty() {
        return None;
    }
    let mut indent = line.len() - rest.len();
    items.retain(|&item| item <= indent);
    loop {
        let item = items.last().copied().unwrap_or(0);
        if indent > item + MOST_INDENT {
            return None;
        }
        if let Some(found) = FENCE.captures(rest) {
            let language = found[2].split_whitespace().next().unwrap_or_default();
            let language = language.trim_matches(['{', '}', '.']).to_lowercase();
            let fence = Fence { mark: found[1].to_string(), indent, item };
            return Some((fence, Block { language, code: String::new() }));
        }
        let marker = ITEM.captures(rest)?;
        // More than four spaces are part of the item's text.
        let length =
            if marker[1].len() > 4 { marker[0].len() - marker[1].len() + 1 } else { marker[0].len() };
        indent += length;
        rest = &rest[length..];
        items.push(indent);
    }
}

/// A line without its first `most` spaces, or those that it has.
fn without_indent(line: &str, most: usize) -> &str {
    let spaces = line.bytes().take(most).take_while(|&byte| byte == b' ').count();
    &line[spaces..]
}

/// Names of functions and classes that begin at the start of a line.
pub fn defined(code: &str) -> impl Iterator<Item = &str> {
    DEFINED.captures_iter(code).filter_map(|found| found.get(1)).map(|name| name.as_str())
}

/// The code in a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// The code.
    pub text: String,
    /// False if it is the whole completion, which need not be code then.
    pub fenced: bool,
}

/// The code of a completion, none if there is none.
///
/// Of blocks between fences, those count whose language is one of `languages`, or is not said; an empty list takes
/// any. The last one counts that defines a name which `tests` mention; if there is none, the last one of the
/// languages; if there is none, the last one. Without any fence, the whole completion is the code.
pub fn extract(completion: &str, languages: &[&str], tests: &str) -> Option<Code> {
    let all = blocks(completion);
    if all.is_empty() {
        let text = completion.to_string();
        return (!text.trim().is_empty()).then_some(Code { text, fenced: false });
    }
    let said = |block: &&Block| languages.contains(&block.language.as_str());
    let counts = |block: &&Block| languages.is_empty() || block.language.is_empty() || said(block);
    let usable: Vec<&Block> =
        all.iter().filter(counts).filter(|block| !block.code.trim().is_empty()).collect();
    let mentioned = |block: &&&Block| defined(&block.code).any(|name| mentions(tests, name));
    let block = usable
        .iter()
        .rfind(mentioned)
        .or_else(|| usable.iter().rfind(|block| said(block)))
        .or(usable.last())?;
    Some(Code { text: block.code.clone(), fenced: true })
}

/// Whether a text has a word.
fn mentions(text: &str, word: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(start, _)| {
        !text[..start].ends_with(part_of_word) && !text[start + word.len()..].starts_with(part_of_word)
    })
}

/// What Python may take a completion for, best first: with the prompt's code before it, or alone. Where the prompt
/// begins a function that the completion goes on with, also only to the end of that function.
pub(super) fn sources(code: &Code, prefix: Option<&str>) -> Vec<String> {
    let Some(prefix) = prefix else { return vec![code.text.clone()] };
    let apart = format!("{}\n\n{}", prefix.trim_end(), code.text);
    if code.fenced || defined(&code.text).next().is_some() && !code.text.starts_with([' ', '\t']) {
        return vec![apart, code.text.clone()];
    }
    let whole = format!("{prefix}{}", code.text);
    let mut sources = vec![whole, apart];
    // As far as the lines are indented: what follows is no part of the function, and may be cut off.
    let function = code.text.split_inclusive('\n').enumerate();
    let function: String = function
        .take_while(|(index, line)| *index == 0 || line.trim().is_empty() || line.starts_with([' ', '\t']))
        .map(|(_, line)| line)
        .collect();
    sources.push(format!("{prefix}{function}"));
    sources
}
