//! Answers that are known already: in memory, and in a file if there is one.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// [`key`].
    key: String,
    answer: String,
}

/// What every line begins with.
const BEGINNING: &str = "{\"key\":\"";

/// The SHA-256 of a whole request: its URL and its body.
pub(super) fn key(url: &str, body: &str) -> String {
    let digest = Sha256::new().chain_update(url).chain_update(b"\n").chain_update(body).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Requests' answers by their keys.
#[derive(Debug)]
pub(super) struct Cache(Mutex<State>);

#[derive(Debug)]
struct State {
    known: HashMap<String, String>,
    file: Option<File>,
}

impl Cache {
    /// # Errors
    /// If the file cannot be read or written, or has a line that is none of ours.
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Cache(Mutex::new(State { known: HashMap::new(), file: None })));
        };
        let failed =
            |error: std::io::Error| format!("cache is {}, which cannot be used: {error}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut known = HashMap::new();
        for (line, written) in text.split_inclusive('\n').enumerate() {
            match serde_json::from_str::<Entry>(written) {
                Ok(entry) => {
                    known.insert(entry.key, entry.answer);
                }
                // Somebody was killed while writing it: that answer is asked for again.
                Err(_) if written.starts_with(BEGINNING) => {}
                Err(error) => {
                    let path = path.display();
                    return Err(format!(
                        "cache is {path}, whose line {} is no answer: {error}; name another file",
                        line + 1
                    ));
                }
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(failed)?;
        }
        Ok(Cache(Mutex::new(State { known, file: Some(file) })))
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.get(key).cloned()
    }

    /// # Errors
    /// If the file cannot be written.
    pub fn put(&self, key: String, answer: &str) -> Result<(), String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut state.file {
            let entry = Entry { key: key.clone(), answer: answer.to_string() };
            let line = serde_json::to_string(&entry).map_err(|error| error.to_string())? + "\n";
            // In one write, so that lines of several writers do not mix.
            file.write_all(line.as_bytes())
                .map_err(|error| format!("the cache cannot be written: {error}"))?;
        }
        state.known.insert(key, answer.to_string());
        Ok(())
    }
}
