//! The methods of Python's texts, lists and dictionaries, where the engine's companion does not have them as Python does.
//!
//! What may grow beyond its input is paid for with fuel before it is made.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::json::str_of;

type Result<T> = std::result::Result<T, Error>;

/// Bytes that one unit of fuel pays for.
const BYTES_A_FUEL: usize = 64;
/// The widest field of a format.
const MOST_DIGITS: usize = 5;

/// Pays for this many bytes.
///
/// # Errors
/// If the fuel does not suffice.
pub(super) fn pay(state: &State, bytes: usize) -> Result<()> {
    state.consume_fuel((bytes / BYTES_A_FUEL) as u64)
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Calls `method` of a value that has none of its own by this name.
///
/// # Errors
/// If there is none in Python, or it refuses its arguments.
pub(super) fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value> {
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    found.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>> {
    Ok(match method {
        "index" => {
            let (what,): (Value,) = from_args(args)?;
            let place = list.try_iter()?.position(|item| item == what);
            Some(Value::from(place.ok_or_else(|| refused(format!("{what:?} is not in list")))?))
        }
        "copy" => Some(list.try_iter()?.collect()),
        _ => None,
    })
}

fn of_text(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>> {
    let strings = |parts: Vec<&str>| Value::from_iter(parts.into_iter().map(Value::from));
    let tuple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(Some(match method {
        "split" | "rsplit" => {
            let (separator, most) = split_arguments(args)?;
            strings(split(text, separator.as_deref(), most, method == "rsplit")?)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(refused("empty separator"));
            }
            let is_last = method == "rpartition";
            let parted = if is_last { text.rsplit_once(separator) } else { text.split_once(separator) };
            match parted {
                Some((before, after)) => tuple([before, separator, after]),
                None if is_last => tuple(["", "", text]),
                None => tuple([text, "", ""]),
            }
        }
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            strings(lines(text, keep))
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let rest =
                if method == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Value::from(rest.unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            return searched(text, method, what, start, end).map(Some);
        }
        "startswith" | "endswith" => {
            let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let (within, _) = slice(text, start, end);
            let has = |affix: &Value| match affix.as_str() {
                Some(affix) if method == "startswith" => Ok(within.starts_with(affix)),
                Some(affix) => Ok(within.ends_with(affix)),
                None => {
                    Err(refused(format!("{method} takes a text or a tuple of texts, not {}", affix.kind())))
                }
            };
            match affix.kind() {
                ValueKind::Seq => {
                    let mut any = false;
                    for affix in affix.try_iter()? {
                        any |= has(&affix)?;
                    }
                    Value::from(any)
                }
                _ => Value::from(has(affix)?),
            }
        }
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(args)?;
            let is_cut =
                |character: char| characters.map_or(is_space(character), |cut| cut.contains(character));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(is_cut) };
            Value::from(if method == "lstrip" { text } else { text.trim_end_matches(is_cut) })
        }
        "replace" => {
            let (old, new, most, kwargs): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let most = most.or(kwargs.get("count")?).and_then(|most| usize::try_from(most).ok());
            kwargs.assert_all_used()?;
            let found = text.matches(old).count().min(most.unwrap_or(usize::MAX));
            pay(state, text.len().saturating_add(found.saturating_mul(new.len())))?;
            Value::from(most.map_or_else(|| text.replace(old, new), |most| text.replacen(old, new, most)))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (place, item) in items.try_iter()?.enumerate() {
                let Some(item) = item.as_str() else {
                    return Err(refused(format!(
                        "sequence item {place}: expected str instance, {} found",
                        item.kind()
                    )));
                };
                pay(state, BYTES_A_FUEL + text.len() + item.len())?;
                if place > 0 {
                    joined.push_str(text);
                }
                joined.push_str(item);
            }
            Value::from(joined)
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            Value::from(padded(state, text, method, width, fill.unwrap_or(" "))?)
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let sign = text.chars().next().filter(|first| matches!(first, '+' | '-'));
            let digits = &text[sign.map_or(0, char::len_utf8)..];
            let width = width.saturating_sub(i64::from(sign.is_some()));
            let digits = padded(state, digits, "rjust", width, "0")?;
            Value::from(sign.map_or(String::new(), String::from) + &digits)
        }
        "expandtabs" => {
            let (size,): (Option<i64>,) = from_args(args)?;
            let size = usize::try_from(size.unwrap_or(8)).unwrap_or(0);
            pay(state, text.matches('\t').count().saturating_mul(size))?;
            Value::from(expanded(text, size))
        }
        "swapcase" => {
            let swap = |character: char| match character.is_uppercase() {
                true => character.to_lowercase().collect::<String>(),
                false => character.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "title" => Value::from(titled(text)),
        "istitle" => Value::from(text.chars().any(is_cased) && titled(text) == text),
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        "isdecimal" | "isdigit" if text.is_ascii() => {
            Value::from(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        }
        "isdecimal" | "isdigit" => match text.chars().any(char::is_numeric) {
            true => {
                return Err(refused(format!(
                    "{method}: only the digits 0 to 9 are told from other numerals here"
                )));
            }
            false => Value::from(false),
        },
        "isidentifier" => {
            let is_word = |character: char| character.is_alphanumeric() || character == '_';
            Value::from(
                text.chars().all(is_word)
                    && text.starts_with(|first: char| is_word(first) && !first.is_numeric()),
            )
        }
        "isprintable" => Value::from(
            !text.chars().any(|character| character.is_control() || is_space(character) && character != ' '),
        ),
        "encode" => {
            let (encoding,): (Option<&str>,) = from_args(args)?;
            match encoding.unwrap_or("utf-8").to_lowercase().replace('_', "-").as_str() {
                "utf-8" | "utf8" => Value::from_bytes(text.as_bytes().to_vec()),
                "ascii" if text.is_ascii() => Value::from_bytes(text.as_bytes().to_vec()),
                other => return Err(refused(format!("encode: {other} is not read here; it must be utf-8"))),
            }
        }
        "format" => {
            check_widths(text)?;
            let formatted = format(FormatStyle::StrFormat, text, args)?;
            pay(state, formatted.len())?;
            Value::from(formatted)
        }
        _ => return Ok(None),
    }))
}

/// `'…' % operand`.
///
/// # Errors
/// If the text has other fields than the operand has values.
pub(super) fn percent(state: &State, text: &str, operand: Value) -> Result<String> {
    check_widths(text)?;
    let args: Vec<Value> = if operand.is_tuple() { operand.try_iter()?.collect() } else { vec![operand] };
    let formatted = format(FormatStyle::Printf, text, &args)?;
    pay(state, formatted.len())?;
    Ok(formatted)
}

/// A format whose fields are so wide that they would fill the memory is refused.
pub(super) fn check_widths(format: &str) -> Result<()> {
    let digits = format.split(|character: char| !character.is_ascii_digit()).map(str::len).max();
    match digits.is_some_and(|digits| digits > MOST_DIGITS) || format.contains('*') {
        true => Err(refused(format!(
            "a field of a format is wider than {MOST_DIGITS} digits, or its width is not a number"
        ))),
        false => Ok(()),
    }
}

/// What Python takes for space in a text.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase()
}

/// Every run of letters with a capital at its beginning.
fn titled(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut is_within = false;
    for character in text.chars() {
        match is_within {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        is_within = is_cased(character);
    }
    titled
}

fn split_arguments(args: &[Value]) -> Result<(Option<String>, Option<usize>)> {
    let (separator, most, kwargs): (Option<String>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?);
    let most = most.or(kwargs.get("maxsplit")?);
    kwargs.assert_all_used()?;
    Ok((separator, most.and_then(|most| usize::try_from(most).ok())))
}

fn split<'a>(
    text: &'a str,
    separator: Option<&str>,
    most: Option<usize>,
    from_end: bool,
) -> Result<Vec<&'a str>> {
    let most = most.unwrap_or(usize::MAX);
    let parts = match separator {
        Some("") => return Err(refused("empty separator")),
        Some(separator) if from_end => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None => {
            let (mut parts, mut rest) = (Vec::new(), text);
            loop {
                rest = if from_end {
                    rest.trim_end_matches(is_space)
                } else {
                    rest.trim_start_matches(is_space)
                };
                if rest.is_empty() {
                    break;
                }
                let (part, other) = match (parts.len() < most, from_end) {
                    (false, true) => (rest.trim_start_matches(is_space), ""),
                    (false, false) => (rest.trim_end_matches(is_space), ""),
                    // With the last split, what is left stays as it is but for the space at its beginning.
                    (true, true) => rest.rfind(is_space).map_or((rest, ""), |at| {
                        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                        (&rest[at + width..], &rest[..at])
                    }),
                    (true, false) => rest.find(is_space).map_or((rest, ""), |at| (&rest[..at], &rest[at..])),
                };
                // Python keeps the far end's space of the part that is not split.
                parts.push(if parts.len() < most { part } else { rest });
                rest = other;
            }
            if from_end {
                parts.reverse();
            }
            parts
        }
    };
    Ok(parts)
}

/// Lines as Python ends them.
fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let mark = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep { end + mark } else { end }]);
        rest = &rest[end + mark..];
    }
    lines
}

