//! What a figure was measured on.

use super::line_of;
use crate::setup;
use std::fs;
use std::process::Command;

/// Features of x86 processors that decide how fast matrices are multiplied.
const FEATURES: [&str; 5] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"];

/// One line each: processor, memory, system, compiler and libtorch.
pub fn describe() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let apple = || line_of(Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]));
    let name = field("model name").unwrap_or_else(apple);
    let flags = field("flags").unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().filter(|flag| FEATURES.contains(flag)).collect();
    let mut lines = vec![format!("{name}, {cores} cores ({})", flags.join(", "))];
    lines.extend(memory().map(|bytes| format!("{:.0} GB of memory", bytes / 1e9)));
    lines.push(line_of(Command::new("uname").args(["-s", "-r", "-m"])));
    lines.push(line_of(Command::new("rustc").arg("--version")));
    lines.push(format!("libtorch {}", setup::torch_version()));
    lines
}

fn memory() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(1024.0 * kib)
}
