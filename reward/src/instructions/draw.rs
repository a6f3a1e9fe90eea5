//! Drawing constraints whose options a short answer can easily satisfy.

use arriero_buffers::random::{Purpose, Stream};

use super::{KINDS, Split};
use crate::constraint::{Constraint, Relation};

/// Words that answers have anyway, and can do without. None of them is a word of a topic.
pub(super) const COMMON_WORDS: &[&str] = &[
    "very",
    "really",
    "important",
    "great",
    "many",
    "also",
    "however",
    "because",
    "thing",
    "just",
    "often",
    "always",
    "popular",
    "different",
];

const OPENINGS: &[&str] = &[
    "Here is my answer",
    "To begin with",
    "In my view",
    "Let me tell you",
    "Good question",
    "I think",
    "Did you know",
    "In short",
    "My dear friend",
    "Today",
];

const ENDINGS: &[&str] = &[
    "That is all",
    "Thank you for reading",
    "Now you know",
    "I hope this helps",
    "Have a nice day",
    "The end",
    "See you soon",
    "Try it yourself",
];

/// Letters that are neither rare nor in every word.
const LETTERS: &[char] = &['b', 'c', 'd', 'f', 'g', 'm', 'p', 'w'];

/// The random numbers of one prompt, in order.
pub(super) struct Rng {
    stream: Stream,
    position: u64,
}

impl Rng {
    pub(super) fn new(seed: u64, split: Split, index: u64) -> Self {
        Rng { stream: Stream::new(seed, Purpose::Prompts, split as u64, index), position: 0 }
    }

    /// A number of [0, bound).
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.position += 1;
        self.stream.below(self.position - 1, bound)
    }

    /// A number from `low` to `high`, both included.
    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of the items.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// One or two of the words.
    fn one_or_two(&mut self, words: &[&str]) -> Vec<String> {
        let first = self.below(words.len());
        let second = (first + self.between(1, words.len() - 1)) % words.len();
        let chosen = [first, second];
        chosen[..self.between(1, 2)].iter().map(|&index| words[index].to_string()).collect()
    }
}

/// Up to `count` constraints of the kinds, no two in conflict; `words` are words that suit the
/// topic. There are fewer only if no other kind goes with those drawn.
pub(super) fn constraints(
    kinds: &[&'static str],
    count: usize,
    words: &[&str],
    rng: &mut Rng,
) -> Vec<Constraint> {
    let mut left = kinds.to_vec();
    let mut drawn: Vec<Constraint> = Vec::new();
    while drawn.len() < count && !left.is_empty() {
        let kind = left.swap_remove(rng.below(left.len()));
        let constraint = constraint(kind, words, rng);
        if !drawn.iter().any(|other| other.conflicts_with(&constraint)) {
            drawn.push(constraint);
        }
    }
    drawn
}

/// A constraint of the kind.
pub(super) fn constraint(kind: &str, words: &[&str], rng: &mut Rng) -> Constraint {
    match kind {
        "all_lowercase" => Constraint::AllLowercase {},
        "all_uppercase" => Constraint::AllUppercase {},
        "no_comma" => Constraint::NoComma {},
        "keywords" => Constraint::Keywords { words: rng.one_or_two(words) },
        "forbidden_words" => Constraint::ForbiddenWords { words: rng.one_or_two(COMMON_WORDS) },
        "keyword_frequency" => {
            Constraint::KeywordFrequency { word: rng.pick(words).to_string(), at_least: rng.between(2, 3) }
        }
        "min_words" => Constraint::MinWords { at_least: *rng.pick(&[15, 20, 25]) },
        "max_words" => Constraint::MaxWords { at_most: *rng.pick(&[30, 35, 40, 50, 60]) },
        "sentences" => match rng.pick(&[Relation::Exactly, Relation::AtLeast, Relation::AtMost]) {
            Relation::Exactly => sentences(Relation::Exactly, rng.between(1, 3)),
            relation => sentences(*relation, rng.between(2, 3)),
        },
        "paragraphs" => Constraint::Paragraphs { count: rng.between(2, 3) },
        "bullets" => Constraint::Bullets { count: rng.between(2, 4) },
        "numbered_list" => Constraint::NumberedList { count: rng.between(2, 4) },
        "start_with" => Constraint::StartWith { phrase: rng.pick(OPENINGS).to_string() },
        "end_with" => Constraint::EndWith { phrase: rng.pick(ENDINGS).to_string() },
        "json" => Constraint::Json {},
        "title" => Constraint::Title {},
        "highlighted" => Constraint::Highlighted { count: rng.between(1, 2) },
        "quotation" => Constraint::Quotation {},
        "placeholders" => Constraint::Placeholders { count: rng.between(1, 2) },
        "question" => Constraint::Question {},
        "exclamation" => Constraint::Exclamation {},
        "postscript" => Constraint::Postscript {},
        "no_digits" => Constraint::NoDigits {},
        "digits" => Constraint::Digits { at_least: rng.between(1, 4) },
        "capital_words" => Constraint::CapitalWords { at_least: rng.between(1, 3) },
        "letter_frequency" => {
            Constraint::LetterFrequency { letter: *rng.pick(LETTERS), at_least: rng.between(2, 4) }
        }
        _ => unreachable!("{kind} is not in the list of kinds"),
    }
}

fn sentences(relation: Relation, count: usize) -> Constraint {
    Constraint::Sentences { relation, count }
}

/// The three kinds whose names are most like `name`.
pub(super) fn nearest(name: &str) -> Vec<&'static str> {
    let mut kinds = KINDS.to_vec();
    kinds.sort_by(|one, other| strsim::jaro_winkler(name, other).total_cmp(&strsim::jaro_winkler(name, one)));
    kinds.truncate(3);
    kinds
}
