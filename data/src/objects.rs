//! The objects of a dataset as they stand in its files. For readers that know formats of their own, such as those of
//! benchmarks.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::DataConfig;
use crate::error::{DataError, RowError};
use crate::parse::Parser;
use crate::row::Row;
use crate::source::{self, RawRow, ReadOptions, Reader};

/// A row's fields and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The file.
    pub file: Arc<str>,
    /// From 1: the line, or the row of a Parquet file.
    pub number: u64,
    /// Its fields, or why there are none.
    pub fields: Result<Map<String, Value>, RowError>,
}

impl Object {
    /// `FILE:ROW`, for errors.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.number)
    }
}

/// The objects of a dataset, in the order of its files; see [`DataConfig::objects`].
pub struct Objects {
    /// The last one is read next.
    files: Vec<(Arc<str>, Reader)>,
}

impl DataConfig {
    /// Opens the dataset to read its objects in their order. Of the options, only `path` and `max_row_bytes` count. A
    /// broken object comes with its error.
    ///
    /// # Errors
    /// If an option is out of its range, or a file cannot be opened.
    pub fn objects(&self) -> Result<Objects, DataError> {
        self.checked()?;
        let mut files = Vec::new();
        for file in source::files(&self.path)? {
            let order = ReadOptions { shuffle: None, buffer: 1, max_row_bytes: self.max_row_bytes };
            files.push((Arc::from(file.display().to_string()), source::open(&file, order)?));
        }
        files.reverse();
        Ok(Objects { files })
    }

    /// What an object says as a row, and whether its texts stood without roles. Where `format` is auto, this
    /// object alone shows what it is.
    ///
    /// # Errors
    /// If it is none of this format, or cannot be used.
    pub fn row(&self, fields: &Map<String, Value>) -> Result<(Row, bool), RowError> {
        Parser::new(self, fields)?.parse(fields)
    }
}

impl Iterator for Objects {
    type Item = Result<Object, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (file, reader) = self.files.last_mut()?;
            match reader.next() {
                None => drop(self.files.pop()),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(RawRow { number, fields })) => {
                    return Some(Ok(Object { file: Arc::clone(file), number, fields }));
                }
            }
        }
    }
}
