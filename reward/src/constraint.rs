//! One verifiable instruction: how it is told, how it is checked, what it cannot stand beside.
//!
//! The rules of counting, which every constraint shares:
//!
//! - a word is a piece between white space that has a letter or a digit, so a lone dash is none;
//! - a sentence ends with a run of `.`, `!` or `?`, closing quotes, brackets and asterisks allowed
//!   after it, that white space or the end of the text follows; it has at least one letter, so the
//!   "1." of a list is none; what is left without an end mark counts as a sentence if it has a
//!   letter; abbreviations ("e.g. this") end sentences, as in most simple counters;
//! - a paragraph is a run of lines that are not blank;
//! - keywords match whole words, whatever their case: "art" is not in "part";
//! - a blank text follows no constraint, as in IFEval.

mod conflict;
pub(crate) mod text;
mod wording;

use serde::{Deserialize, Serialize};

/// How a count compares with its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Neither fewer nor more.
    Exactly,
    /// That many or more.
    AtLeast,
    /// That many or fewer.
    AtMost,
}

impl Relation {
    /// True if what was found is so.
    pub(crate) fn holds(self, found: usize, count: usize) -> bool {
        match self {
            Relation::Exactly => found == count,
            Relation::AtLeast => found >= count,
            Relation::AtMost => found <= count,
        }
    }
}

/// A verifiable instruction. The constraints without options have braces too: serde then refuses
/// options that they do not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Constraint {
    /// No capital letter, and at least one small one.
    AllLowercase {},
    /// No small letter, and at least one capital.
    AllUppercase {},
    /// No `,`.
    NoComma {},
    /// Each of the words, at least once.
    Keywords {
        /// The words (or phrases).
        words: Vec<String>,
    },
    /// None of the words.
    ForbiddenWords {
        /// The words (or phrases).
        words: Vec<String>,
    },
    /// One word several times.
    KeywordFrequency {
        /// The word.
        word: String,
        /// How often, or more.
        at_least: usize,
    },
    /// A least number of words.
    MinWords {
        /// So many, or more.
        at_least: usize,
    },
    /// A greatest number of words.
    MaxWords {
        /// So many, or fewer.
        at_most: usize,
    },
    /// A number of sentences.
    Sentences {
        /// How their number compares with `count`.
        relation: Relation,
        /// The bound.
        count: usize,
    },
    /// Exactly so many paragraphs, with blank lines between them.
    Paragraphs {
        /// How many.
        count: usize,
    },
    /// Exactly so many lines that start with "* " or "- ".
    Bullets {
        /// How many.
        count: usize,
    },
    /// Lines that start with "1. " (or "1) "), "2. ", and so on, up to exactly `count`.
    NumberedList {
        /// How many.
        count: usize,
    },
    /// The first words, whatever their case; an opening quote may stand before them.
    StartWith {
        /// The words.
        phrase: String,
    },
    /// The last words, whatever their case; end marks and a closing quote may stand after them.
    EndWith {
        /// The words.
        phrase: String,
    },
    /// The whole answer is one JSON object that is not empty; a Markdown fence may stand around it.
    Json {},
    /// A title in double angular brackets on one line: `<<title>>`.
    Title {},
    /// At least so many pieces of text between asterisks, `*so*` or `**so**`.
    Highlighted {
        /// How many, or more.
        count: usize,
    },
    /// The whole answer stands in double quotes.
    Quotation {},
    /// At least so many names in square brackets, such as `[name]`.
    Placeholders {
        /// How many, or more.
        count: usize,
    },
    /// The last mark is `?`; closing quotes, brackets and asterisks may stand after it.
    Question {},
    /// The last mark is `!`; closing quotes, brackets and asterisks may stand after it.
    Exclamation {},
    /// "P.S." (or "P. S.", whatever the case) with a word after it.
    Postscript {},
    /// No digit or other numeral character.
    NoDigits {},
    /// A least number of the characters 0 to 9.
    Digits {
        /// So many, or more.
        at_least: usize,
    },
    /// A least number of words of two or more letters that are all capitals.
    CapitalWords {
        /// So many, or more.
        at_least: usize,
    },
    /// One letter several times, in either case.
    LetterFrequency {
        /// The letter.
        letter: char,
        /// How often, or more.
        at_least: usize,
    },
}

impl Constraint {
    /// Every value of `kind`.
    pub const KINDS: &[&str] = &[
        "all_lowercase",
        "all_uppercase",
        "no_comma",
        "keywords",
        "forbidden_words",
        "keyword_frequency",
        "min_words",
        "max_words",
        "sentences",
        "paragraphs",
        "bullets",
        "numbered_list",
        "start_with",
        "end_with",
        "json",
        "title",
        "highlighted",
        "quotation",
        "placeholders",
        "question",
        "exclamation",
        "postscript",
        "no_digits",
        "digits",
        "capital_words",
        "letter_frequency",
    ];

