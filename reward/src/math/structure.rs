//! Answers of several parts: names, lists, tuples, sets, intervals, matrices, relations.

use std::sync::LazyLock;

use regex::Regex;

use super::expression::evaluate;
use super::same;
use super::text::literal;

/// The name of a value: a letter, perhaps with an index, a prime or an argument.
static NAME: LazyLock<Regex> = LazyLock::new(|| literal(r"^\p{L}(?:_\w+|')?(?:\s*\(\p{L}\))?$"));
static WORDS: LazyLock<Regex> = LazyLock::new(|| literal(r"^[A-Za-z][A-Za-z ]+$"));
/// What stands between the items of a list.
static AND: LazyLock<Regex> = LazyLock::new(|| literal(r"^(?:,?\s+(?:and|or)\s+)"));
static MATRIX: LazyLock<Regex> = LazyLock::new(|| {
    literal(r"(?s)^\\begin\{(p|b|B|v|V|small)?matrix\}(.*)\\end\{(p|b|B|v|V|small)?matrix\}$")
});

/// Signs between the sides of a relation, and those of the same relation read from the right.
const RELATIONS: &[(char, char)] =
    &[('=', '='), ('≠', '≠'), ('≈', '≈'), ('≡', '≡'), ('<', '>'), ('>', '<'), ('≤', '≥'), ('≥', '≤')];

/// Splits at places of depth 0. `end` says how long the separator at the beginning of a text is.
fn split(text: &str, end: impl Fn(&str) -> Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start, mut skip) = (0_i32, 0, 0);
    for (index, c) in text.char_indices() {
        if index < skip {
            continue;
        }
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0
            && let Some(length) = end(&text[index..])
        {
            parts.push(text[start..index].trim());
            start = index + length;
            skip = start;
        }
    }
    parts.push(text[start..].trim());
    parts
}

fn split_at(text: &str, separator: char) -> Vec<&str> {
    split(text, |rest| rest.starts_with(separator).then(|| separator.len_utf8()))
}

/// A value and its name, as in "x = 5", "x ∈ S" or "(x, y) = (1, 2)"; words in a name's place say nothing.
pub(super) fn named(text: &str) -> (Option<String>, &str) {
    let none = (None, text);
    for sign in ['=', '∈'] {
        let sides = split_at(text, sign);
        let &[name, value] = sides.as_slice() else { continue };
        if value.is_empty() || relation(value).is_some() {
            return none;
        }
        let bare: String = name.chars().filter(|c| !c.is_whitespace()).collect();
        let inner = bare.strip_prefix('(').and_then(|bare| bare.strip_suffix(')'));
        let tuple =
            inner.filter(|inner| inner.contains(',') && inner.split(',').all(|one| NAME.is_match(one)));
        if tuple.is_some() || NAME.is_match(name) {
            return (Some(bare), value);
        }
        if WORDS.is_match(name) {
            return (None, value);
        }
    }
    none
}

/// The element of a set of one, or the text as it is.
pub(super) fn only_element(text: &str) -> &str {
    let inner = text.trim().strip_prefix("\\{").and_then(|inner| inner.strip_suffix("\\}"));
    inner.filter(|inner| split_at(inner, ',').len() == 1 && !inner.trim().is_empty()).map_or(text, str::trim)
}

/// Several answers.
pub(super) struct List<'a> {
    /// The brackets, if there are any; sets and bare lists have no order.
    brackets: Option<(char, char)>,
    items: Vec<&'a str>,
}

/// The text within brackets that stand around all of it.
fn enclosed(text: &str) -> Option<((char, char), &str)> {
    let (open, end) = (text.chars().next()?, text.chars().next_back()?);
    if !matches!(open, '(' | '[') || !matches!(end, ')' | ']') || text.len() < 2 {
        return None;
    }
    let mut depth = 0_i32;
    for (index, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && index + c.len_utf8() < text.len() {
            return None;
        }
    }
    Some(((open, end), &text[1..text.len() - 1]))
}

