//! The program from outside: what a run leaves, how it ends on ctrl-c, what it serves, generates and scores.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arriero_store::RunReader;
use support::{Workplace, arriero, refusal, run};

#[test]
fn a_run_leaves_what_the_design_says() {
    let workplace = Workplace::new();
    let output = run(&workplace, &["algorithm.kind=dpo"]).output().expect("it starts");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for row in
        ["prompt accuracy", "mean reward", "KL to reference", "tokens sampled", "tokens trained", "seconds"]
    {
        assert!(table.contains(row), "{table}");
    }
    let run_folder = workplace.runs().join("tiny");
    let arm = run_folder.join("dpo/5");
    for name in ["experiment.toml", "run.db", "metrics.jsonl", "summary.json", "tensorboard", "checkpoints"] {
        assert!(arm.join(name).exists(), "{name} is missing");
    }
    let lines = fs::read_to_string(arm.join("metrics.jsonl")).expect("metrics");
    let rows: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(rows.iter().all(|row| row["arm"] == "dpo" && row["stage"].is_string() && row["step"].is_u64()));
    let steps: Vec<&serde_json::Value> = rows.iter().filter(|row| row["stage"] == "dpo").collect();
    assert!(!steps.is_empty());
    for name in ["loss", "rewards/chosen", "rewards/margins", "logps/rejected", "grad_norm", "learning_rate"]
    {
        assert!(steps.iter().all(|row| row[name].is_number()), "{name} is missing");
    }
    // Sampler and trainer have the same weights on the first step.
    let first = steps[0]["behaviour_logp_difference/max"].as_f64().expect("a number");
    assert!(first < 1e-4, "the sampler's log-probabilities are off by {first}");
    assert!(steps.iter().all(|row| row["behaviour_logp_difference/p99.9"].is_number()));

    let store = RunReader::open(&run_folder).and_then(|run| run.arm("dpo", 5)).expect("the store");
    let events: Vec<String> =
        store.events().expect("events").into_iter().map(|event| event.record.message).collect();
    let phases =
        ["baseline", "sampling of dpo, round 1", "reference", "training", "evaluation", "checkpoint"];
    assert_eq!(events.len(), phases.len(), "{events:?}");
    assert!(events.iter().zip(phases).all(|(event, phase)| event.starts_with(phase)), "{events:?}");

    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(run_folder.join("summary.json")).expect("a summary"))
            .expect("JSON");
    assert_eq!(summary["status"], "completed");
    assert_eq!(summary["arms"][0]["arm"], "dpo");
    let checkpoint = summary["arms"][0]["checkpoint"].as_str().expect("a path").to_string();

    // The resolved experiment is a whole experiment: it runs, and samples and learns the same.
    let mut again = arriero();
    again
        .arg("run")
        .arg(run_folder.join("experiment.toml"))
        .arg("--runs")
        .arg(workplace.path().join("again"));
    assert!(again.output().expect("it starts").status.success());
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).expect("weights");
    let step = Path::new(&checkpoint).file_name().expect("a name").to_os_string();
    let repeated = workplace.path().join("again/tiny/dpo/5/checkpoints").join(step);
    assert!(weights(&repeated) == weights(Path::new(&checkpoint)));

    // A checkpoint is a model like any other.
    let output = arriero()
        .args(["generate", "--prompt", "Hi", "--max-new-tokens", "4", "--model", &checkpoint])
        .output();
    assert!(output.expect("it starts").status.success());
}

/// A run that would take minutes, once it has trained a little.
fn long_run(workplace: &Workplace, metrics: Option<&str>) -> std::process::Child {
    let mut command = run(workplace, &["rounds=200", "prompts.train=3200", "algorithm.learning_rate=1e-4"]);
    if let Some(address) = metrics {
        command.args(["--metrics", address]);
    }
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let began = Instant::now();
    while !lines.next().expect("it goes on").expect("text").contains("sft training, round 2") {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not get to round 2");
    }
    // Nobody reads on: the pipe must stay open all the same.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn ctrl_c_ends_a_run_with_everything_recorded() {
    let workplace = Workplace::new();
    let mut child = long_run(&workplace, None);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    let folder = workplace.runs().join("tiny");
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("summary.json")).expect("a summary"))
            .expect("JSON");
    assert_eq!(summary["status"], "interrupted");
    let arm = &summary["arms"][0];
    let steps = arm["steps"].as_u64().expect("a number");
    let checkpoint = arm["checkpoint"].as_str().expect("the weights were kept").to_string();
    assert!(steps >= 8 && checkpoint.ends_with(&format!("step-{steps}")), "{checkpoint} after {steps} steps");
    let state = fs::read_to_string(Path::new(&checkpoint).join("state.json")).expect("a state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    assert_eq!(state["step"], steps);
    let lines = fs::read_to_string(folder.join("sft/5/metrics.jsonl")).expect("metrics");
    let logged = lines.lines().filter(|line| line.contains("\"stage\":\"sft\"")).count() as u64;
    assert_eq!(logged, steps, "a step was not recorded");
}

