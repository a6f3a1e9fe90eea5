//! Ranges of options: each function refuses a value outside of its range with a sentence.

/// Refuses `value` unless it `holds`; `range` ends the sentence.
pub fn within(name: &str, value: f64, holds: bool, range: &str) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(format!("{name} is {value}; it must be {range}")),
    }
}

/// Above 0, and finite.
pub fn above_zero(name: &str, value: f64) -> Result<(), String> {
    within(name, value, value.is_finite() && value > 0.0, "above 0")
}

/// At least 0, and finite.
pub fn at_least_zero(name: &str, value: f64) -> Result<(), String> {
    within(name, value, value.is_finite() && value >= 0.0, "at least 0")
}

/// From 0 to 1.
pub fn share(name: &str, value: f64) -> Result<(), String> {
    within(name, value, (0.0..=1.0).contains(&value), "at least 0 and at most 1")
}

/// A share of flipped labels that leaves the label informative.
pub fn flip_rate(name: &str, value: f64) -> Result<(), String> {
    within(name, value, (0.0..0.5).contains(&value), "at least 0 and below 0.5")
}

/// Neither infinite nor NaN.
pub fn finite(name: &str, value: f64) -> Result<(), String> {
    within(name, value, value.is_finite(), "a finite number")
}

/// A length in tokens; where it is open, the generator's limit is yet to come.
pub fn length(name: &str, value: Option<usize>) -> Result<(), String> {
    match value {
        Some(0) => Err(format!("{name} is 0; it must be at least 1")),
        _ => Ok(()),
    }
}
