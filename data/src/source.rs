//! A file of rows: where it is, what it is, and the objects in it.

mod hub;
mod parquet;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use arriero_buffers::random::{Purpose, Stream};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::error::{DataError, RowError};
use crate::lines::{BYTE_ORDER_MARK, Elements, IndexedLines, Line, Lines, json_row};
use crate::shuffle::Shuffled;

/// One row, before it is known what it says.
pub(crate) struct RawRow {
    /// From 1: the line, or the place in a Parquet file.
    pub number: u64,
    /// Its fields, or why there are none.
    pub fields: Result<Map<String, Value>, RowError>,
}

/// The rows of a file.
pub(crate) type Reader = Box<dyn Iterator<Item = Result<RawRow, DataError>> + Send>;

/// In which order a file's rows come.
#[derive(Debug, Clone)]
pub(crate) struct ReadOptions {
    /// Random numbers for it; as they stand in the file without.
    pub shuffle: Option<Stream>,
    /// How many rows are drawn among where there is no index.
    pub buffer: usize,
    /// The longest row.
    pub max_row_bytes: usize,
}

/// How rows are written.
enum FileFormat {
    /// JSON, one object a line.
    Lines,
    /// JSON, one list of objects.
    List,
    Parquet,
}

/// How a file is stored, which its first bytes tell: how rows are written, and whether it is gzipped.
fn encoding(path: &Path) -> std::io::Result<(FileFormat, bool)> {
    let begin = |input: &mut dyn Read| {
        let mut bytes = Vec::new();
        input.take(256).read_to_end(&mut bytes)?;
        Ok::<Vec<u8>, std::io::Error>(bytes)
    };
    let mut bytes = begin(&mut File::open(path)?)?;
    let is_gzipped = bytes.starts_with(&[0x1f, 0x8b]);
    if is_gzipped {
        bytes = begin(&mut unzipped(File::open(path)?))?;
    }
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes).trim_ascii_start();
    let format = if bytes.starts_with(parquet::MAGIC) {
        FileFormat::Parquet
    } else if text.starts_with(b"[") {
        FileFormat::List
    } else {
        FileFormat::Lines
    };
    Ok((format, is_gzipped))
}

fn unzipped(file: File) -> MultiGzDecoder<BufReader<File>> {
    MultiGzDecoder::new(BufReader::new(file))
}

/// Opens a file. A plain file of JSON lines is shuffled as a whole, by an index of its rows' places. Others are
/// shuffled among [`ReadOptions::buffer`] rows at a time.
pub(crate) fn open(path: &Path, order: ReadOptions) -> Result<Reader, DataError> {
    let failed = |cause| DataError::Unreadable { path: path.to_path_buf(), cause };
    let file = File::open(path).map_err(failed)?;
    let max = order.max_row_bytes;
    let reader = match (encoding(path).map_err(failed)?, order.shuffle) {
        ((FileFormat::Lines, false), Some(mut stream)) => {
            let shuffle = |places: &mut [(u64, u64)]| stream.shuffle(places);
            raw_rows(path, IndexedLines::new(file, max, shuffle).map_err(failed)?)
        }
        ((FileFormat::Parquet, is_gzipped), shuffle) => {
            // Parquet is read from its end, and a stream has no end to go to. So it is unpacked on disk, without a
            // name.
            let file = if is_gzipped { unpacked(file).map_err(failed)? } else { file };
            shuffled(parquet::rows(path, file, max)?, shuffle, order.buffer)
        }
        ((format, is_gzipped), shuffle) => {
            let text: Box<dyn BufRead + Send> = if is_gzipped {
                Box::new(BufReader::new(unzipped(file)))
            } else {
                Box::new(BufReader::new(file))
            };
            let rows = match format {
                FileFormat::List => raw_rows(path, Elements::new(text, max)),
                _ => raw_rows(path, Lines::new(text, max)),
            };
            shuffled(rows, shuffle, order.buffer)
        }
    };
    Ok(reader)
}

fn unpacked(file: File) -> std::io::Result<File> {
    let mut plain = tempfile::tempfile()?;
    std::io::copy(&mut unzipped(file), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

fn shuffled(reader: Reader, stream: Option<Stream>, buffer: usize) -> Reader {
    match stream {
        None => reader,
        Some(stream) => Box::new(Shuffled::new(reader, stream, buffer)),
    }
}

fn raw_rows(path: &Path, lines: impl Iterator<Item = std::io::Result<Line>> + Send + 'static) -> Reader {
    let path = path.to_path_buf();
    Box::new(lines.map(move |line| match line {
        Ok(Line { number, bytes, .. }) => {
            Ok(RawRow { number, fields: bytes.and_then(|bytes| json_row(&bytes)) })
        }
        Err(cause) => Err(DataError::Unreadable { path: path.clone(), cause }),
    }))
}

/// The random numbers of a file's order; `file` tells the files of a dataset apart.
pub(crate) fn stream(seed: u64, file: usize) -> Stream {
    Stream::new(seed, Purpose::Dataset, 0, file as u64)
}

/// The files that a path or a dataset's name stands for, in order.
pub(crate) fn files(path: &str) -> Result<Vec<PathBuf>, DataError> {
    let place = Path::new(path);
    if place.is_file() {
        return Ok(vec![place.to_path_buf()]);
    }
    if !place.is_dir() {
        return hub::files(path).unwrap_or_else(|| Err(DataError::NoFile { path: path.to_string() }));
    }
    let failed = |cause| DataError::Unreadable { path: place.to_path_buf(), cause };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(place).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.is_file() && is_data(&file.to_string_lossy()) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(DataError::NoRows { path: path.to_string() }) } else { Ok(files) }
}

/// Whether a file of this name holds rows.
pub(crate) fn is_data(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    [".jsonl", ".json", ".ndjson", ".parquet"].iter().any(|ending| name.ends_with(ending))
}
