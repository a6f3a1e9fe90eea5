//! Nothing of a reward's program outlives us, whatever it has started and however we end.
//!
//! An executable of its own, since it is the keeper of its programs: `main` runs the tests one after the other.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use arriero_buffers::{Completion, Finish, Group, Message, Prompt};
use arriero_reward::scorer::program::keeper::keep_if_asked;
use arriero_reward::{RewardConfig, Scorer};
use serde_json::{Value, json};

/// Names the script of a process that only scores.
const SCORE: &str = "ARRIERO_TEST_SCORE";

fn main() -> ExitCode {
    if let Some(code) = keep_if_asked() {
        return code;
    }
    if let Ok(script) = std::env::var(SCORE) {
        score_and_wait(&script);
    }
    let tests: &[(&str, fn())] = &[
        ("daemons_end_with_a_good_end", daemons_end_with_a_good_end),
        ("daemons_end_with_a_program_that_hangs", daemons_end_with_a_program_that_hangs),
        ("daemons_end_with_their_program", daemons_end_with_their_program),
        ("nothing_outlives_us_whatever_ends_us", nothing_outlives_us_whatever_ends_us),
        ("ends_are_told_as_they_were", ends_are_told_as_they_were),
    ];
    if !cfg!(target_os = "linux") || Command::new("setsid").arg("true").status().is_err() {
        println!("skipped: this needs Linux and setsid");
        return ExitCode::SUCCESS;
    }
    for (name, test) in tests {
        println!("test {name}");
        test();
    }
    ExitCode::SUCCESS
}

fn scorer(script: &str) -> Box<dyn Scorer> {
    let config = json!({"kind": "program", "command": ["sh", "-c", script], "timeout": 20.0, "restarts": 0});
    serde_json::from_value::<RewardConfig>(config).expect("a reward").build().expect("it is valid")
}

fn group() -> Group {
    let completion = Completion::given(0, vec![1], "a", Finish::EndOfTurn);
    let prompt = Prompt { id: 7, messages: vec![Message::user("hi")], checks: Value::Null };
    Group { prompt: prompt.into(), prompt_tokens: vec![1], completions: vec![completion] }
}

/// Starts a process in its group, one with a session of its own, and one of these that nobody waits for, which keeps
/// the program's output open; writes their numbers into a file. Then it answers.
fn script(numbers: &Path, then: &str) -> String {
    format!(
        "exec 9>'{0}'; sleep 1000 & echo $! >&9
         setsid sleep 1000 & echo $! >&9
         (setsid sh -c 'echo $$ >&9; exec 9>&-; sleep 1000; true' &) ; sleep 0.3; echo $$ >&9; exec 9>&-
         while IFS= read -r line; do id=${{line#*\\\"id\\\":}}; id=${{id%%[,\\}}]*}}
         echo \"{{\\\"id\\\":$id,\\\"reward\\\":1}}\"; {then}; done; {then}",
        numbers.display()
    )
}

fn numbers(file: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[track_caller]
fn assert_gone(file: &Path) {
    let pids = numbers(file);
    assert_eq!(pids.len(), 4, "the program has started all");
    let deadline = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|&pid| is_alive(pid)) {
        assert!(
            Instant::now() < deadline,
            "alive: {:?}",
            pids.iter().filter(|&&pid| is_alive(pid)).collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("numbers");
    (folder, file)
}

fn daemons_end_with_a_good_end() {
    let (_folder, file) = file();
    let mut scorer = scorer(&script(&file, "true"));
    assert_eq!(scorer.score(&group()).expect("a score")[0].reward, 1.0);
    assert!(numbers(&file).iter().all(|&pid| is_alive(pid)), "{:?}", numbers(&file));
    drop(scorer);
    assert_gone(&file);
}

/// It does not end with its input.
fn daemons_end_with_a_program_that_hangs() {
    let (_folder, file) = file();
    let mut scorer = scorer(&script(&file, "sleep 1000"));
    assert_eq!(scorer.score(&group()).expect("a score")[0].reward, 1.0);
    drop(scorer);
    assert_gone(&file);
}

/// They hold its output open, and end all the same.
fn daemons_end_with_their_program() {
    let (_folder, file) = file();
    let mut scorer = scorer(&script(&file, "exit 0"));
    assert_eq!(scorer.score(&group()).expect("a score")[0].reward, 1.0);
    assert_gone(&file);
    let error = scorer.score(&group()).expect_err("it has ended").to_string();
    assert!(error.contains("the program ended (exit status: 0)"), "{error}");
}

/// What [`nothing_outlives_us_whatever_ends_us`] ends.
fn score_and_wait(script: &str) -> ! {
    let mut scorer = scorer(script);
    scorer.score(&group()).expect("a score");
    println!("scored");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn nothing_outlives_us_whatever_ends_us() {
    for (signal, then) in [("INT", "true"), ("TERM", "sleep 1000"), ("HUP", "true"), ("KILL", "sleep 1000")] {
        let (_folder, file) = file();
        let mut child = Command::new(std::env::current_exe().expect("our file"))
            .env(SCORE, script(&file, then))
            .stdout(Stdio::piped())
            .spawn()
            .expect("this very program");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
        assert_eq!(line, "scored\n");
        let killed = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(killed.expect("kill").success());
        child.wait().expect("it has ended");
        assert_gone(&file);
    }
}

fn ends_are_told_as_they_were() {
    for (script, expected) in [
        (
            "read line; echo oh no >&2; exit 3",
            "the program ended (exit status: 3) and left 1 lines unanswered; the end of its stderr:\noh no",
        ),
        ("read line; kill -9 $$", "the program ended (signal: 9 (SIGKILL))"),
        ("read line; kill -TERM $$", "the program ended (signal: 15 (SIGTERM))"),
        ("exec /dev/null", "the program ended (exit status: 12"),
        ("exec >&-; sleep 1000", "the program closed its output and left 1 lines unanswered"),
    ] {
        let error = scorer(script).score(&group()).expect_err("no answer").to_string();
        assert!(error.contains(expected), "{script}: {error}");
    }
    let (_folder, path) = file();
    std::fs::write(&path, "no program").expect("a file");
    let config = json!({"kind": "program", "command": [path], "restarts": 0});
    let mut scorer =
        serde_json::from_value::<RewardConfig>(config).expect("a reward").build().expect("a file");
    let error = scorer.score(&group()).expect_err("no program").to_string();
    assert!(error.contains("cannot be started: Permission denied"), "{error}");
}
