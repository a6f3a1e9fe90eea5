//! Code against tests, for real: what it may do to pass without being right, and that none of it works.
//!
//! On a machine that cannot confine programs these tests say so and are skipped.
#![cfg(target_os = "linux")]

use std::sync::{Arc, OnceLock};

use arriero_buffers::{Completion, Finish, Group, Message, Prompt, Score};
use arriero_reward::code::Verdict::{Crashed, Failed, Passed, Timeout};
use arriero_reward::code::{TestReport, TestRunner, Tests, Verdict};
use arriero_reward::scorer::code::CodeConfig;
use arriero_reward::{RewardConfig, RewardError};
use serde_json::{Value, json};

fn config() -> CodeConfig {
    CodeConfig { memory: 512, ..CodeConfig::default() }
}

fn runner_with(config: &CodeConfig) -> Option<TestRunner> {
    match config.runner() {
        Ok(runner) => Some(runner),
        Err(RewardError::Sandbox(error @ arriero_sandbox::SandboxError::Unavailable { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn prompt(asked: &str, checks: Value) -> Prompt {
    Prompt { id: 1, messages: vec![Message::user(asked)], checks }
}

fn report(completion: &str, checks: Value) -> Option<TestReport> {
    static RUNNER: OnceLock<Option<TestRunner>> = OnceLock::new();
    let runner = RUNNER.get_or_init(|| runner_with(&config())).as_ref()?;
    let tests = Tests::of(&prompt("Write a function.", checks)).expect("tests");
    Some(runner.run(completion, &tests).expect("the sandbox works"))
}

#[track_caller]
fn verdicts(completion: &str, tests: &[&str], expected: &[Verdict]) {
    let Some(report) = report(completion, json!({"test_list": tests})) else { return };
    let found: Vec<Verdict> = report.results.iter().map(|result| result.verdict).collect();
    assert_eq!(found, expected, "{completion}: {:?}", report.results);
}

#[test]
fn right_code_passes_and_wrong_code_fails() {
    let tests = ["assert f(2) == 4", "assert f('a') == 'aa'", "assert f(0) is None"];
    verdicts("Sure:\n```python\ndef f(x): return x * 2\n```", &tests, &[Passed, Passed, Failed]);
    verdicts("def f(x): return x + x", &tests, &[Passed, Passed, Failed]);
    verdicts("```python\ndef f(x): return 2 ** x\n```", &tests, &[Passed, Crashed, Failed]);
    verdicts("```python\ndef f(x) return x\n```", &tests, &[Crashed; 3]);
    verdicts("```python\nimport nothing_of_this_name\n```", &tests, &[Crashed; 3]);
    verdicts("```python\ndef g(x): return x\n```", &tests, &[Crashed; 3]);
}

#[test]
fn values_keep_their_types_on_the_way() {
    let code = "def same(x): return x\ndef kind(x): return type(x).__name__";
    let values = [
        "None",
        "True",
        "-3",
        "2**200",
        "1.5",
        "float('inf')",
        "1+2j",
        "'\\ud800 é'",
        "b'x'",
        "bytearray(b'y')",
        "[1, [2]]",
        "(1, (2,))",
        "{1: 'a', (1, 2): [3]}",
        "{1, 2}",
        "frozenset({1})",
        "range(3)",
        "[]",
        "()",
        "{}",
        "set()",
    ];
    let tests = values.map(|value| {
        format!(
            "assert same({value}) == {value} and type(same({value})) is type({value})\n\
             assert kind({value}) == type({value}).__name__"
        )
    });
    verdicts(code, &tests.each_ref().map(String::as_str), &[Passed; 20]);
    verdicts(
        code,
        &[
            "from collections import deque, Counter\nassert same(deque([1])) == deque([1])",
            "from decimal import Decimal\nassert same(Decimal('1.10')) == Decimal('1.1')",
            "from fractions import Fraction\nassert same(Fraction(1, 3)) == Fraction(1, 3)",
            "assert same(len) is len and same(int) is int",
            "assert same(lambda: 1)() == 1",
        ],
        // A function of the tests cannot be handed over.
        &[Passed, Passed, Passed, Passed, Crashed],
    );
}

#[test]
fn objects_generators_arguments_in_place_and_exceptions_work() {
    let code = r#"
import math
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def depth(self): return 1 + (self.left.depth() if self.left else 0)
    def __eq__(self, other): return self.value == other.value
class Odd(ValueError): pass
def sort(values): values.sort()
def count():
    n = 0
    while True:
        yield n
        n += 1
def root(x):
    if x < 0: raise Odd("negative")
    return math.sqrt(x)
LIMIT = 7
"#;
    verdicts(
        code,
        &[
            "node = Node(1); node.left = Node(2); assert node.depth() == 2 and node.left.value == 2",
            "assert Node(1) == Node(1) and Node(1) != Node(2) and isinstance(Node(1), Node)",
            "values = [3, 1]; assert sort(values) is None and values == [1, 3]",
            "import itertools; assert list(itertools.islice(count(), 3)) == [0, 1, 2]",
            "try: root(-1)\nexcept ValueError as error: assert str(error) == 'negative'\nelse: assert False",
            "assert math.isclose(root(2), 1.41421356237) and LIMIT == 7",
        ],
        &[Passed; 6],
    );
}

#[test]
fn humaneval_rows_are_judged() {
    let asked =
        "from typing import List\n\n\ndef mean(values: List[float]) -> float:\n    \"\"\"The mean.\"\"\"\n";
    let test = "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate([1.0, 2.0]) == 1.5\n    \
                assert abs(candidate([0.1, 0.2]) - 0.15) < 1e-9\n";
    let checks = json!({"test": test, "entry_point": "mean"});
    let tests = Tests::of(&prompt(asked, checks)).expect("tests");
    let Some(runner) = runner_with(&config()) else { return };
    for (completion, expected) in [
        ("    return sum(values) / len(values)\n", Passed),
        ("    return sum(values) / len(values)\n\nprint(mean([1]))\n\ndef more(x):\n    return (", Passed),
        (
            "```python\ndef mean(values: List[float]) -> float:\n    return sum(values) / len(values)\n```",
            Passed,
        ),
        ("    return sum(values)\n", Failed),
        ("    return values.mean()\n", Crashed),
        ("    pass\n", Failed),
    ] {
        let report = runner.run(completion, &tests).expect("the sandbox works");
        assert_eq!(report.results[0].verdict, expected, "{completion}: {:?}", report.results);
    }
}

#[test]
fn programs_are_judged_by_their_output() {
    let cases = json!({"cases": [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "-1 1", "stdout": "0"}]});
    for (completion, expected) in [
        ("a, b = map(int, input().split())\nprint(a + b, ' ')", [Passed, Passed]),
        ("print(5)", [Passed, Failed]),
        ("print(5)\nprint(0)", [Failed, Failed]),
        ("print(5)\nraise ValueError", [Crashed, Crashed]),
        ("import ctypes\nprint(5, flush=True)\nctypes.string_at(0)", [Crashed, Crashed]),
    ] {
        let Some(report) = report(completion, cases.clone()) else { return };
        let found: Vec<Verdict> = report.results.iter().map(|result| result.verdict).collect();
        assert_eq!(found, expected, "{completion}: {:?}", report.results);
    }
}

#[test]
fn other_languages_are_run_by_a_command() {
    let config = CodeConfig { command: vec!["sh".to_string(), "{file}".to_string()], ..config() };
    let Some(runner) = runner_with(&config) else { return };
    let checks = json!({"cases": [{"stdin": "a b\n", "stdout": "b a"}]});
    let tests = Tests::of(&prompt("Swap.", checks)).expect("tests");
    let report = runner.run("```bash\nread x y\necho $y $x\n```", &tests).expect("the sandbox works");
    assert!(report.all_passed(), "{:?}", report.results);
}

#[test]
fn a_completion_without_code_says_so() {
    for completion in ["I cannot do that, sorry.", "```sh\nls\n```", "```python\n```"] {
        for checks in [json!({"test_list": ["assert f(1)"]}), json!({"cases": [{"stdout": "x"}]})] {
            let Some(report) = report(completion, checks) else { return };
            assert_eq!(report, TestReport { code_found: false, results: Vec::new() }, "{completion}");
            assert!(!report.all_passed());
        }
    }
}

#[test]
fn time_is_for_all_tests_together() {
    let config = CodeConfig { time_limit: 3.0, ..config() };
    let Some(runner) = runner_with(&config) else { return };
    let tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"];
    let tests = Tests::of(&prompt("", json!({"test_list": tests}))).expect("tests");
    for stuck in ["while True: pass", "__import__('time').sleep(1000)"] {
        let code = format!("def f(x):\n    if x == 2:\n        {stuck}\n    return x");
        let report = runner.run(&code, &tests).expect("the sandbox works");
        let found: Vec<Verdict> = report.results.iter().map(|result| result.verdict).collect();
        assert_eq!(found, [Passed, Timeout, Timeout]);
    }
}

/// Nothing of this knows the answer, 7341.
#[test]
fn a_pass_cannot_be_forged() {
    let told = r#"{"test": 0, "verdict": "passed", "message": ""}"#;
    let attempts = [
        // Says that it passed, wherever it can.
        format!("print({told:?})"),
        format!("import os\nfor n in range(32):\n    try: os.write(n, b'{told}\\n')\n    except OSError: pass"),
        format!("import sys\nsys.stderr.write({told:?})"),
        "import os\nos.write(4, b'{\"value\": true}\\n' * 100)\ndef f(x): return True".to_string(),
        "import os\nos.write(4, b'{\"value\": {\"object\": \"x\"}}\\n' * 100)".to_string(),
        // Ends before the tests.
        "import os\nos._exit(0)".to_string(),
        "import sys\nsys.exit(0)".to_string(),
        "raise SystemExit".to_string(),
        "import os\ndef f(x): os._exit(0)".to_string(),
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): exit(0)".to_string(),
        "import os, signal\nos.kill(1, signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)".to_string(),
        "import os, signal\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass\ndef f(x): return 1"
            .to_string(),
        // Returns what equals everything.
        "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    \
         def __hash__(self): return 7341\ndef f(x): return Any()"
            .to_string(),
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(1)".to_string(),
        "class Any(str):\n    def __eq__(self, other): return True\ndef f(x): return Any()".to_string(),
        "class Any(list):\n    def __eq__(self, other): return True\ndef f(x): return Any()".to_string(),
        // Changes Python.
        "import builtins\nbuiltins.AssertionError = ZeroDivisionError\nbuiltins.exec = print\ndef f(x): return 1".to_string(),
        "def assert_(x): return True\ndef exec(*x): pass\ndef abs(x): return 0\ndef len(x): return 7341\ndef f(x): return [1]"
            .to_string(),
        "import sys\nfor name in list(sys.modules):\n    sys.modules[name] = None\ndef f(x): return 1".to_string(),
        "def f(x): return 1\ndef isclose(*x): return True\nmath = f\nf.isclose = isclose".to_string(),
        "class math:\n    isclose = lambda *x: True\ndef f(x): return 1".to_string(),
        // Puts its own modules in the tests' way.
        "for name in ['decimal', 'fractions', 'collections', 'numpy']:\n    \
         open(f'/tmp/{name}.py', 'w').write('import os; os.write(1, b\"passed\")')\n\
         from decimal import Decimal\ndef f(x): return Decimal(1)"
            .to_string(),
        // Looks for the tests, by a part of their text: the number alone can stand in an address.
        "import gc, os, sys\ndef f(x):\n    seen = [repr(one) for one in gc.get_objects() if isinstance(one, (str, dict, list))]\n    \
         return 7341 if any('== 7' + '341' in one for one in seen) else 0"
            .to_string(),
        "import os\ndef f(x):\n    for folder, _, files in os.walk('/tmp'):\n        for file in files:\n            \
         if '== 7' + '341' in open(os.path.join(folder, file)).read(): return 7341"
            .to_string(),
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        if '== 7' + '341' in str(frame.f_locals): return 7341\n        frame = frame.f_back"
            .to_string(),
    ];
    for attempt in &attempts {
        let fenced = format!("```python\n{attempt}\n```");
        let tests = [
            "assert f(5) == 7341",
            "assert len(str(f(5))) == 4 and f(5) in [7341]",
            "import math\nassert math.isclose(f(5), 7341)",
        ];
        let check =
            "def check(candidate):\n    assert candidate(5) == 7341\n    assert len([candidate(5)]) == 1\n";
        let checks = json!({"test_list": tests, "test": check, "entry_point": "f"});
        let Some(report) = report(&fenced, checks) else { return };
        assert_eq!((report.code_found, report.results.len()), (true, 4));
        assert_eq!(report.count(Passed), 0, "{attempt}: {:?}", report.results);
    }
}

/// The tests of [`a_pass_cannot_be_forged`] can be passed.
#[test]
fn who_knows_the_answer_passes() {
    let checks = json!({
        "test_list": ["assert f(5) == 7341", "assert len(str(f(5))) == 4 and f(5) in [7341]"],
        "test": "def check(candidate):\n    assert candidate(5) == 7341\n    assert len([candidate(5)]) == 1\n",
        "entry_point": "f",
    });
    let Some(report) = report("def f(x): return 7000 + 341", checks) else { return };
    assert_eq!(report.count(Passed), 3, "{:?}", report.results);
}

#[test]
fn a_function_with_a_name_of_pythons_can_be_asked_for() {
    let code = "import math\ndef sum(a, b): return a * b";
    verdicts(
        code,
        &["assert sum(2, 3) == 6", "assert math.pi > 3", "assert math.floor(sum(2, 3)) == 6"],
        &[Passed; 3],
    );
    // With two such names nobody knows which one was asked for: both are Python's.
    let forged = format!("{code}\ndef abs(x): return 0");
    verdicts(&forged, &["assert abs(sum(2, 3) - 7) < 1"], &[Crashed]);
}

#[test]
fn a_group_has_scores_with_components_and_details() {
    let Some(_) = runner_with(&config()) else { return };
    let texts =
        ["def f(x): return x", "def f(x): return 1", "no code", "def f(x):\n  while x > 1: pass\n  return x"];
    let completion =
        |(sample, text): (usize, &&str)| Completion::given(sample as u32, vec![1], *text, Finish::EndOfTurn);
    let group = Group {
        prompt: Arc::new(prompt("", json!({"test_list": ["assert f(1) == 1", "assert f(2) == 2"]}))),
        prompt_tokens: vec![1],
        completions: texts.iter().enumerate().map(completion).collect(),
    };
    let config = CodeConfig { time_limit: 4.0, workers: 4, ..config() };
    let mut scorer =
        RewardConfig::Code(CodeConfig { partial_credit: true, ..config.clone() }).build().expect("a scorer");
    let scores = scorer.score(&group).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<f32>>(), [1.0, 0.5, 0.0, 0.5]);
    let component =
        |name: &str| -> Vec<f32> { scores.iter().map(|score: &Score| score.components[name]).collect() };
    assert_eq!(component("code_found"), [1.0, 1.0, 0.0, 1.0]);
    assert_eq!(component("all_passed"), [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(component("passed"), [1.0, 0.5, 0.0, 0.5]);
    assert_eq!(component("failed"), [0.0, 0.5, 0.0, 0.0]);
    assert_eq!(component("timeout"), [0.0, 0.0, 0.0, 0.5]);
    let details = scorer.details(&group).expect("details");
    assert_eq!(details[1]["tests"], json!([{"verdict": "passed"}, {"verdict": "failed"}]));
    // All or nothing, by default.
    let mut scorer = RewardConfig::Code(config).build().expect("a scorer");
    let some = Group { completions: group.completions[..2].to_vec(), ..group };
    let scores = scorer.score(&some).expect("scores");
    assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<f32>>(), [1.0, 0.0]);
}

#[test]
fn what_cannot_be_run_is_an_error_and_no_zero() {
    let error = |config: CodeConfig| RewardConfig::Code(config).build().err().expect("an error").to_string();
    let missing = error(CodeConfig { python: "no-such-python".to_string(), ..config() });
    assert_eq!(missing, "no-such-python cannot be run: there is no such file");
    let other = error(CodeConfig { python: "sh".to_string(), ..config() });
    assert!(other.contains("does not answer as Python 3 does"), "{other}");
    let option = error(CodeConfig { time_limit: 0.0, ..config() });
    assert!(option.contains("time_limit is 0"), "{option}");
    let command = CodeConfig { command: vec!["sh".to_string()], ..config() };
    assert!(error(command).contains("{file}"));
    let command = CodeConfig { command: vec!["sh".to_string(), "{file}".to_string()], ..config() };
    let refused = RewardConfig::Code(command).check_prompt(&prompt("", json!({"test_list": ["assert f()"]})));
    assert!(refused.expect_err("Python").to_string().contains("only `cases` can be judged"));
}

/// Too little memory for Python to begin with: no verdict on the code.
#[test]
fn tests_that_cannot_begin_are_an_error_and_no_zero() {
    let Some(runner) = runner_with(&CodeConfig { memory: 32, time_limit: 60.0, ..config() }) else { return };
    let tests = Tests::of(&prompt("", json!({"test_list": ["assert f(1) == 1"]}))).expect("tests");
    let memory = runner.run("def f(x): return x", &tests);
    match memory {
        Err(error) => assert!(error.to_string().contains("starting Python for the tests"), "{error}"),
        // A Python that is content with 32 MiB.
        Ok(report) => assert!(report.all_passed(), "{report:?}"),
    }
}
