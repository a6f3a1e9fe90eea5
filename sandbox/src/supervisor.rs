//! Starts a program, reads what it writes, and ends it when a limit is reached.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Resource, Signal, WaitId, WaitIdOptions, WaitIdStatus, getrlimit, pidfd_send_signal, waitid,
};

use crate::child::{self, EXECUTING, Failure, Program, Setup, WRITING};
use crate::error::SandboxError;
use crate::job::{ExitReason, Job, Limits, Outcome, resolve};
use crate::memory;
use crate::plan::{Identity, Plan};

/// Files that a program can have open.
const OPEN_FILES: u64 = 256;
/// Files that `/tmp` can have.
const SCRATCH_FILES: u64 = 4096;
/// Bytes of memory that a program can keep from being swapped out.
const LOCKED_MEMORY: u64 = 64 << 10;

/// How often the memory of all processes is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(50);

/// Takes every step of a sandbox, but runs no program.
pub(crate) fn probe(plan: &Plan) -> Result<(), SandboxError> {
    memory::probe()?;
    let job = Job::default();
    // On a machine that is busy, or that was asleep, the first try may take its time.
    let limits = Limits { time: Duration::from_secs(600), ..Limits::default() };
    let outcome = supervise(plan, &job, &limits, None)?;
    match outcome.exit {
        ExitReason::Exited(0) => Ok(()),
        other => Err(SandboxError::System { step: "trying the sandbox", cause: format!("{other:?}") }),
    }
}

/// Runs a program.
pub(crate) fn run(plan: &Plan, job: &Job, limits: &Limits) -> Result<Outcome, SandboxError> {
    let program = resolve(&job.command[0])?;
    let texts = |list: Vec<Vec<u8>>| list.into_iter().map(text).collect::<Result<Vec<CString>, _>>();
    let arguments = texts(job.command.iter().map(|word| word.as_bytes().to_vec()).collect())?;
    let environment = texts(job.environment.iter().map(|(name, value)| pair(name, value)).collect())?;
    let program = Program::new(text(program.into_os_string().as_bytes().to_vec())?, arguments, environment);
    supervise(plan, job, limits, Some(program))
}

fn text(bytes: Vec<u8>) -> Result<CString, SandboxError> {
    CString::new(bytes).map_err(|_| {
        SandboxError::Job(
            "an argument, variable or file name contains a zero byte, which cannot be".to_string(),
        )
    })
}

fn pair(name: &OsStr, value: &OsStr) -> Vec<u8> {
    [name.as_bytes(), b"=", value.as_bytes()].concat()
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |cause| SandboxError::System { step, cause: cause.to_string() }
}

/// What a failed step means.
fn explain(failure: Failure, program: Option<&Program>) -> SandboxError {
    let Failure { step, errno } = failure;
    if let (EXECUTING, Some(program)) = (step, program) {
        let program = program.path.to_string_lossy().into_owned();
        let cause = match errno {
            Errno::NOENT => {
                "it, or the interpreter that its first line names, is in no folder that programs in \
                             the sandbox can read"
                    .to_string()
            }
            other => other.to_string(),
        };
        return SandboxError::Program { program, cause };
    }
    if step == WRITING && matches!(errno, Errno::NOSPC | Errno::FBIG) {
        return SandboxError::Job(format!("{step} failed: {errno}; allow more scratch"));
    }
    if matches!(errno, Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) {
        return SandboxError::System { step, cause: errno.to_string() };
    }
    let advice = match errno {
        Errno::PERM | Errno::ACCESS => {
            "Namespaces are forbidden here: by AppArmor (sysctl kernel.apparmor_restrict_unprivileged_userns), by \
             kernel.unprivileged_userns_clone, or by a container that lacks CAP_SYS_ADMIN; allow them, or run as \
             root outside of a container"
        }
        Errno::USERS | Errno::NOSPC => "Raise sysctl user.max_user_namespaces",
        _ => "The sandbox needs Linux 5.14 or newer with namespaces, tmpfs and seccomp",
    };
    SandboxError::Unavailable { step, cause: errno.to_string(), advice }
}

/// A user id that no other program has: from our process id and a counter.
fn fresh_uid() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id() & 0x3f_ffff;
    0x4000_0000 | process << 7 | COUNTER.fetch_add(1, Ordering::Relaxed) & 0x7f
}

