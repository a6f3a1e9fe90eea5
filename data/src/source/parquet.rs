//! Rows of a Parquet file, one row group after the other: no more than a group's open pages are in memory.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use serde_json::Value;

use super::{RawRow, Reader};
use crate::error::{DataError, RowError};
use crate::lines::too_long;

/// What a Parquet file begins with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The rows of `file`, which `path` names in errors. Structs become objects, lists become lists, bytes become base64.
pub(super) fn rows(path: &Path, file: File, max_row_bytes: usize) -> Result<Reader, DataError> {
    let path = path.to_path_buf();
    let failed = move |cause: ParquetError| {
        let cause = std::io::Error::other(format!("it is no readable Parquet file: {cause}"));
        DataError::Unreadable { path: path.clone(), cause }
    };
    let reader = SerializedFileReader::new(file).map_err(&failed)?;
    let found = reader.into_iter().zip(1..).map(move |(row, number)| {
        let fields = match row.map_err(&failed)?.to_json_value() {
            Value::Object(fields) => fields,
            // A row has columns, each with a name.
            _ => return Err(failed(ParquetError::General("a row without columns".to_string()))),
        };
        let length: usize = fields.values().map(bytes).sum();
        let fields: Result<_, RowError> =
            if length > max_row_bytes { Err(too_long(length as u64, max_row_bytes)) } else { Ok(fields) };
        Ok(RawRow { number, fields })
    });
    Ok(Box::new(found))
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
