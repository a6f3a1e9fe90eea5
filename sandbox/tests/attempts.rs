//! What programs try against the sandbox, each with a real Python program; and that none of it works.
//!
//! On a machine that cannot confine programs these tests say so and are skipped.
#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use arriero_sandbox::{ExitReason, Job, Limits, Outcome, Python, Sandbox, SandboxError};

struct Ready {
    sandbox: Sandbox,
    python: Python,
}

/// The sandbox of all tests; none where the machine has none.
fn ready() -> Option<&'static Ready> {
    static READY: OnceLock<Result<Ready, SandboxError>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        let python = Python::find(OsStr::new("python3"))?;
        Ok(Ready { sandbox: Sandbox::new(&python.folders)?, python })
    });
    match ready {
        Ok(ready) => Some(ready),
        Err(error @ SandboxError::Unavailable { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn limits() -> Limits {
    Limits {
        time: Duration::from_secs(60),
        memory: 256 << 20,
        processes: 8,
        scratch: 8 << 20,
        output: 64 << 10,
    }
}

fn run_with(limits: &Limits, program: &str) -> Option<Outcome> {
    let ready = ready()?;
    let mut job = ready.python.job(["program.py"]);
    job.files.push(("program.py".to_string(), program.into()));
    Some(ready.sandbox.run(&job, limits).expect("the sandbox works"))
}

fn run(program: &str) -> Option<Outcome> {
    run_with(&limits(), program)
}

/// Runs a program that prints a line for everything that worked and should not have, and ends with "done".
fn nothing_works(program: &str) {
    nothing_works_beside(&[], program);
}

/// The same, where programs can read some more folders.
fn nothing_works_beside(readable: &[PathBuf], program: &str) {
    let Some(ready) = ready() else { return };
    let folders: Vec<PathBuf> = ready.python.folders.iter().chain(readable).cloned().collect();
    let sandbox = Sandbox::new(&folders).expect("there is a sandbox");
    let job = ready.python.job(["-c", &format!("{ATTEMPT}\n{program}\nprint('done')")]);
    let outcome = sandbox.run(&job, &limits()).expect("the sandbox works");
    let said = String::from_utf8_lossy(&outcome.stdout);
    let complaints = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!((outcome.exit, &*said), (ExitReason::Exited(0), "done\n"), "{complaints}");
}

/// That these attempts of a program do work without the sandbox.
fn works_outside(program: &str, attempts: &[&str]) {
    let python = Python::find(OsStr::new("python3")).expect("python3 is a prerequisite");
    let job = python.job(["-c", &format!("{ATTEMPT}\n{program}")]);
    let outcome = Sandbox::none().run(&job, &limits()).expect("it runs");
    for attempt in attempts {
        assert!(stdout(&outcome).contains(&format!("worked: {attempt}")), "{attempt}: {}", stdout(&outcome));
    }
}

/// `attempt(name, function)` prints what the function gave, unless it raises an `OSError`.
const ATTEMPT: &str = r#"
import os, sys, socket, signal, ctypes
def attempt(name, function):
    try:
        print("worked:", name, function())
    except OSError:
        pass
"#;

fn stdout(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

#[test]
fn a_program_runs_with_input_files_and_a_status() {
    let Some(ready) = ready() else { return };
    let mut job = ready.python.job(["-c", "import sys; print(input()[::-1], open('a').read()); sys.exit(3)"]);
    job.stdin = "olleh\n".into();
    job.files.push(("a".to_string(), "there".into()));
    let outcome = ready.sandbox.run(&job, &limits()).expect("the sandbox works");
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::Exited(3), "hello there\n"));
}

#[test]
fn libraries_and_subprocesses_work() {
    let Some(outcome) = run("
import subprocess, threading, tempfile, asyncio, json, decimal, ssl, sqlite3, time
print(subprocess.run(['sh', '-c', 'echo $((6 * 7))'], capture_output=True, text=True).stdout.strip())
thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
with tempfile.NamedTemporaryFile() as file: file.write(b'x')
asyncio.run(asyncio.sleep(0))
import multiprocessing.connection
one, two = multiprocessing.Pipe(); one.send([1]); assert two.recv() == [1]
print(time.time() > 1e9)
")
    else {
        return;
    };
    let complaints = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(
        (outcome.exit, stdout(&outcome).as_str()),
        (ExitReason::Exited(0), "42\nthread\nTrue\n"),
        "{complaints}"
    );
}

#[test]
fn there_is_no_network() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    let program = format!(
        r#"
def connect(family, kind, address):
    socket.socket(family, kind).connect(address)
attempt("TCP to the host", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {port})))
attempt("TCP outside", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 443)))
attempt("TCP over IPv6", lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", {port})))
attempt("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("1.1.1.1", 53)))
attempt("a server", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("DNS", lambda: socket.getaddrinfo("example.com", 80))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
"#
    );
    nothing_works(&program);
    works_outside(&program, &["TCP to the host", "a server"]);
}

#[test]
fn unix_sockets_of_the_host_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("arriero-sandbox-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address).expect("a socket");
    let folder = tempfile::tempdir().expect("a folder");
    let readable = folder.path().to_path_buf();
    std::fs::write(readable.join("file"), "content").expect("written");
    let path = folder.path().join("socket");
    let _named = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let program = format!(
        r#"
def connect(address):
    socket.socket(socket.AF_UNIX).connect(address)
attempt("abstract", lambda: connect("\0{name}"))
def send(address):
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", address)
attempt("named", lambda: connect("{0}"))
attempt("datagram", lambda: send("{0}"))
attempt("bound", lambda: socket.socket(socket.AF_UNIX).bind("/tmp/socket"))
attempt("D-Bus", lambda: connect("/run/dbus/system_bus_socket"))
attempt("Docker", lambda: connect("/var/run/docker.sock"))
"#,
        path.display()
    );
    // The socket can be seen: its folder is readable.
    let seen =
        format!("if not os.path.exists({:?}): print('no socket')\n{program}", path.display().to_string());
    nothing_works_beside(&[readable], &seen);
    works_outside(&program, &["abstract", "named"]);
}

#[test]
fn files_of_the_host_cannot_be_read() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut secret = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    std::io::Write::write_all(&mut secret, b"secret").expect("it is written");
    let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("/root"));
    let me = std::process::id();
    let secret_path = secret.path().display().to_string();
    let program = format!(
        r#"
def read(path):
    return open(path, "rb").read(10)
for path in ["/etc/shadow", "/etc/passwd", "/etc/hostname", "{0}/.bashrc", "{0}/.profile", "/root/.bashrc",
             "/proc/{1}/environ", "/proc/self/environ", "/proc/1/mem", "/proc/{1}/cmdline", "/sys/kernel/notes",
             "/var/log/dpkg.log", "{2}", "/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/tty"]:
    attempt(path, lambda: read(path))
for folder in ["/home", "/var", "/run", "/mnt", "/proc", "/sys", "/srv", "/old-root", "{3}"]:
    attempt(folder, lambda: os.listdir(folder))
# Where the interpreter is in a home folder, the way to it is there, and nothing beside it.
for root, folders, files in os.walk("{0}"):
    folders[:] = [one for one in folders if os.path.join(root, one) not in (sys.prefix, sys.base_prefix)]
    if files: print("found", root, files[:3])
"#,
        home.display(),
        me,
        secret_path,
        here.display(),
    );
    nothing_works(&program);
    works_outside(&program, &["/etc/passwd", "/proc/self/environ", &secret_path]);
}

