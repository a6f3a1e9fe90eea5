//! A number with what stands around it: a currency, a percent sign, a unit.

use super::expression::evaluate;
use super::number::Number;

/// Units that may stand right behind a number.
const UNITS: &[&str] = &[
    "cm", "mm", "km", "kg", "mg", "ml", "lb", "lbs", "oz", "ft", "mi", "hr", "hrs", "min", "mins", "sec",
    "secs", "mph", "kmh", "usd", "am", "pm", "sq", "cu",
];

/// Units of one letter; they count as such only behind a space.
const LETTER_UNITS: &str = "mgshlLKCF";

/// Words of two letters that begin a remark behind a number.
const SMALL_WORDS: &[&str] =
    &["of", "in", "to", "on", "at", "or", "as", "is", "by", "so", "if", "an", "he", "we", "it"];

/// Words that say nothing about the unit.
const NO_UNITS: &[&str] = &[
    "of", "the", "a", "an", "in", "to", "on", "at", "total", "all", "each", "per", "sq", "square", "squared",
    "cu", "cubic", "cubed", "unit", "units", "more", "less", "and", "is", "so", "for", "because", "since",
    "as",
];

/// A number with what stands around it.
#[derive(Debug)]
pub(super) struct Quantity {
    /// At three points, in case there are variables.
    values: [Number; 3],
    percent: bool,
    unit: Option<String>,
}

impl Quantity {
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest.trim()));
        let (currency, rest) = match unsigned.strip_prefix(['$', '€', '£']) {
            Some(rest) => (unsigned.chars().next(), rest.trim()),
            None => (None, unsigned),
        };
        let (number, unit) = split_unit(rest);
        let number = number.trim();
        let (number, percent) = match number.strip_suffix('%') {
            Some(number) => (number, true),
            None => (number, matches!(unit.as_deref(), Some("percent"))),
        };
        let unit = match currency {
            Some('$') => Some("dollar".to_string()),
            Some(sign) => Some(sign.to_string()),
            None => unit.filter(|unit| unit != "percent"),
        };
        let values = evaluate(&format!("{sign}{number}"))?;
        Some(Quantity { values, percent, unit })
    }

    pub fn equals(&self, other: &Quantity, tolerance: f64) -> bool {
        if let (Some(one), Some(another)) = (&self.unit, &other.unit)
            && one != another
        {
            return false;
        }
        let same = |mine: &dyn Fn(&Number) -> Number, theirs: &dyn Fn(&Number) -> Number| {
            self.values.iter().zip(&other.values).all(|(a, b)| mine(a).equals(&theirs(b), tolerance))
        };
        same(&Number::clone, &Number::clone)
            || match (self.percent, other.percent) {
                (true, false) => same(&Number::hundredth, &Number::clone),
                (false, true) => same(&Number::clone, &Number::hundredth),
                _ => false,
            }
    }
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
        let small = word.to_lowercase();
        // Two quantities.
        if spaced && matches!(small.as_str(), "and" | "or") {
            return (text, None);
        }
        let known = UNITS.contains(&small.as_str());
        let letter = length == 1 && LETTER_UNITS.contains(word) && index + 1 == text.len();
        let begins = spaced && (length > 2 || letter || SMALL_WORDS.contains(&small.as_str())) || known;
        if begins && !before.ends_with('\\') && before.contains(|c: char| c.is_ascii_digit()) {
            return (before, unit(&text[index..]));
        }
        index += length;
    }
    (text, None)
}

/// Units and their other names, in the singular.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("dollar", &["usd"]),
    ("mm", &["millimeter", "millimetre"]),
    ("cm", &["centimeter", "centimetre"]),
    ("m", &["meter", "metre"]),
    ("km", &["kilometer", "kilometre"]),
    ("g", &["gram"]),
    ("kg", &["kilogram", "kilo"]),
    ("ml", &["milliliter", "millilitre"]),
    ("l", &["liter", "litre"]),
    ("ft", &["foot", "feet"]),
    ("in", &["inch", "inche"]),
    ("mi", &["mile"]),
    ("lb", &["pound"]),
    ("oz", &["ounce"]),
    ("hr", &["hour", "h"]),
    ("min", &["minute"]),
    ("sec", &["second", "s"]),
];

/// The first word that names a unit; none if there is none.
fn unit(text: &str) -> Option<String> {
    let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    let word = words.map(str::to_lowercase).find(|word| !NO_UNITS.contains(&word.as_str()))?;
    let singular = match word.strip_suffix('s') {
        Some(singular) if singular.len() > 1 => singular.to_string(),
        _ => word,
    };
    let known = SYNONYMS.iter().find(|(_, others)| others.contains(&singular.as_str()));
    Some(known.map_or(singular, |(unit, _)| unit.to_string()))
}
