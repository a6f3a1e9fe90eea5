//! Datasets of the Hugging Face Hub: which of their files are meant, and where they are once fetched.
//!
//! The cache is that of Hugging Face's own tools (`HF_HUB_CACHE`, `HF_HOME`, else `~/.cache/huggingface/hub`). What is
//! there is not fetched again. Where the hub cannot be reached or `HF_HUB_OFFLINE` is set, nothing else is used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

use super::is_data;
use crate::error::DataError;

/// What begins the name of a dataset where it must not be taken for a path.
const SCHEME: &str = "hf://";
/// JSON files that describe a dataset rather than hold its rows.
const NO_ROWS: [&str; 5] =
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"];
/// What else the files of a split are called.
const ALIASES: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// A dataset, and which part of it: `owner/name` or `hf://owner/name/folder@revision:split`. Folder, revision and split
/// may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    id: String,
    folder: String,
    revision: String,
    split: Option<String>,
}

impl Dataset {
    /// What `path` names; `None` if it can only be a path.
    pub fn parse(path: &str) -> Option<Self> {
        let (name, is_marked) = match path.strip_prefix(SCHEME) {
            Some(name) => (name, true),
            None => (path, false),
        };
        let (name, split) = match name.rsplit_once(':') {
            Some((name, split)) => (name, Some(split.to_string())),
            None => (name, None),
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        let is_word = |part: &&str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|character| character.is_alphanumeric() || "-_.".contains(character))
        };
        let is_id = parts.iter().all(is_word) && !revision.is_empty() && split.as_deref() != Some("");
        // A name of two parts that ends as files do is a file that is not there.
        if !is_id || (!is_marked && (parts.len() != 2 || is_data(name))) {
            return None;
        }
        let owner = parts.len().min(2);
        Some(Dataset {
            id: parts[..owner].join("/"),
            folder: parts[owner..].join("/"),
            revision: revision.to_string(),
            split,
        })
    }

    /// Those of the dataset's files that hold the rows that are meant, in order.
    fn choose(&self, names: &[String]) -> Result<Vec<String>, String> {
        let folder = format!("{}/", self.folder);
        let is_within =
            |name: &&String| self.folder.is_empty() || **name == self.folder || name.starts_with(&folder);
        let holds_rows = |name: &&String| {
            let file = file_name(name);
            is_data(name) && !file.starts_with('.') && !NO_ROWS.contains(&file)
        };
        let mut files: Vec<String> = names.iter().filter(is_within).filter(holds_rows).cloned().collect();
        files.sort();
        if files.is_empty() {
            let place = if self.folder.is_empty() { "" } else { " in this folder" };
            return Err(format!(
                "it has no files of JSON lines or Parquet{place}; revision refs/convert/parquet may have some, as in \
                 hf://{}@refs/convert/parquet",
                self.id
            ));
        }
        let wanted = self.split.as_deref().unwrap_or("train");
        let shards: Vec<String> = files.iter().filter(|name| shard(name) == Some(wanted)).cloned().collect();
        let mut chosen = shards;
        if chosen.is_empty() {
            chosen = files.iter().filter(|name| is_of(name, wanted)).cloned().collect();
        }
        let splits: BTreeSet<&str> = files.iter().filter_map(|name| split_of(name)).collect();
        if chosen.is_empty() {
            if self.split.is_some() || !splits.is_empty() {
                let known: Vec<&str> = splits.into_iter().collect();
                let known = if known.is_empty() { "none by name".to_string() } else { known.join(", ") };
                return Err(format!("it has no split \"{wanted}\"; it has {known}"));
            }
            chosen = files;
        }
        let folders: BTreeSet<&str> = chosen.iter().map(|name| folder_of(name)).collect();
        if folders.len() > 1 {
            let folders: Vec<&str> = folders.into_iter().collect();
            return Err(format!(
                "its rows are in several folders, {}; name one, as in hf://{}/{}",
                folders.join(", "),
                self.id,
                folders.iter().find(|folder| !folder.is_empty()).unwrap_or(&"")
            ));
        }
        complete(&chosen)?;
        Ok(chosen)
    }
}

fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// `train` of `data/train-00000-of-00002.parquet`.
fn shard(name: &str) -> Option<&str> {
    let (head, _) = file_name(name).split_once("-of-")?;
    let (split, number) = head.rsplit_once('-')?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(split)
}

/// How many shards there should be.
fn shard_count(name: &str) -> Option<usize> {
    shard(name)?;
    let (_, tail) = file_name(name).split_once("-of-")?;
    let end = tail.find(|character: char| !character.is_ascii_digit()).unwrap_or(tail.len());
    tail[..end].parse().ok()
}

