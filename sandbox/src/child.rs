//! The steps from a new process to the program.
//!
//! The process that [`start`] makes shares our memory until it becomes the program, as a process of `vfork` or
//! `posix_spawn` does. To copy the page tables of a process that trains a model would cost more than the program.
//! Meanwhile the thread that made it waits. So between `clone` and `execve` the following holds:
//!
//! - nothing is allocated, no lock is taken, nothing panics: other threads go on, and may hold any lock;
//! - system calls are made directly, by rustix, or by functions of libc that do nothing else. libc's `setuid` and
//!   its kin are not among them, since they change all threads of what libc takes to be our process;
//! - what it opens, closes, or does to signals is its own: neither files nor handlers are shared.
//!
//! Everything that it needs is made before, as a [`Setup`]. Where a step fails, it writes which one into the memory
//! that we share, and ends. Nothing of our memory is left once the program runs.
#![allow(
    unsafe_code,
    reason = "a process that shares our memory, and system calls that rustix does not have"
)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, chdir, dumpable_behavior, pivot_root,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, setsid, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::plan::{Identity, Plan, Step};

/// What the process is called within its user namespace; nobody's usual number.
pub(crate) const NOBODY: u32 = 65534;
/// Bytes of stack until the program starts.
const STACK: usize = 256 << 10;
/// The folder over which the new root is mounted. It is always there, and nothing of it is needed in the end.
const BASE: &CStr = c"/proc";
const HERE: &CStr = c".";

/// Everything that a process needs to become the program.
pub(crate) struct Setup<'a> {
    pub plan: &'a Plan,
    /// The user id of the program, where it gets a fresh one.
    pub fresh: u32,
    /// Options of the file system of `/tmp`.
    pub scratch: CString,
    pub files: Vec<(CString, &'a [u8])>,
    pub limits: Vec<(Resource, u64)>,
    /// None to try every step and then end with status 0.
    pub program: Option<Program>,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// A pipe. Nobody else has its second end, the writer, so it closes when we end.
    pub alive: (OwnedFd, OwnedFd),
}

/// What is executed.
pub(crate) struct Program {
    pub path: CString,
    /// Arguments and environment: texts, and lists of pointers to them that end with null.
    pointers: [Vec<*const libc::c_char>; 2],
    _texts: [Vec<CString>; 2],
}

impl Program {
    pub fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        // A CString's text stays where it is when the CString moves.
        let texts = [arguments, environment];
        let pointers = texts
            .each_ref()
            .map(|texts| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect());
        Program { path, pointers, _texts: texts }
    }
}

/// Why there is no program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub step: &'static str,
    pub errno: Errno,
}

/// A step's result with its name.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno })
    }
}

/// What the new process is handed.
struct Shared<'a> {
    setup: &'a Setup<'a>,
    failure: Option<Failure>,
}

