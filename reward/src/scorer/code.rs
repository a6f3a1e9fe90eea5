//! Whether a completion's code passes the prompt's tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use arriero_buffers::{Group, Prompt, Score};
use arriero_sandbox::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Scorer, ScorerConfig};
use crate::code::{InPlace, TestReport, TestRunner, Tests, Verdict};
use crate::error::RewardError;

/// What this reward reads of a prompt's `checks`.
const CHECKS: &[&str] =
    &["test", "entry_point", "test_list", "test_setup_code", "test_imports", "cases", "prefix"];

/// What keeps programs from doing harm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confinement {
    /// The kernel's namespaces, system call filter and limits; a machine without them is refused.
    #[default]
    Kernel,
    /// Nothing: programs have all the rights that we have.
    None,
}

/// The options of the `code` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodeConfig {
    /// What keeps programs from doing harm. Default kernel.
    pub sandbox: Confinement,
    /// The interpreter of Python. Default "python3".
    pub python: String,
    /// What runs a program in another language, `{file}` standing for its file. Default none: Python. Only `cases`
    /// can be judged with a command.
    pub command: Vec<String>,
    /// Folders that programs may read beside the system's and the interpreter's. Default none.
    pub readable: Vec<PathBuf>,
    /// Seconds for all tests of a completion. Default 10.
    pub time_limit: f64,
    /// MiB of address space of each process, and of memory that all have together. Default 1024.
    pub memory: u64,
    /// Processes and threads of a completion. Default 16.
    pub processes: u64,
    /// MiB of files that it may write. Default 64.
    pub scratch: u64,
    /// KiB that it may print. Default 1024.
    pub output: u64,
    /// Completions that run at one time. Default 0: as many as there are processors.
    pub workers: usize,
    /// Whether passing some tests earns their share. Default false: all or nothing.
    pub partial_credit: bool,
    /// Whether tests see that the code changed an argument in place. Default without_result: only if the call
    /// returned `None`.
    pub in_place: InPlace,
}

impl Default for CodeConfig {
    fn default() -> Self {
        CodeConfig {
            sandbox: Confinement::Kernel,
            python: "python3".to_string(),
            command: Vec::new(),
            readable: Vec::new(),
            time_limit: 10.0,
            memory: 1024,
            processes: 16,
            scratch: 64,
            output: 1024,
            workers: 0,
            partial_credit: false,
            in_place: InPlace::WithoutResult,
        }
    }
}

impl CodeConfig {
    /// What runs completions against tests.
    ///
    /// # Errors
    /// If the options are not valid, the machine cannot confine programs, or there is no such interpreter.
    pub fn runner(&self) -> Result<TestRunner, RewardError> {
        self.validate().map_err(RewardError::Config)?;
        let limits = Limits {
            time: Duration::from_secs_f64(self.time_limit),
            memory: self.memory << 20,
            processes: self.processes,
            scratch: self.scratch << 20,
            output: self.output << 10,
        };
        let confined = self.sandbox == Confinement::Kernel;
        let runner = TestRunner::new(&self.python, &self.command, &self.readable, limits, confined)?;
        Ok(runner.with_in_place(self.in_place))
    }
}

impl ScorerConfig for CodeConfig {
    fn validate(&self) -> Result<(), String> {
        if !(0.01..=86_400.0).contains(&self.time_limit) {
            return Err(format!("time_limit is {}, but must be from 0.01 to 86400 seconds", self.time_limit));
        }
        let ranges = [
            ("memory", self.memory, 32, 1 << 20),
            ("processes", self.processes, 2, 1 << 15),
            ("scratch", self.scratch, 1, 1 << 20),
            ("output", self.output, 1, 1 << 20),
            ("workers", self.workers as u64, 0, 1024),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(format!("{name} is {value}, but must be from {least} to {most}"));
            }
        }
        if !self.command.is_empty() && !self.command.iter().any(|word| word.contains("{file}")) {
            return Err("command has no {file}, which stands for the file with the code".to_string());
        }
        Ok(())
    }

    /// Checks that a prompt has tests that this can run.
    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        let tests = Tests::of(prompt)?;
        if !self.command.is_empty() && tests.cases.len() < tests.count() {
            let cause =
                "with a `command` only `cases` can be judged; `test` and `test_list` are Python".to_string();
            return Err(RewardError::Check { prompt: prompt.id, name: "cases", cause });
        }
        Ok(())
    }

    fn check_names(&self) -> Vec<&'static str> {
        CHECKS.to_vec()
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let runner = self.runner()?;
        let workers = match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        Ok(Box::new(CodeScorer { config: self.clone(), runner, workers, last: None }))
    }
}

struct CodeScorer {
    config: CodeConfig,
    runner: TestRunner,
    workers: usize,
    /// What came of the last group: whoever asks for details has asked for scores.
    last: Option<(Group, Vec<TestReport>)>,
}

impl CodeScorer {
    /// Tests a group's completions, several at a time.
    fn reports(&mut self, group: &Group) -> Result<&[TestReport], RewardError> {
        if self.last.as_ref().is_none_or(|(last, _)| last != group) {
            self.config.check_prompt(&group.prompt)?;
            let reports = run_all(&self.runner, group, self.workers)?;
            self.last = Some((group.clone(), reports));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, reports)| reports))
    }
}

fn run_all(runner: &TestRunner, group: &Group, workers: usize) -> Result<Vec<TestReport>, RewardError> {
    let tests = Tests::of(&group.prompt)?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((index, completion)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            group.completions.get(index).map(|completion| (index, completion))
        } {
            done.push((index, runner.run(&completion.text, &tests)));
        }
        done
    };
    let mut reports = thread::scope(|scope| {
        let others: Vec<_> = (1..workers.min(group.completions.len())).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    reports.sort_by_key(|(index, _)| *index);
    Ok(reports.into_iter().map(|(_, reports)| reports).collect::<Result<_, _>>()?)
}

impl Scorer for CodeScorer {
    fn name(&self) -> &'static str {
        "code"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        let partial = self.config.partial_credit;
        let score = |report: &TestReport| {
            let tests = report.results.len().max(1) as f32;
            let share = |verdict| report.count(verdict) as f32 / tests;
            let all = f32::from(u8::from(report.all_passed()));
            let components = [
                ("code_found", f32::from(u8::from(report.code_found))),
                ("all_passed", all),
                ("passed", share(Verdict::Passed)),
                ("failed", share(Verdict::Failed)),
                ("crashed", share(Verdict::Crashed)),
                ("timeout", share(Verdict::Timeout)),
            ];
            let components = BTreeMap::from(components.map(|(name, value)| (name.to_string(), value)));
            Score { reward: if partial { share(Verdict::Passed) } else { all }, components }
        };
        Ok(self.reports(group)?.iter().map(score).collect())
    }

    fn details(&mut self, group: &Group) -> Result<Vec<Map<String, Value>>, RewardError> {
        let detail = |report: &TestReport| Map::from_iter([("tests".to_string(), json!(report.results))]);
        Ok(self.reports(group)?.iter().map(detail).collect())
    }
}
