//! Whether a completion's final answer is the right one: finding it, and telling whether two
//! answers are equal.
//!
//! - [`final_answer`]: `\boxed{…}`, GSM8K's `#### n`, "the answer is …", or the last number;
//! - [`equivalent`]: numbers, fractions, percentages, units, thousands separators, simple LaTeX,
//!   polynomials, lists and tuples;
//! - `expression`: reads an expression into a number.
//!
//! Sources: GSM8K (Cobbe et al., arXiv:2110.14168) for `####`, MATH (Hendrycks et al.,
//! arXiv:2103.03874) for `\boxed`. No computer algebra: expressions with letters are equal if they
//! are so at three points.

mod answer;
mod expression;

use std::borrow::Cow;

pub use answer::final_answer;
use expression::evaluate;

/// Characters of an answer that is still read; longer ones equal nothing but themselves.
const MOST_CHARS: usize = 500;

/// Units that may stand right behind a number.
const UNITS: &[&str] = &[
    "cm", "mm", "km", "kg", "mg", "ml", "lb", "lbs", "oz", "ft", "mi", "hr", "hrs", "min", "mins", "sec",
    "secs", "mph", "kmh", "usd", "am", "pm",
];

/// Units of one letter; they count as such only behind a space.
const LETTER_UNITS: &str = "mgshlLKCF";

/// True if both answers mean the same. Numbers may differ by `tolerance` times the greater one
/// unless both are whole.
///
/// A percent sign may be meant either way: 50% equals 0.5 and 50. A unit on one side only is
/// overlooked; two units must agree.
pub fn equivalent(expected: &str, found: &str, tolerance: f64) -> bool {
    let (expected, found) = (normalise(expected), normalise(found));
    if expected.is_empty() || found.is_empty() {
        return false;
    }
    if expected == found || same_words(&expected, &found) {
        return true;
    }
    if expected.len().max(found.len()) > MOST_CHARS {
        return false;
    }
    if let (Some(expected), Some(found)) = (Quantity::read(&expected), Quantity::read(&found)) {
        return expected.equals(&found, tolerance);
    }
    match (list(&expected), list(&found)) {
        (Some(expected), Some(found)) => expected.equals(&found, tolerance),
        _ => false,
    }
}

/// Words, whatever their case and spacing; a single letter may be a variable, so its case matters.
fn same_words(expected: &str, found: &str) -> bool {
    if expected.contains(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let (expected, found) = (bare(expected), bare(found));
    let has_word = expected.chars().filter(|c| c.is_alphabetic()).count() > 1 && !expected.contains('\\');
    expected == found || (has_word && expected.to_lowercase() == found.to_lowercase())
}

/// Strips what does not change an answer: mathematics mode, spacing, emphasis, a variable's name.
fn normalise(answer: &str) -> String {
    let mut text = answer.trim().to_string();
    for (from, to) in [
        ("\\left", ""),
        ("\\right", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("~", " "),
        ("\\displaystyle", ""),
        ("{,}", ","),
        ("\\%", "%"),
        ("\\$", "$"),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("\\div", "/"),
        ("\\pi", "π"),
        ("^\\circ", ""),
        ("^{\\circ}", ""),
        ("°", ""),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("**", ""),
        ("−", "-"),
        ("–", "-"),
        ("×", "*"),
        ("·", "*"),
        ("÷", "/"),
        ("√", "\\sqrt"),
    ] {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    for command in ["\\text", "\\textbf", "\\mathrm", "\\mathbf", "\\mbox", "\\boxed"] {
        text = unwrap_command(&text, command).into_owned();
    }
    // Mathematics mode around the whole, not the sign of a currency.
    let mut text = text.trim();
    while let Some(inner) = text.strip_prefix('$').and_then(|text| text.strip_suffix('$')) {
        text = inner.trim();
    }
    let text =
        text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | ':' | ';' | '"' | '*' | '`'));
    // A number's leading period is no end mark.
    let text = match answer.trim().trim_start_matches(['$', ' ']).starts_with('.')
        && text.starts_with(|c: char| c.is_ascii_digit())
    {
        true => format!(".{text}"),
        false => text.to_string(),
    };
    let text = match text.split_once('=') {
        // "x = 5"
        Some((name, value))
            if name.trim().chars().count() == 1
                && name.trim().chars().all(char::is_alphabetic)
                && !value.contains('=') =>
        {
            value.trim().to_string()
        }
        _ => text,
    };
    // "(C)" is the option C.
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    match inner.filter(|inner| inner.len() == 1 && inner.chars().all(|c| c.is_ascii_uppercase())) {
        Some(option) => option.to_string(),
        None => text,
    }
}

/// Leaves what stands between the command's braces.
fn unwrap_command<'a>(text: &'a str, command: &str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    let opening = format!("{command}{{");
    while let Some(start) = text.find(&opening) {
        let inside = start + opening.len();
        let Some(length) = answer::balanced(&text[inside..]) else { break };
        let before = &text[..start];
        let after = &text[inside + length + 1..];
        text = Cow::Owned(format!("{before} {}{after}", &text[inside..inside + length]));
    }
    text
}

