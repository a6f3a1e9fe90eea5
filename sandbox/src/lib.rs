//! Runs a program that nobody trusts: no network, no files but the system's own, limits on everything.
//!
//! - [`Sandbox`]: what programs can read, and [`Sandbox::run`], which takes a [`Job`] to its [`Outcome`]
//!   within [`Limits`] (`job`); `error`: why there is none ([`SandboxError`]);
//! - [`Python`]: an interpreter, and the folders that it needs;
//! - `plan`: what a program sees of the file system, worked out before it starts;
//! - `child`: the steps from a new process to the program, and the only module with unsafe code;
//! - `filter`: the system calls that a program may make;
//! - `supervisor`: reads what the program writes, and ends it when a limit is reached;
//! - `memory`: what all of a program's processes take up;
//! - `unconfined`: the same interface without any of this, for those who ask for it.
//!
//! # What holds
//! A program starts as process 1 of its own pid, mount, network, IPC and UTS namespaces (and, unless we are root, user
//! namespace). It has no capabilities, and a list of system calls that it may make. It sees the system's programs and
//! libraries and the folders that the caller names, all read-only, and four devices. `/tmp` is an empty memory file
//! system of a limited size: its working folder, its home, and all that it can write to. There is no `/proc`, no
//! `/sys`, no `/home`. When process 1 ends, or is killed at a limit, the kernel kills all that it started, and its
//! `/tmp` is gone.
//!
//! # Threads
//! [`Sandbox::run`] may be called from many threads. The program is killed if the thread that called it ends.

#[cfg(target_os = "linux")]
mod child;
mod error;
#[cfg(target_os = "linux")]
mod filter;
mod job;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod plan;
mod python;
#[cfg(target_os = "linux")]
mod supervisor;
mod unconfined;

use std::path::PathBuf;

pub use error::SandboxError;
pub use job::{ExitReason, Job, Limits, Outcome, SCRATCH};
pub use python::Python;

/// Runs programs.
#[derive(Debug)]
pub struct Sandbox {
    #[cfg(target_os = "linux")]
    plan: Option<plan::Plan>,
}

impl Sandbox {
    /// A sandbox. Its programs can read the system's own folders (`/usr`, `/bin`, `/lib`, …) and `readable`, each where
    /// it is on this machine. Everything that the sandbox promises is tried once.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] if the machine cannot enforce one of them; [`SandboxError::Readable`] if a
    /// folder is not there, or is the root or a home folder.
    pub fn new(readable: &[PathBuf]) -> Result<Self, SandboxError> {
        #[cfg(target_os = "linux")]
        {
            let plan = plan::Plan::new(readable)?;
            supervisor::probe(&plan)?;
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
        job.check()?;
        #[cfg(target_os = "linux")]
        if let Some(plan) = &self.plan {
            return supervisor::run(plan, job, limits);
        }
        unconfined::run(job, limits)
    }
}
