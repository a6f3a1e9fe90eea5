//! Rows on their way through a preparation. They are on disk, in a file without a name. Memory holds only where each
//! is.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

/// Texts that are written once and read in any order.
pub(super) struct Spool {
    file: BufWriter<File>,
    /// Where each begins; the end of the last is the length.
    starts: Vec<u64>,
    length: u64,
}

impl Spool {
    pub fn new() -> std::io::Result<Self> {
        Ok(Spool { file: BufWriter::new(tempfile::tempfile()?), starts: Vec::new(), length: 0 })
    }

    /// Appends a text.
    pub fn push(&mut self, text: &str) -> std::io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.starts.push(self.length);
        self.length += text.len() as u64;
        Ok(())
    }

    /// The text of this number.
    pub fn get(&mut self, number: usize) -> std::io::Result<String> {
        self.file.flush()?;
        let start = self.starts[number];
        let end = self.starts.get(number + 1).copied().unwrap_or(self.length);
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(start))?;
        let mut text = String::new();
        (&mut *file).take(end - start).read_to_string(&mut text)?;
        file.seek(SeekFrom::End(0))?;
        Ok(text)
    }
}
