//! Rows of a Parquet file, one row group after the other: no more than a group's open pages are in memory.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{RawRow, Reader};
use crate::error::{DataError, Reason, RowError};
use crate::lines::too_long;

/// What a Parquet file begins with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The rows of `file`, which `path` names in errors. Structs become objects, lists become lists, bytes become the
/// text that they are in UTF-8; a row with other bytes cannot be used.
pub(super) fn rows(path: &Path, file: File, max_row_bytes: usize) -> Result<Reader, DataError> {
    let path = path.to_path_buf();
    let failed = move |cause: ParquetError| {
        let cause = std::io::Error::other(format!("it is no readable Parquet file: {cause}"));
        DataError::Unreadable { path: path.clone(), cause }
    };
    let reader = SerializedFileReader::new(file).map_err(&failed)?;
    let found = reader.into_iter().zip(1..).map(move |(row, number)| {
        let fields = fields(row.map_err(&failed)?).and_then(|fields| {
            let length: usize = fields.values().map(bytes).sum();
            if length > max_row_bytes { Err(too_long(length as u64, max_row_bytes)) } else { Ok(fields) }
        });
        Ok(RawRow { number, fields })
    });
    Ok(Box::new(found))
}

/// The columns of a row.
fn fields(row: Row) -> Result<Map<String, Value>, RowError> {
    row.into_columns().into_iter().map(|(name, field)| Ok((name.clone(), value(&name, &field)?))).collect()
}

/// What stands in the column `name`.
fn value(name: &str, field: &Field) -> Result<Value, RowError> {
    Ok(match field {
        Field::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes.data()).map_err(|error| {
                let message = format!(
                    "`{name}` is bytes that are no text: invalid UTF-8 at byte {}; a column of texts is expected",
                    error.valid_up_to() + 1
                );
                RowError::new(Reason::InvalidUtf8, message)
            })?;
            Value::from(text)
        }
        Field::Group(row) => {
            let members = row.get_column_iter();
            Value::Object(
                members.map(|(member, field)| Ok((member.clone(), value(name, field)?))).collect::<Result<
                    _,
                    RowError,
                >>(
                )?,
            )
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(|field| value(name, field)).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let text = |key: Value| key.as_str().map_or_else(|| key.to_string(), str::to_string);
            let members = map.entries().iter();
            Value::Object(
                members
                    .map(|(key, field)| Ok((text(value(name, key)?), value(name, field)?)))
                    .collect::<Result<_, RowError>>()?,
            )
        }
        field => field.to_json_value(),
    })
}

/// Roughly how long a value is: its texts, and eight bytes for anything else.
fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(bytes).sum(),
        Value::Object(members) => members.values().map(bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}
