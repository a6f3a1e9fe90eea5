//! A TOML document that remembers where each key stands, and the sections that are read from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_aux::serde_introspection::serde_introspect;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::error::ExperimentError;

/// A parsed file with `--set` on top of it.
#[derive(Debug)]
pub(crate) struct Document {
    table: Table,
    origins: Origins,
}

/// Where keys come from, by their dotted path. Elements of arrays have their number in it.
#[derive(Debug)]
struct Origins {
    file: String,
    lines: BTreeMap<String, usize>,
    /// The `--set` that gave a key its value.
    set: BTreeMap<String, String>,
}

impl Document {
    pub fn parse(path: &Path, text: &str, set: &[String]) -> Result<Self, ExperimentError> {
        let file = path.display().to_string();
        let syntax = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            ExperimentError::Syntax { place: format!("{file}:{line}"), cause: one_line(error.message()) }
        };
        let parsed = DeTable::parse(text).map_err(syntax)?;
        let mut lines = BTreeMap::new();
        note_lines(parsed.get_ref(), "", text, &mut lines);
        let table: Table = toml::from_str(text).map_err(syntax)?;
        let mut document = Document { table, origins: Origins { file, lines, set: BTreeMap::new() } };
        for assignment in set {
            document.assign(assignment)?;
        }
        Ok(document)
    }

    /// The document at `path`. Without a path it is empty, and errors call it `--set`.
    pub fn read(path: Option<&Path>, set: &[String]) -> Result<Self, ExperimentError> {
        let text = path.map_or(Ok(String::new()), |path| {
            std::fs::read_to_string(path)
                .map_err(|cause| ExperimentError::Unreadable { path: path.to_path_buf(), cause })
        })?;
        Document::parse(path.unwrap_or(Path::new("--set")), &text, set)
    }

    pub fn root(&self) -> Section<'_> {
        Section {
            origins: &self.origins,
            path: String::new(),
            table: self.table.clone(),
            known: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// Applies `key=value`. The value is TOML, or else a text. A segment of the key may stand for one of several
    /// tables: by its number or its `name`.
    fn assign(&mut self, assignment: &str) -> Result<(), ExperimentError> {
        let place = format!("--set {assignment}");
        let fail = |message: String| ExperimentError::Key { place: place.clone(), message };
        let (key, text) = assignment
            .split_once('=')
            .ok_or_else(|| fail("expected KEY=VALUE, such as seed=7 or algorithm.beta=0.05".to_string()))?;
        let (key, text) = (key.trim(), text.trim());
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_string()));
        let segments: Vec<&str> = key.split('.').collect();
        let Some((last, parents)) =
            segments.split_last().filter(|_| segments.iter().all(|part| !part.is_empty()))
        else {
            return Err(fail(format!("\"{key}\" is no key; expected names with dots between them")));
        };
        let mut path = String::new();
        let mut table = &mut self.table;
        let mut parents = parents.iter();
        while let Some(parent) = parents.next() {
            path = join(&path, parent);
            let inner = table.entry(parent.to_string()).or_insert_with(|| Value::Table(Table::new()));
            table = match inner {
                Value::Table(inner) => inner,
                Value::Array(elements) => {
                    let count = elements.len();
                    let choice = parents.next().copied().unwrap_or_default();
                    let named = |value: &Value| value.get("name").and_then(Value::as_str) == Some(choice);
                    let index = choice.parse().ok().or_else(|| elements.iter().position(named));
                    let element = index.and_then(|index: usize| Some((index, elements.get_mut(index)?)));
                    let Some((index, Value::Table(element))) = element else {
                        return Err(fail(format!(
                            "\"{choice}\" is none of the {count} {path} tables; use its name, or its number from 0"
                        )));
                    };
                    path = join(&path, &index.to_string());
                    element
                }
                _ => return Err(fail(format!("{path} is a value, not a table"))),
            };
        }
        table.insert(last.to_string(), value);
        self.origins.set.insert(join(&path, last), assignment.to_string());
        Ok(())
    }
}

impl Origins {
    /// Where a key was given its value. For a key that was not, where the nearest table around it stands.
    fn place(&self, path: &str) -> String {
        let mut path = path;
        loop {
            if let Some(assignment) = self.set.get(path) {
                return format!("--set {assignment}");
            }
            if let Some(line) = self.lines.get(path) {
                return format!("{}:{line}", self.file);
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return self.file.clone(),
            }
        }
    }
}