#[test]
fn our_environment_and_open_files_do_not_come_along() {
    let file =
        std::fs::File::open(env!("CARGO_MANIFEST_DIR").to_string() + "/Cargo.toml").expect("this crate's");
    // Not closed on `execve`, as files of other libraries may be.
    let leak = rustix::io::dup(&file).expect("a second handle");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("it stays open");
    nothing_works(
        r#"
allowed = {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED"}
for name in os.environ:
    if name not in allowed: print("variable", name)
for number in range(3, 256):
    attempt(f"file {number}", lambda: os.fstat(number))
"#,
    );
}

#[test]
fn nothing_but_scratch_can_be_written() {
    let here = env!("CARGO_MANIFEST_DIR");
    nothing_works(&format!(
        r#"
def write(path):
    open(path, "w").write("x")
open("/tmp/allowed", "w").write("x")
for folder in ["/", "/usr", "/usr/bin", "/usr/local", "/etc", "/dev", "/dev/shm", "/var/tmp", "/home", "/root", "/run",
               "{here}", sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]:
    attempt(folder, lambda: write(folder + "/written-by-the-sandbox"))
    attempt("mkdir " + folder, lambda: os.mkdir(folder + "/made-by-the-sandbox"))
    attempt("chmod " + folder, lambda: os.chmod(folder, 0o777))
attempt("replace", lambda: os.rename("/tmp/allowed", os.__file__))
attempt("append", lambda: open(os.__file__, "a").write("x"))
attempt("link", lambda: os.link(os.__file__, "/tmp/link"))
attempt("truncate", lambda: os.truncate(sys.executable, 0))
"#
    ));
    assert!(!Path::new("/tmp/allowed").exists(), "the scratch folder is not the host's /tmp");
}

#[test]
fn links_in_scratch_lead_nowhere() {
    nothing_works(
        r#"
for target in ["/etc/shadow", "/../etc/shadow", "../../../etc/shadow", "/old-root/etc/shadow", "/proc/self/root/etc/shadow"]:
    os.symlink(target, "link")
    attempt("read " + target, lambda: open("link").read())
    attempt("write " + target, lambda: open("link", "w").write("x"))
    os.remove("link")
os.symlink("/", "root")
attempt("chroot", lambda: os.chroot("root"))
attempt("list", lambda: os.listdir("root/home"))
"#,
    );
}

#[test]
fn a_fork_bomb_goes_out() {
    let Some(outcome) = run("
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(100)
        count += 1
except OSError as error:
    print(count, error.errno)
")
    else {
        return;
    };
    // Seven beside the first: eight.
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::Exited(0), "7 11\n"));
    let limits = Limits { time: Duration::from_secs(1), ..limits() };
    let Some(outcome) =
        run_with(&limits, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    else {
        return;
    };
    assert_eq!(outcome.exit, ExitReason::TimedOut);
}

#[test]
fn threads_count_as_processes() {
    // Each thread's stack is address space.
    let limits = Limits { memory: 1 << 30, ..limits() };
    let Some(outcome) = run_with(
        &limits,
        "
import threading, time
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        count += 1
except RuntimeError:
    print(count)
",
    ) else {
        return;
    };
    assert_eq!(stdout(&outcome), "7\n");
}

#[test]
fn limits_of_parallel_runs_are_their_own() {
    if ready().is_none() {
        return;
    }
    let program = "
import os, time
for _ in range(6):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
for _ in range(6): os.wait()
print('all')
";
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| run(program))).collect();
        for run in runs {
            let outcome = run.join().expect("no panic").expect("there is a sandbox");
            assert_eq!(stdout(&outcome), "all\n", "{}", String::from_utf8_lossy(&outcome.stderr));
        }
    });
}

