//! From a completion's code and its tests to verdicts.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arriero_sandbox::{ExitReason, Job, Limits, Outcome, Python, Sandbox, SandboxError};
use serde::Deserialize;
use serde_json::json;

use super::extract::{Code, extract, sources};
use super::{InPlace, TestResult, Tests, Verdict};

const WIRE: &str = include_str!("wire.py");
const NAMES: &str = include_str!("names.py");
const RUNNER: &str = include_str!("runner.py");
const CANDIDATE: &str = include_str!("candidate.py");

/// What blocks of Python call themselves.
const PYTHON: &[&str] = &["python", "py", "python3"];
/// The file's name in the program's folder, and its place in a command.
const PROGRAM: &str = "program";
const PLACE: &str = "{file}";

const TOO_MUCH_MEMORY: &str = "its processes used too much memory together";

/// What came of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestReport {
    /// False if the completion has no code: no fence, and what it has is no Python.
    pub code_found: bool,
    /// One for each test, in the order asserts, check, cases; none if there is no code.
    pub results: Vec<TestResult>,
}

impl TestReport {
    /// True if every test passed, and there was one.
    pub fn all_passed(&self) -> bool {
        !self.results.is_empty() && self.count(Verdict::Passed) == self.results.len()
    }

    /// How many tests have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.results.iter().filter(|result| result.verdict == verdict).count()
    }
}

/// Runs code against tests.
#[derive(Debug)]
pub struct TestRunner {
    sandbox: Sandbox,
    python: Python,
    command: Vec<String>,
    limits: Limits,
    in_place: InPlace,
}

/// A line that `runner.py` writes.
#[derive(Deserialize)]
#[serde(untagged)]
enum ReportLine {
    Started { started: bool },
    Test { test: usize, verdict: Verdict, message: String },
    Syntax { syntax: String },
    Load { load: String },
}

impl TestRunner {
    /// A runner whose programs run with the interpreter `python` (a command, such as `python3`), or where there is a
    /// `command`, in which `{file}` stands for the code's file, with that. They can read the system's folders, the
    /// interpreter's and `readable`. Their `limits` hold for each completion, all tests together.
    ///
    /// # Errors
    /// If the machine cannot confine programs and `confined` is true, or has no such interpreter.
    pub fn new(
        python: &str,
        command: &[String],
        readable: &[PathBuf],
        limits: Limits,
        confined: bool,
    ) -> Result<Self, SandboxError> {
        let python = Python::find(OsStr::new(python))?;
        let folders: Vec<PathBuf> = python.folders.iter().chain(readable).cloned().collect();
        let sandbox = if confined { Sandbox::new(&folders)? } else { Sandbox::none() };
        Ok(TestRunner { sandbox, python, command: command.to_vec(), limits, in_place: InPlace::default() })
    }

    /// With another rule for arguments that are changed in place.
    pub fn with_in_place(self, in_place: InPlace) -> Self {
        TestRunner { in_place, ..self }
    }

    /// Runs the tests of a completion.
    ///
    /// # Errors
    /// If a program could not be run for a reason that is not its own.
    pub fn run(&self, completion: &str, tests: &Tests) -> Result<TestReport, SandboxError> {
        let languages = if self.command.is_empty() { PYTHON } else { &[] };
        let none = TestReport { code_found: false, results: Vec::new() };
        let Some(code) = extract(completion, languages, &tests.text()) else { return Ok(none) };
        let end = Instant::now() + self.limits.time;
        let mut results = Vec::new();
        if tests.count() > tests.cases.len() {
            match self.run_python_tests(&code, tests, end)? {
                Some(called) => results = called,
                None => return Ok(none),
            }
        }
        for case in &tests.cases {
            let limits = self.limits_until(end);
            if limits.time.is_zero() {
                results.push(timeout(self.limits.time));
                continue;
            }
            let outcome = self.sandbox.run(&self.program(&code, tests, &case.stdin), &limits)?;
            if !code.fenced && self.command.is_empty() && is_no_python(&outcome) {
                return Ok(none);
            }
            results.push(compare(&outcome, &case.stdout, self.limits.time));
        }
        Ok(TestReport { code_found: true, results })
    }

    /// The code as a program of its own.
    fn program(&self, code: &Code, tests: &Tests, stdin: &str) -> Job {
        let source = match &tests.prefix {
            Some(prefix) => format!("{prefix}\n{}", code.text),
            None => code.text.clone(),
        };
        let mut job = if self.command.is_empty() {
            self.python.job([PROGRAM])
        } else {
            Job::new(self.command.iter().map(|word| word.replace(PLACE, PROGRAM)))
        };
        job.files.push((PROGRAM.to_string(), source.into_bytes()));
        job.stdin = stdin.as_bytes().to_vec();
        job
    }

    fn limits_until(&self, end: Instant) -> Limits {
        Limits { time: end.saturating_duration_since(Instant::now()), ..self.limits.clone() }
    }

