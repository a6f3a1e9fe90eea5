//! The program from outside: what it says of wrong input, how it ends on ctrl-c, what it serves.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{Workplace, fixture};

fn arriero() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arriero"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// `arriero run` of the tiny experiment with `set` on top of it.
fn run(workplace: &Workplace, set: &[&str]) -> Command {
    let mut command = arriero();
    command.args(["run", "tests/fixtures/experiments/tiny.toml", "--runs"]).arg(workplace.runs());
    for assignment in set {
        command.args(["--set", assignment]);
    }
    command
}

/// The one line of an error of wrong input.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let [line] = lines[..] else { panic!("expected one line, found:\n{text}") };
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("no error: {line}")).to_string()
}

/// Runs it, and checks that it was refused, that nothing was written, and what was said.
fn assert_refused(set: &[&str], expected: &str) {
    let workplace = Workplace::new();
    let said = refusal(&run(&workplace, set).output().expect("it starts"));
    assert!(said.contains(expected), "expected …{expected}…, found: {said}");
    assert!(!workplace.runs().exists(), "something was written: {said}");
}

#[test]
fn wrong_keys_and_values_are_refused_with_the_nearest_valid_one() {
    for (set, expected) in [
        (
            "algorithm.learning_rat=1",
            "--set algorithm.learning_rat=1: unknown key algorithm.learning_rat; the nearest valid one is \
             \"learning_rate\" (all: ",
        ),
        ("sead=1", "unknown key sead; the nearest valid one is \"seed\""),
        ("algorithm.kind=dpu", "algorithm.kind is \"dpu\"; the nearest is \"dpo\" (all: sft, dpo, "),
        ("algorithm.beta=0.1", "algorithm.beta is an option of \"dpo\", "),
        (
            "algorithm.nll_coefficient=0.1",
            "algorithm.nll_coefficient is an option of \"dpo\", \"simpo\", \"cpo\", \"online_dpo\" alone; remove it, or change kind",
        ),
        (
            "algorithm.learning_rate=fast",
            "algorithm.learning_rate is wrong: string \"fast\", expected a number",
        ),
        (
            "generator.samples=-1",
            "generator.samples is wrong: integer `-1`, expected a whole number of at least 0",
        ),
        (
            "queues.capacity=99999999999",
            "queues.capacity is 99999999999; it must be at least 1 and at most 65536",
        ),
        ("generator.samples=0", "generator.samples is 0; it must be at least 1 and at most 65536"),
        ("generator.top_p=1.5", "generator.top_p is 1.5; it must be above 0 and at most 1"),
        (
            "algorithm={ kind = \"dpo\", beta = \"x\" }",
            "algorithm.beta is wrong: string \"x\", expected a number",
        ),
        ("reward.text=7", "reward.text is wrong: integer `7`, expected a string"),
        (
            "prompts.train=many",
            "prompts.train is wrong: string \"many\", expected a whole number of at least 0",
        ),
        (
            "generator.temperature=1e-9",
            "generator.temperature is 0.000000001; it must be 0 (greedy) or from 0.01 to 100",
        ),
        ("algorithm.batch_size=0", "algorithm.batch_size is 0; it must be at least 1"),
        ("mode=asink", "mode is wrong: unknown variant `asink`, expected `lockstep` or `async`"),
        ("max_staleness=3", "max_staleness is an option of mode = \"async\""),
        ("model=7", "model is a number, expected a table [model]"),
        ("model.dtype=f16", "model.dtype is wrong: unknown variant `f16`"),
        ("model.device=gpu", "unknown device \"gpu\"; expected \"auto\", \"cpu\" or \"cuda:N\""),
        ("model.device=cuda:9", "device cuda:9 was asked for, but "),
        ("reward.kind=contain", "reward.kind is \"contain\"; the nearest is \"contains\""),
        ("prompts.train=0", "prompts.train is 0"),
        (
            "prompts.per_round=99",
            "prompts.per_round is 99, but 1 rounds of it must fit in the 16 training prompts",
        ),
        (
            "queues.buffer=3",
            "queues.buffer is 3, less than the 16 prompts of a round, or rows of a portion, that it must hold",
        ),
        ("name=a/b", "the run name \"a/b\" is not allowed"),
        ("seed", "--set seed: expected KEY=VALUE"),
        ("seed.x=1", "seed is a value, not a table"),
    ] {
        assert_refused(&[set], expected);
    }
    assert_refused(
        &["algorithm.kind=dpo", "generator.samples=1"],
        "\"dpo\" learns from pairs, but generator.samples is 1; set it to 2 or more",
    );
}

