//! Sentences as Punkt splits them (Kiss & Strunk 2006, "Unsupervised Multilingual Sentence Boundary
//! Detection"), which IFEval's checker counts with.
//!
//! The algorithm is that of NLTK's `PunktSentenceTokenizer`: which marks are candidates, how the
//! words around one are cut, both passes of annotation, and closing marks that go with the sentence
//! before. Its *trained parameters* are not here: the word lists below stand for them. So a verdict
//! can differ after an abbreviation or an initial that one side knows and the other does not, and
//! where an abbreviation or an ellipsis stands before a capital.

use std::ops::Range;

/// Abbreviations that do not end a sentence by themselves, in small letters, without the last
/// period. "e.g", "i.e" and "etc" are missing on purpose: Punkt's English model does not know them.
const ABBREVIATIONS: &[&str] = &[
    "a.m", "adm", "ariz", "aug", "ave", "bros", "calif", "co", "col", "colo", "corp", "ct", "d.c", "dec",
    "dr", "feb", "fla", "fri", "ft", "ga", "gen", "ill", "inc", "jan", "jr", "kan", "ky", "lt", "ltd", "maj",
    "messrs", "mg", "mich", "minn", "mr", "mrs", "ms", "nev", "nov", "oct", "okla", "ore", "p.m", "pa",
    "ph.d", "prof", "rep", "reps", "sen", "sep", "sept", "sr", "st", "tenn", "tues", "u.k", "u.n", "u.s",
    "u.s.a", "va", "vs", "vt", "wash", "wed", "wis", "yr",
];

/// Words that begin a sentence when they are capital, even after an abbreviation or an ellipsis.
const STARTERS: &[&str] = &[
    "according",
    "although",
    "always",
    "among",
    "both",
    "but",
    "despite",
    "even",
    "finally",
    "he",
    "here",
    "however",
    "i",
    "if",
    "in",
    "indeed",
    "instead",
    "it",
    "many",
    "meanwhile",
    "moreover",
    "most",
    "nor",
    "nothing",
    "please",
    "similarly",
    "since",
    "so",
    "some",
    "sometimes",
    "soon",
    "still",
    "such",
    "the",
    "there",
    "therefore",
    "these",
    "they",
    "this",
    "though",
    "through",
    "thus",
    "under",
    "unless",
    "were",
    "when",
    "whether",
    "which",
    "while",
    "without",
    "yes",
    "yet",
    "your",
];

/// Other words that are no names when they are capital: an initial before one ends its sentence.
const COMMON: &[&str] = &[
    "a",
    "about",
    "after",
    "all",
    "also",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "because",
    "before",
    "by",
    "can",
    "come",
    "could",
    "do",
    "does",
    "don't",
    "each",
    "every",
    "everyone",
    "everything",
    "first",
    "for",
    "from",
    "get",
    "go",
    "have",
    "his",
    "how",
    "is",
    "its",
    "just",
    "keep",
    "let",
    "let's",
    "like",
    "look",
    "make",
    "maybe",
    "more",
    "my",
    "never",
    "no",
    "nobody",
    "not",
    "now",
    "of",
    "on",
    "once",
    "one",
    "only",
    "or",
    "our",
    "perhaps",
    "second",
    "she",
    "should",
    "take",
    "than",
    "that",
    "their",
    "then",
    "third",
    "those",
    "to",
    "today",
    "too",
    "until",
    "use",
    "was",
    "we",
    "well",
    "what",
    "where",
    "who",
    "whose",
    "why",
    "will",
    "with",
    "would",
    "you",
];

/// Marks that end a word and cannot stand in one.
fn is_non_word(c: char) -> bool {
    matches!(c, ')' | '"' | ';' | '}' | ']' | '*' | ':' | '@' | '\'' | '(' | '{' | '[' | '?' | '!')
}

/// True if a word may start with it.
fn starts_word(c: char) -> bool {
    !c.is_whitespace()
        && !matches!(
            c,
            '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ','
        )
}

/// Closing marks that go with the sentence before.
fn is_closer(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}')
}

/// A mark that may end a sentence, the word it stands behind and what follows.
struct Candidate {
    /// Behind the mark.
    end: usize,
    /// Where the next sentence would start.
    next: usize,
    /// The word with its mark, and what follows it: what the decision reads.
    context: Range<usize>,
}

/// How many sentences.
pub(super) fn count(text: &str) -> usize {
    split(text).len()
}

/// Where the sentences stand, without the white space between them.
pub(super) fn split(text: &str) -> Vec<Range<usize>> {
    let mut slices = Vec::new();
    let mut start = 0;
    for candidate in candidates(text) {
        if is_break(&text[candidate.context]) {
            slices.push(start..candidate.end);
            start = candidate.next;
        }
    }
    slices.push(start..text.trim_end().len().max(start));
    realign(text, slices)
}

