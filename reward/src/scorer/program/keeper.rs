//! A process between us and a user's program, so that nothing of the program outlives us.
//!
//! A process group does not hold what has made a session of its own, and nobody kills a group when we are killed. So
//! the program is not our child, but that of a keeper: this same executable, which adopts all that the program leaves
//! behind (it is their subreaper) and kills it when the program ends, when it is told to, or when we are gone, however
//! that came about. It knows that from the program's standard input, which it shares: nobody writes to it any more.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, pidfd_open, set_child_subreaper,
};

/// The first argument of an executable that is to keep a program.
const KEEP: &str = "--keep-reward-program";
/// This executable, even where its file has been replaced.
const OURSELVES: &str = "/proc/self/exe";
/// How long a program may take to end after its input has ended.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);
/// The status of a program that cannot be started, as shells have it.
const NOT_STARTED: u8 = 127;

static INSTALLED: OnceLock<()> = OnceLock::new();

/// To be called first by the `main` of an executable: if this process is to keep a program, does so, and returns its
/// exit status. Else programs of the `program` reward are kept by this executable from now on. Without this call
/// programs are killed with their process group only, and only by us.
pub fn keep_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == KEEP) {
        return Some(keep(arguments.collect()));
    }
    let _ = INSTALLED.set(());
    None
}

/// What starts a program under a keeper; none without [`keep_if_asked`].
pub(super) fn command() -> Option<Command> {
    INSTALLED.get()?;
    let mut command = Command::new(OURSELVES);
    command.arg(KEEP);
    Some(command)
}

fn keep(command: Vec<OsString>) -> ExitCode {
    match keep_to_its_end(&command) {
        Ok(code) => code,
        Err(cause) => {
            let program = command.first().map(|program| program.to_string_lossy().into_owned());
            eprintln!("the program {:?} cannot be started: {cause}", program.unwrap_or_default());
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn keep_to_its_end(command: &[OsString]) -> std::io::Result<ExitCode> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| std::io::Error::other("there is no command"))?;
    set_child_subreaper(Some(getpid()))?;
    let (told, tell) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, tell)?;
    let child = Command::new(program).args(arguments).spawn()?;
    let Some(pid) = Pid::from_raw(child.id() as i32) else { return Ok(ExitCode::FAILURE) };
    // The program's output ends when it says so, not when we do.
    let nowhere = fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    let status = wait(pid, &told);
    kill_all();
    Ok(leave_as(status))
}

/// Until the program has ended, which is its status; or is not wanted any more.
fn wait(pid: Pid, told: &UnixStream) -> Option<WaitStatus> {
    let ended = pidfd_open(pid, PidfdFlags::empty()).ok();
    let mut input_ended = false;
    loop {
        // Also of those that it left behind.
        while let Ok(Some((one, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if one == pid {
                return Some(status);
            }
        }
        let input = rustix::stdio::stdin();
        let mut files = vec![PollFd::new(told, PollFlags::IN)];
        if let Some(ended) = &ended {
            files.push(PollFd::new(ended, PollFlags::IN));
        }
        if !input_ended {
            // What it has not read stays there for it: asked is only whether somebody can still write.
            files.push(PollFd::from_borrowed_fd(input, PollFlags::empty()));
        }
        let patience = if input_ended { FAREWELL } else { Duration::from_secs(1) };
        let patience = if ended.is_some() { patience } else { Duration::from_millis(20) };
        let patience =
            Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let found = match poll(&mut files, Some(&patience)) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        };
        if files[0].revents().contains(PollFlags::IN) || (found == 0 && input_ended) {
            return None;
        }
        let hung_up = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        input_ended |= files
            .get(1 + usize::from(ended.is_some()))
            .is_some_and(|file| file.revents().intersects(hung_up));
    }
}

/// Kills every descendant: each one whose parent dies becomes our child.
fn kill_all() {
    loop {
        for child in children() {
            let _ = kill_process(child, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::NOHANG) {
            // Nobody is left.
            Err(rustix::io::Errno::CHILD) => return,
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

/// Our children.
fn children() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which can have anything in it: the state, and the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(getpid().as_raw_nonzero().get())
    };
    numbers.filter(is_ours).filter_map(Pid::from_raw).collect()
}

/// Ends as the program did.
fn leave_as(status: Option<WaitStatus>) -> ExitCode {
    let Some(status) = status else { return ExitCode::FAILURE };
    if let Some(signal) = status.terminating_signal() {
        let _ = match Signal::from_named_raw(signal) {
            Some(Signal::KILL) => kill_process(getpid(), Signal::KILL).map_err(Into::into),
            _ => signal_hook::low_level::emulate_default_handler(signal),
        };
        return ExitCode::FAILURE;
    }
    ExitCode::from(status.exit_status().unwrap_or(1) as u8)
}