/// A table that is read key by key. A reader ends with [`Section::finish`], which complains about keys that nobody
/// read.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    origins: &'a Origins,
    path: String,
    table: Table,
    known: Vec<String>,
    /// Options of kinds that were not chosen, to explain their presence.
    foreign: Vec<(&'static str, &'static str)>,
}

impl<'a> Section<'a> {
    /// True if the key is given.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// True if no key is given that was not read yet.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The value of the key, if it is a text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.table.get(key)?.as_str().map(str::to_string)
    }

    /// Lists a key among those that may be given.
    pub fn knows(&mut self, key: &str) {
        self.known.push(key.to_string());
    }

    /// An error about a key: `message` follows the key's name.
    pub fn fail(&self, key: &str, message: &str) -> ExperimentError {
        let path = join(&self.path, key);
        ExperimentError::Key { place: self.origins.place(&path), message: format!("{path} {message}") }
    }

    /// Passes on the result of a configuration's own check. Its sentence begins with the key's name.
    pub fn check(&self, checked: Result<(), String>) -> Result<(), ExperimentError> {
        checked.map_err(|sentence| {
            let (key, message) = sentence.split_once(' ').unwrap_or((&sentence, ""));
            self.fail(key, message)
        })
    }

    /// Checks that counts are at least 1 and at most what is given with them.
    pub fn counts(&self, counts: &[(&str, usize, usize)]) -> Result<(), ExperimentError> {
        match counts.iter().find(|(_, count, most)| !(1..=*most).contains(count)) {
            Some((key, count, most)) => {
                Err(self.fail(key, &format!("is {count}; it must be at least 1 and at most {most}")))
            }
            None => Ok(()),
        }
    }

    /// A value, if it is given.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, ExperimentError> {
        self.known.push(key.to_string());
        let Some(value) = self.table.remove(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|error| self.fail(key, &wrong(&error)))
    }

    /// The table of this name; an empty one if it is not given.
    pub fn child(&mut self, key: &str) -> Result<Section<'a>, ExperimentError> {
        self.known.push(key.to_string());
        let table = match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                let message = format!("is {}, expected a table [{key}]", described(&other));
                return Err(self.fail(key, &message));
            }
        };
        Ok(self.inner(join(&self.path, key), table))
    }

    /// The tables of this name.
    pub fn children(&mut self, key: &str) -> Result<Vec<Section<'a>>, ExperimentError> {
        self.known.push(key.to_string());
        let elements = match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(elements)) => elements,
            Some(other) => {
                let header = join(&self.path, key);
                return Err(
                    self.fail(key, &format!("is {}, expected tables [[{header}]]", described(&other)))
                );
            }
        };
        let path = join(&self.path, key);
        let section = |(index, element): (usize, Value)| match element {
            Value::Table(table) => Ok(self.inner(join(&path, &index.to_string()), table)),
            other => Err(self.fail(key, &format!("holds {}, expected tables only", described(&other)))),
        };
        elements.into_iter().enumerate().map(section).collect()
    }

    fn inner(&self, path: String, table: Table) -> Section<'a> {
        Section { origins: self.origins, path, table, known: Vec::new(), foreign: Vec::new() }
    }

    /// The keys that belong to `T`, over its defaults.
    pub fn read<T: Serialize + DeserializeOwned>(&mut self, default: &T) -> Result<T, ExperimentError> {
        let mut values = Table::try_from(default)
            .map_err(|error| ExperimentError::Unwritable { cause: error.to_string() })?;
        for name in serde_introspect::<T>() {
            self.known.push((*name).to_string());
            if let Some(value) = self.table.remove(*name) {
                values.insert((*name).to_string(), value);
            }
        }
        self.deserialize(values)
    }

    /// [`Section::read`] of a section that holds nothing else.
    pub fn read_whole<T: Serialize + DeserializeOwned>(mut self, default: &T) -> Result<T, ExperimentError> {
        let value = self.read(default)?;
        self.finish()?;
        Ok(value)
    }

    /// One of several things, told apart by `kind`, with the options that belong to it.
    pub fn read_kind<T: DeserializeOwned>(
        &mut self,
        kinds: &[&'static str],
        option_names: fn(&str) -> &'static [&'static str],
        default: Option<&'static str>,
    ) -> Result<T, ExperimentError> {
        let given: Option<String> = self.take("kind")?;
        let Some(given) = given.as_deref().or(default) else {
            return Err(self.fail("kind", &format!("is missing; expected one of {}", kinds.join(", "))));
        };
        let Some(&kind) = kinds.iter().find(|&&kind| kind == given) else {
            let all = kinds.join(", ");
            return Err(self.fail(
                "kind",
                &format!("is \"{given}\"; the nearest is \"{}\" (all: {all})", nearest(given, kinds)),
            ));
        };
        let mut values = Table::new();
        values.insert("kind".to_string(), Value::String(kind.to_string()));
        for name in option_names(kind) {
            self.known.push((*name).to_string());
            if let Some(value) = self.table.remove(*name) {
                values.insert((*name).to_string(), value);
            }
        }
        for &other in kinds.iter().filter(|&&other| other != kind) {
            self.foreign.extend(option_names(other).iter().map(|&name| (name, other)));
        }
        T::deserialize(values.clone()).map_err(|error| {
            // serde knows no path within an enum with a tag. So each key is left out in turn: without the wrong one,
            // the complaint is another, or none.
            let complaint =
                |values: Table| T::deserialize(values).err().map(|error| error.message().to_string());
            let without = |key: &str| {
                let mut rest = values.clone();
                rest.remove(key);
                rest
            };
            let own = Some(error.message().to_string());
            let culprit = values.keys().find(|key| *key != "kind" && complaint(without(key)) != own);
            match (missing_field(&error), culprit) {
                (Some(field), _) => self.fail(field, "is missing"),
                (None, key) => self.fail(key.map_or("kind", String::as_str), &wrong(&error)),
            }
        })
    }

    fn deserialize<T: DeserializeOwned>(&self, values: Table) -> Result<T, ExperimentError> {
        serde_path_to_error::deserialize(values).map_err(|error| {
            let path = error.path().to_string();
            let key = path.split(['.', '[']).next().unwrap_or_default();
            self.fail(key, &wrong(error.inner()))
        })
    }

    /// Complains about the first key that nobody read.
    pub fn finish(self) -> Result<(), ExperimentError> {
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        let path = join(&self.path, key);
        let place = self.origins.place(&path);
        let owners = self.foreign.iter().filter(|(name, _)| name == key);
        let owners: Vec<String> = owners.map(|(_, kind)| format!("\"{kind}\"")).collect();
        let known: BTreeSet<&str> = self.known.iter().map(String::as_str).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let message = if owners.is_empty() {
            format!(
                "unknown key {}; the nearest valid one is \"{}\" (all: {})",
                path,
                nearest(key, &known),
                known.join(", ")
            )
        } else {
            format!("{path} is an option of {} alone; remove it, or change kind", owners.join(", "))
        };
        Err(ExperimentError::Key { place, message })
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// The candidate that looks most like `text`.
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> &'a str {
    let likeness = |candidate: &&&str| (strsim::jaro_winkler(text, candidate) * 1e6) as u64;
    candidates.iter().max_by_key(likeness).copied().unwrap_or_default()
}

