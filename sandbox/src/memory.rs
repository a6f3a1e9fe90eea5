//! The memory that a program and all that it started take up.
//!
//! The kernel limits the address space of each process. Only a control group could limit what all of them have
//! together, and few users may make one. So it is watched.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

use crate::error::SandboxError;

/// Checks that the kernel tells which processes a process has started.
pub(crate) fn probe() -> Result<(), SandboxError> {
    let path = Path::new("/proc/thread-self/children");
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(cause) => Err(SandboxError::Unavailable {
            step: "reading /proc/thread-self/children",
            cause: cause.to_string(),
            advice: "The kernel must be built with CONFIG_PROC_CHILDREN",
        }),
    }
}

/// True if a process and its descendants have more than `most` bytes in memory. What ends meanwhile does not count.
pub(crate) fn is_over(process: Pid, most: u64) -> bool {
    let processes = tree(process.as_raw_nonzero().get());
    let total = |file: &str, field: &str| -> u64 {
        processes.iter().filter_map(|process| kilobytes(&format!("/proc/{process}/{file}"), field)).sum()
    };
    let most = most >> 10;
    // The second counts once what several processes share. The kernel takes longer to compute it.
    total("status", "VmRSS:") > most && total("smaps_rollup", "Pss:") > most
}

/// Process ids of a process and its descendants. A process that loses its parent becomes a child of process 1.
fn tree(process: i32) -> Vec<i32> {
    let mut all = vec![process];
    let mut next = 0;
    while let Some(process) = all.get(next) {
        let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let children: Vec<i32> = threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
            .flat_map(|line| line.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
            .collect();
        all.extend(children);
        next += 1;
    }
    all
}

/// A line of a file of the kernel's, such as `VmRSS:   1234 kB`.
fn kilobytes(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_counted() {
        let me = rustix::process::getpid();
        assert!(is_over(me, 1 << 10) && !is_over(me, 1 << 50));
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("there is sleep");
        assert!(tree(me.as_raw_nonzero().get()).contains(&(child.id() as i32)));
        child.kill().and_then(|()| child.wait()).expect("it ends");
    }
}