    /// The value of `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Constraint::AllLowercase {} => "all_lowercase",
            Constraint::AllUppercase {} => "all_uppercase",
            Constraint::NoComma {} => "no_comma",
            Constraint::Keywords { .. } => "keywords",
            Constraint::ForbiddenWords { .. } => "forbidden_words",
            Constraint::KeywordFrequency { .. } => "keyword_frequency",
            Constraint::MinWords { .. } => "min_words",
            Constraint::MaxWords { .. } => "max_words",
            Constraint::Sentences { .. } => "sentences",
            Constraint::Paragraphs { .. } => "paragraphs",
            Constraint::Bullets { .. } => "bullets",
            Constraint::NumberedList { .. } => "numbered_list",
            Constraint::StartWith { .. } => "start_with",
            Constraint::EndWith { .. } => "end_with",
            Constraint::Json {} => "json",
            Constraint::Title {} => "title",
            Constraint::Highlighted { .. } => "highlighted",
            Constraint::Quotation {} => "quotation",
            Constraint::Placeholders { .. } => "placeholders",
            Constraint::Question {} => "question",
            Constraint::Exclamation {} => "exclamation",
            Constraint::Postscript {} => "postscript",
            Constraint::NoDigits {} => "no_digits",
            Constraint::Digits { .. } => "digits",
            Constraint::CapitalWords { .. } => "capital_words",
            Constraint::LetterFrequency { .. } => "letter_frequency",
        }
    }

    /// True if `text` follows the constraint. A blank text never does.
    pub fn check(&self, text: &str) -> bool {
        if text.trim().is_empty() {
            return false;
        }
        match self {
            Constraint::AllLowercase {} => {
                text.contains(char::is_lowercase) && !text.contains(char::is_uppercase)
            }
            Constraint::AllUppercase {} => text::is_all_capital(text),
            Constraint::NoComma {} => !text.contains(','),
            Constraint::Keywords { words } => words.iter().all(|word| text::occurrences(text, word) > 0),
            Constraint::ForbiddenWords { words } => {
                words.iter().all(|word| text::occurrences(text, word) == 0)
            }
            Constraint::KeywordFrequency { word, at_least } => text::occurrences(text, word) >= *at_least,
            Constraint::MinWords { at_least } => text::words(text).count() >= *at_least,
            Constraint::MaxWords { at_most } => text::words(text).count() <= *at_most,
            Constraint::Sentences { relation, count } => relation.holds(text::sentences(text), *count),
            Constraint::Paragraphs { count } => text::paragraphs(text) == *count,
            Constraint::Bullets { count } => text::bullets(text) == *count,
            Constraint::NumberedList { count } => text::list_numbers(text).eq(1..=*count),
            Constraint::StartWith { phrase } => text::starts_with(text, phrase),
            Constraint::EndWith { phrase } => text::ends_with(text, phrase),
            Constraint::Json {} => text::is_json_object(text),
            Constraint::Title {} => text::has_title(text),
            Constraint::Highlighted { count } => text::highlights(text) >= *count,
            Constraint::Quotation {} => text::is_quotation(text),
            Constraint::Placeholders { count } => text::placeholders(text) >= *count,
            Constraint::Question {} => text::last_mark(text) == Some('?'),
            Constraint::Exclamation {} => text::last_mark(text) == Some('!'),
            Constraint::Postscript {} => text::has_postscript(text),
            Constraint::NoDigits {} => !text.contains(char::is_numeric),
            Constraint::Digits { at_least } => text.chars().filter(char::is_ascii_digit).count() >= *at_least,
            Constraint::CapitalWords { at_least } => {
                text::words(text).filter(|word| text::is_capital(word)).count() >= *at_least
            }
            Constraint::LetterFrequency { letter, at_least } => {
                text::letter_count(text, *letter) >= *at_least
            }
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// With a sentence that names the kind, the option, its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        let kind = self.kind();
        let positive = |option: &str, value: usize| match value {
            0 => Err(format!("{kind}: {option} is 0, but must be at least 1")),
            _ => Ok(()),
        };
        let spoken = |option: &str, phrase: &str| match phrase.contains(char::is_alphanumeric) {
            true => Ok(()),
            false => Err(format!("{kind}: {option} is {phrase:?}, but must have a letter or a digit")),
        };
        match self {
            Constraint::Keywords { words } | Constraint::ForbiddenWords { words } => {
                if words.is_empty() {
                    return Err(format!("{kind}: words is empty, but must have at least one word"));
                }
                words.iter().try_for_each(|word| spoken("a word", word))
            }
            Constraint::KeywordFrequency { word, at_least } => {
                spoken("word", word)?;
                positive("at_least", *at_least)
            }
            Constraint::StartWith { phrase } | Constraint::EndWith { phrase } => spoken("phrase", phrase),
            Constraint::LetterFrequency { letter, at_least } => {
                if !letter.is_alphabetic() {
                    return Err(format!("{kind}: letter is {letter:?}, but must be a letter"));
                }
                positive("at_least", *at_least)
            }
            Constraint::MinWords { at_least }
            | Constraint::Digits { at_least }
            | Constraint::CapitalWords { at_least } => positive("at_least", *at_least),
            Constraint::MaxWords { at_most } => positive("at_most", *at_most),
            Constraint::Sentences { count, .. }
            | Constraint::Paragraphs { count }
            | Constraint::Bullets { count }
            | Constraint::NumberedList { count }
            | Constraint::Highlighted { count }
            | Constraint::Placeholders { count } => positive("count", *count),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
