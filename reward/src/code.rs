//! Whether a completion's code does what tests ask of it.
//!
//! - [`extract`](mod@extract): the code in a completion;
//! - [`Tests`]: what a prompt's `checks` ask of it;
//! - [`TestRunner`]: runs both, in a sandbox, and gives a verdict for each test.
//!
//! Tests in Python never meet the code that they judge. `code/runner.py` runs them in process 1 of the sandbox. It
//! starts a second process, `code/candidate.py`, which alone loads the code, and asks it to call the code's functions:
//! arguments and results travel as plain values (`code/wire.py`). So code that ends its process, prints what a passed
//! test prints, changes Python's own functions, or returns objects that equal everything, gains nothing: the comparison
//! is made where it has no say. It cannot read the tests either. `runner.py` asks for the
//! names that the tests use and nobody else defines (`code/names.py`), so that code cannot put a function in the place
//! of one of the tests' own.

pub mod extract;
mod runner;

use serde::{Deserialize, Serialize};

use crate::checks::Checks;
pub use crate::checks::TestCase;
use crate::error::RewardError;
use arriero_buffers::{Prompt, Role};

pub use extract::extract;
pub use runner::{TestReport, TestRunner};

/// Whether tests see that the code changed an argument in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InPlace {
    /// If the call returned `None`, as Python's own functions do that change an argument. So a function that empties
    /// its argument does not pass `f(xs) == sorted(xs)`.
    #[default]
    WithoutResult,
    /// Always, as in HumanEval's own harness.
    Always,
}

/// What code must do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tests {
    /// What runs before the tests, such as imports.
    pub setup: String,
    /// Each a piece of Python that raises an exception if the code is wrong.
    pub asserts: Vec<String>,
    /// A function that is called with the code's entry point, as HumanEval's `check`; with that entry point.
    pub check: Option<String>,
    /// The name of the function that is asked for.
    pub entry_point: Option<String>,
    /// Runs of the whole program.
    pub cases: Vec<TestCase>,
    /// Code that stands before the completion, such as HumanEval's prompt.
    pub prefix: Option<String>,
}

impl Tests {
    /// Reads a prompt's: `test` and `entry_point` (HumanEval), `test_list`, `test_imports` and `test_setup_code`
    /// (MBPP), or `cases`.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn of(prompt: &Prompt) -> Result<Self, RewardError> {
        let checks = Checks::of(prompt)?;
        let wrong =
            |name, cause: &str| RewardError::Check { prompt: prompt.id, name, cause: cause.to_string() };
        let setup =
            checks.test_imports.into_iter().chain(checks.test_setup_code).collect::<Vec<_>>().join("\n");
        let tests = Tests {
            setup,
            asserts: checks.test_list,
            check: checks.test,
            entry_point: checks.entry_point,
            cases: checks.cases,
            prefix: checks.prefix,
        };
        if tests.check.is_some() && tests.entry_point.is_none() {
            return Err(wrong("test", "it calls the function that `entry_point` names, but there is none"));
        }
        if tests.entry_point.as_ref().is_some_and(|name| !is_name(name)) {
            return Err(wrong("entry_point", "expected the name of a function"));
        }
        if tests.count() == 0 {
            let example = r#"{"test_list": ["assert double(2) == 4"]}"#;
            return Err(RewardError::MissingCheck { prompt: prompt.id, name: "test_list", example });
        }
        let prefix = tests.prefix.clone().or_else(|| tests.prefix_of(prompt));
        Ok(Tests { prefix, ..tests })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.asserts.len() + usize::from(self.check.is_some()) + self.cases.len()
    }

    /// The code in the prompt's last message of the user, if it begins the function that is asked for.
    fn prefix_of(&self, prompt: &Prompt) -> Option<String> {
        let name = self.entry_point.as_ref()?;
        let asked = prompt.messages.iter().rev().find(|message| message.role == Role::User)?;
        let block = extract::blocks(&asked.content).into_iter().map(|block| block.code).next_back();
        let code = block.unwrap_or_else(|| asked.content.clone());
        let begins = extract::defined(&code).any(|defined| defined == name);
        begins.then_some(code)
    }

    /// All of their text, to see which names they use.
    fn text(&self) -> String {
        let mut text = self.asserts.join("\n");
        for part in self.entry_point.iter().chain(&self.check) {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_');
    first && text.chars().all(|character| character.is_alphanumeric() || character == '_')
}

/// What came of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The code did what the test asks.
    Passed,
    /// It did something else.
    Failed,
    /// It raised an exception, ended too early, was no Python, or used more memory or output than it may.
    Crashed,
    /// Its time was up before this test was through.
    Timeout,
}

/// A test's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestResult {
    /// What came of it.
    pub verdict: Verdict,
    /// Why, where there is something to say; of at most 500 characters, and of what the code said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl TestResult {
    fn new(verdict: Verdict, message: impl Into<String>) -> Self {
        let message: String = message.into().chars().take(500).collect();
        TestResult { verdict, message }
    }
}

#[cfg(test)]
mod tests;
