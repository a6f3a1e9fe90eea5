//! Values as Python writes them: `json.dumps` and `str`.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// How deep lists and objects may stand within each other.
const DEEPEST: usize = 128;
/// From here on, and below the next, Python writes a number with an exponent.
const LARGE: f64 = 1e16;
const SMALL: f64 = 1e-4;

/// What `json.dumps` is told.
#[derive(Debug)]
pub(super) struct Style {
    /// `\u` for everything that is not ASCII.
    pub ascii: bool,
    /// Spaces a level, with a line an item.
    pub indent: Option<String>,
    /// Between items, and behind a key.
    pub separators: (String, String),
    /// In the keys' order instead of the object's own.
    pub sort: bool,
}

/// A float in Python's shortest form.
pub(super) fn float(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        return "nan".to_string();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    if size != 0.0 && !(SMALL..LARGE).contains(&size) {
        let written = format!("{number:e}");
        let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// The float that a value is; none for whole numbers.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.is_number() && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value is more than {DEEPEST} levels deep"))
}

/// `json.dumps` of a value.
///
/// # Errors
/// If JSON has no such value, or it is too deep.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut text = String::new();
    dump(&mut text, value, style, 0)?;
    Ok(text)
}

fn dump(text: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(&**indent, depth));
        }
    };
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => match as_float(value) {
            Some(number) => text.push_str(&json_float(number)),
            None => text.push_str(&value.to_string()),
        },
        ValueKind::String => string(text, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            let mut is_empty = true;
            for item in value.try_iter()? {
                if !is_empty {
                    text.push_str(&style.separators.0);
                }
                is_empty = false;
                line(text, depth + 1);
                dump(text, &item, style, depth + 1)?;
            }
            if !is_empty {
                line(text, depth);
            }
            text.push(']');
        }
        ValueKind::Map => {
            let mut members = Vec::new();
            for key in value.try_iter()? {
                members.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sort {
                members.sort_by(|one, other| one.0.cmp(&other.0));
            }
            text.push('{');
            for (place, (key, member)) in members.iter().enumerate() {
                if place > 0 {
                    text.push_str(&style.separators.0);
                }
                line(text, depth + 1);
                string(text, key, style.ascii);
                text.push_str(&style.separators.1);
                dump(text, member, style, depth + 1)?;
            }
            if !members.is_empty() {
                line(text, depth);
            }
            text.push('}');
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: a value that is {kind} is no JSON"),
            ));
        }
    }
    Ok(())
}

fn json_float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_string(),
        f64::INFINITY => "Infinity".to_string(),
        f64::NEG_INFINITY => "-Infinity".to_string(),
        number => float(number),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".to_string(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_string(),
        ValueKind::Number => as_float(key).map_or_else(|| key.to_string(), json_float),
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: a key that is {kind} is no JSON"),
            ));
        }
    })
}

fn string(text: &mut String, content: &str, ascii: bool) {
    text.push('"');
    for character in content.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            character if character < ' ' || ascii && character > '~' => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a text cannot fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            character => text.push(character),
        }
    }
    text.push('"');
}

/// `str` of a value, where the engine's own differs: floats with an exponent, alone or within lists and objects.
///
/// # Errors
/// If it is too deep.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Map | ValueKind::Seq => {
            let mut text = String::new();
            repr(&mut text, value, 0)?;
            Ok(text)
        }
        _ => Ok(value.to_string()),
    }
}

fn repr(text: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Number => text.push_str(&as_float(value).map_or_else(|| value.to_string(), float)),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            text.push(open);
            let mut items = 0;
            for item in value.try_iter()? {
                if items > 0 {
                    text.push_str(", ");
                }
                items += 1;
                repr(text, &item, depth + 1)?;
            }
            if value.is_tuple() && items == 1 {
                text.push(',');
            }
            text.push(close);
        }
        ValueKind::Map => {
            text.push('{');
            for (place, key) in value.try_iter()?.enumerate() {
                if place > 0 {
                    text.push_str(", ");
                }
                repr(text, &key, depth + 1)?;
                text.push_str(": ");
                repr(text, &value.get_item(&key)?, depth + 1)?;
            }
            text.push('}');
        }
        ValueKind::String => quoted(text, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => text.push_str("Undefined"),
        _ => {
            // Writing to a text cannot fail.
            let _ = write!(text, "{value:?}");
        }
    }
    Ok(())
}

/// `repr` of a text.
fn quoted(text: &mut String, content: &str) {
    let quote = if content.contains('\'') && !content.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in content.chars() {
        let code = u32::from(character);
        // Writing to a text cannot fail.
        let _ = match character {
            '\n' => write!(text, "\\n"),
            '\r' => write!(text, "\\r"),
            '\t' => write!(text, "\\t"),
            '\\' => write!(text, "\\\\"),
            _ if character == quote => write!(text, "\\{quote}"),
            _ if !is_hidden(character) => write!(text, "{character}"),
            _ if code <= 0xff => write!(text, "\\x{code:02x}"),
            _ if code <= 0xffff => write!(text, "\\u{code:04x}"),
            _ => write!(text, "\\U{code:08x}"),
        };
    }
    text.push(quote);
}

/// What Python does not print: controls, spaces but the plain one, formats, private and no characters.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || character.is_whitespace() && character != ' '
        || matches!(
            character,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{fdd0}'..='\u{fdef}'
                | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e0fff}'
                | '\u{f0000}'..='\u{10ffff}'
        )
}
