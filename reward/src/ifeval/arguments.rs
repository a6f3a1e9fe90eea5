//! Reads an instruction's `kwargs`.
//!
//! The data set on the Hugging Face hub fills every argument that an instruction does not have with
//! null, and some exports write whole numbers as `3.0`; both are taken.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Bound;
use crate::constraint::Relation;

/// The greatest count that an instruction may ask for.
const MOST: f64 = 1e9;

pub(super) struct Arguments<'a> {
    id: &'static str,
    values: &'a Map<String, Value>,
    taken: BTreeSet<&'static str>,
}

impl<'a> Arguments<'a> {
    pub fn new(id: &'static str, values: &'a Map<String, Value>) -> Self {
        Arguments { id, values, taken: BTreeSet::new() }
    }

    fn take(&mut self, name: &'static str) -> Result<&'a Value, String> {
        self.taken.insert(name);
        let value = self.values.get(name).filter(|value| !value.is_null());
        value.ok_or_else(|| format!("{}: {name} is missing from its kwargs", self.id))
    }

    fn wrong<T>(&self, name: &str, value: &Value, expected: &str) -> Result<T, String> {
        Err(format!("{}: {name} is {value}, but must be {expected}", self.id))
    }

    /// A text that is not blank.
    pub fn text(&mut self, name: &'static str) -> Result<String, String> {
        let value = self.take(name)?;
        match value.as_str().filter(|text| !text.trim().is_empty()) {
            Some(text) => Ok(text.to_string()),
            None => self.wrong(name, value, "a text that is not blank"),
        }
    }

    /// Texts, at least one, none empty.
    pub fn texts(&mut self, name: &'static str) -> Result<Vec<String>, String> {
        let value = self.take(name)?;
        let list = value.as_array().filter(|list| !list.is_empty());
        let texts: Option<Vec<String>> = list.and_then(|list| {
            list.iter()
                .map(|text| text.as_str().filter(|text| !text.is_empty()).map(str::to_string))
                .collect()
        });
        match texts {
            Some(texts) => Ok(texts),
            None => self.wrong(name, value, "a list of texts that are not empty"),
        }
    }

    /// One character, in small letters.
    pub fn letter(&mut self, name: &'static str) -> Result<char, String> {
        let text = self.text(name)?;
        let mut chars = text.trim().chars();
        match (chars.next(), chars.next()) {
            (Some(letter), None) => Ok(letter.to_lowercase().next().unwrap_or(letter)),
            _ => self.wrong(name, &Value::String(text), "one character"),
        }
    }

    /// A whole number.
    pub fn count(&mut self, name: &'static str) -> Result<usize, String> {
        let value = self.take(name)?;
        match value.as_f64().filter(|count| count.fract() == 0.0 && (0.0..=MOST).contains(count)) {
            Some(count) => Ok(count as usize),
            None => self.wrong(name, value, "a whole number from 0"),
        }
    }

    /// A number with its relation, "less than" or "at least".
    pub fn bound(&mut self, relation: &'static str, count: &'static str) -> Result<Bound, String> {
        let found = self.count(count)?;
        let value = self.take(relation)?;
        match value.as_str() {
            Some("at least") => Ok(Bound { relation: Relation::AtLeast, count: found }),
            Some("less than") if found > 0 => Ok(Bound { relation: Relation::AtMost, count: found - 1 }),
            Some("less than") => self.wrong(count, &found.into(), "at least 1: nothing is less than 0"),
            _ => self.wrong(relation, value, "\"less than\" or \"at least\""),
        }
    }

    /// Refuses arguments that nobody read.
    pub fn finish(self) -> Result<(), String> {
        let unread =
            |(name, value): &(&String, &Value)| !value.is_null() && !self.taken.contains(name.as_str());
        match self.values.iter().find(unread) {
            Some((name, _)) if self.taken.is_empty() => {
                Err(format!("{}: it has no arguments, but its kwargs have {name:?}", self.id))
            }
            Some((name, _)) => {
                let known: Vec<&str> = self.taken.iter().copied().collect();
                Err(format!("{}: unknown argument {name:?}; it has {}", self.id, known.join(", ")))
            }
            None => Ok(()),
        }
    }
}