/// Phases of a few milliseconds, interrupted at many moments: in all of them the run ends, and says how.
/// A terminal that is closed may hang up twice: the run ends all the same, with its weights kept.
#[test]
fn a_closed_terminal_ends_a_run_as_a_service_manager_does() {
    for (signal, name) in [("-HUP", "SIGHUP"), ("-TERM", "SIGTERM")] {
        let workplace = Workplace::new();
        let mut child = long_run(&workplace, None);
        let times = if signal == "-HUP" { 2 } else { 1 };
        for _ in 0..times {
            let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
            assert!(sent.success());
        }
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{name}");
        let summary = fs::read_to_string(workplace.runs().join("tiny/summary.json")).expect("a summary");
        let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
        assert_eq!((&summary["status"], &summary["cause"]), (&"interrupted".into(), &name.into()));
        assert!(summary["arms"][0]["checkpoint"].is_string(), "{name}: the weights were not kept");
    }
}

#[test]
fn ctrl_c_at_any_moment_ends_the_run() {
    for (index, delay) in (0..20).map(|index| (index, Duration::from_millis(100 + 83 * index))) {
        let workplace = Workplace::new();
        let mode: &[&str] =
            if index % 2 == 0 { &["mode=lockstep"] } else { &["mode=async", "max_staleness=9"] };
        let mut command = arriero();
        command
            .args(["run", "tests/fixtures/experiments/two-equal-arms.toml", "--runs"])
            .arg(workplace.runs());
        for assignment in mode {
            command.args(["--set", assignment]);
        }
        // One step a stage; the second arm comes soon.
        command.args(["--set", "rounds=3", "--set", "prompts.train=12", "--set", "prompts.held_out=40"]);
        let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(delay);
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                break status;
            }
            if began.elapsed() > Duration::from_secs(60) {
                child.kill().expect("killed");
                panic!("interrupted after {delay:?}, it hangs");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let summary = workplace.runs().join("two-equal-arms/summary.json");
        let Ok(text) = fs::read_to_string(summary) else {
            // Ctrl-c came before there was a run, by the signal itself, or with nothing left behind.
            assert!(status.code().is_none() || status.code() == Some(130), "{delay:?}: {status}");
            continue;
        };
        let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let arms: Vec<&str> = summary["arms"]
            .as_array()
            .expect("arms")
            .iter()
            .map(|arm| arm["arm"].as_str().expect("a name"))
            .collect();
        assert!(["first", "second"].starts_with(&arms), "{delay:?}: {arms:?}");
        for arm in summary["arms"].as_array().expect("arms") {
            // A step that was in progress counts with its tokens.
            assert_eq!(arm["steps"] == 0, arm["tokens_trained"] == 0, "{delay:?}: {arm}");
        }
        match status.code() {
            Some(130) => assert_eq!(summary["status"], "interrupted", "{delay:?}"),
            Some(0) => assert_eq!(summary["status"], "completed", "{delay:?}"),
            other => panic!("{delay:?}: exit code {other:?}"),
        }
    }
}

#[test]
fn prometheus_gets_every_metric() {
    let workplace = Workplace::new();
    let address =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let mut child = long_run(&workplace, Some(&address));
    let mut page = String::new();
    let mut stream = TcpStream::connect(&address).expect("it serves");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    stream.read_to_string(&mut page).expect("read");
    child.kill().expect("killed");
    child.wait().expect("it ends");
    for name in [
        "arriero_loss{arm=\"sft\",stage=\"sft\"}",
        "arriero_grad_norm{",
        "arriero_reward{arm=\"sft\",stage=\"rejection_sampling\"}",
        "arriero_held_out_reward{arm=\"sft\",stage=\"evaluation\"}",
    ] {
        assert!(page.contains(name), "{name} is missing:\n{page}");
    }
}

#[test]
fn generate_repeats_itself_under_a_seed_whatever_the_batch() {
    let workplace = Workplace::new();
    let prompts = workplace.path().join("prompts.jsonl");
    let lines: String =
        ["a cat", "a dog", "rain"].iter().map(|text| format!("{{\"prompt\": \"{text}\"}}\n")).collect();
    fs::write(&prompts, lines).expect("written");
    let rows = |batch: &str, seed: &str| {
        let output = workplace.path().join("out.jsonl");
        let mut command = arriero();
        command.args([
            "generate",
            "--model",
            "tests/fixtures/tiny",
            "--dtype",
            "f32",
            "--max-new-tokens",
            "8",
        ]);
        command.args(["--samples", "3", "--batch", batch, "--seed", seed, "--prompts"]).arg(&prompts);
        let status = command.arg("--output").arg(&output).status().expect("it starts");
        assert!(status.success());
        let text = fs::read_to_string(output).expect("rows");
        let mut rows: Vec<(u64, u64, String)> = text
            .lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).expect("an object a line");
                let number = |key: &str| row[key].as_u64().expect("a number");
                (number("prompt_id"), number("sample"), row["tokens"].to_string())
            })
            .collect();
        rows.sort();
        rows
    };
    let expected = rows("9", "1");
    assert_eq!(expected.len(), 9);
    assert_eq!(rows("3", "1"), expected);
    assert_ne!(rows("9", "2"), expected);
}

