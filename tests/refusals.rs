//! What the program says of wrong input: one line, with what was found, where, and what to do; and nothing is written.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use support::{Workplace, arriero, fixture, refusal, run};

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