/// The candidates, one a word: of several marks behind one word the last counts.
fn candidates(text: &str) -> Vec<Candidate> {
    struct Pending {
        word: usize,
        mark: usize,
        next: usize,
        after: usize,
    }
    let mut found = Vec::new();
    let mut pending: Option<Pending> = None;
    let emit = |pending: Pending, found: &mut Vec<Candidate>| {
        let context = pending.word..pending.after;
        found.push(Candidate { end: pending.mark + 1, next: pending.next, context });
    };
    for (mark, _) in text.match_indices(['.', '?', '!']) {
        let behind = &text[mark + 1..];
        let Some(first) = behind.chars().next() else { break };
        let (next, after) = if is_non_word(first) {
            (mark + 1, mark + 1 + first.len_utf8())
        } else if first.is_whitespace() {
            let next = behind.trim_start();
            if next.is_empty() {
                break;
            }
            let next_start = text.len() - next.len();
            (next_start, next_start + next.find(char::is_whitespace).unwrap_or(next.len()))
        } else {
            continue;
        };
        let (from, earlier_word) = pending.as_ref().map_or((0, 0), |pending| (pending.mark, pending.word));
        let space = text[from..mark].rfind([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        let word = space.filter(|&space| space > 0).map_or(earlier_word, |space| from + space + 1);
        if let Some(earlier) = pending.take_if(|pending| pending.mark <= word) {
            emit(earlier, &mut found);
        }
        pending = Some(Pending { word, mark, next, after });
    }
    if let Some(last) = pending {
        emit(last, &mut found);
    }
    found
}

/// A word of a context, as the first pass sees it.
struct Token<'a> {
    text: &'a str,
    ends_sentence: bool,
    abbreviation: bool,
    ellipsis: bool,
}

impl<'a> Token<'a> {
    fn new(text: &'a str) -> Self {
        let ellipsis = text.len() > 1 && text.bytes().all(|byte| byte == b'.');
        let mut token = Token { text, ends_sentence: false, abbreviation: false, ellipsis };
        if matches!(text, "." | "?" | "!") {
            token.ends_sentence = true;
        } else if let Some(word) = text.strip_suffix('.').filter(|word| !word.ends_with('.')) {
            token.abbreviation = is_abbreviation(word);
            token.ends_sentence = !token.abbreviation;
        }
        token
    }

    /// "A."
    fn is_initial(&self) -> bool {
        let mut chars = self.text.chars();
        chars.next().is_some_and(char::is_alphabetic) && chars.as_str() == "."
    }

    /// "12.", "1,000.", "-3."
    fn is_number(&self) -> bool {
        let digits = self.text.strip_prefix('-').unwrap_or(self.text);
        let digits = digits.strip_prefix(['.', ',']).unwrap_or(digits);
        digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'.' | b'-'))
    }

    fn is_capital(&self) -> bool {
        self.text.starts_with(char::is_uppercase)
    }

    /// True if it is capital and on the list.
    fn is_capital_of(&self, list: &[&str]) -> bool {
        self.is_capital() && is_listed(list, self.text.strip_suffix('.').unwrap_or(self.text))
    }

    /// True if a sentence hardly begins with it.
    fn is_no_start(&self) -> bool {
        matches!(self.text, ";" | ":" | "," | "." | "!" | "?") || self.text.starts_with(char::is_lowercase)
    }
}

fn is_abbreviation(word: &str) -> bool {
    let last = word.rsplit('-').next().unwrap_or(word);
    // Single letters but these, as in the English model.
    let single = |word: &str| {
        word.len() == 1
            && word
                .bytes()
                .all(|letter| letter.is_ascii_alphabetic() && !b"abijoquxyz".contains(&(letter | 0x20)))
    };
    [word, last].into_iter().any(|word| single(word) || is_listed(ABBREVIATIONS, word))
}

/// True if the list, which is in order, has the word in small letters.
fn is_listed(list: &[&str], word: &str) -> bool {
    // The longest entry has 10 bytes; no need to lower a word of 10 MB.
    word.len() <= 16 && list.binary_search(&word.to_lowercase().as_str()).is_ok()
}

/// Whether a context ends a sentence before its last word.
fn is_break(context: &str) -> bool {
    let mut tokens = context.split('\n').flat_map(Tokens::new).map(Token::new);
    let Some(mut token) = tokens.next() else { return false };
    for next in tokens {
        if second_pass(&token, &next) {
            return true;
        }
        token = next;
    }
    false
}

