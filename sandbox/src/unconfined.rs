//! Programs without a sandbox: in a folder of their own, with a limit on time and output and on nothing else.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::SandboxError;
use crate::job::{ExitReason, Job, Limits, Outcome, resolve};

fn system(step: &'static str) -> impl FnOnce(std::io::Error) -> SandboxError {
    move |cause| SandboxError::System { step, cause: cause.to_string() }
}

/// How often it is looked whether the program has ended.
const PAUSE: Duration = Duration::from_millis(2);

/// Runs a program with all the rights that we have.
pub(crate) fn run(job: &Job, limits: &Limits) -> Result<Outcome, SandboxError> {
    let scratch = tempfile::tempdir().map_err(system("making a working folder"))?;
    for (name, content) in &job.files {
        std::fs::write(scratch.path().join(name), content).map_err(system("writing a file"))?;
    }
    let program = resolve(&job.command[0])?;
    let mut command = Command::new(&program);
    command
        .args(&job.command[1..])
        .env_clear()
        .envs(job.environment.iter().map(|(name, value)| (name, value)));
    command.env("HOME", scratch.path()).env("TMPDIR", scratch.path()).current_dir(scratch.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|cause| SandboxError::Program {
        program: program.display().to_string(),
        cause: cause.to_string(),
    })?;
    let mut input = child.stdin.take();
    let bytes = job.stdin.clone();
    // Nobody waits for this thread: a program need not read what it is given.
    thread::spawn(move || input.as_mut().map(|input| input.write_all(&bytes)));
    let (full, fulls) = mpsc::channel();
    let stdout = child.stdout.take().map(|pipe| collect(pipe, limits.output, full.clone()));
    let stderr = child.stderr.take().map(|pipe| collect(pipe, limits.output, full));
    let exit = loop {
        if let Some(status) = child.try_wait().map_err(system("waiting for the program"))? {
            break exit_reason(status);
        }
        if fulls.try_recv().is_ok() {
            break ExitReason::TooMuchOutput;
        }
        if start.elapsed() >= limits.time {
            break ExitReason::TimedOut;
        }
        thread::sleep(PAUSE);
    };
    let time = start.elapsed();
    kill(&mut child);
    // A process that left the group may hold the pipes open for ever. Its output is not waited for.
    let grace = Instant::now() + Duration::from_secs(1);
    let take = |collected: Option<mpsc::Receiver<Vec<u8>>>| {
        let left = grace.saturating_duration_since(Instant::now());
        collected.and_then(|collected| collected.recv_timeout(left).ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (take(stdout), take(stderr));
    // We close the pipe of a program that writes too much, and this may have ended it before we saw why.
    let exit = if fulls.try_recv().is_ok() { ExitReason::TooMuchOutput } else { exit };
    Ok(Outcome { exit, stdout, stderr, time })
}

fn exit_reason(status: ExitStatus) -> ExitReason {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return ExitReason::Signalled(signal);
    }
    ExitReason::Exited(status.code().unwrap_or(-1))
}

/// Ends the program and its process group.
fn kill(child: &mut Child) {
    #[cfg(target_os = "linux")]
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        // Fails if all have ended.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads a pipe to its end on a thread of its own, and says so when there is too much.
fn collect(pipe: impl Read + Send + 'static, most: u64, full: mpsc::Sender<()>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.take(most + 1).read_to_end(&mut bytes);
        if bytes.len() as u64 > most {
            bytes.truncate(most as usize);
            let _ = full.send(());
        }
        let _ = sender.send(bytes);
    });
    receiver
}