#[test]
fn a_server_says_where_it_is_and_ends_on_sigterm() {
    let said = refusal(&arriero().args(["serve", "--batch", "0"]).output().expect("it starts"));
    assert_eq!(said, "--batch is 0; it must be at least 1 and at most 65536");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let serve = |port: &str| {
        let mut command = arriero();
        command.args(["serve", "--model", "tests/fixtures/tiny", "--device", "cpu", "--port", port]);
        command
    };
    let said = refusal(&serve(&port).output().expect("it starts"));
    assert!(said.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{said}");

    let mut child = serve("0").stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("tiny on http://").unwrap_or_else(|| panic!("{line}")).to_string();
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(b"GET /v1/models HTTP/1.0\r\n\r\n").expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("200 OK") && answer.contains("\"id\":\"tiny\""), "{answer}");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn score_adds_rewards_and_names_bad_lines() {
    let workplace = Workplace::new();
    let folder = workplace.path();
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    let score = |arguments: &[&str]| {
        let mut command = arriero();
        command.args(["score", "--input"]).arg(&input).arg("--output").arg(&output).args(arguments);
        command.output().expect("it starts")
    };
    let good = "{\"prompt\": \"2+2?\", \"answer\": \"4\", \"completion\": \"It is 4.\"}\n";
    fs::write(&input, [good, "{\"completion\": \n", good].concat()).expect("it can be written");

    let stopped = refusal(&score(&["--reward", "math"]));
    assert!(stopped.contains("in.jsonl: line 2: broken JSON"), "{stopped}");
    assert!(!output.exists(), "half an output");

    let skipping = score(&["--reward", "math", "--on-error", "skip", "--max-skipped", "0.5"]);
    let said = String::from_utf8_lossy(&skipping.stderr).into_owned();
    assert!(skipping.status.success() && said.contains("in.jsonl:2: broken JSON"), "{said}");
    let rows: Vec<serde_json::Value> = fs::read_to_string(&output)
        .expect("it is there")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[0]["reward"], &rows[0]["components"]["correct"]), (&1.0.into(), &1.0.into()));

    let config = folder.join("reward.toml");
    let parts = "[[reward.parts]]\nweight = 2.0\nreward = { kind = \"math\" }\n";
    fs::write(&config, ["[reward]\nkind = \"composite\"\n", parts].concat()).expect("it can be written");
    fs::write(&input, good).expect("it can be written");
    let config = config.to_string_lossy().into_owned();
    let composite = score(&["--config", &config, "--set", "clip=[0.0, 1.5]"]);
    assert!(composite.status.success(), "{}", String::from_utf8_lossy(&composite.stderr));
    assert!(fs::read_to_string(&output).expect("it is there").contains("\"reward\":1.5"));

    for (arguments, expected) in [
        (&["--reward", "maths"][..], "reward.kind is \"maths\"; the nearest is \"math\""),
        (&["--reward", "math", "--set", "tolerence=1"], "the nearest valid one is \"tolerance\""),
        (&["--reward", "regex"], "pattern is \"\""),
        (&["--reward", "json"], ""),
    ] {
        let output = score(arguments);
        if expected.is_empty() {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        } else {
            let said = refusal(&output);
            assert!(said.contains(expected), "{said}");
        }
    }
}

/// A reward model whose head is `value` everywhere.
fn reward_model_of(workplace: &Workplace, value: f32) -> std::path::PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy/tests/vectors/reward_model");
    let to = workplace.path().join("reward_model");
    fs::create_dir(&to).expect("a folder");
    for file in fs::read_dir(&from).expect("the model") {
        let file = file.expect("a file");
        fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
    // The length of the header, the header, and behind it the tensors at its offsets.
    let weights = to.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let offsets = &header["score.weight"]["data_offsets"];
    let at = |end: usize| 8 + length + offsets[end].as_u64().expect("a number") as usize;
    for number in bytes[at(0)..at(1)].chunks_exact_mut(4) {
        number.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(&weights, bytes).expect("written");
    to
}

/// Completions whose rewards are no numbers are left out and counted; where none is left, nothing is trained on.
#[test]
fn rewards_that_are_not_finite_are_counted_and_not_trained_on() {
    for (value, kind) in [(f32::NAN, "grpo"), (f32::INFINITY, "sft")] {
        let workplace = Workplace::new();
        let model = reward_model_of(&workplace, value);
        let set = [
            "reward={ kind = \"reward_model\", device = \"cpu\", dtype = \"f32\" }".to_string(),
            format!("reward.path={}", model.display()),
            format!("algorithm.kind={kind}"),
        ];
        let output = run(&workplace, &set.each_ref().map(String::as_str)).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains(
                "no group of this round is of use, so there is nothing to train on (no_usable_completion: 16)"
            ),
            "{said}"
        );
        let lines = fs::read_to_string(workplace.runs().join(format!("tiny/{kind}/5/metrics.jsonl")))
            .expect("metrics");
        let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let sampling = rows.into_iter().find(|row| row["stage"] == "rejection_sampling").expect("a phase");
        assert_eq!(sampling["completions/reward_not_finite"], 64.0, "{sampling}");
    }
}
