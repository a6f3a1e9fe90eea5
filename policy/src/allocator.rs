//! Keeping large blocks of memory instead of handing them back.
//!
//! A training step allocates and frees the same large tensors over and over. glibc maps each of them anew
//! and the kernel clears its pages: a tenth of the time, and with one heap a thread a third more memory.
//!
//! Unsafe code of this crate is here, in [`crate::kernels`] and in [`crate::cuda`].

/// Tells glibc to keep what it has, on one heap. To be called once, before other threads start; does
/// nothing elsewhere.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Bytes asked of the kernel on top of what is needed.
        const TOP_PAD: libc::c_int = 64 << 20;
        let options = [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, TOP_PAD),
        ];
        for (option, value) in options {
            // SAFETY: mallopt sets a number inside the allocator under its own lock; no option that is set
            // here changes the meaning of memory that is allocated already. A refusal (0) leaves the default.
            #[allow(unsafe_code, reason = "there is no safe interface to the allocator's options")]
            let _ = unsafe { libc::mallopt(option, value) };
        }
    }
}
