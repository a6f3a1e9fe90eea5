//! JSON lines: one object a line, plain or gzipped, from the front or in any order. And one JSON list, element by element.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use serde_json::{Map, Value};

use crate::error::{Reason, RowError};

/// What some programs put before a text in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a line's object.
///
/// # Errors
/// If it is no UTF-8, no JSON, or no object; the message has the byte or the column.
pub fn json_row(bytes: &[u8]) -> Result<Map<String, Value>, RowError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message = format!("invalid UTF-8 at byte {} of the line", error.valid_up_to() + 1);
        RowError::new(Reason::InvalidUtf8, message)
    })?;
    let value: Value = serde_json::from_str(text.trim()).map_err(|error| {
        // The error's own line is always 1.
        let cause = error.to_string();
        let cause = cause.split(" at line ").next().unwrap_or_default();
        RowError::new(Reason::BrokenJson, format!("broken JSON: {cause} at column {}", error.column()))
    })?;
    match value {
        Value::Object(row) => Ok(row),
        _ => Err(RowError::new(Reason::BrokenJson, "expected a JSON object, one a line")),
    }
}

/// One line.
pub(crate) struct Line {
    /// From 1.
    pub number: u64,
    /// Where it begins.
    pub offset: u64,
    /// Its bytes, or that it is too long. No more than `max_bytes` of it are ever held.
    pub bytes: Result<Vec<u8>, RowError>,
}

/// The lines of a text that are not blank.
pub(crate) struct Lines<R> {
    input: R,
    max_bytes: usize,
    number: u64,
    offset: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R, max_bytes: usize) -> Self {
        Lines { input, max_bytes, number: 0, offset: 0 }
    }

    fn read(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let offset = self.offset;
            let mut bytes = Vec::new();
            let limit = self.max_bytes as u64 + 1;
            let mut length = (&mut self.input).take(limit).read_until(b'\n', &mut bytes)? as u64;
            if length == 0 {
                return Ok(None);
            }
            let is_too_long = length == limit && bytes.last() != Some(&b'\n');
            if is_too_long {
                length += self.skip_line()?;
            }
            self.number += 1;
            self.offset += length;
            let content =
                if self.number == 1 { bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes) } else { &bytes };
            if content.trim_ascii().is_empty() && !is_too_long {
                continue;
            }
            let bytes =
                if is_too_long { Err(too_long(length, self.max_bytes)) } else { Ok(content.to_vec()) };
            return Ok(Some(Line { number: self.number, offset, bytes }));
        }
    }

    fn skip_line(&mut self) -> std::io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(skipped);
            }
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.input.consume(used);
            skipped += used as u64;
            if end.is_some() {
                return Ok(skipped);
            }
        }
    }
}

pub(crate) fn too_long(length: u64, most: usize) -> RowError {
    RowError::new(
        Reason::TooLong,
        format!("the row has {length} bytes, more than the {most} that max_row_bytes allows"),
    )
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The lines of a file in any order: 16 bytes of memory a line.
pub(crate) struct IndexedLines {
    file: BufReader<File>,
    max_bytes: usize,
    /// Where a line begins, and its number; read from the back.
    rest: Vec<(u64, u64)>,
}

impl IndexedLines {
    /// Passes over the file once to find where its lines begin. `order` puts them in order.
    pub fn new(file: File, max_bytes: usize, order: impl FnOnce(&mut [(u64, u64)])) -> std::io::Result<Self> {
        let mut rest = Vec::new();
        let mut lines = Lines::new(BufReader::with_capacity(1 << 16, file), max_bytes);
        for line in &mut lines {
            let line = line?;
            rest.push((line.offset, line.number));
        }
        order(&mut rest);
        rest.reverse();
        Ok(IndexedLines { file: lines.input, max_bytes, rest })
    }

    fn read(&mut self, offset: u64, number: u64) -> std::io::Result<Line> {
        self.file.seek(SeekFrom::Start(offset))?;
        let mut lines =
            Lines { input: &mut self.file, max_bytes: self.max_bytes, number: number - 1, offset };
        let line = lines.read()?;
        line.ok_or_else(|| std::io::Error::other("the file has become shorter while it was read"))
    }
}

impl Iterator for IndexedLines {
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let (offset, number) = self.rest.pop()?;
        Some(self.read(offset, number))
    }
}

/// The elements of a text that is one JSON list, as if each were a line. Numbers are those of the elements.
pub(crate) struct Elements<R> {
    input: R,
    max_bytes: usize,
    number: u64,
    is_over: bool,
}

impl<R: BufRead> Elements<R> {
    pub fn new(input: R, max_bytes: usize) -> Self {
        Elements { input, max_bytes, number: 0, is_over: false }
    }

    fn byte(&mut self) -> std::io::Result<Option<u8>> {
        let byte = self.input.fill_buf()?.first().copied();
        self.input.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    fn read(&mut self) -> std::io::Result<Option<Line>> {
        let (mut bytes, mut length) = (Vec::new(), 0);
        // How many lists and objects are open beside the file's own list, and what a text's last byte was.
        let (mut depth, mut is_text, mut is_escaped) = (0u64, false, false);
        while !self.is_over {
            let Some(byte) = self.byte()? else {
                self.is_over = true;
                break;
            };
            if !is_text && depth == 0 {
                match byte {
                    b',' if length > 0 => break,
                    b']' => {
                        self.is_over = true;
                        break;
                    }
                    // The list's own beginning.
                    b'[' if self.number == 0 && length == 0 => {
                        self.number = 1;
                        continue;
                    }
                    _ if length == 0 && (self.number == 0 || byte == b',' || byte.is_ascii_whitespace()) => {
                        continue;
                    }
                    _ => {}
                }
            }
            if is_text {
                is_text = is_escaped || byte != b'"';
                is_escaped = !is_escaped && byte == b'\\';
            } else {
                match byte {
                    b'"' => is_text = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            length += 1;
            if length <= self.max_bytes {
                bytes.push(byte);
            }
        }
        if length == 0 {
            return Ok(None);
        }
        let number = self.number;
        self.number += 1;
        let bytes =
            if length > self.max_bytes { Err(too_long(length as u64, self.max_bytes)) } else { Ok(bytes) };
        Ok(Some(Line { number, offset: 0, bytes }))
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
