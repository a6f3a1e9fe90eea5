//! How values stand in columns, and how they are read back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arriero_buffers::{Finish, Role};
use rusqlite::Row;
use rusqlite::types::Type;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::record::EventLevel;

pub(crate) fn u32_blob(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(crate) fn f32_blob(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// JSON has no word for numbers that are not finite: they become null.
pub(crate) fn components_text(components: &BTreeMap<String, f32>) -> rusqlite::Result<String> {
    serde_json::to_string(components).map_err(|cause| rusqlite::Error::ToSqlConversionFailure(cause.into()))
}

pub(crate) fn finish_text(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfTurn => "end_of_turn",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

pub(crate) fn u64_of(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

pub(crate) fn name_of(row: &Row<'_>, column: &str) -> rusqlite::Result<Arc<str>> {
    row.get::<_, String>(column).map(Arc::from)
}

/// NULL is NaN.
pub(crate) fn f64_of(row: &Row<'_>, column: &str) -> rusqlite::Result<f64> {
    Ok(row.get::<_, Option<f64>>(column)?.unwrap_or(f64::NAN))
}

pub(crate) fn f32_of(row: &Row<'_>, column: &str) -> rusqlite::Result<f32> {
    f64_of(row, column).map(|number| number as f32)
}

pub(crate) fn u32s_of(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Vec<u32>>> {
    words(row, column, u32::from_le_bytes)
}

pub(crate) fn f32s_of(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Vec<f32>>> {
    words(row, column, f32::from_le_bytes)
}

fn words<T>(row: &Row<'_>, column: &str, word: fn([u8; 4]) -> T) -> rusqlite::Result<Option<Vec<T>>> {
    let Some(blob) = row.get::<_, Option<Vec<u8>>>(column)? else { return Ok(None) };
    let (chunks, rest) = blob.as_chunks::<4>();
    if rest.is_empty() {
        return Ok(Some(chunks.iter().map(|chunk| word(*chunk)).collect()));
    }
    Err(unreadable(column, Type::Blob, format!("{} bytes are no whole number of 4-byte words", blob.len())))
}

pub(crate) fn components_of(row: &Row<'_>, column: &str) -> rusqlite::Result<BTreeMap<String, f32>> {
    let text: String = row.get(column)?;
    let components: BTreeMap<String, Option<f32>> =
        serde_json::from_str(&text).map_err(|cause| unreadable(column, Type::Text, cause))?;
    Ok(components.into_iter().map(|(name, value)| (name, value.unwrap_or(f32::NAN))).collect())
}

pub(crate) fn json_of(row: &Row<'_>, column: &str) -> rusqlite::Result<serde_json::Value> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|cause| unreadable(column, Type::Text, cause))
}

pub(crate) fn role_of(row: &Row<'_>, column: &str) -> rusqlite::Result<Role> {
    word_of(row, column)
}

pub(crate) fn finish_of(row: &Row<'_>, column: &str) -> rusqlite::Result<Finish> {
    word_of(row, column)
}

pub(crate) fn level_of(row: &Row<'_>, column: &str) -> rusqlite::Result<EventLevel> {
    let text: String = row.get(column)?;
    let mut levels = [EventLevel::Info, EventLevel::Warning, EventLevel::Error].into_iter();
    levels
        .find(|level| level.as_str() == text)
        .ok_or_else(|| unreadable(column, Type::Text, format!("{text:?} is no level of an event")))
}

/// A value of an enum of words.
fn word_of<T: for<'a> Deserialize<'a>>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    let word: StrDeserializer<'_, ValueError> = text.as_str().into_deserializer();
    T::deserialize(word).map_err(|cause| unreadable(column, Type::Text, cause))
}

/// The error for a value that no version of the program writes.
fn unreadable(
    column: &str,
    of: Type,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    let cause = format!("column {column}: {}", cause.into());
    rusqlite::Error::FromSqlConversionFailure(0, of, cause.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_little_endian() {
        assert_eq!(u32_blob(&[1, 0x0102_0304]), [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(f32_blob(&[1.0, -0.5]), [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]);
    }
}