/// Whether a file's path has a split's name, or another for the same, as one of its words.
fn is_of(name: &str, split: &str) -> bool {
    let aliases = ALIASES.iter().find(|(own, _)| *own == split).map(|(_, aliases)| *aliases);
    let is_word = |word: &str| {
        let word = word.to_ascii_lowercase();
        aliases.map_or(word == split.to_ascii_lowercase(), |aliases| aliases.contains(&word.as_str()))
    };
    name.split(|character: char| !character.is_alphanumeric() && character != '_').any(is_word)
        || name.split(|character: char| !character.is_alphanumeric()).any(is_word)
}

fn split_of(name: &str) -> Option<&str> {
    let known = || ALIASES.iter().map(|(split, _)| *split).find(|split| is_of(name, split));
    shard(name).or_else(known)
}

/// Fails if a shard is missing. This happens where a download was cut short and the hub cannot be reached now.
fn complete(files: &[String]) -> Result<(), String> {
    let expected = files.iter().filter_map(|name| shard_count(name)).max();
    match expected {
        Some(expected) if files.len() < expected => Err(format!(
            "only {} of its {expected} files are there: {}; fetch the others first",
            files.len(),
            files.join(", ")
        )),
        _ => Ok(()),
    }
}

/// Where datasets come from.
pub(super) struct Hub {
    cache: Cache,
    endpoint: Option<String>,
    token: Option<String>,
    is_offline: bool,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()));
        let token = set("HF_TOKEN").or_else(|| cache.token());
        let is_offline = set("HF_HUB_OFFLINE").is_some_and(|value| value != "0");
        Hub { cache, endpoint: set("HF_ENDPOINT"), token, is_offline }
    }

    /// A dataset's files on this machine, which are fetched if they are not there.
    pub fn files(&self, dataset: &Dataset) -> Result<Vec<PathBuf>, String> {
        let repo = Repo::with_revision(dataset.id.clone(), RepoType::Dataset, dataset.revision.clone());
        let unreachable = if self.is_offline {
            "HF_HUB_OFFLINE is set".to_string()
        } else {
            match self.fetched(dataset, &repo) {
                Ok(files) => return files,
                Err(cause) => cause,
            }
        };
        let Some(snapshot) = self.snapshot(&repo) else {
            let place = self.cache.path().display();
            return Err(format!(
                "the hub cannot be reached ({unreachable}), and the cache {place} does not have it; fetch it where \
                 there is a network (`hf download --repo-type dataset {}`), or give a file",
                dataset.id
            ));
        };
        let names = names_below(&snapshot).map_err(|cause| cause.to_string())?;
        let chosen = dataset
            .choose(&names)
            .map_err(|cause| format!("{cause} (in the cache; the hub cannot be reached: {unreachable})"))?;
        Ok(chosen.into_iter().map(|name| snapshot.join(name)).collect())
    }

    /// Through the hub. The outer error says that it cannot be reached, the inner one that it lacks what is asked for.
    fn fetched(&self, dataset: &Dataset, repo: &Repo) -> Result<Result<Vec<PathBuf>, String>, String> {
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_progress(false).with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|error| error.to_string())?.repo(repo.clone());
        let listed = api.info().map_err(|error| error.to_string())?;
        let names: Vec<String> = listed.siblings.into_iter().map(|file| file.rfilename).collect();
        let chosen = match dataset.choose(&names) {
            Ok(chosen) => chosen,
            Err(cause) => return Ok(Err(cause)),
        };
        let get = |name: &String| api.get(name).map_err(|error| format!("{name}: {error}"));
        Ok(Ok(chosen.iter().map(get).collect::<Result<_, String>>()?))
    }

    /// The folder of the revision in the cache.
    fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        let folder = self.cache.path().join(repo.folder_name());
        let named = std::fs::read_to_string(folder.join("refs").join(repo.revision())).ok();
        let commit = named.map_or_else(|| repo.revision().to_string(), |commit| commit.trim().to_string());
        Some(folder.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir())
    }
}

/// The files below a folder, by their paths from it.
fn names_below(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = vec![folder.to_path_buf()];
    while let Some(place) = rest.pop() {
        for entry in std::fs::read_dir(place)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path);
            } else if let Ok(name) = path.strip_prefix(folder) {
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

/// The files of the dataset that `path` names. `None` if it names none. Within one process a dataset stays what it was
/// when it was first asked for.
pub(super) fn files(path: &str) -> Option<Result<Vec<PathBuf>, DataError>> {
    static KNOWN: Mutex<BTreeMap<String, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());
    let dataset = Dataset::parse(path)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(files) = known.get(path) {
        return Some(Ok(files.clone()));
    }
    let files = Hub::from_env().files(&dataset);
    if let Ok(files) = &files {
        known.insert(path.to_string(), files.clone());
    }
    Some(files.map_err(|cause| DataError::Hub { path: path.to_string(), cause }))
}

#[cfg(test)]
mod tests;