pub(super) fn list(text: &str) -> Option<List<'_>> {
    let text = text.trim();
    let set = text.strip_prefix("\\{").and_then(|inner| inner.strip_suffix("\\}"));
    let (brackets, inner) = match (set, enclosed(text)) {
        (Some(inner), _) => (None, inner),
        (None, Some((brackets, inner))) => (Some(brackets), inner),
        (None, None) => (None, text),
    };
    let end = |rest: &str| match rest.chars().next()? {
        ',' => Some(AND.find(rest).map_or(1, |found| found.len())),
        ';' => Some(1),
        c if c.is_whitespace() => AND.find(rest).map(|found| found.len()),
        _ => None,
    };
    let items = split(inner, end);
    (items.len() > 1 && items.iter().all(|item| !item.is_empty())).then_some(List { brackets, items })
}

impl List<'_> {
    pub fn equals(&self, other: &List<'_>, tolerance: f64) -> bool {
        if self.brackets != other.brackets || self.items.len() != other.items.len() {
            return false;
        }
        let ordered = self.brackets.is_some() || self.says_which(other) || other.says_which(self);
        if ordered {
            return self.items.iter().zip(&other.items).all(|(a, b)| same(a, b, tolerance));
        }
        let mut left = other.items.clone();
        self.items.iter().all(|item| {
            let place = left.iter().position(|other| same(item, other, tolerance));
            place.map(|place| left.swap_remove(place)).is_some()
        })
    }

    /// Whether the items here have names of their own, and there have none: then their order tells which is which.
    fn says_which(&self, other: &List<'_>) -> bool {
        let names: Vec<String> = self.items.iter().filter_map(|item| named(item).0).collect();
        let differ = names.iter().any(|name| *name != names[0]);
        differ && other.items.iter().all(|item| named(item).0.is_none())
    }
}

/// The sides of a relation, and the signs between them.
struct Chain<'a> {
    sides: Vec<&'a str>,
    signs: Vec<char>,
}

fn relation(text: &str) -> Option<Chain<'_>> {
    let is_sign = |c: char| RELATIONS.iter().any(|(sign, _)| *sign == c);
    let sides = split(text, |rest| rest.chars().next().filter(|&c| is_sign(c)).map(char::len_utf8));
    let mut signs = Vec::new();
    let mut depth = 0_i32;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ if depth == 0 && is_sign(c) => signs.push(c),
            _ => {}
        }
    }
    (!signs.is_empty() && sides.len() == signs.len() + 1).then_some(Chain { sides, signs })
}

fn flipped(sign: char) -> char {
    RELATIONS.iter().find(|(one, _)| *one == sign).map_or(sign, |(_, other)| *other)
}

impl Chain<'_> {
    fn equals(&self, other: &Chain<'_>, tolerance: f64) -> bool {
        let sides = |theirs: &mut dyn Iterator<Item = &&str>| {
            self.sides.iter().zip(theirs).all(|(a, b)| same(a, b, tolerance))
        };
        if self.signs.len() != other.signs.len() {
            return false;
        }
        let forwards = self.signs == other.signs && sides(&mut other.sides.iter());
        let turned: Vec<char> = other.signs.iter().rev().map(|&sign| flipped(sign)).collect();
        forwards
            || (self.signs == turned && sides(&mut other.sides.iter().rev()))
            || self.is_same_equation(other)
    }

    /// Whether both are one equation, up to a factor: left minus right is the same at three points.
    fn is_same_equation(&self, other: &Chain<'_>) -> bool {
        let differences = |chain: &Chain<'_>| {
            let ([left, right], ['=']) = (chain.sides.as_slice(), chain.signs.as_slice()) else {
                return None;
            };
            let (left, right) = (evaluate(left)?, evaluate(right)?);
            Some([0, 1, 2].map(|point| left[point].minus(&right[point])))
        };
        let (Some(mine), Some(theirs)) = (differences(self), differences(other)) else { return false };
        let varies = !mine[0].equals(&mine[1], 0.0) && !theirs[0].equals(&theirs[1], 0.0);
        let factor = mine[0].over(&theirs[0]);
        varies
            && factor.is_finite()
            && mine.iter().zip(&theirs).all(|(mine, theirs)| mine.equals(&theirs.times(&factor), 1e-12))
    }

    /// The value of an equation of numbers that holds, as in "3 + 4 = 7".
    fn value(&self, tolerance: f64) -> Option<&str> {
        let last = self.sides.last().copied()?;
        let fixed = |side: &&str| !side.chars().any(char::is_alphabetic) && same(side, last, tolerance);
        (self.signs.iter().all(|&sign| sign == '=') && self.sides.iter().all(fixed)).then_some(last)
    }

    /// The bounds of one variable, each with whether it is part of the interval.
    fn interval(&self) -> Option<Interval> {
        let is_name = |side: &str| NAME.is_match(side);
        let below = |sign: char| matches!(sign, '<' | '≤').then(|| sign == '≤');
        let (sides, signs) = match flipped(self.signs[0]) == self.signs[0] || below(self.signs[0]).is_some() {
            true => (self.sides.clone(), self.signs.clone()),
            false => (
                self.sides.iter().rev().copied().collect(),
                self.signs.iter().rev().map(|&sign| flipped(sign)).collect(),
            ),
        };
        let bound = |text: &str, closed: bool| (text.to_string(), closed);
        match (sides.as_slice(), signs.as_slice()) {
            ([low, name, high], [first, second]) if is_name(name) => {
                Some([bound(low, below(*first)?), bound(high, below(*second)?)])
            }
            ([name, high], [sign]) if is_name(name) => Some([bound("-∞", false), bound(high, below(*sign)?)]),
            ([low, name], [sign]) if is_name(name) => Some([bound(low, below(*sign)?), bound("∞", false)]),
            _ => None,
        }
    }
}