/// A number with what stands around it.
#[derive(Debug)]
struct Quantity {
    /// At three points, in case there are variables.
    values: [f64; 3],
    percent: bool,
    unit: Option<String>,
}

impl Quantity {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest.trim()));
        let (currency, rest) = match unsigned.strip_prefix(['$', '€', '£']) {
            Some(rest) => (unsigned.chars().next(), rest.trim()),
            None => (None, unsigned),
        };
        let (number, unit) = split_unit(rest);
        let (number, percent) = match number.trim().strip_suffix('%') {
            Some(number) => (number, true),
            None => (number.trim(), matches!(unit.as_deref(), Some("percent"))),
        };
        let unit = match currency {
            Some('$') => Some("dollar".to_string()),
            Some(sign) => Some(sign.to_string()),
            None => unit.filter(|unit| unit != "percent"),
        };
        let values = evaluate(&format!("{sign}{number}"))?;
        Some(Quantity { values, percent, unit })
    }

    fn equals(&self, other: &Quantity, tolerance: f64) -> bool {
        if let (Some(one), Some(another)) = (&self.unit, &other.unit)
            && one != another
        {
            return false;
        }
        let close = |scale: f64, other_scale: f64| {
            self.values.iter().zip(other.values).all(|(a, b)| close(a * scale, b * other_scale, tolerance))
        };
        close(1.0, 1.0)
            || match (self.percent, other.percent) {
                (true, false) => close(0.01, 1.0),
                (false, true) => close(1.0, 0.01),
                _ => false,
            }
    }
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    if a == b {
        return true;
    }
    // Whole numbers that f64 holds exactly must be the same.
    let whole = |x: f64| x.fract() == 0.0 && x.abs() < 9e15;
    !(whole(a) && whole(b)) && (a - b).abs() <= tolerance * a.abs().max(b.abs())
}

/// Splits "80 cm" into its number and its unit's first word, in small letters and singular.
fn split_unit(text: &str) -> (&str, Option<String>) {
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        if !bytes[index].is_ascii_alphabetic() {
            index += 1;
            continue;
        }
        let length = bytes[index..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let (before, word) = (&text[..index], &text[index..index + length]);
        let spaced = before.ends_with(char::is_whitespace);
        let known = UNITS.contains(&word.to_lowercase().as_str());
        let letter = length == 1 && LETTER_UNITS.contains(word) && index + 1 == text.len();
        let is_unit = (spaced && (length > 2 || letter)) || known;
        if is_unit && !before.ends_with('\\') && before.contains(|c: char| c.is_ascii_digit()) {
            let word = word.to_lowercase();
            let singular = match word.strip_suffix('s') {
                Some(singular) if singular.len() > 1 => singular.to_string(),
                _ => word,
            };
            let unit = if singular == "usd" { "dollar".to_string() } else { singular };
            return (before, Some(unit));
        }
        index += length;
    }
    (text, None)
}

/// Several answers.
struct List<'a> {
    /// The brackets, if there are any; sets and bare lists have no order.
    brackets: Option<(char, char)>,
    items: Vec<&'a str>,
}

fn list(text: &str) -> Option<List<'_>> {
    let text = text.trim();
    let set = text.strip_prefix("\\{").and_then(|inner| inner.strip_suffix("\\}"));
    let (brackets, inner) = match set {
        Some(inner) => (None, inner),
        None => match (text.chars().next()?, text.chars().next_back()?) {
            (open @ ('(' | '['), end @ (')' | ']')) => (Some((open, end)), &text[1..text.len() - 1]),
            _ => (None, text),
        },
    };
    let mut items = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (index, c) in inner.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(inner[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    items.push(inner[start..].trim());
    (items.len() > 1).then_some(List { brackets, items })
}

impl List<'_> {
    fn equals(&self, other: &List<'_>, tolerance: f64) -> bool {
        if self.brackets != other.brackets || self.items.len() != other.items.len() {
            return false;
        }
        if self.brackets.is_some() {
            return self.items.iter().zip(&other.items).all(|(a, b)| equivalent(a, b, tolerance));
        }
        let mut left = other.items.clone();
        self.items.iter().all(|item| {
            let place = left.iter().position(|other| equivalent(item, other, tolerance));
            place.map(|place| left.swap_remove(place)).is_some()
        })
    }
}

#[cfg(test)]
mod tests;