#[test]
fn broken_experiment_files_are_refused_with_their_line() {
    let workplace = Workplace::new();
    let file = workplace.path().join("broken.toml");
    for (text, expected) in [
        ("seed = \n", ":1: "),
        (
            "seed = 1\n[algorithm]\nkind = \"sft\"\nepoch = 2\n",
            ":4: unknown key algorithm.epoch; the nearest valid one is \"epochs\"",
        ),
        (
            "seed = 1\n[algorithm]\nkind = \"sft\"\nepochs = \"two\"\n",
            ":4: algorithm.epochs is wrong: string \"two\"",
        ),
        ("seed = 1\n", "algorithm is missing; add [algorithm] with a kind (sft, dpo, "),
        ("[[arm]]\nname = \"a\"\n", "arm.0.stage is missing"),
    ] {
        fs::write(&file, text).expect("written");
        let output = arriero().arg("run").arg(&file).arg("--runs").arg(workplace.runs()).output();
        let said = refusal(&output.expect("it starts"));
        assert!(said.contains("broken.toml") && said.contains(expected), "{said}");
    }
    let missing = arriero().args(["run", "no-such.toml"]).output().expect("it starts");
    assert!(refusal(&missing).starts_with("no-such.toml cannot be read: "));
    assert!(!workplace.runs().exists());
}

#[test]
fn wrong_models_are_refused() {
    let workplace = Workplace::new();
    let model = |name: &str| {
        let folder = workplace.path().join(name);
        fs::create_dir(&folder).expect("a folder");
        for entry in fs::read_dir(fixture("tiny")).expect("the fixture") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
        }
        folder
    };
    let refused = |path: &Path, expected: &str| {
        assert_refused(&[&format!("model.path={}", path.display())], expected);
        // `generate` says the same.
        let output = arriero().args(["generate", "--prompt", "x", "--model"]).arg(path).output();
        let said = refusal(&output.expect("it starts"));
        assert!(said.contains(expected), "{said}");
    };
    refused(&workplace.path().join("nowhere"), "there is no model at ");

    let cut = model("cut");
    let weights = fs::read(cut.join("model.safetensors")).expect("weights");
    fs::write(cut.join("model.safetensors"), &weights[..weights.len() / 2]).expect("cut");
    refused(&cut, "model.safetensors is broken: it should have");

    let foreign = model("foreign");
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;
    fs::write(foreign.join("tokenizer.json"), tokenizer).expect("replaced");
    refused(&foreign, "but the model's embedding has 320 rows: they do not belong together");
}

#[test]
fn wrong_teachers_are_refused() {
    assert_refused(
        &["algorithm.kind=distill"],
        "algorithm.teacher is missing; name a model of the policy's vocabulary",
    );
    let teacher =
        |path: &Path| format!("algorithm={{ kind = \"distill\", teacher = \"{}\" }}", path.display());
    let workplace = Workplace::new();
    let nowhere = workplace.path().join("nowhere");
    assert_refused(&[&teacher(&nowhere)], "nowhere; expected a Hugging Face directory");
    // A model of another family, with a vocabulary of its own.
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy/tests/vectors/families/qwen2");
    assert_refused(&[&teacher(&other)], "has another vocabulary than the policy: its ");
}

#[test]
fn what_samples_a_second_model_takes_no_dataset() {
    let workplace = Workplace::new();
    let rows = workplace.path().join("rows.jsonl");
    fs::write(&rows, "{\"prompt\": \"Hi\", \"completion\": \"Ho\"}\n").expect("written");
    let data = format!("data.path={}", rows.display());
    for (algorithm, expected) in [
        (
            "{ kind = \"xpo\" }",
            "\"xpo\" learns from the samples of a prompt, each beside one of the reference",
        ),
        ("{ kind = \"nash_md\" }", "\"nash_md\" learns from the samples of a prompt, each beside one"),
        (
            "{ kind = \"distill\", teacher = \"tests/fixtures/tiny\", loss = \"sampled_reverse_kl\" }",
            "\"distill\" learns from a group of samples of a prompt",
        ),
    ] {
        assert_refused(&[&format!("algorithm={algorithm}"), &data], expected);
    }
}

