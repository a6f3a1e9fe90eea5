//! From a completion's code and its tests to verdicts.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arriero_sandbox::{Ending, Job, Limits, Outcome, Python, Sandbox, SandboxError};
use serde::Deserialize;
use serde_json::json;

use super::extract::{Code, extract, sources};
use super::{TestResult, Tests, Verdict};

const WIRE: &str = include_str!("wire.py");
const JUDGE: &str = include_str!("judge.py");
const CANDIDATE: &str = include_str!("candidate.py");

/// What blocks of Python call themselves.
const PYTHON: &[&str] = &["python", "py", "python3"];
/// The file's name in the program's folder, and its place in a command.
const PROGRAM: &str = "program";
const PLACE: &str = "{file}";

const TOO_MUCH_MEMORY: &str = "its processes used too much memory together";

/// What came of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// False if the completion has no code: no fence, and what it has is no Python.
    pub code_found: bool,
    /// One for each test, in the order asserts, check, cases; none if there is no code.
    pub results: Vec<TestResult>,
}

impl Judged {
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
pub struct Judge {
    sandbox: Sandbox,
    python: Python,
    command: Vec<String>,
    limits: Limits,
}

/// A line that the judge's process writes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Test { test: usize, verdict: Verdict, message: String },
    Syntax { syntax: String },
    Load { load: String },
}

impl Judge {
    /// A judge whose programs run with the interpreter `python` (a command, such as `python3`), or where there is a
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
        Ok(Judge { sandbox, python, command: command.to_vec(), limits })
    }

    /// Judges a completion.
    ///
    /// # Errors
    /// If a program could not be run for a reason that is not its own.
    pub fn judge(&self, completion: &str, tests: &Tests) -> Result<Judged, SandboxError> {
        let languages = if self.command.is_empty() { PYTHON } else { &[] };
        let none = Judged { code_found: false, results: Vec::new() };
        let Some(code) = extract(completion, languages, &tests.text()) else { return Ok(none) };
        let end = Instant::now() + self.limits.time;
        let mut results = Vec::new();
        if tests.count() > tests.cases.len() {
            match self.call(&code, tests, end)? {
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
        Ok(Judged { code_found: true, results })
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
    fn call(
        &self,
        code: &Code,
        tests: &Tests,
        end: Instant,
    ) -> Result<Option<Vec<TestResult>>, SandboxError> {
        let asserts: Vec<&String> = tests.asserts.iter().collect();
        let mut results = Vec::new();
        if !asserts.is_empty() {
            let Some(all) = self.call_some(code, tests, &asserts, end, false)? else { return Ok(None) };
            results = all;
        }
        if let Some(check) = &tests.check {
            let Some(one) = self.call_some(code, tests, &[check], end, true)? else { return Ok(None) };
            results.extend(one);
        }
        Ok(Some(results))
    }

    fn call_some(
        &self,
        code: &Code,
        tests: &Tests,
        pieces: &[&String],
        end: Instant,
        call: bool,
    ) -> Result<Option<Vec<TestResult>>, SandboxError> {
        let judge = format!("{WIRE}\n{JUDGE}");
        let mut job = self.python.job(["-c", &judge]);
        let task = json!({
            "candidate": format!("{WIRE}\n{CANDIDATE}"),
            "sources": sources(code, tests.prefix.as_deref()),
            "setup": tests.setup,
            "tests": pieces,
            "entry_point": tests.entry_point,
            "call": call,
        });
        job.stdin = task.to_string().into_bytes();
        let outcome = self.sandbox.run(&job, &self.limits_until(end))?;
        let mut results = Vec::new();
        for line in outcome.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Told>(line) {
                Ok(Told::Test { test, verdict, message }) if test == results.len() => {
                    results.push(TestResult::new(verdict, message));
                }
                Ok(Told::Syntax { .. }) if !code.fenced => return Ok(None),
                Ok(Told::Syntax { syntax: cause } | Told::Load { load: cause }) => {
                    results = vec![TestResult::new(Verdict::Crashed, cause); pieces.len()];
                }
                // A line that was cut off when the time was up.
                Ok(Told::Test { .. }) | Err(_) => break,
            }
        }
        let rest = match outcome.ending {
            Ending::TimedOut => timeout(self.limits.time),
            Ending::TooMuchOutput => TestResult::new(Verdict::Crashed, "the tests wrote too much"),
            Ending::TooMuchMemory => TestResult::new(Verdict::Crashed, TOO_MUCH_MEMORY),
            Ending::Exited(_) | Ending::Signalled(_) => TestResult::new(
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
    outcome.ending == Ending::Exited(1) && refused && outcome.stdout.is_empty()
}

fn compare(outcome: &Outcome, expected: &str, limit: Duration) -> TestResult {
    match outcome.ending {
        Ending::Exited(0) => {}
        Ending::TimedOut => return timeout(limit),
        Ending::TooMuchOutput => return TestResult::new(Verdict::Crashed, "it wrote too much"),
        Ending::TooMuchMemory => return TestResult::new(Verdict::Crashed, TOO_MUCH_MEMORY),
        Ending::Exited(status) => {
            let said = last_line(&outcome.stderr);
            return TestResult::new(Verdict::Crashed, format!("it ended with status {status}: {said}"));
        }
        Ending::Signalled(signal) => {
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
