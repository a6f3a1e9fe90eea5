//! A program to run, what it may use up, and what came of it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::SandboxError;

/// What a program may use up. [`Limits::default`] suits a short test in Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time by the clock, from start to end. Default 10 s.
    pub time: Duration,
    /// Bytes of address space of each process, and of memory that all have together. The memory is checked 20 times a
    /// second. Default 1 GiB.
    pub memory: u64,
    /// Processes and threads at one time, with the first. Default 16.
    pub processes: u64,
    /// Bytes in `/tmp`. Default 64 MiB.
    pub scratch: u64,
    /// Bytes that are kept of the standard output and of the standard error, each. More ends the program.
    /// Default 1 MiB.
    pub output: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            time: Duration::from_secs(10),
            memory: 1 << 30,
            processes: 16,
            scratch: 64 << 20,
            output: 1 << 20,
        }
    }
}

/// A program to run.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// The program and its arguments. A program without a slash is looked up in our own `PATH`.
    pub command: Vec<OsString>,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What it can read from its standard input.
    pub stdin: Vec<u8>,
    /// Files in its working folder: a name without a slash, and the content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Job {
    /// A command with an environment of `PATH`, `HOME`, `TMPDIR` and `LANG`, without input or files.
    pub fn new<I: IntoIterator<Item = S>, S: Into<OsString>>(command: I) -> Self {
        let environment = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", SCRATCH),
            ("TMPDIR", SCRATCH),
            ("LANG", "C.UTF-8"),
        ];
        Job {
            command: command.into_iter().map(Into::into).collect(),
            environment: environment.map(|(name, value)| (name.into(), value.into())).into(),
            ..Job::default()
        }
    }

    /// Refuses a job that makes no sense.
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let wrong = |what: String| Err(SandboxError::Job(what));
        if self.command.is_empty() {
            return wrong("the command is empty; expected a program and its arguments".to_string());
        }
        for (name, _) in &self.files {
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
                return wrong(format!("a file is called {name:?}; expected a name without a slash"));
            }
        }
        Ok(())
    }
}

/// Where the working folder is, as the program sees it.
pub const SCRATCH: &str = "/tmp";

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It was killed when its time was up.
    TimedOut,
    /// It was killed when it had written more than it may.
    TooMuchOutput,
    /// It was killed when its processes had more memory together than they may.
    TooMuchMemory,
}

/// What came of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub exit: ExitReason,
    /// What it wrote to its standard output, up to [`Limits::output`].
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, up to [`Limits::output`].
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub time: Duration,
}

/// A program's path: as it is with a slash, else the first in `PATH`.
pub(crate) fn resolve(program: &OsStr) -> Result<PathBuf, SandboxError> {
    let error =
        |cause: String| SandboxError::Program { program: program.to_string_lossy().into_owned(), cause };
    let path = PathBuf::from(program);
    let found = if path.components().count() > 1 {
        path.is_file().then_some(path)
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
    };
    let found = found.ok_or_else(|| error("there is no such file".to_string()))?;
    std::path::absolute(&found).map_err(|cause| error(cause.to_string()))
}
