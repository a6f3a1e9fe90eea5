//! Which constraints cannot be told together.

use super::{Constraint, Relation, text};

/// Words that a sentence of ordinary length has at most and at least.
const LONG_SENTENCE: usize = 20;
const SHORT_SENTENCE: usize = 5;
/// Words that an item of a list needs.
const SHORT_ITEM: usize = 3;

impl Constraint {
    /// True if the two should not be told together: no answer follows both, or one follows from the
    /// other, or a reader could not say what the two together ask for. Two of a kind always
    /// conflict. The relation is symmetric.
    pub fn conflicts_with(&self, other: &Constraint) -> bool {
        self.kind() == other.kind() || self.rules_out(other) || other.rules_out(self)
    }

    /// One direction of the relation; each pair stands once, at whichever side reads better.
    fn rules_out(&self, other: &Constraint) -> bool {
        use Constraint::*;
        match self {
            AllLowercase {} => {
                matches!(other, AllUppercase {} | CapitalWords { .. } | Postscript {})
                    || matches!(other, StartWith { .. } | EndWith { .. })
            }
            AllUppercase {} => matches!(other, CapitalWords { .. } | StartWith { .. } | EndWith { .. }),
            // An object leaves no room for what shapes running text.
            Json {} => !matches!(
                other,
                AllLowercase {}
                    | Keywords { .. }
                    | ForbiddenWords { .. }
                    | KeywordFrequency { .. }
                    | MaxWords { .. }
                    | NoDigits {}
                    | Digits { .. }
                    | LetterFrequency { .. }
            ),
            Bullets { count } => matches!(other, NumberedList { .. }) || list_rules_out(*count, other),
            NumberedList { count } => {
                matches!(other, NoDigits {} | Digits { .. }) || list_rules_out(*count, other)
            }
            Paragraphs { count } => match other {
                Sentences { .. } | Title {} | Postscript {} | Quotation {} => true,
                MaxWords { at_most } => count * SHORT_SENTENCE > *at_most,
                _ => false,
            },
            Sentences { relation, count } => match other {
                // A title and the points of "P.S." would make the count a matter of taste.
                Title {} | Postscript {} => true,
                MinWords { at_least } => *relation != Relation::AtLeast && count * LONG_SENTENCE < *at_least,
                MaxWords { at_most } => *relation != Relation::AtMost && count * SHORT_SENTENCE > *at_most,
                _ => false,
            },
            Quotation {} => matches!(other, Title {} | Postscript {}),
            StartWith { phrase } => matches!(other, Title {}) || phrase_rules_out(phrase, other),
            EndWith { phrase } => {
                matches!(other, Question {} | Exclamation {} | Postscript {})
                    || phrase_rules_out(phrase, other)
            }
            Postscript {} => matches!(other, Question {} | Exclamation {}),
            Question {} => matches!(other, Exclamation {}),
            NoDigits {} => matches!(other, Digits { .. }),
            MinWords { at_least } => matches!(other, MaxWords { at_most } if at_most < at_least),
            Keywords { words } => match other {
                KeywordFrequency { word, .. } => words.iter().any(|own| own.eq_ignore_ascii_case(word)),
                MaxWords { at_most } => *at_most < words.len(),
                _ => words.iter().any(|word| phrase_rules_out(word, other)),
            },
            KeywordFrequency { word, at_least } => match other {
                MaxWords { at_most } => at_most < at_least,
                _ => phrase_rules_out(word, other),
            },
            _ => false,
        }
    }
}

/// What a list of `count` items rules out: other shapes of the whole answer, and its first and last
/// words, which are the list's.
fn list_rules_out(count: usize, other: &Constraint) -> bool {
    use Constraint::*;
    match other {
        Paragraphs { .. } | Sentences { .. } | Quotation {} => true,
        StartWith { .. } | EndWith { .. } | Question {} | Exclamation {} => true,
        MaxWords { at_most } => count * SHORT_ITEM > *at_most,
        _ => false,
    }
}

/// What an answer with `phrase` in it cannot follow.
fn phrase_rules_out(phrase: &str, other: &Constraint) -> bool {
    match other {
        Constraint::ForbiddenWords { words } => words.iter().any(|word| text::occurrences(phrase, word) > 0),
        Constraint::NoComma {} => phrase.contains(','),
        Constraint::NoDigits {} => phrase.contains(char::is_numeric),
        _ => false,
    }
}