/// The field of "missing field `x`".
fn missing_field(error: &toml::de::Error) -> Option<&str> {
    error.message().strip_prefix("missing field `")?.split('`').next()
}

/// serde's complaint in plain words.
fn wrong(error: &toml::de::Error) -> String {
    let text = one_line(error.message());
    let mut words = text.replacen("invalid type:", "is wrong:", 1).replacen("invalid value:", "is wrong:", 1);
    for (theirs, ours) in [
        ("floating point", "number"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected usize", "expected a whole number of at least 0"),
        ("expected u64", "expected a whole number of at least 0"),
        ("expected u32", "expected a whole number of at least 0"),
        ("expected a boolean", "expected true or false"),
    ] {
        words = words.replace(theirs, ours);
    }
    if words.starts_with("is wrong:") { words } else { format!("is wrong: {words}") }
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

fn note_lines(table: &DeTable<'_>, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        lines.insert(path.clone(), line_of(text, key.span().start));
        note_value(value.get_ref(), &path, text, lines);
    }
}

fn note_value(value: &DeValue<'_>, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
    match value {
        DeValue::Table(table) => note_lines(table, path, text, lines),
        DeValue::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                let path = join(path, &index.to_string());
                lines.insert(path.clone(), line_of(text, element.span().start));
                note_value(element.get_ref(), &path, text, lines);
            }
        }
        _ => {}
    }
}
