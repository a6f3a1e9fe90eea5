//! Where rows come from: Parquet, gzip, folders.

mod common;

use arriero_buffers::Message;
use arriero_data::{DataConfig, DataError, Entry, Row};
use common::open_all;

fn fixture(name: &str) -> DataConfig {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    DataConfig { path, shuffle: false, ..DataConfig::default() }
}

fn expected(number: u64) -> Row {
    let says = |content: &str| vec![Message::assistant(content)];
    Row::Preference {
        prompt: vec![Message::user(format!("Number {number}?"))],
        chosen: says(&format!("It is {number}: ñ.")),
        rejected: says("No."),
        edited: None,
        strength: None,
        margin: number.is_multiple_of(2).then_some(number as f64 / 2.0),
    }
}

#[test]
fn nested_parquet_is_read_as_it_was_written() {
    for name in ["conversations.parquet", "zstd.parquet", "conversations.parquet.gz"] {
        let entries = open_all(&fixture(name)).expect("read");
        assert_eq!(entries.len(), 10, "{name}");
        for (entry, number) in entries.iter().zip(0..) {
            assert_eq!((&entry.row, entry.number), (&expected(number), number + 1), "{name}");
        }
    }
}

#[test]
fn bytes_in_parquet_are_text_or_refused() {
    let mut rows = fixture("bytes.parquet").open(1).expect("opened");
    for text in ["abc", "ñ"] {
        let entry = rows.next().expect("a row").expect("it can be read");
        assert_eq!(
            entry.row,
            Row::Prompt { messages: vec![Message::user(text)], checks: serde_json::Value::Null }
        );
    }
    let error = rows.next().expect("a row").expect_err("no text").to_string();
    assert!(error.contains("bytes.parquet:3: `prompt` is bytes that are no text"), "{error}");
}

#[test]
fn parquet_is_shuffled_by_the_seed_and_long_rows_are_refused() {
    let order = |seed: u64| -> Vec<u64> {
        let config = DataConfig { shuffle: true, ..fixture("conversations.parquet") };
        let rows = config.open(seed).expect("opened");
        rows.map(|entry| entry.expect("a row").number).collect()
    };
    let (first, other) = (order(1), order(2));
    assert_eq!(first, order(1));
    assert_ne!(first, other);
    let mut sorted = first.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=10).collect::<Vec<_>>());

    let short = DataConfig { max_row_bytes: 40, ..fixture("conversations.parquet") };
    let error = open_all(&short).expect_err("too long").to_string();
    assert!(error.contains("conversations.parquet:1: the row has"), "{error}");
}

#[test]
fn a_folder_is_all_of_its_files_in_order_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |from: &str, to: &str| {
        std::fs::copy(fixture(from).path, folder.path().join(to)).expect("copied");
    };
    copy("zstd.parquet", "b.parquet");
    std::fs::write(
        folder.path().join("a.jsonl"),
        "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n",
    )
    .expect("written");
    std::fs::write(folder.path().join("README.md"), "no rows").expect("written");
    let config =
        DataConfig { path: folder.path().display().to_string(), shuffle: false, ..DataConfig::default() };
    let entries: Vec<Entry> = open_all(&config).expect("read");
    assert_eq!(entries.len(), 11);
    assert!(entries[0].file.ends_with("a.jsonl") && entries[1].file.ends_with("b.parquet"));
}

#[test]
fn one_json_list_is_as_good_as_lines() {
    let list = r#" [ {"prompt": "a, ] \" {", "completion": "b\\"},
        {"prompt": "c", "completion": "d"} , 7, {"prompt": "e" ,"completion": "f"}, {"prompt"#;
    let (_folder, path) = common::file(list);
    for shuffle in [false, true] {
        let config = DataConfig {
            path: path.clone(),
            shuffle,
            on_error: arriero_data::OnError::Skip,
            max_skipped: 0.5,
            ..DataConfig::default()
        };
        let mut rows = config.open(1).expect("opened");
        let mut texts: Vec<(u64, String)> = rows
            .by_ref()
            .map(|entry| entry.expect("a row"))
            .map(|entry| (entry.number, entry.row.prompt().expect("a prompt")[0].content.clone()))
            .collect();
        texts.sort();
        assert_eq!(texts, [(1, "a, ] \" {".to_string()), (2, "c".into()), (4, "e".into())]);
        assert_eq!(rows.counts().skipped, [("broken_json", 2)].into());
    }
    let config = DataConfig { path, max_row_bytes: 30, ..DataConfig::default() };
    let error = open_all(&config).expect_err("too long").to_string();
    assert!(error.contains("rows.jsonl:1: the row has 44 bytes"), "{error}");
}

#[test]
fn a_broken_parquet_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.parquet");
    let whole = std::fs::read(fixture("zstd.parquet").path).expect("read");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    let config = DataConfig { path: path.display().to_string(), ..DataConfig::default() };
    let error = open_all(&config).expect_err("cut short");
    assert!(matches!(error, DataError::Unreadable { .. }), "{error}");
    assert!(
        error.to_string().contains("cut.parquet cannot be read: it is no readable Parquet file"),
        "{error}"
    );
}