    /// Verdicts of asserts and of a check; none if the code is none.
    fn run_python_tests(
        &self,
        code: &Code,
        tests: &Tests,
        end: Instant,
    ) -> Result<Option<Vec<TestResult>>, SandboxError> {
        let asserts: Vec<&String> = tests.asserts.iter().collect();
        let mut results = Vec::new();
        if !asserts.is_empty() {
            let Some(all) = self.run_pieces(code, tests, &asserts, end, false)? else { return Ok(None) };
            results = all;
        }
        if let Some(check) = &tests.check {
            let Some(one) = self.run_pieces(code, tests, &[check], end, true)? else { return Ok(None) };
            results.extend(one);
        }
        Ok(Some(results))
    }

    fn run_pieces(
        &self,
        code: &Code,
        tests: &Tests,
        pieces: &[&String],
        end: Instant,
        call: bool,
    ) -> Result<Option<Vec<TestResult>>, SandboxError> {
        let script = format!("{WIRE}\n{NAMES}\n{RUNNER}");
        let mut job = self.python.job(["-c", &script]);
        let task = json!({
            "candidate": format!("{WIRE}\n{CANDIDATE}"),
            "sources": sources(code, tests.prefix.as_deref()),
            "setup": tests.setup,
            "tests": pieces,
            "entry_point": tests.entry_point,
            "prefix": tests.prefix,
            "call": call,
            "in_place": self.in_place,
        });
        job.stdin = task.to_string().into_bytes();
        let outcome = self.sandbox.run(&job, &self.limits_until(end))?;
        let mut results = Vec::new();
        let mut has_started = false;
        for line in outcome.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<ReportLine>(line) {
                Ok(ReportLine::Test { test, verdict, message }) if test == results.len() => {
                    results.push(TestResult::new(verdict, message));
                }
                Ok(ReportLine::Started { started }) => has_started = started,
                Ok(ReportLine::Syntax { .. }) if !code.fenced => return Ok(None),
                Ok(ReportLine::Syntax { syntax: cause } | ReportLine::Load { load: cause }) => {
                    results = vec![TestResult::new(Verdict::Crashed, cause); pieces.len()];
                }
                // A line that was cut off when the time was up.
                Ok(ReportLine::Test { .. }) | Err(_) => break,
            }
        }
        // Nothing of the completion has run, so that its end is no verdict on it.
        if !has_started && matches!(outcome.exit, ExitReason::Exited(_) | ExitReason::Signalled(_)) {
            return Err(SandboxError::System {
                step: "starting Python for the tests",
                cause: format!("it ended with {:?}: {}", outcome.exit, last_line(&outcome.stderr)),
            });
        }
        let rest = match outcome.exit {
            ExitReason::TimedOut => timeout(self.limits.time),
            ExitReason::TooMuchOutput => TestResult::new(Verdict::Crashed, "the tests wrote too much"),
            ExitReason::TooMuchMemory => TestResult::new(Verdict::Crashed, TOO_MUCH_MEMORY),
            ExitReason::Exited(_) | ExitReason::Signalled(_) => TestResult::new(
                Verdict::Crashed,
                format!("the tests ended early: {}", last_line(&outcome.stderr)),
            ),
        };
        results.resize(pieces.len(), rest);
        Ok(Some(results))
    }
}

fn timeout(limit: Duration) -> TestResult {
    TestResult::new(Verdict::Timeout, format!("{} s were up", limit.as_secs_f64()))
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end().lines().last().unwrap_or_default().to_string()
}

/// Whether Python refused a program before it ran.
fn is_no_python(outcome: &Outcome) -> bool {
    let said = last_line(&outcome.stderr);
    let refused =
        ["SyntaxError:", "IndentationError:", "TabError:"].iter().any(|name| said.starts_with(name));
    outcome.exit == ExitReason::Exited(1) && refused && outcome.stdout.is_empty()
}

fn compare(outcome: &Outcome, expected: &str, limit: Duration) -> TestResult {
    match outcome.exit {
        ExitReason::Exited(0) => {}
        ExitReason::TimedOut => return timeout(limit),
        ExitReason::TooMuchOutput => return TestResult::new(Verdict::Crashed, "it wrote too much"),
        ExitReason::TooMuchMemory => return TestResult::new(Verdict::Crashed, TOO_MUCH_MEMORY),
        ExitReason::Exited(status) => {
            let said = last_line(&outcome.stderr);
            return TestResult::new(Verdict::Crashed, format!("it ended with status {status}: {said}"));
        }
        ExitReason::Signalled(signal) => {
            return TestResult::new(Verdict::Crashed, format!("it was ended by signal {signal}"));
        }
    }
    let found = String::from_utf8_lossy(&outcome.stdout);
    if lines(&found).eq(lines(expected)) {
        return TestResult::new(Verdict::Passed, "");
    }
    let short = |text: &str| text.trim_end().chars().take(200).collect::<String>();
    TestResult::new(Verdict::Failed, format!("expected {:?}, found {:?}", short(expected), short(&found)))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.trim_end().lines().map(str::trim_end)
}
