//! The engine as transformers sets Jinja up: globals, filters, tests, and bounds on what a template may cost.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::json::{self, Style, dumps};
use super::python::{self, pay};
use super::source::{GENERATION, PERCENT};

type Result<T> = std::result::Result<T, Error>;

/// Stands where the model's own words begin: a noncharacter of Unicode.
pub(super) const OPEN: char = '\u{fdd2}';
/// And where they end.
pub(super) const CLOSE: char = '\u{fdd3}';

/// What a template may cost beside what its conversation does: an instruction, or 64 bytes, is 1.
const FUEL: u64 = 2_000_000;
/// For each byte of the conversation.
const FUEL_A_BYTE: u64 = 16;
/// How deep macros may call each other.
const DEEPEST: usize = 200;

/// An engine for a conversation of `bytes`.
///
/// # Errors
/// If the syntax is refused, which it is not.
pub(super) fn environment(bytes: usize) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    environment.set_fuel(Some(FUEL + FUEL_A_BYTE * bytes as u64));
    environment.set_recursion_limit(DEEPEST);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(write);

    environment.add_function(GENERATION, generation);
    environment.add_function(PERCENT, |state: &State, text: &str, operand: Value| {
        python::percent(state, text, operand)
    });
    environment.add_function("raise_exception", |message: Value| -> Result<()> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
    });
    environment.add_function("strftime_now", |format: &str| strftime_now(format));
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(Error::new(ErrorKind::MissingArgument, "at least one item has to be provided")),
        false => Ok(Value::from_object(Cycler { items: items.0, place: Default::default() })),
    });
    environment.add_function("joiner", |separator: Option<Value>| {
        minijinja_contrib::globals::joiner(Some(separator.unwrap_or_else(|| Value::from(", "))))
    });

    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => json::str_of(value).map(Value::from),
    });
    environment.add_filter(
        "join",
        |state: &State, value: &Value, separator: Option<&str>, kwargs: Kwargs| {
            python::join(state, value, separator, kwargs)
        },
    );
    environment.add_filter("center", |state: &mut State, text: &str, width: Option<i64>| {
        python::method(state, &Value::from(text), "center", &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("wordcount", |text: &str| {
        text.split(|character: char| !(character.is_alphanumeric() || character == '_'))
            .filter(|word| !word.is_empty())
            .count()
    });
    environment.add_filter("striptags", |text: &str| striptags(text));
    environment.add_filter("urlencode", |value: &Value| match value.kind() {
        ValueKind::Map | ValueKind::Seq => {
            Err(Error::new(ErrorKind::InvalidOperation, "urlencode: only a text is read here"))
        }
        _ => Ok(urlencode(&json::str_of(value)?)),
    });
    environment.add_filter("indent", |state: &State, text: &str, args: Rest<Value>, kwargs: Kwargs| {
        python::indent(state, text, args, kwargs)
    });
    environment.add_filter("count", minijinja::filters::length);
    environment.add_filter("format", |state: &State, text: &str, args: Rest<Value>| -> Result<String> {
        python::check_widths(text)?;
        let formatted =
            minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, text, &args)?;
        pay(state, formatted.len())?;
        Ok(formatted)
    });

    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Bytes)
    });
    Ok(environment)
}

/// Writes a value as Python's `str` does; what is not defined is nothing.
fn write(output: &mut Output, state: &mut State, value: &Value) -> Result<()> {
    match value.kind() {
        ValueKind::Number | ValueKind::Map | ValueKind::Seq => {
            let text = json::str_of(value)?;
            pay(state, text.len())?;
            output.write_str(&text).map_err(Error::from)
        }
        ValueKind::Bytes => output.write_str(&format!("{value:?}")).map_err(Error::from),
        _ => minijinja::escape_formatter(output, state, value),
    }
}

/// Jinja's `cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    place: std::sync::atomic::AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        let place = self.place.load(std::sync::atomic::Ordering::Relaxed);
        self.items.get(place).cloned().unwrap_or_default()
    }
}

