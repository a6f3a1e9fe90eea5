//! Words in capitals, cut as NLTK's `word_tokenize` cuts them.
//!
//! The tokenizer is the Penn Treebank's: sentences first, then marks and clitics are cut off, so that
//! "I'm" has the word "I" and "DON'T" the words "DO" and "N'T". Only the cuts that can change how
//! many tokens are capitals are made here.

use super::sentences;
use crate::constraint::text::is_all_capital;

/// Small words that are two tokens, and how long the first is.
const CONTRACTIONS: &[(&str, usize)] =
    &[("cannot", 3), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3)];

/// Clitics that the second of two rules cuts off; the first takes 's, 'm and 'd.
const CLITICS: &[&str] = &["'ll", "'LL", "'re", "'RE", "'ve", "'VE", "n't", "N'T"];

/// How many tokens have a capital letter and no small one (Python's `isupper`).
pub(super) fn count(text: &str) -> usize {
    sentences::split(text).into_iter().map(|range| in_sentence(&text[range])).sum()
}

fn in_sentence(sentence: &str) -> usize {
    let closed =
        |c: char| matches!(c, ']' | ')' | '}' | '>' | '"' | '\'' | '»' | '”' | '’') || c.is_whitespace();
    // The last period is a token of its own, so that a clitic before it is found.
    let open = sentence.trim_end_matches(closed);
    let body = match open.strip_suffix('.') {
        Some(body) if !body.ends_with('.') && !body.is_empty() => body,
        _ => sentence,
    };
    let mut count = 0;
    let mut start = 0;
    let mut chars = body.char_indices().peekable();
    let bytes = body.as_bytes();
    while let Some((index, c)) = chars.next() {
        let next = bytes.get(index + 1);
        let cut = match c {
            // Digits keep ":" and "," between them.
            ':' | ',' => !body[index + 1..].starts_with(char::is_numeric),
            '.' | '-' | '\'' => next == Some(&bytes[index]),
            _ => c.is_whitespace() || is_separator(c),
        };
        if cut {
            count += in_piece(&body[start..index]);
            while bytes[index] == b'.' && chars.next_if(|&(_, c)| c == '.').is_some() {}
            if matches!(c, '-' | '\'') {
                chars.next();
            }
            start = chars.peek().map_or(body.len(), |&(index, _)| index);
        }
    }
    count + in_piece(&body[start..])
}

fn is_separator(c: char) -> bool {
    matches!(
        c,
        ';' | '@'
            | '#'
            | '$'
            | '%'
            | '&'
            | '?'
            | '!'
            | '*'
            | '['
            | ']'
            | '('
            | ')'
            | '{'
            | '}'
            | '<'
            | '>'
            | '"'
            | '`'
            | '«'
            | '»'
            | '“'
            | '”'
            | '‘'
            | '’'
            | '„'
            | '\u{2012}'..='\u{2015}'
    )
}

/// Counts in what stands between two separators.
fn in_piece(piece: &str) -> usize {
    if !piece.contains(char::is_uppercase) {
        return 0;
    }
    let (head, first) = cut_clitic(piece, &["'s", "'S", "'m", "'M", "'d", "'D"]);
    let (head, second) = cut_clitic(head, CLITICS);
    usize::from(is_all_capital(first)) + usize::from(is_all_capital(second)) + in_word(head)
}

/// Cuts off a clitic that something other than an apostrophe stands before.
fn cut_clitic<'a>(piece: &'a str, clitics: &[&str]) -> (&'a str, &'a str) {
    let cut = |clitic: &&str| {
        let head = piece.strip_suffix(clitic)?;
        (!head.is_empty() && !head.ends_with('\'')).then_some(head.len())
    };
    clitics.iter().find_map(cut).map_or((piece, ""), |at| piece.split_at(at))
}

/// Counts in a word without clitics; "CANNOT" is two.
fn in_word(word: &str) -> usize {
    let mut count = 0;
    let mut start = 0;
    let mut from = 0;
    for part in word.split(|c: char| !c.is_alphanumeric() && c != '_') {
        let end = from + part.len();
        let contraction = CONTRACTIONS.iter().find(|(whole, _)| whole.eq_ignore_ascii_case(part));
        if let Some((whole, first)) = contraction.filter(|(whole, _)| *whole != "wanna" || end == word.len())
        {
            count += usize::from(is_all_capital(&word[start..from + first]));
            count += usize::from(is_all_capital(&word[from + first..from + whole.len()]));
            start = end;
        }
        // The separator behind it, whatever its length.
        from = end + word[end..].chars().next().map_or(0, char::len_utf8);
    }
    count + usize::from(is_all_capital(&word[start.min(word.len())..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted by NLTK 3.10's `word_tokenize` and `str.isupper`.
    #[test]
    fn capitals_are_counted_as_nltk_does() {
        for (text, expected) in [
            ("", 0),
            ("I am HERE", 2),
            ("I'm HERE.", 2),
            ("I'M HERE", 3),
            ("DON'T. DON'T stop", 4),
            ("I’m", 1),
            ("THE DOG'S", 3),
            ("A/B A-B A--B A:B A,B 1,2 AT&T", 10),
            ("CANNOT WANNA WANNA.", 6),
            ("END.NEXT", 1),
            ("END...NEXT (ABC) \"Q\" *X*", 5),
            ("U.S.A. is BIG!NOW", 3),
            ("COVID-19 a1 A1", 2),
            ("ÉTÉ ß Σ", 2),
        ] {
            assert_eq!(count(text), expected, "{text:?}");
        }
    }
}
