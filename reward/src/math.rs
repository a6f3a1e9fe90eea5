//! Whether a completion's final answer is the right one: finding it, and telling whether two
//! answers are equal.
//!
//! - [`final_answer`]: `\boxed{…}`, GSM8K's `#### n`, "the answer is …", or the last number;
//! - [`equivalent`]: numbers, fractions, percentages, units, thousands separators, simple LaTeX,
//!   polynomials, lists, tuples, intervals, relations and matrices;
//! - `normal`: writes the same things alike; `quantity`: a number with its unit; `structure`: what has several
//!   parts; `expression`: reads an expression into a `number`, which is exact where it can be.
//!
//! Sources: GSM8K (Cobbe et al., arXiv:2110.14168) for `####`, MATH (Hendrycks et al.,
//! arXiv:2103.03874) for `\boxed`. No computer algebra: expressions with letters are equal if they
//! are so at three points.

mod answer;
mod expression;
mod normal;
mod number;
mod quantity;
mod structure;
mod text;

pub use answer::final_answer;
use normal::normalise;
use quantity::Quantity;
use structure::{both_signs, list, named, only_element, same_matrices, same_relations, same_unions};

/// Characters of an answer that is still read; longer ones equal nothing but themselves.
const MOST_CHARS: usize = 500;

/// True if both answers mean the same. Whole numbers and fractions must be equal; others may differ by `tolerance`
/// times the greater one.
///
/// A percent sign may be meant either way: 50% equals 0.5 and 50. A unit on one side only is
/// overlooked; two units must agree. So must the names of values, where both sides have them.
pub fn equivalent(expected: &str, found: &str, tolerance: f64) -> bool {
    let (expected, found) = (normalise(expected), normalise(found));
    if expected.is_empty() || found.is_empty() {
        return false;
    }
    if expected == found {
        return true;
    }
    if expected.len().max(found.len()) > MOST_CHARS {
        return same_words(&expected, &found);
    }
    same(&expected, &found, tolerance)
}

/// As [`equivalent`], of texts that are alike in writing already.
fn same(expected: &str, found: &str, tolerance: f64) -> bool {
    if same_words(expected, found) {
        return true;
    }
    let ((name, expected_value), (other, found_value)) = (named(expected), named(found));
    let named_alike = match (&name, &other) {
        (Some(name), Some(other)) => name == other,
        _ => true,
    };
    if named_alike && same_values(expected_value, found_value, tolerance) {
        return true;
    }
    same_relations(expected, found, tolerance)
}

fn same_values(expected: &str, found: &str, tolerance: f64) -> bool {
    let [expected, found] = [expected, found].map(|text| only_element(text.trim_start_matches('+').trim()));
    if same_words(expected, found) {
        return true;
    }
    if let (Some(expected), Some(found)) = (Quantity::read(expected), Quantity::read(found)) {
        return expected.equals(&found, tolerance);
    }
    match (both_signs(expected), both_signs(found)) {
        (None, None) => {}
        (Some([plus, minus]), None) => return same(&format!("{plus}, {minus}"), found, tolerance),
        (None, Some([plus, minus])) => return same(expected, &format!("{plus}, {minus}"), tolerance),
        (Some([a, b]), Some([c, d])) => {
            return same(&format!("{a}, {b}"), &format!("{c}, {d}"), tolerance);
        }
    }
    if let (Some(expected), Some(found)) = (list(expected), list(found)) {
        return expected.equals(&found, tolerance);
    }
    same_matrices(expected, found, tolerance) || same_unions(expected, found, tolerance)
}

/// The same signs, whatever the spaces between them; and the same words, whatever their case. A space counts where
/// digits or letters would run together, and case where there is one letter, which may be a variable.
fn same_words(expected: &str, found: &str) -> bool {
    let (expected, found) = (bare(expected), bare(found));
    let letters = expected.chars().filter(|c| c.is_alphabetic()).count();
    let has_word = letters > 1 && !expected.contains(|c: char| c == '\\' || c.is_ascii_digit());
    expected == found
        || has_word && without_spaces(&expected).to_lowercase() == without_spaces(&found).to_lowercase()
}

fn without_spaces(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Without the spaces that separate nothing.
fn bare(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        let runs_on = c.is_alphanumeric() && kept.ends_with(|last: char| last.is_alphanumeric());
        if gap && runs_on {
            kept.push(' ');
        }
        gap = false;
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests;