impl minijinja::value::Object for Cycler {
    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &std::sync::Arc<Self>,
        _: &mut State,
        method: &str,
        args: &[Value],
    ) -> Result<Value> {
        let () = minijinja::value::from_args(args)?;
        let current = self.current();
        let place = self.place.load(std::sync::atomic::Ordering::Relaxed);
        let (next, given) = match method {
            "next" => ((place + 1) % self.items.len().max(1), current),
            "reset" => (0, Value::from(())),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        self.place.store(next, std::sync::atomic::Ordering::Relaxed);
        Ok(given)
    }
}

/// The words between `{% generation %}` and `{% endgeneration %}`, with their marks.
fn generation(state: &mut State, kwargs: Kwargs) -> Result<String> {
    let caller: Value = kwargs.get("caller")?;
    let words = caller.call(state, &[])?;
    Ok(format!("{OPEN}{words}{CLOSE}"))
}

/// transformers' `tojson`, which is `json.dumps` with `ensure_ascii=False`.
fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent {
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_string),
        Some(indent) if !indent.is_none() => {
            let spaces = indent.as_usize().filter(|&spaces| spaces <= 64);
            let refused =
                || Error::new(ErrorKind::InvalidOperation, "tojson: indent must be a text or from 0 to 64");
            Some(" ".repeat(spaces.ok_or_else(refused)?))
        }
        _ => None,
    };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let default = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_string).to_vec();
    let [between, behind_key] = <[String; 2]>::try_from(separators.unwrap_or(default))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts"))?;
    let style = Style {
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        separators: (between, behind_key),
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let text = dumps(value, &style)?;
    pay(state, text.len())?;
    Ok(text)
}

/// Python's `quote`, to which a slash is safe.
fn urlencode(text: &str) -> String {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte);
    let encode = |byte: u8| if is_safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

/// markupsafe's: without comments and tags, runs of space as one, entities as what they stand for.
fn striptags(text: &str) -> String {
    let mut rest = text.to_string();
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut kept = String::new();
        let mut at = 0;
        while let Some(start) = rest[at..].find(open).map(|start| at + start) {
            let Some(end) = rest[start..].find(close).map(|end| start + end + close.len()) else { break };
            kept += &rest[at..start];
            at = end;
        }
        rest = kept + &rest[at..];
    }
    let words: Vec<&str> = rest.split(python::is_space).filter(|word| !word.is_empty()).collect();
    let mut text = words.join(" ");
    for (entity, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", "\u{a0}"),
        ("&amp;", "&"),
    ] {
        text = text.replace(entity, character);
    }
    text
}

/// `datetime.now().strftime(format)`: the machine's time, in the zone that it is set to.
fn strftime_now(format: &str) -> Result<String> {
    use std::ffi::CString;
    use std::time::{SystemTime, UNIX_EPOCH};

    const MOST: usize = 1024;
    let failed = || {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?} is no format of a time"))
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Python fills these in itself; its time has no zone.
    let mut parts = Vec::new();
    for part in format.split("%%") {
        parts.push(
            part.replace("%f", &format!("{:06}", now.subsec_micros())).replace("%z", "").replace("%Z", ""),
        );
    }
    let own = parts.join("%%");
    // A byte in front tells an empty result from one that is too long.
    let own = CString::new(format!("x{own}")).map_err(|_| failed())?;
    let mut buffer = [0u8; MOST];
    #[allow(
        unsafe_code,
        reason = "the C library knows the machine's time zone, and fills a buffer whose length it is told"
    )]
    let length = unsafe {
        let seconds = now.as_secs() as libc::time_t;
        let mut parts = std::mem::zeroed::<libc::tm>();
        if libc::localtime_r(&seconds, &mut parts).is_null() {
            return Err(failed());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), MOST, own.as_ptr(), &parts)
    };
    match buffer[..length] {
        [_, ref text @ ..] => Ok(String::from_utf8_lossy(text).into_owned()),
        [] => Err(failed()),
    }
}