/// From where to where, and whether the ends are part of it.
type Interval = [(String, bool); 2];

fn interval(text: &str) -> Option<Interval> {
    if let Some(chain) = relation(text) {
        return chain.interval();
    }
    let list = list(text)?;
    let (open, end) = list.brackets?;
    let &[low, high] = list.items.as_slice() else { return None };
    Some([(low.to_string(), open == '['), (high.to_string(), end == ']')])
}

/// Whether two relations, or an interval and what says it as a relation, are the same.
pub(super) fn same_relations(expected: &str, found: &str, tolerance: f64) -> bool {
    let equal_ends = |a: Interval, b: Interval| {
        a.iter().zip(&b).all(|(a, b)| a.1 == b.1 && (a.0 == b.0 || same(&a.0, &b.0, tolerance)))
    };
    match (relation(expected), relation(found)) {
        (Some(a), Some(b)) => a.equals(&b, tolerance),
        (None, None) => false,
        (Some(chain), None) | (None, Some(chain)) => {
            let other = if relation(expected).is_some() { found } else { expected };
            if let Some(value) = chain.value(tolerance) {
                return same(value, other, tolerance);
            }
            match (chain.interval(), interval(other)) {
                (Some(a), Some(b)) => equal_ends(a, b),
                _ => false,
            }
        }
    }
}

/// Whether two unions have the same parts.
pub(super) fn same_unions(expected: &str, found: &str, tolerance: f64) -> bool {
    let (expected, mut found) = (split_at(expected, '∪'), split_at(found, '∪'));
    expected.len() > 1
        && expected.len() == found.len()
        && expected.iter().all(|part| {
            let place = found.iter().position(|other| same(part, other, tolerance));
            place.map(|place| found.swap_remove(place)).is_some()
        })
}

/// Whether two matrices have the same entries. Round and square brackets mean the same, bars are a determinant.
pub(super) fn same_matrices(expected: &str, found: &str, tolerance: f64) -> bool {
    let read = |text: &str| -> Option<(bool, Vec<Vec<String>>)> {
        let found = MATRIX.captures(text)?;
        let bars = found.get(1).is_some_and(|kind| matches!(kind.as_str(), "v" | "V"));
        let rows = found[2].trim().trim_end_matches("\\\\").split("\\\\");
        let cells = |row: &str| row.split('&').map(|cell| cell.trim().to_string()).collect();
        Some((bars, rows.map(cells).collect()))
    };
    let (Some((bars, expected)), Some((other_bars, found))) = (read(expected), read(found)) else {
        return false;
    };
    bars == other_bars
        && expected.len() == found.len()
        && expected
            .iter()
            .zip(&found)
            .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, tolerance)))
}

/// Both values of what has a ±; none if there is none, or more than one.
pub(super) fn both_signs(text: &str) -> Option<[String; 2]> {
    let (before, behind) = text.split_once('±')?;
    (!behind.contains(['±', '∓'])).then(|| [format!("{before}+{behind}"), format!("{before}-{behind}")])
}
