//! A Python interpreter, wherever it is installed.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::SandboxError;
use crate::job::{Job, resolve};

/// Tells its own path and the folders of its installation and virtual environment, each on a line.
const ASK: &str = "import sys; print(sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix, \
                   sys.base_exec_prefix, '%d.%d' % sys.version_info[:2], sep='\\n')";
/// Where a value of each line of its answer is.
const ANSWERS: usize = 6;

/// An interpreter that programs can be run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// Its program.
    pub executable: PathBuf,
    /// What it must be able to read: for [`Sandbox::new`](crate::Sandbox::new).
    pub folders: Vec<PathBuf>,
    /// As in "3.12".
    pub version: String,
}

impl Python {
    /// Asks an interpreter, such as `python3`, where it is. So a wrapper in `PATH` leads to the real one.
    ///
    /// # Errors
    /// If there is none, or it is none.
    pub fn find(program: &OsStr) -> Result<Self, SandboxError> {
        let error =
            |cause: String| SandboxError::Program { program: program.to_string_lossy().into_owned(), cause };
        let mut command = Command::new(resolve(program)?);
        let command = command.args(["-I", "-S", "-c", ASK]).stdin(Stdio::null());
        let output = command.output().map_err(|cause| error(cause.to_string()))?;
        let answer = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = answer.lines().collect();
        let &[executable, ref folders @ .., version] = lines.as_slice() else {
            return Err(error(not_python(&output.stderr)));
        };
        if !output.status.success() || lines.len() != ANSWERS {
            return Err(error(not_python(&output.stderr)));
        }
        let mut folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
        folders.sort();
        folders.dedup();
        Ok(Python { executable: executable.into(), folders, version: version.to_string() })
    }

    /// A job of this interpreter, without its user's own packages. Hashes, and so the orders of sets, are the same in
    /// every run. Libraries start no threads.
    pub fn job<I: IntoIterator<Item = S>, S: Into<OsString>>(&self, arguments: I) -> Job {
        let isolated = [self.executable.clone().into_os_string(), "-s".into(), "-B".into()];
        let mut job = Job::new(isolated.into_iter().chain(arguments.into_iter().map(Into::into)));
        job.environment.push(("PYTHONHASHSEED".into(), "0".into()));
        // Each thread of theirs would take its share of the memory, and of the processors that others use.
        for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
            job.environment.push((name.into(), "1".into()));
        }
        job
    }
}

fn not_python(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let last = said.lines().last().unwrap_or("nothing");
    format!("it does not answer as Python 3 does; it said: {last}")
}