/// The part between two places that count characters, from the end where they are negative, and its first place.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let length = text.chars().count();
    let place = |place: i64| match usize::try_from(place) {
        Ok(place) => place.min(length),
        Err(_) => length.saturating_sub(usize::try_from(place.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let start = start.map_or(0, place);
    let end = end.map_or(length, place).max(start);
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(byte, _)| byte);
    (&text[byte(start)..byte(end)], start)
}

fn searched(text: &str, method: &str, what: &str, start: Option<i64>, end: Option<i64>) -> Result<Value> {
    let (within, first) = slice(text, start, end);
    let found = match method {
        "count" => return Ok(Value::from(within.matches(what).count())),
        "find" | "index" => within.find(what),
        _ => within.rfind(what),
    };
    match found {
        Some(byte) => Ok(Value::from(first + within[..byte].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refused("substring not found")),
    }
}

fn padded(state: &State, text: &str, method: &str, width: i64, fill: &str) -> Result<String> {
    if fill.chars().count() != 1 {
        return Err(refused("The fill character must be exactly one character long"));
    }
    let length = text.chars().count();
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(length);
    pay(state, missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // CPython's rounding: the odd space goes left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(fill.repeat(left) + text + &fill.repeat(missing - left))
}

fn expanded(text: &str, size: usize) -> String {
    let (mut expanded, mut column) = (String::new(), 0);
    for character in text.chars() {
        match character {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            _ => {
                column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
                expanded.push(character);
            }
        }
    }
    expanded
}

/// Jinja's `join`: texts of anything, of an attribute where one is named.
///
/// # Errors
/// If the value is no list, or the result costs more than there is fuel.
pub(super) fn join(state: &State, value: &Value, separator: Option<&str>, kwargs: Kwargs) -> Result<String> {
    let attribute: Option<Value> = kwargs.get("attribute")?;
    let separator = separator.or(kwargs.get("d")?).unwrap_or_default();
    kwargs.assert_all_used()?;
    let mut joined = String::new();
    for (place, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(path) => attribute_of(&item, path)?,
            None => item,
        };
        let text = str_of(&item)?;
        pay(state, BYTES_A_FUEL + separator.len() + text.len())?;
        if place > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&text);
    }
    Ok(joined)
}

fn attribute_of(item: &Value, path: &Value) -> Result<Value> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    path.split('.').try_fold(item.clone(), |item, name| match name.parse::<usize>() {
        Ok(place) => item.get_item(&Value::from(place)),
        Err(_) => item.get_attr(name),
    })
}