/// Makes the process. It has become the program when this returns. The thread that calls this must also wait for its id
/// and handle, since the end of this thread kills the process.
pub(crate) fn start(setup: &Setup<'_>) -> Result<(Pid, OwnedFd), Failure> {
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    flags |=
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if matches!(setup.plan.identity, Identity::Namespace { .. }) {
        flags |= libc::CLONE_NEWUSER;
    }
    // Whoever gives up being root leaves this changed, with the memory that is shared.
    static DUMPABLE: OnceLock<Option<DumpableBehavior>> = OnceLock::new();
    let dumpable = DUMPABLE.get_or_init(|| dumpable_behavior().ok());
    let mut stack: Vec<MaybeUninit<u128>> = Vec::with_capacity(STACK / size_of::<u128>());
    // SAFETY: the end of the vector's memory, aligned to 16 bytes as the stack's top must be.
    let top = unsafe { stack.as_mut_ptr().add(stack.capacity()) };
    let mut shared = Shared { setup, failure: None };
    let mut pidfd: c_int = -1;
    // SAFETY: `enter` follows the module's rules on the new process's own stack. This thread does not go on
    // before the process has ended or become the program, so `shared` and `stack` outlive their use. Signals are
    // blocked, so that none of our handlers runs on that stack.
    let made = unsafe {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let made = libc::clone(
            enter,
            top.cast(),
            flags,
            (&raw mut shared).cast(),
            &raw mut pidfd,
            ptr::null_mut::<c_void>(),
            ptr::null_mut::<c_int>(),
        );
        let made = if made < 0 { Err(last_error()) } else { Ok(made) };
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        made
    };
    if let (Identity::Fresh, Some(dumpable)) = (setup.plan.identity, *dumpable) {
        // The kernel refuses what only it may set; then there is nothing to restore.
        let _ = set_dumpable_behavior(dumpable);
    }
    let made = made.at("making a process in namespaces of its own")?;
    // SAFETY: the kernel has just made it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: the process wrote it through a pointer that the compiler cannot follow.
    match unsafe { ptr::read_volatile(&raw const shared.failure) } {
        None => {
            Ok((Pid::from_raw(made).ok_or(Failure { step: "making a process", errno: Errno::SRCH })?, pidfd))
        }
        Some(failure) => {
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
            Err(failure)
        }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Where the new process begins.
extern "C" fn enter(shared: *mut c_void) -> c_int {
    // SAFETY: `start` hands a `Shared` over, and waits.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    shared.failure = exec_program(shared.setup).err();
    // SAFETY: ends this process and nothing else; no destructor of ours may run.
    unsafe { libc::_exit(if shared.failure.is_some() { 127 } else { 0 }) }
}

fn exec_program(setup: &Setup<'_>) -> Result<(), Failure> {
    reset_signals();
    umask(Mode::from_raw_mode(0o022));
    // If the machine runs out of memory, the kernel ends this process before ours. If we may not ask for that, nothing
    // is lost.
    let _ = write_file(c"/proc/self/oom_score_adj", b"1000", OFlags::empty());
    if let Identity::Namespace { uid, gid } = setup.plan.identity {
        write_id_maps(uid, gid)?;
    }
    enter_new_root(setup)?;
    // Its own session: no terminal to write to.
    setsid().at("starting a session")?;
    for (resource, most) in &setup.limits {
        let limit = Rlimit { current: Some(*most), maximum: Some(*most) };
        setrlimit(*resource, limit).at("limiting what the program may use")?;
    }
    drop_privileges(setup)?;
    chdir(c"/tmp").at("entering the working folder")?;
    for (name, content) in &setup.files {
        write_file(name, content, OFlags::CREATE | OFlags::EXCL).at(WRITING)?;
    }
    redirect_standard_streams(setup)?;
    // Killed with the thread that started us; unless that has ended by now.
    set_parent_process_death_signal(Some(Signal::KILL)).at("tying the program's life to ours")?;
    // SAFETY: our copy of the writer, in a table of files that is our own and has no owner here.
    unsafe { rustix::io::close(setup.alive.1.as_raw_fd()) };
    let mut ended = [rustix::event::PollFd::new(&setup.alive.0, rustix::event::PollFlags::empty())];
    if rustix::event::poll(&mut ended, Some(&NOW)).at("looking whether we live")? > 0 {
        return Err(Failure { step: "outliving the process that asks for the program", errno: Errno::PIPE });
    }
    close_inherited_fds()?;
    set_no_new_privs(true).at("forbidding the program to gain rights")?;
    let Some(program) = &setup.program else {
        return apply_filter(setup);
    };
    apply_filter(setup)?;
    let [arguments, environment] = &program.pointers;
    // SAFETY: both lists end with null, and their texts live as long as `program`.
    unsafe { libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(last_error()).at(EXECUTING)
}

/// The step that fails when it is the program's fault.
pub(crate) const EXECUTING: &str = "executing the program";
/// The step that fails when files are larger than `/tmp` may be.
pub(crate) const WRITING: &str = "writing a file for the program";
const NOW: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

/// The program has none of our handlers, and need not ignore what we ignore. No signal is left blocked.
fn reset_signals() {
    // SAFETY: the default handler needs nothing. Signals that nobody may handle are refused, which does no harm.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            libc::sigaction(signal, &default, ptr::null_mut());
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

fn write_file(path: &CStr, content: &[u8], flags: OFlags) -> Result<(), Errno> {
    let file = open(path, flags | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Says who we are in our user namespace.
fn write_id_maps(uid: Uid, gid: Gid) -> Result<(), Failure> {
    write_file(c"/proc/self/setgroups", b"deny", OFlags::empty()).at("writing /proc/self/setgroups")?;
    for (path, id) in [(c"/proc/self/uid_map", uid.as_raw()), (c"/proc/self/gid_map", gid.as_raw())] {
        let mut line = Line::default();
        line.number(NOBODY);
        line.text(b" ");
        line.number(id);
        line.text(b" 1\n");
        write_file(path, &line.bytes[..line.length], OFlags::empty())
            .at("naming the user of the namespace")?;
    }
    Ok(())
}

/// A line of text without allocation.
#[derive(Default)]
struct Line {
    bytes: [u8; 32],
    length: usize,
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u32) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.text(&[b'0' + (number % 10) as u8]);
    }
}

/// An empty file system as root, with what the plan shows of the old one, and a working folder.
fn enter_new_root(setup: &Setup<'_>) -> Result<(), Failure> {
    let secret = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", secret).at("making mounts private")?;
    mount(
        c"tmpfs",
        BASE,
        c"tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"size=1m,nr_inodes=4k,mode=0755",
    )
    .at("mounting an empty file system")?;
    chdir(BASE).at("entering the new root")?;
    let folder = Mode::from_raw_mode(0o755);
    rustix::fs::mkdir(c"old-root", folder).at("making a folder for the old root")?;
    pivot_root(HERE, c"old-root").at("changing the root")?;
    chdir(c"/").at("entering the new root")?;
    // Before the steps, which may show folders within it.
    rustix::fs::mkdir(c"/tmp", folder).at("making the working folder")?;
    mount(c"tmpfs", c"/tmp", c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, setup.scratch.as_c_str())
        .at("mounting the working folder")?;
    for step in &setup.plan.steps {
        match step {
            Step::Folder(path) => match rustix::fs::mkdir(path.as_c_str(), folder) {
                Err(Errno::EXIST) => Ok(()),
                made => made,
            }
            .at("making a folder of the new root")?,
            Step::File(path) => {
                write_file(path, b"", OFlags::CREATE).at("making a file of the new root")?;
            }
            Step::Link { to, path } => {
                rustix::fs::symlink(to.as_c_str(), path.as_c_str()).at("making a link of the new root")?
            }
            Step::Bind { from, to, device } => {
                mount_bind_recursive(from.as_c_str(), to.as_c_str()).at("showing a folder to the program")?;
                let special = if *device { libc::MOUNT_ATTR_NOEXEC } else { libc::MOUNT_ATTR_NODEV };
                read_only(to, special | libc::MOUNT_ATTR_NOSUID, true)?;
            }
        }
    }
    unmount(c"/old-root", UnmountFlags::DETACH).at("leaving the old root")?;
    rustix::fs::rmdir(c"/old-root").at("removing the old root's folder")?;
    read_only(c"/", libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, false)
}

/// Makes a mount read-only, with all mounts below it if `recursive`.
fn read_only(path: &CStr, more: u64, recursive: bool) -> Result<(), Failure> {
    // SAFETY: plain numbers, of which 0 means nothing to change.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | more;
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends with null, and the kernel reads as many bytes of the attributes as it is told.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set == 0 { Ok(()) } else { Err(last_error()) }.at("making mounts read-only")
}

/// From here on the process has the rights of nobody in particular.
fn drop_privileges(setup: &Setup<'_>) -> Result<(), Failure> {
    if setup.plan.identity == Identity::Fresh {
        let (uid, gid) = (Uid::from_raw(setup.fresh), Gid::from_raw(setup.fresh));
        set_thread_groups(&[]).at("leaving groups")?;
        set_thread_res_gid(gid, gid, gid).at("changing the group")?;
        set_thread_res_uid(uid, uid, uid).at("changing the user")?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .at("giving up capabilities")
}

fn redirect_standard_streams(setup: &Setup<'_>) -> Result<(), Failure> {
    let step = "handing over the standard files";
    rustix::stdio::dup2_stdin(&setup.stdin).at(step)?;
    rustix::stdio::dup2_stdout(&setup.stdout).at(step)?;
    rustix::stdio::dup2_stderr(&setup.stderr).at(step)
}

/// Whatever else is open here closes when the program starts.
fn close_inherited_fds() -> Result<(), Failure> {
    // SAFETY: the kernel's numbers; nothing is closed before `execve`.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) };
    if closed == 0 { Ok(()) } else { Err(last_error()) }.at("closing our files")
}

fn apply_filter(setup: &Setup<'_>) -> Result<(), Failure> {
    seccompiler::apply_filter(&setup.plan.filter.0).map_err(|error| {
        let errno = match &error {
            seccompiler::Error::Prctl(cause) | seccompiler::Error::Seccomp(cause) => {
                Errno::from_io_error(cause)
            }
            _ => None,
        };
        Failure { step: "installing the filter of system calls", errno: errno.unwrap_or(Errno::INVAL) }
    })
}