/// Whether the token ends a sentence, now that the one behind it is known.
fn second_pass(token: &Token<'_>, next: &Token<'_>) -> bool {
    if !token.text.ends_with('.') {
        return token.ends_sentence;
    }
    let initial = token.is_initial();
    if (token.abbreviation || token.ellipsis) && !initial && next.is_capital_of(STARTERS) {
        return true;
    }
    if initial {
        // "J. Bach": a capital word that is not a common one is the rest of the name.
        let common = next.text != "I" && [STARTERS, COMMON].iter().any(|list| next.is_capital_of(list));
        return token.ends_sentence && !next.is_no_start() && (common || !next.is_capital());
    }
    if token.is_number() && next.is_no_start() {
        return false;
    }
    token.ends_sentence
}

/// Cuts a line into words and marks; a period stays with its word.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn new(line: &'a str) -> Self {
        Tokens { rest: line }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let first = self.rest.chars().next()?;
        let length = match run(self.rest) {
            Some(length) => length,
            None if starts_word(first) => word_length(self.rest, first.len_utf8()),
            None => first.len_utf8(),
        };
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(token)
    }
}

/// How far a word reaches that is at least `from` bytes long.
fn word_length(text: &str, from: usize) -> usize {
    let ends =
        |rest: &str| rest.starts_with(|c: char| c.is_whitespace() || is_non_word(c)) || run(rest).is_some();
    let mut chars = text[from..].char_indices();
    let end = chars.find(|&(index, c)| {
        let rest = &text[from + index..];
        ends(rest) || (c == ',' && (rest.len() == 1 || ends(&rest[1..])))
    });
    end.map_or(text.len(), |(index, _)| from + index)
}

/// The length of a run of dashes or periods ("--", "...", ". . ."), if the text starts with one.
fn run(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let same = |mark: u8| bytes.iter().take_while(|&&byte| byte == mark).count();
    match bytes.first()? {
        b'-' => Some(same(b'-')).filter(|&length| length > 1),
        b'.' if bytes.get(1) == Some(&b'.') => Some(same(b'.')),
        b'.' => {
            let pairs = bytes
                .chunks(2)
                .take_while(|pair| pair.len() == 2 && pair[0] == b'.' && pair[1].is_ascii_whitespace());
            let mut length = 2 * pairs.count();
            if bytes.get(length) != Some(&b'.') {
                length = length.saturating_sub(2);
            }
            (length >= 4).then_some(length + 1)
        }
        _ => None,
    }
}

/// Gives closing marks to the sentence before, and drops what is empty then.
fn realign(text: &str, slices: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut sentences = Vec::with_capacity(slices.len());
    let mut moved = 0;
    for (index, slice) in slices.iter().enumerate() {
        let start = (slice.start + moved).min(slice.end);
        let mut end = slice.end;
        moved = 0;
        if let Some(next) = slices.get(index + 1) {
            let following = &text[next.clone()];
            let closers: usize = following.chars().take_while(|&c| is_closer(c)).map(char::len_utf8).sum();
            let behind = &following[closers..];
            let white = behind.len() - behind.trim_start().len();
            if closers > 0 && (white > 0 || behind.is_empty() || behind.starts_with("--")) {
                end = next.start + closers;
                moved = closers + white;
            }
        }
        if end > start {
            sentences.push(start..end);
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> Vec<&str> {
        split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn the_word_lists_are_in_order() {
        assert!([ABBREVIATIONS, STARTERS, COMMON].iter().all(|list| list.is_sorted()));
    }

    /// What NLTK 3.10's Punkt with its English parameters says.
    #[test]
    fn sentences_are_those_of_punkt() {
        for (text, expected) in [
            ("", vec![]),
            ("one", vec!["one"]),
            ("One. two! three? four", vec!["One.", "two!", "three?", "four"]),
            ("Very bad acting!!! I promise.", vec!["Very bad acting!!!", "I promise."]),
            (
                "Mr. Smith met Dr. Who at 3.5 p.m. on Main St. yesterday.",
                vec!["Mr. Smith met Dr. Who at 3.5 p.m. on Main St. yesterday."],
            ),
            ("He lives in the U.S. The end.", vec!["He lives in the U.S.", "The end."]),
            ("1. First item\n2. Second item", vec!["1.", "First item\n2.", "Second item"]),
            ("Section 1. of it", vec!["Section 1. of it"]),
            ("By J. Bach and A. Lee.", vec!["By J. Bach and A. Lee."]),
            ("\"Hi.\" Then \"Bye!\"", vec!["\"Hi.\"", "Then \"Bye!\""]),
            ("(One.) (Two.)", vec!["(One.)", "(Two.)"]),
            ("Well... maybe. Well... The end", vec!["Well... maybe.", "Well...", "The end"]),
            ("**Bold.** Next", vec!["**Bold.", "** Next"]),
            ("e.g. this", vec!["e.g.", "this"]),
        ] {
            assert_eq!(sentences(text), expected, "{text:?}");
        }
    }
}
