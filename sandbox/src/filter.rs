//! The system calls that a program may make.
//!
//! Whatever is not on the list does not exist for it (`ENOSYS`). So what a newer kernel adds is closed, and libraries
//! fall back as they do on an older one. Not on the list, beside what only root may do:
//!
//! - `clone3`, whose flags a filter cannot read, `unshare`, `setns`, and `clone` with a new namespace: within
//!   one of its own a program would be root, and would reach much more of the kernel;
//! - sockets but for connected pairs: families such as vsock do not stay in the network namespace, and a Unix
//!   socket in a folder that the program can read would lead out of it;
//! - `ptrace`, `process_vm_*`, `pidfd_getfd`, `kcmp`: reaching into other processes;
//! - `memfd_create`, System V and POSIX queues and shared memory, `io_setup`, `vmsplice`: memory that the limit
//!   on address space does not count;
//! - `io_uring`, `bpf`, `userfaultfd`, `perf_event_open`, `keyctl`: known for their holes;
//! - `prctl(PR_SET_PDEATHSIG)`: the program must die with us.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::error::SandboxError;

/// A compiled filter.
#[derive(Clone)]
pub(crate) struct Filter(pub BpfProgram);

impl std::fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Filter of {} instructions", self.0.len())
    }
}

/// Calls that are allowed with any arguments, by their names in the libc crate.
macro_rules! calls {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

/// On every architecture.
const COMMON: &[libc::c_long] = &calls! {
    // Files.
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2
    SYS_pwritev2 SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_statx
    SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir
    SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_linkat SYS_symlinkat SYS_renameat2 SYS_fchmod SYS_fchmodat
    SYS_fchown SYS_fchownat SYS_truncate SYS_ftruncate SYS_fallocate SYS_utimensat SYS_fsync SYS_fdatasync SYS_sync
    SYS_syncfs SYS_sync_file_range SYS_umask SYS_flock SYS_fcntl SYS_ioctl SYS_dup SYS_dup3 SYS_pipe2
    SYS_sendfile SYS_splice SYS_tee SYS_copy_file_range SYS_fadvise64 SYS_readahead
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
    // Waiting.
    SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_signalfd4
    SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
    // Memory.
    SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_brk SYS_msync SYS_mincore SYS_mlock SYS_munlock
    SYS_pkey_mprotect SYS_pkey_alloc SYS_pkey_free
    // Processes and threads.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid
    SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_kill SYS_tkill SYS_tgkill SYS_pidfd_open
    SYS_pidfd_send_signal SYS_set_tid_address SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list SYS_rseq
    SYS_membarrier SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam
    SYS_sched_getscheduler SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_getpriority SYS_setpriority SYS_getcpu
    SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_times SYS_capget SYS_restart_syscall
    // Signals.
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack
    // Time.
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getitimer SYS_setitimer
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
    // Who one is; without capabilities nobody can become another.
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid SYS_setgid
    SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid
    // Pairs of connected sockets.
    SYS_getsockname SYS_getpeername SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_setsockopt SYS_getsockopt
    SYS_shutdown
    // The machine.
    SYS_uname SYS_sysinfo SYS_getrandom
};

/// Older forms that other architectures never had.
#[cfg(target_arch = "x86_64")]
const OWN: &[libc::c_long] = &calls! {
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_newfstatat SYS_access SYS_readlink SYS_getdents SYS_mkdir SYS_rmdir
    SYS_mknod SYS_unlink SYS_link SYS_symlink SYS_rename SYS_renameat SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes
    SYS_futimesat SYS_dup2 SYS_pipe SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_fork
    SYS_vfork SYS_getpgrp SYS_alarm SYS_pause SYS_time SYS_arch_prctl
};
#[cfg(target_arch = "aarch64")]
const OWN: &[libc::c_long] = &calls! { SYS_newfstatat SYS_renameat };
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OWN: &[libc::c_long] = &[];

/// Every flag of `clone` that makes a namespace.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

impl Filter {
    pub fn new() -> Result<Self, SandboxError> {
        compile().map(Filter).map_err(|cause| SandboxError::Unavailable {
            step: "compiling the filter of system calls",
            cause: cause.to_string(),
            advice: "The sandbox is made for x86-64 and 64-bit ARM",
        })
    }
}

fn compile() -> Result<BpfProgram, seccompiler::BackendError> {
    let condition = SeccompCondition::new;
    let rule = |argument, length, operator, value| {
        SeccompRule::new(vec![condition(argument, length, operator, value)?])
    };
    // Streams only: a message may be sent to any address, whatever its socket is connected with.
    let kind = SeccompCmpOp::MaskedEq(0xf);
    let unix_stream = SeccompRule::new(vec![
        condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?,
        condition(1, SeccompCmpArgLen::Dword, kind, libc::SOCK_STREAM as u64)?,
    ])?;
    let no_namespace = SeccompCmpOp::MaskedEq(NEW_NAMESPACES as u64);
    let not_orphaned = libc::PR_SET_PDEATHSIG as u64;
    let conditional = [
        (libc::SYS_socketpair, unix_stream),
        (libc::SYS_clone, rule(0, SeccompCmpArgLen::Qword, no_namespace, 0)?),
        (libc::SYS_prctl, rule(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, not_orphaned)?),
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(OWN).map(|call| (*call, Vec::new())).collect();
    rules.extend(conditional.map(|(call, rule)| (call, vec![rule])));
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}
