use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| name.to_string()).collect()
}

fn dataset(path: &str) -> Dataset {
    Dataset::parse(path).unwrap_or_else(|| panic!("{path} names a dataset"))
}

#[test]
fn names_are_told_from_paths() {
    let whole = dataset("hf://openai/gsm8k/main@refs/convert/parquet:test");
    assert_eq!((&*whole.id, &*whole.folder), ("openai/gsm8k", "main"));
    assert_eq!((&*whole.revision, whole.split.as_deref()), ("refs/convert/parquet", Some("test")));
    let short = dataset("openai/gsm8k");
    assert_eq!((&*short.id, &*short.revision, short.split), ("openai/gsm8k", "main", None));
    assert_eq!(dataset("hf://squad").id, "squad");
    for path in ["rows", "data/rows.jsonl", "a/b/c", "./a/b", "../rows", "/a/b", "hf://", "a/b:", "a b/c"] {
        assert_eq!(Dataset::parse(path), None, "{path}");
    }
}

#[test]
fn files_of_a_split_are_chosen() {
    let gsm8k = names(&[
        "README.md",
        "main/test-00000-of-00001.parquet",
        "main/train-00000-of-00001.parquet",
        "socratic/test-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ]);
    let chosen = |path: &str, names: &[String]| dataset(path).choose(names);
    assert_eq!(chosen("hf://o/gsm8k/main", &gsm8k), Ok(names(&["main/train-00000-of-00001.parquet"])));
    let error = chosen("o/gsm8k:test", &gsm8k).expect_err("two configurations");
    assert!(error.contains("main, socratic; name one, as in hf://o/gsm8k/main"), "{error}");
    let error = chosen("hf://o/gsm8k/main:dev", &gsm8k).expect_err("no such split");
    assert_eq!(error, "it has no split \"dev\"; it has test, train");

    let ultra = names(&[
        "data/train_gen-00000-of-00001.parquet",
        "data/train_sft-00000-of-00002-a1.parquet",
        "data/train_sft-00001-of-00002-b2.parquet",
        "dataset_infos.json",
    ]);
    assert_eq!(chosen("o/ultra:train_sft", &ultra), Ok(ultra[1..3].to_vec()));
    let error = chosen("o/ultra:train_sft", &ultra[..2]).expect_err("a shard is missing");
    assert!(error.starts_with("only 1 of its 2 files are there"), "{error}");

    let plain = names(&["train.jsonl.gz", "dev.jsonl.gz"]);
    assert_eq!(chosen("o/plain", &plain), Ok(names(&["train.jsonl.gz"])));
    assert_eq!(chosen("o/plain:validation", &plain), Ok(names(&["dev.jsonl.gz"])));
    let nameless = names(&["rows.jsonl"]);
    assert_eq!(chosen("o/plain", &nameless), Ok(nameless.clone()));
    assert!(chosen("o/plain", &names(&["pickle.bin"])).expect_err("no rows").contains("no files"));
}

const ROWS: &str = "{\"prompt\": \"Sky?\", \"completion\": \"Blue.\"}\n";

/// Answers as the hub does for a dataset `o/sky` of one file, until the test ends.
fn serve(listener: TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        // One answer a connection: the client keeps several.
        answer(&mut BufReader::new(stream));
    }
}

fn answer(reader: &mut BufReader<TcpStream>) -> Option<()> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&length| length > 0)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("range: bytes=") {
            range = value.split_once('-').map(|(from, to)| (from.parse().unwrap_or(0), to.parse().ok()));
        }
        if line.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1)?;
    let (status, headers, body) = if path.starts_with("/api/datasets/o/sky") {
        (
            "200 OK",
            String::new(),
            "{\"sha\": \"abc\", \"siblings\": [{\"rfilename\": \"train.jsonl\"}]}".to_string(),
        )
    } else if path == "/datasets/o/sky/resolve/main/train.jsonl" {
        let (from, to): (usize, Option<usize>) = range.unwrap_or((0, None));
        let to = to.map_or(ROWS.len(), |to| (to + 1).min(ROWS.len()));
        let headers = format!(
            "x-repo-commit: abc\r\netag: \"e1\"\r\ncontent-range: bytes {from}-{}/{}\r\n",
            to - 1,
            ROWS.len()
        );
        ("206 Partial Content", headers, ROWS[from..to].to_string())
    } else {
        ("404 Not Found", String::new(), "no such thing".to_string())
    };
    let length = body.len();
    write!(
        reader.get_mut(),
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}\r\n{body}"
    )
    .ok()
}

#[test]
fn a_dataset_is_fetched_once_and_then_found_without_a_network() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || serve(listener));
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::new(folder.path().to_path_buf());
    let hub = Hub { cache: cache.clone(), endpoint: Some(endpoint.clone()), token: None, is_offline: false };
    let files = hub.files(&dataset("o/sky")).expect("fetched");
    assert_eq!(std::fs::read_to_string(&files[0]).expect("a file"), ROWS);

    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let gone = Hub {
        endpoint: Some(format!("http://{nobody}")),
        cache: cache.clone(),
        token: None,
        is_offline: false,
    };
    let offline = Hub { endpoint: None, cache, token: None, is_offline: true };
    for hub in [gone, offline] {
        assert_eq!(hub.files(&dataset("o/sky")).expect("cached").len(), 1);
        let error = hub.files(&dataset("o/sea")).expect_err("not cached");
        assert!(error.starts_with("the hub cannot be reached"), "{error}");
        assert!(error.contains("hf download --repo-type dataset o/sea"), "{error}");
    }
    let error = hub.files(&dataset("o/sea")).expect_err("unknown");
    assert!(error.contains("404"), "{error}");
}
