//! The process of a user's program: lines in, lines out, and the end of what it wrote to stderr.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::keeper::{self, FAREWELL};

/// Bytes of a line; one that is longer is no answer.
const MOST_BYTES: u64 = 16 << 20;
/// Lines that wait to be looked at. A program that writes more is held up.
const MOST_LINES: usize = 1024;
/// Bytes kept of stderr.
const MOST_COMPLAINTS: usize = 2000;
/// How long the keeper of a program may take to kill all that it has started.
const CLEANING: Duration = Duration::from_secs(5);

/// What a program wrote.
pub(super) enum Line {
    Text(String),
    /// More bytes than a line may have.
    TooLong(u64),
    /// It will write no more.
    End,
}

/// A running program. It has a process group of its own: ctrl-c in the terminal is ours to handle, and what it has
/// started ends with it. What leaves the group, and the end that we do not see coming, are its [`keeper`]'s.
pub(super) struct Process {
    /// The keeper if there is one, else the program.
    child: Child,
    is_kept: bool,
    lines: Receiver<Line>,
    /// To the thread that writes, since a program that does not read would hold us up. `None` ends its input.
    input: Option<Sender<String>>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    /// Told when stderr has ended.
    stderr_ended: Receiver<()>,
}

impl Process {
    pub fn start(command: &[String]) -> Result<Self, String> {
        let (program, arguments) = command.split_first().ok_or("there is no command")?;
        let failed = |error: std::io::Error| format!("the program {program:?} cannot be started: {error}");
        let keeper = keeper::command();
        let is_kept = keeper.is_some();
        let mut command = match keeper {
            Some(mut keeper) => {
                keeper.arg(program);
                keeper
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (input, to_write) = channel();
        let (found, lines) = sync_channel(MOST_LINES);
        let (ended, stderr_ended) = channel();
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stdin) = child.stdin.take() {
            std::thread::spawn(move || write_lines(stdin, &to_write));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || read_lines(BufReader::new(stdout), &found));
        }
        if let Some(pipe) = child.stderr.take() {
            let stderr = Arc::clone(&stderr);
            std::thread::spawn(move || {
                keep_end(pipe, &stderr);
                let _ = ended.send(());
            });
        }
        Ok(Process { child, is_kept, lines, input: Some(input), stderr, stderr_ended })
    }

    /// Writes a line, sooner or later. To a process that has ended it writes nothing: its end is read.
    pub fn write(&self, line: String) {
        if let Some(input) = &self.input {
            let _ = input.send(line);
        }
    }

    /// The next line, if one comes within `patience`.
    pub fn read(&self, patience: Duration) -> Option<Line> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Some(Line::End),
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> String {
        match self.wait(FAREWELL) {
            Some(status) => format!("ended ({status})"),
            None => "closed its output".to_string(),
        }
    }

    /// The end of what it wrote to stderr, for an error message.
    pub fn complaints(&mut self) -> String {
        // Its last words may still be in the pipe.
        if self.wait(Duration::ZERO).is_some() {
            let _ = self.stderr_ended.recv_timeout(FAREWELL);
        }
        let bytes: Vec<u8> =
            self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        match text.trim() {
            "" => "it wrote nothing to stderr".to_string(),
            text => format!("the end of its stderr:\n{text}"),
        }
    }

    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Process {
    /// Its input ends, and with it a program that reads to the end; whatever is left is killed.
    fn drop(&mut self) {
        self.input = None;
        let ended = self.wait(FAREWELL).is_some();
        if let Some(keeper) = Pid::from_raw(self.child.id() as i32).filter(|_| self.is_kept && !ended) {
            let _ = kill_process(keeper, Signal::TERM);
            self.wait(CLEANING);
        }
        // The group outlives its leader as long as it has members, and no other gets its id.
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<String>) {
    for line in lines {
        let written = stdin.write_all(line.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
        if written.and_then(|()| stdin.flush()).is_err() {
            // It does not read any more; what becomes of that is seen in what it writes.
            return;
        }
    }
}

fn read_lines(mut stdout: impl BufRead, lines: &SyncSender<Line>) {
    loop {
        let mut bytes = Vec::new();
        let read = stdout.by_ref().take(MOST_BYTES + 1).read_until(b'\n', &mut bytes);
        let line = match read {
            Ok(0) | Err(_) => return,
            Ok(_) if bytes.len() as u64 > MOST_BYTES => Line::TooLong(bytes.len() as u64),
            // Python would write a broken text as it is; the reader quotes it.
            Ok(_) if bytes.trim_ascii().is_empty() => continue,
            Ok(_) => Line::Text(String::from_utf8_lossy(bytes.trim_ascii()).into_owned()),
        };
        if lines.send(line).is_err() {
            return;
        }
    }
}

fn keep_end(mut pipe: impl Read, kept: &Mutex<VecDeque<u8>>) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut chunk) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&chunk[..count]);
        let excess = kept.len().saturating_sub(MOST_COMPLAINTS);
        kept.drain(..excess);
    }
}