#[test]
fn a_memory_bomb_does_not_go_off() {
    let Some(outcome) = run("
try:
    data = bytearray(1 << 30)
except MemoryError:
    print('refused')
data = []
while True: data.append(b'x' * (1 << 20) + bytes([len(data) % 256]))
")
    else {
        return;
    };
    assert_eq!(stdout(&outcome), "refused\n");
    assert_eq!(outcome.exit, ExitReason::Exited(1));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("MemoryError"));
}

#[test]
fn many_processes_have_no_more_memory_than_one() {
    let fork = |child: &str| {
        format!(
            "
import os, time
mine = bytearray(b'x') * (100 << 20)
for _ in range(6):
    if os.fork() == 0:
        {child}
        time.sleep(1)
        os._exit(0)
for _ in range(6): os.wait()
print('all')
"
        )
    };
    let Some(outcome) = run(&fork("own = bytearray(b'y') * (100 << 20)")) else { return };
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::TooMuchMemory, ""));
    // What they share counts once.
    let Some(outcome) = run(&fork("pass")) else { return };
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::Exited(0), "all\n"));
}

#[test]
fn memory_cannot_be_had_beside_the_limit() {
    nothing_works(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1: raise OSError(ctypes.get_errno(), name)
    return result
attempt("memfd", lambda: os.memfd_create("x"))
attempt("System V", lambda: call("shmget", 0, 1 << 20, 0o1600))
attempt("semaphores", lambda: call("semget", 0, 10, 0o1600))
attempt("messages", lambda: call("msgget", 0, 0o1600))
attempt("POSIX", lambda: call("shm_open", b"/x", os.O_CREAT | os.O_RDWR, 0o600))
attempt("locked", lambda: call("mlockall", 3))
"#,
    );
}

