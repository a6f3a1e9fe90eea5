//! Runs a program that nobody trusts: no network, no files but the system's own, limits on everything.
//!
//! - [`Sandbox`]: what programs can read, and [`Sandbox::run`], which takes a [`Job`] to its [`Outcome`]
//!   within [`Limits`];
//! - [`Python`]: an interpreter, and the folders that it needs;
//! - `plan`: what a program sees of the file system, worked out before it starts;
//! - `child`: the steps from a new process to the program, and the only module with unsafe code;
//! - `filter`: the system calls that a program may make;
//! - `watch`: reads what the program writes, and ends it when a limit is reached;
//! - `memory`: what all of a program's processes take up;
//! - `unconfined`: the same interface without any of this, for those who ask for it.
//!
//! # What holds
//! A program starts as process 1 of its own pid, mount, network, IPC and UTS namespaces (and, unless we are
//! root, user namespace), without capabilities, and with a list of system calls that it may make. It sees the
//! system's programs and libraries and the folders that the caller names, all read-only; `/tmp`, an empty
//! memory file system of a limited size, which is its working folder, its home, and all that it can write to;
//! and four devices. There is no `/proc`, no `/sys`, no `/home`. When process 1 ends, or is killed at a limit,
//! the kernel kills all that it started, and its `/tmp` is gone.
//!
//! # Threads
//! [`Sandbox::run`] may be called from many threads. The program is killed if the thread that called it ends.

#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod plan;
mod python;
mod unconfined;
#[cfg(target_os = "linux")]
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use python::Python;

/// What a program may use up. [`Limits::default`] suits a short test in Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time by the clock, from start to end. Default 10 s.
    pub time: Duration,
    /// Bytes of address space of each process, and of memory that all have together; that is looked at 20 times a
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
}

/// Where the working folder is, as the program sees it.
pub const SCRATCH: &str = "/tmp";

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
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
    pub ending: Ending,
    /// What it wrote to its standard output, up to [`Limits::output`].
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, up to [`Limits::output`].
    pub stderr: Vec<u8>,
    /// From its start to its end.
    pub time: Duration,
}

/// Why a program could not be run. None of these is the program's own doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// The machine lacks something that the sandbox needs.
    #[error(
        "this machine cannot confine programs: {step} failed: {cause}. {advice}. \
         sandbox = \"none\" runs programs without any protection"
    )]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        cause: String,
        /// What may help.
        advice: &'static str,
    },
    /// The program is not there, or cannot be started.
    #[error("{program} cannot be run: {cause}")]
    Program {
        /// The program, as it was asked for.
        program: String,
        /// Why.
        cause: String,
    },
    /// The job or the limits make no sense.
    #[error("the job is not valid: {0}")]
    Job(String),
    /// A folder that programs should see cannot be shown to them.
    #[error("{} cannot be made readable in the sandbox: {cause}", path.display())]
    Readable {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The system refused something that has nothing to do with the program.
    #[error("the sandbox failed: {step}: {cause}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        cause: String,
    },
}

/// Runs programs.
#[derive(Debug)]
pub struct Sandbox {
    #[cfg(target_os = "linux")]
    plan: Option<plan::Plan>,
}

impl Sandbox {
    /// A sandbox whose programs can read the system's own folders (`/usr`, `/bin`, `/lib`, …) and `readable`,
    /// each where it is on this machine. Everything that the sandbox promises is tried once.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] if the machine cannot enforce one of them; [`SandboxError::Readable`] if a
    /// folder is not there, or is the root or a home folder.
    pub fn new(readable: &[PathBuf]) -> Result<Self, SandboxError> {
        #[cfg(target_os = "linux")]
        {
            let plan = plan::Plan::new(readable)?;
            watch::probe(&plan)?;
            Ok(Sandbox { plan: Some(plan) })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = readable;
            Err(SandboxError::Unavailable {
                step: "finding Linux",
                cause: format!("this is {}", std::env::consts::OS),
                advice: "The sandbox is made of Linux namespaces and seccomp",
            })
        }
    }

    /// No sandbox: programs have all the rights that we have. Only the limits on time and output hold.
    pub fn none() -> Self {
        Sandbox {
            #[cfg(target_os = "linux")]
            plan: None,
        }
    }

    /// Runs a program to its end, or to the first limit that it reaches.
    ///
    /// # Errors
    /// If it could not be started: see [`SandboxError`]. What the program does is an [`Outcome`].
    pub fn run(&self, job: &Job, limits: &Limits) -> Result<Outcome, SandboxError> {
        check(job)?;
        #[cfg(target_os = "linux")]
        if let Some(plan) = &self.plan {
            return watch::run(plan, job, limits);
        }
        unconfined::run(job, limits)
    }
}

fn check(job: &Job) -> Result<(), SandboxError> {
    let wrong = |what: String| Err(SandboxError::Job(what));
    if job.command.is_empty() {
        return wrong("the command is empty; expected a program and its arguments".to_string());
    }
    for (name, _) in &job.files {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return wrong(format!("a file is called {name:?}; expected a name without a slash"));
        }
    }
    Ok(())
}

/// The program's path: as it is with a slash, else the first in `PATH`.
fn resolve(program: &std::ffi::OsStr) -> Result<PathBuf, SandboxError> {
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