/// Jinja's `indent`: all lines but the first, and none that is empty, unless told so.
///
/// # Errors
/// If the width is neither a number nor a text, or the result costs more than there is fuel.
pub(super) fn indent(state: &State, text: &str, args: Rest<Value>, kwargs: Kwargs) -> Result<String> {
    let given = |place: usize, name: &str| -> Result<Option<Value>> {
        Ok(match args.get(place) {
            Some(value) => Some(value.clone()),
            None => kwargs.get(name)?,
        })
    };
    let indent = match given(0, "width")? {
        None => "    ".to_string(),
        Some(width) => match (width.as_str(), width.as_usize().filter(|&width| width <= 1_000)) {
            (Some(text), _) => text.to_string(),
            (None, Some(spaces)) => " ".repeat(spaces),
            (None, None) => return Err(refused("indent: the width must be a text or from 0 to 1000")),
        },
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_true(given(1, "first")?), is_true(given(2, "blank")?));
    kwargs.assert_all_used()?;
    let whole = format!("{text}\n");
    let lines = lines(&whole, false);
    pay(state, whole.len().saturating_add(lines.len().saturating_mul(indent.len())))?;
    let mut indented = String::new();
    for (place, line) in lines.into_iter().enumerate() {
        if place > 0 {
            indented.push('\n');
        }
        if if place == 0 { first } else { blank || !line.is_empty() } {
            indented.push_str(&indent);
        }
        indented.push_str(line);
    }
    Ok(indented)
}