#[test]
fn endless_loops_end() {
    let limits = Limits { time: Duration::from_millis(500), ..limits() };
    for program in [
        "while True: pass",
        "import time\nwhile True: time.sleep(1000)",
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
        "import threading\nthreading.Event().wait()",
    ] {
        let Some(outcome) = run_with(&limits, program) else { return };
        assert_eq!(outcome.exit, ExitReason::TimedOut, "{program}");
        assert!(outcome.time >= limits.time);
    }
}

#[test]
fn giant_output_is_cut_off() {
    for stream in ["stdout", "stderr"] {
        let program = format!("import sys\nwhile True: sys.{stream}.write('x' * 100000)");
        let Some(outcome) = run(&program) else { return };
        assert_eq!(outcome.exit, ExitReason::TooMuchOutput);
        let kept = if stream == "stdout" { &outcome.stdout } else { &outcome.stderr };
        assert_eq!(kept.len(), 64 << 10);
    }
    let Some(outcome) = run("print('x' * 65535)") else { return };
    assert_eq!((outcome.exit, outcome.stdout.len()), (ExitReason::Exited(0), 65536));
    let Some(outcome) = run("print('x' * 65536)") else { return };
    assert_eq!(outcome.exit, ExitReason::TooMuchOutput);
}

#[test]
fn scratch_has_a_size() {
    let Some(outcome) = run("
def fill():
    for number in range(100):
        with open(f'file{number}', 'wb') as file: file.write(b'x' * (1 << 20))
try: fill()
except OSError as error: print(error.errno)
import os
print(sum(os.path.getsize(name) for name in os.listdir('.')) <= 8 << 20)
count = 0
try:
    while True:
        os.mkdir(f'folder{count}')
        count += 1
except OSError as error: print(error.errno, count < 5000)
")
    else {
        return;
    };
    assert_eq!(stdout(&outcome), "28\nTrue\n28 True\n");
}

#[test]
fn other_processes_are_out_of_reach() {
    let me = std::process::id();
    nothing_works(&format!(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
def trace(pid):
    if libc.ptrace(16, pid, 0, 0) == -1: raise OSError(ctypes.get_errno(), "ptrace")
if os.getppid() != 0: print("parent", os.getppid())
attempt("kill the parent", lambda: os.kill({me}, signal.SIGKILL))
attempt("kill all", lambda: os.kill(-1, signal.SIGKILL))
attempt("trace the parent", lambda: trace({me}))
attempt("a handle of the parent", lambda: os.pidfd_open({me}))
attempt("priority", lambda: os.nice(-5))
child = os.fork()
if child == 0:
    signal.pause()
attempt("trace a child", lambda: trace(child))
os.kill(child, signal.SIGKILL)
"#
    ));
}

#[test]
fn nobody_becomes_root() {
    nothing_works(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1: raise OSError(ctypes.get_errno(), name)
    return result
if 0 in os.getresuid() + os.getresgid() + tuple(os.getgroups()): print("root", os.getresuid(), os.getgroups())
attempt("setuid", lambda: os.setuid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("user namespace", lambda: call("unshare", 0x10000000))
attempt("mount namespace", lambda: call("unshare", 0x20000))
attempt("cloned namespace", lambda: call("syscall", 56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("mount", lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None))
attempt("unmount", lambda: call("umount2", b"/usr", 2))
attempt("writable", lambda: call("mount", None, b"/usr", None, 32 | 4096, None))
attempt("device", lambda: os.mknod("/tmp/device", 0o60600, os.makedev(254, 0)))
attempt("host name", lambda: socket.sethostname("x"))
attempt("keys", lambda: call("syscall", 250, 0, -3, 0, 0, 0))
attempt("io_uring", lambda: call("syscall", 425, 8, 0))
attempt("bpf", lambda: call("syscall", 321, 0, 0, 0))
attempt("outliving us", lambda: call("prctl", 1, 0, 0, 0, 0))
for path in ["/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount"]:
    if os.path.exists(path): os.system(path + " --version > /dev/null 2>&1")
if 0 in os.getresuid(): print("root")
"#,
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_other_architectures_are_closed() {
    // The number of unshare with the bit of the x32 ABI.
    nothing_works(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*arguments)
    if result == -1: raise OSError(ctypes.get_errno(), "syscall")
    return result
attempt("x32 unshare", lambda: call(0x40000000 | 272, 0x10000000))
attempt("x32 getpid", lambda: call(0x40000000 | 39))
"#,
    );
    // mov eax, 20 (getpid of 32-bit programs); int 0x80; ret: kills.
    let Some(outcome) = run("
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('b814000000cd80c3'))
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print(function())
")
    else {
        return;
    };
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::Signalled(31), ""));
}

#[test]
fn a_daemon_dies_with_its_program() {
    let Some(ready) = ready() else { return };
    // The daemon holds the write end of a pipe that leads out; when it is closed, all of them are dead.
    let program = r#"
import os, sys, time, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        print("daemon", flush=True)
        while True:
            time.sleep(0.01)
            print("alive", flush=True)
    os._exit(0)
time.sleep(0.3)
"#;
    let mut job = ready.python.job(["-c", program]);
    job.stdin = Vec::new();
    let outcome = ready.sandbox.run(&job, &limits()).expect("the sandbox works");
    assert_eq!(outcome.exit, ExitReason::Exited(0));
    // It ran, and the output has an end: the run returned although the daemon never closed it.
    assert!(stdout(&outcome).starts_with("daemon\nalive\n"), "{}", stdout(&outcome));
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let Some(ready) = ready() else { return };
    let refused = |job: &Job| ready.sandbox.run(job, &limits()).expect_err("an error").to_string();
    let error = refused(&Job::new(["no-such-program-anywhere"]));
    assert_eq!(error, "no-such-program-anywhere cannot be run: there is no such file");
    assert!(refused(&Job::default()).contains("the command is empty"));
    let mut job = ready.python.job(["-c", ""]);
    job.files.push(("../x".to_string(), Vec::new()));
    assert!(refused(&job).contains("a name without a slash"));
    let mut job = ready.python.job(["-c", ""]);
    job.files.push(("x".to_string(), vec![0; 9 << 20]));
    let error = refused(&job);
    assert!(error.contains("allow more scratch"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n").expect("written");
    let error = refused(&Job::new([script]));
    assert!(error.contains("in no folder that programs in the sandbox can read"), "{error}");
    for path in ["/", "/no/such/folder", "/proc", "/tmp"] {
        let error = Sandbox::new(&[PathBuf::from(path)]).expect_err("an error");
        assert!(matches!(error, SandboxError::Readable { .. }), "{path}: {error}");
    }
}

#[test]
fn without_a_sandbox_time_and_output_are_limited() {
    let python = Python::find(OsStr::new("python3")).expect("python3 is a prerequisite");
    let run = |program: &str, time| {
        let mut job = python.job(["-c", program]);
        job.stdin = "in".into();
        let limits = Limits { time: Duration::from_millis(time), ..limits() };
        Sandbox::none().run(&job, &limits).expect("it runs")
    };
    let outcome = run("import sys; print(input()); sys.exit(2)", 60_000);
    assert_eq!((outcome.exit, stdout(&outcome).as_str()), (ExitReason::Exited(2), "in\n"));
    assert_eq!(run("while True: pass", 300).exit, ExitReason::TimedOut);
    let outcome = run("while True: print('x' * 1000)", 60_000);
    assert_eq!((outcome.exit, outcome.stdout.len()), (ExitReason::TooMuchOutput, 64 << 10));
    assert_eq!(run("import os; os.kill(os.getpid(), 9)", 60_000).exit, ExitReason::Signalled(9));
}
