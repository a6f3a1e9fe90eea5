//! Runs whose reward comes from somebody else: a program that answers, refuses, or hangs.

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arriero_results::Status;
use support::Workplace;

/// The tiny experiment with a program of the shell's; `answer` is what it does with a line, whose `id` is known.
fn set(workplace: &Workplace, answer: &str, options: &str) -> Vec<String> {
    let file = workplace.path().join("reward.sh");
    let script =
        format!("while IFS= read -r line; do id=${{line#*\\\"id\\\":}}; id=${{id%%,*}}\n{answer}\ndone");
    fs::write(&file, script).expect("written");
    let command = format!("command = [\"sh\", '{}']", file.display());
    vec![format!("reward={{ kind = \"program\", {command}, {options} }}")]
}

const LENGTH: &str = r#"echo "{\"id\":$id,\"reward\":${#line},\"components\":{\"half\":0.5}}""#;

#[test]
fn a_program_rewards_a_run_and_its_components_are_metrics() {
    let workplace = Workplace::new();
    let plan = workplace.plan(&set(&workplace, LENGTH, "timeout = 30"));
    assert!(plan.resolved.contains("on_error = \"stop\""), "{}", plan.resolved);
    let summary = workplace.run(plan, Vec::new()).expect("it runs");
    assert_eq!(summary.status, Status::Completed);
    assert!(summary.arms[0].before.reward.expect("it was asked about held-out answers, too").value > 10.0);
    let lines = fs::read_to_string(workplace.runs().join("tiny/sft/5/metrics.jsonl")).expect("metrics");
    assert!(lines.contains("\"rewards/half/mean\":0.5"), "{lines}");
}

/// Every tenth completion is refused.
#[test]
fn completions_without_a_score_stop_a_run_or_are_left_out_up_to_a_share() {
    let refuse =
        format!("case $id in *3) echo \"{{\\\"id\\\":$id,\\\"error\\\":\\\"odd\\\"}}\";; *) {LENGTH};; esac");
    let run = |options: &str| {
        let workplace = Workplace::new();
        let plan = workplace.plan(&set(&workplace, &refuse, options));
        let (result, notes) = workplace.run_seen(plan, Vec::new());
        let lines = fs::read_to_string(workplace.runs().join("tiny/sft/5/metrics.jsonl")).expect("metrics");
        (result, notes, lines)
    };
    let (result, ..) = run("timeout = 30");
    let error = result.expect_err("it stops").to_string();
    assert!(error.contains("sample 0: the program says that it cannot: \"odd\""), "{error}");

    let (result, notes, lines) = run("on_error = \"skip\", max_skipped = 0.2");
    let summary = result.expect("a tenth may be left out");
    let left_out = notes.iter().filter(|note| note.contains("left out: prompt ")).count();
    // 12 held-out answers and 64 samples, by two processes that count from 0.
    assert_eq!((summary.status, left_out), (Status::Completed, 1 + 7), "{notes:?}");
    assert!(lines.contains("\"completions/reward_not_finite\":7"), "{lines}");
    assert!(summary.arms[0].before.reward.expect("of the five others").value > 10.0);

    let (result, ..) = run("on_error = \"skip\", max_skipped = 0.01");
    let error = result.expect_err("too many").to_string();
    assert!(error.contains("1 of 6 completions could not be scored, more than the share of 0.01"), "{error}");
}

/// Either may be the one that waits: the evaluator, who asks first, or the reward worker.
#[test]
fn ctrl_c_ends_a_run_whose_reward_hangs() {
    for hangs in ["first", "second"] {
        let workplace = Workplace::new();
        let (asked, begun) = (workplace.path().join("asked"), workplace.path().join("begun"));
        let answer = format!(
            "[ $who ] || {{ mkdir '{}' 2>/dev/null && who=first || who=second; }}\n\
             [ $who = {hangs} ] && {{ echo > '{}'; sleep 1000; }} || {LENGTH}",
            begun.display(),
            asked.display()
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_arriero"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["run", "tests/fixtures/experiments/tiny.toml", "--runs"])
            .arg(workplace.runs())
            .args(["--set", &set(&workplace, &answer, "timeout = 900")[0]])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        while !asked.exists() {
            assert!(child.try_wait().expect("it can be waited for").is_none(), "it ended before it asked");
            std::thread::sleep(Duration::from_millis(20));
        }
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
        let began = Instant::now();
        while child.try_wait().expect("it can be waited for").is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                child.kill().expect("killed");
                panic!("the {hangs} one hangs");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(child.wait().expect("it ended").code(), Some(130));
        let summary = fs::read_to_string(workplace.runs().join("tiny/summary.json")).expect("a summary");
        assert!(summary.contains("\"interrupted\""), "{summary}");
    }
}