#[test]
fn wrong_prompts_are_refused() {
    let workplace = Workplace::new();
    let good = workplace.path().join("good.jsonl");
    fs::write(&good, "{\"prompt\": \"Hi\"}\n").expect("written");
    let file = workplace.path().join("prompts.jsonl");
    for (text, expected) in [
        (String::new(), "prompts.jsonl: the file holds no prompts"),
        ("\n\n".to_string(), "prompts.jsonl: the file holds no prompts"),
        ("{\"prompt\": \"Hi\"}\n{\"prompt\": 3}\n".to_string(), "prompts.jsonl:2: no prompt: invalid type"),
        ("{\"text\": \"Hi\"}\n".to_string(), "prompts.jsonl:1: no prompt: unknown field `text`"),
        ("{\"prompt\": \" \"}\n".to_string(), "prompts.jsonl:1: the prompt is empty"),
        (
            format!("{{\"prompt\": \"{}\"}}\n", "long ".repeat(300)),
            "but the model's context has 256, and an answer needs room",
        ),
        (
            "{\"prompt\": \"Hi\", \"checks\": {\"constraint\": []}}\n".to_string(),
            "prompt 0: its `checks` cannot be read",
        ),
    ] {
        fs::write(&file, text).expect("written");
        let set = [
            "prompts={ kind = \"file\" }".to_string(),
            format!("prompts.path={}", file.display()),
            format!("prompts.held_out_path={}", good.display()),
        ];
        assert_refused(&set.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
    let set = ["prompts={ kind = \"file\" }", &format!("prompts.path={}", good.display())];
    assert_refused(&set, "prompts.held_out_path is missing");
    let path = format!("prompts.path={}", good.display());
    let held_out = format!("prompts.held_out_path={}", good.display());
    assert_refused(
        &["prompts.kind=file", &path, &held_out],
        "is an option of \"instructions\", \"data\" alone; remove it, or change kind",
    );
}

#[test]
fn places_that_cannot_hold_a_run_are_refused() {
    let workplace = Workplace::new();
    let first = run(&workplace, &[]).output().expect("it starts");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let said = refusal(&run(&workplace, &[]).output().expect("it starts"));
    assert!(
        said.starts_with("the run \"tiny\" exists already in ") && said.contains("--set name=NAME"),
        "{said}"
    );

    let file = workplace.path().join("a-file");
    fs::write(&file, "").expect("written");
    let output =
        arriero().args(["run", "tests/fixtures/experiments/tiny.toml", "--runs"]).arg(&file).output();
    assert!(refusal(&output.expect("it starts")).contains("a-file is not a folder"));
    if cfg!(target_os = "linux") {
        let output =
            arriero().args(["run", "tests/fixtures/experiments/tiny.toml", "--runs", "/proc/runs"]).output();
        assert!(refusal(&output.expect("it starts")).contains("cannot be written to"));
    }

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let output = run(&workplace, &["name=other"]).args(["--metrics", &address]).output().expect("it starts");
    let said = refusal(&output);
    assert!(said.starts_with(&format!("metrics cannot be served on {address}")), "{said}");
    assert!(!workplace.runs().join("other").exists());
}

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

    let database = rusqlite::Connection::open(arm.join("run.db")).expect("the store");
    let mut query = database.prepare("SELECT message FROM events ORDER BY time").expect("a query");
    let events = query.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    let events: Vec<String> = events.map(|event| event.expect("a row")).collect();
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

#[test]
fn an_algorithm_without_a_reward_for_its_prompts_is_refused() {
    let workplace = Workplace::new();
    let file = workplace.path().join("prompts.jsonl");
    fs::write(&file, "{\"prompt\": \"Hi\"}\n").expect("written");
    let paths =
        [format!("prompts.path={}", file.display()), format!("prompts.held_out_path={}", file.display())];
    let set = [
        "algorithm.kind=ppo",
        "reward={ kind = \"constraints\" }",
        "prompts={ kind = \"file\" }",
        &paths[0],
        &paths[1],
    ];
    assert_refused(&set, "prompt 0");
}

/// The diff of docs/adding-an-algorithm.md still fits: a file, a line where it says, an experiment, and nothing else.
#[test]
fn the_documented_algorithm_is_one_file_one_line_and_one_experiment() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/adding-an-algorithm.md")).expect("the page");
    let diff = page.split("```diff\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a diff");
    let mut changed = Vec::new();
    for part in diff.split("diff --git ").skip(1) {
        let target = part.lines().find_map(|line| line.strip_prefix("+++ b/")).expect("a file");
        let hunks: Vec<&str> = part.split("\n@@ ").skip(1).collect();
        let lines = hunks.iter().flat_map(|hunk| hunk.lines().skip(1));
        let added = lines.clone().filter(|line| line.starts_with('+')).count();
        assert!(!lines.clone().any(|line| line.starts_with('-')), "{target}: something is taken away");
        if part.contains("new file mode") {
            assert!(!root.join(target).exists(), "{target} is there already");
        } else {
            let text =
                fs::read_to_string(root.join(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
            let kept: Vec<&str> = lines.filter_map(|line| line.strip_prefix(' ')).collect();
            assert!(text.contains(&kept.join("\n")), "{target} has changed around the line to add: {kept:?}");
        }
        changed.push((target, added));
    }
    let files: Vec<&str> = changed.iter().map(|(target, _)| *target).collect();
    assert_eq!(files, ["experiments/rrhf.toml", "policy/src/objective.rs", "policy/src/objective/rrhf.rs"]);
    assert_eq!(changed[1].1, 1, "one line registers it");
}

/// What a heading of a page is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches(['#', ' ']).to_lowercase();
    kept.chars()
        .filter(|letter| letter.is_alphanumeric() || "_- ".contains(*letter))
        .collect::<String>()
        .replace(' ', "-")
}

/// Every algorithm of the list has a page of options, an experiment that is valid, and its place in the documentation.
#[test]
fn every_algorithm_is_described_documented_and_has_an_experiment() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = said(arriero().arg("algorithms").output().expect("it starts"));
    let index = fs::read_to_string(root.join("docs/algorithms.md")).expect("the page");
    let kinds: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(kinds.len() > 15, "{list}");
    for line in list.lines() {
        let (kind, about) = line.split_once(' ').expect("a kind and a line about it");
        assert!(about.trim().len() > 20, "{line}");
        let page = said(arriero().args(["algorithms", kind]).output().expect("it starts"));
        let experiment = format!("experiments/{kind}.toml");
        for part in [about.trim(), "Learns from: ", "Needs besides: ", "= ", &experiment] {
            assert!(page.contains(part), "{part} is missing in {page}");
        }
        let is_documented = page.contains("no options of its own") || page.contains("efault");
        assert!(is_documented && !page.contains("See `"), "an option does not tell its default: {page}");

        let plan = arriero_actors::experiment::load(&root.join(&experiment), &[]);
        let plan = plan.unwrap_or_else(|error| panic!("{error}"));
        let mut stages = plan.arms.iter().flat_map(|arm| arm.trainings());
        assert!(
            stages.any(|(_, stage)| stage.algorithm.kind() == kind),
            "{experiment} is of another algorithm"
        );

        let row = index.lines().find(|row| row.starts_with(&format!("| `{kind}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/algorithms.md does not list {kind}"));
        let link = row.split("](").nth(1).and_then(|rest| rest.split(')').next()).expect("a link");
        let (file, part) = link.split_once('#').unwrap_or((link, ""));
        let text = fs::read_to_string(root.join("docs").join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
        assert!(part.is_empty() || headings.any(|heading| heading == part), "{file} has no heading {part}");
    }
    let unknown = arriero().args(["algorithms", "dppo"]).output().expect("it starts");
    assert!(refusal(&unknown).starts_with("there is no algorithm \"dppo\"; the nearest is "));
}
