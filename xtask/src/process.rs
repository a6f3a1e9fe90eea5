//! Running programs and timing them.

use anyhow::{Context, Result};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// A program ended with an exit code other than zero, after saying why on its own.
#[derive(Debug)]
pub struct Failed {
    command: String,
    /// The program's exit code. 128 + n where signal n ended it, as in shells.
    pub code: u8,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed with exit code {}", self.command, self.code)
    }
}

impl std::error::Error for Failed {}

/// Runs a program on our own standard streams until it ends.
///
/// # Errors
/// [`Failed`] if it fails; another error if it cannot be started.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(Failed { command: describe(command), code: exit_code(status) }.into())
}

/// [`run`], announced, and followed by how long it took.
pub fn step(command: &mut Command) -> Result<()> {
    let name = describe(command);
    println!("==> {name}");
    let started = Instant::now();
    run(command)?;
    println!("==> {name}: {}", seconds(started.elapsed()));
    Ok(())
}

/// `4.2 s`, and from a minute up `12 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

fn describe(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> =
        std::iter::once(name).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(script: &str) -> Failed {
        let error = run(Command::new("/bin/sh").args(["-c", script])).expect_err("the script fails");
        error.downcast::<Failed>().expect("a Failed")
    }

    #[test]
    fn a_failed_program_says_its_name_and_exit_code() {
        assert_eq!(failure("exit 7").to_string(), "`sh -c exit 7` failed with exit code 7");
    }

    #[test]
    fn a_signal_gives_the_exit_code_that_a_shell_gives() {
        assert_eq!(failure("kill -TERM $$").code, 143);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("no-such-program")).expect_err("not there");
        assert_eq!(error.to_string(), "cannot start `no-such-program`");
    }

    #[test]
    fn seconds_turn_into_minutes() {
        assert_eq!(seconds(Duration::from_millis(4_240)), "4.2 s");
        assert_eq!(seconds(Duration::from_secs(59)), "59.0 s");
        assert_eq!(seconds(Duration::from_secs(60)), "1 min 0 s");
        assert_eq!(seconds(Duration::from_secs(725)), "12 min 5 s");
    }
}
