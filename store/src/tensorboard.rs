//! TensorBoard's event files: `Event` messages of protocol buffers in TFRecord frames.
//!
//! Two messages are all that scalars need, so they are encoded by hand:
//!
//! ```text
//! Event   { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5 }
//! Summary { repeated Value value = 1 }   Value { string tag = 1; float simple_value = 2 }
//! frame   = length as u64, masked CRC-32C of it, message, masked CRC-32C of it; all little-endian
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// An event file.
#[derive(Debug)]
pub struct EventFile {
    out: BufWriter<File>,
}

impl EventFile {
    /// Makes the file; it starts with the version of its format.
    ///
    /// # Errors
    /// If there is such a file, or it cannot be written.
    pub fn create(path: &Path, wall_time: f64) -> io::Result<Self> {
        let mut out = BufWriter::new(OpenOptions::new().write(true).create_new(true).open(path)?);
        out.write_all(&frame(&version_event(wall_time)))?;
        Ok(EventFile { out })
    }

    /// Adds the scalars of one step, by tag.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        wall_time: f64,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        self.out.write_all(&frame(&scalar_event(wall_time, step, scalars)))
    }

    /// Hands what is buffered to the system, where TensorBoard sees it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Flushes, and waits until the disk has it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn sync(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_data()
    }
}

/// A message as the file has it.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(message.len() + 16);
    frame.extend(length);
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(message);
    frame.extend(masked_crc(message).to_le_bytes());
    frame
}

/// TFRecord masks its CRCs, since the CRC of bytes that hold their own CRC is a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_bytes(&mut event, 3, b"brain.Event:2");
    event
}

fn scalar_event<'a>(wall_time: f64, step: u64, scalars: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in scalars {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, tag.as_bytes());
        put_float(&mut value, 2, number as f32);
        put_bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    put_double(&mut event, 1, wall_time);
    put_key(&mut event, 2, VARINT);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, &summary);
    event
}

// The wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, number: f64) {
    put_key(out, field, FIXED_64);
    out.extend(number.to_le_bytes());
}

fn put_float(out: &mut Vec<u8>, field: u64, number: f32) {
    put_key(out, field, FIXED_32);
    out.extend(number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The messages of a file, every CRC checked.
    pub(crate) fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let unmasked = |bytes: &[u8]| {
            let masked = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
            masked.wrapping_sub(0xa282_ead8).rotate_left(15)
        };
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(unmasked(&file[8..12]), crc32c::crc32c(&file[..8]));
            let message = &file[12..12 + length];
            assert_eq!(unmasked(&file[12 + length..16 + length]), crc32c::crc32c(message));
            messages.push(message.to_vec());
            file = &file[16 + length..];
        }
        messages
    }

    #[test]
    fn the_crc_is_castagnoli() {
        // The check value of CRC-32C (RFC 3720, B.4 has more).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // (0xe3069283 >> 15 | 0xe3069283 << 17) + 0xa282ead8
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn varints_are_groups_of_seven_bits_lowest_first() {
        let varint = |number: u64| {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            out
        };
        assert_eq!(varint(0), [0x00]);
        assert_eq!(varint(127), [0x7f]);
        assert_eq!(varint(300), [0xac, 0x02]);
    }

    #[test]
    fn a_scalar_has_the_bytes_of_the_specification() {
        #[rustfmt::skip]
        let expected = [
            0x19, 0, 0, 0, 0, 0, 0, 0, 0x8b, 0xf1, 0x08, 0x28, // length 25 and its CRC
            0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, // wall_time 1.5
            0x10, 0x03, // step 3
            0x2a, 0x0c, // summary, 12 bytes
            0x0a, 0x0a, // value, 10 bytes
            0x0a, 0x03, b'a', b'/', b'b', // tag
            0x15, 0, 0, 0, 0x3f, // simple_value 0.5
            0x44, 0x31, 0xa8, 0xbc, // CRC of the 25 bytes
        ];
        assert_eq!(frame(&scalar_event(1.5, 3, [("a/b", 0.5)])), expected);
    }

    #[test]
    fn the_version_has_the_bytes_of_the_specification() {
        let mut expected = vec![0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22];
        expected.extend([0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x1a, 0x0d]);
        expected.extend(b"brain.Event:2");
        expected.extend([0x2a, 0x28, 0x64, 0x6c]);
        assert_eq!(frame(&version_event(1.5)), expected);
    }

    #[test]
    fn a_file_is_its_version_and_its_events() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events");
        let mut file = EventFile::create(&path, 1.0).expect("it can be made");
        file.scalars(2.0, 300, [("t/x", 1.0), ("t/y", -1.0)]).expect("it can be written");
        file.sync().expect("it can be written");
        let messages = messages(&std::fs::read(&path).expect("it is there"));
        assert_eq!(messages, [version_event(1.0), scalar_event(2.0, 300, [("t/x", 1.0), ("t/y", -1.0)])]);
        EventFile::create(&path, 1.0).expect_err("the file is there");
    }
}