/// What the program reads: a file in memory that nobody can change.
fn input(bytes: &[u8]) -> Result<OwnedFd, SandboxError> {
    if bytes.is_empty() {
        return rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(system("opening /dev/null"));
    }
    let step = "making the program's input";
    let file = rustix::fs::memfd_create(c"stdin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(system(step))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).map_err(system(step))?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(system(step))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(system(step))?;
    Ok(file)
}

fn resource_limits(limits: &Limits) -> Vec<(Resource, u64)> {
    let seconds = limits.time.as_secs().saturating_add(2);
    let wanted = [
        (Resource::As, limits.memory),
        (Resource::Nproc, limits.processes),
        (Resource::Fsize, limits.scratch),
        // The watch by the clock comes first. This is for processes that outlive us for a moment.
        (Resource::Cpu, seconds),
        (Resource::Nofile, OPEN_FILES),
        (Resource::Core, 0),
        (Resource::Memlock, LOCKED_MEMORY),
        (Resource::Msgqueue, 0),
    ];
    // Nobody but root can allow more than we are allowed.
    wanted
        .map(|(resource, most)| (resource, most.min(getrlimit(resource).maximum.unwrap_or(u64::MAX))))
        .into()
}

fn supervise(
    plan: &Plan,
    job: &Job,
    limits: &Limits,
    program: Option<Program>,
) -> Result<Outcome, SandboxError> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(system("making a pipe"));
    let (stdout, out) = pipe()?;
    let (stderr, err) = pipe()?;
    let fresh = fresh_uid();
    let owner = match plan.identity {
        Identity::Fresh => fresh,
        Identity::Namespace { .. } => child::NOBODY,
    };
    let scratch = format!(
        "size={},nr_inodes={SCRATCH_FILES},mode=0700,uid={owner},gid={owner}",
        limits.scratch.max(4096)
    );
    let files = job.files.iter().map(|(name, content)| Ok((text(name.clone().into())?, content.as_slice())));
    let setup = Setup {
        plan,
        fresh,
        scratch: text(scratch.into())?,
        files: files.collect::<Result<_, SandboxError>>()?,
        limits: resource_limits(limits),
        program,
        stdin: input(&job.stdin)?,
        stdout: out,
        stderr: err,
        alive: pipe()?,
    };
    let start = Instant::now();
    let (id, handle) = child::start(&setup).map_err(|failure| explain(failure, setup.program.as_ref()))?;
    // Ours would keep the pipes open.
    drop(setup);
    let process = Process { id, handle, ended: false };
    let mut outputs = [Output::new(stdout, limits.output), Output::new(stderr, limits.output)];
    process.follow(&mut outputs, start, limits)
}

/// A program that runs, or has ended. Dropped, it is killed.
struct Process {
    /// Its own until it has been waited for.
    id: Pid,
    handle: OwnedFd,
    ended: bool,
}

impl Process {
    fn follow(
        mut self,
        outputs: &mut [Output; 2],
        start: Instant,
        limits: &Limits,
    ) -> Result<Outcome, SandboxError> {
        let mut reached = None;
        let mut looked = start;
        loop {
            let left = limits.time.saturating_sub(start.elapsed());
            if left.is_zero() {
                reached = Some(ExitReason::TimedOut);
                break;
            }
            if self.wait(outputs, left.min(MEMORY_EVERY))? {
                break;
            }
            if looked.elapsed() >= MEMORY_EVERY {
                if memory::is_over(self.id, limits.memory) {
                    reached = Some(ExitReason::TooMuchMemory);
                    break;
                }
                looked = Instant::now();
            }
            if outputs.iter().any(|output| output.full) {
                reached = Some(ExitReason::TooMuchOutput);
                break;
            }
        }
        let time = start.elapsed();
        let exit = self.end()?;
        // All that had the pipes open have ended with process 1: this reads to their ends.
        for output in outputs.iter_mut() {
            while output.pipe.is_some() && !output.full {
                output.read()?;
            }
        }
        let full = outputs.iter().any(|output| output.full).then_some(ExitReason::TooMuchOutput);
        let [stdout, stderr] = outputs.each_mut().map(|output| std::mem::take(&mut output.bytes));
        Ok(Outcome { exit: reached.or(full).unwrap_or(exit), stdout, stderr, time })
    }

    /// Waits for something to read or for the end, which is true; at most `left`.
    fn wait(&self, outputs: &mut [Output; 2], left: Duration) -> Result<bool, SandboxError> {
        let mut waiting = vec![PollFd::new(&self.handle, PollFlags::IN)];
        let open: Vec<usize> = (0..2).filter(|index| outputs[*index].pipe.is_some()).collect();
        waiting.extend(
            open.iter()
                .filter_map(|index| outputs[*index].pipe.as_ref())
                .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut waiting, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(cause) => return Err(system("waiting for the program")(cause)),
        }
        let ready: Vec<bool> = waiting.iter().map(|one| !one.revents().is_empty()).collect();
        for (index, ready) in open.into_iter().zip(&ready[1..]) {
            if *ready {
                outputs[index].read()?;
            }
        }
        Ok(ready[0])
    }

    /// Kills the program if it runs, with all that it started, and says how it ended.
    fn end(&mut self) -> Result<ExitReason, SandboxError> {
        // Fails if it has ended.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        let status: Option<WaitIdStatus> = loop {
            match waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other.map_err(system("waiting for the program's end"))?,
            }
        };
        self.ended = true;
        let status = status.ok_or(SandboxError::System {
            step: "waiting for the program's end",
            cause: "it has no status".to_string(),
        })?;
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitReason::Exited(code),
            (None, signal) => ExitReason::Signalled(signal.unwrap_or(0)),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// One of the streams that a program writes to.
struct Output {
    pipe: Option<std::fs::File>,
    bytes: Vec<u8>,
    most: u64,
    full: bool,
}

impl Output {
    fn new(pipe: OwnedFd, most: u64) -> Self {
        Output { pipe: Some(pipe.into()), bytes: Vec::new(), most, full: false }
    }

    /// Reads once. Waits if there is nothing to read. Closes the pipe at its end.
    fn read(&mut self) -> Result<(), SandboxError> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut part = [0; 1 << 16];
        let read = match pipe.read(&mut part) {
            Ok(read) => read,
            Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(cause) => {
                return Err(SandboxError::System {
                    step: "reading what the program writes",
                    cause: cause.to_string(),
                });
            }
        };
        if read == 0 {
            self.pipe = None;
            return Ok(());
        }
        let room = (self.most as usize).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&part[..read.min(room)]);
        self.full = read > room;
        Ok(())
    }
}
