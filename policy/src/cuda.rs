//! What this machine has for CUDA, found step by step.
//!
//! The program links only libtorch_cpu, so that one binary serves machines with and without a GPU. Where a
//! driver finds a GPU, [`look`] opens libtorch_cuda, whose initialisers announce its kernels to libtorch.
//! libtorch decides once whether it has CUDA, and once how many threads go back through graphs: so [`look`]
//! comes before anything that asks for devices, random seeds or gradients. [`crate::device::Compute::resolve`]
//! calls it, and every program resolves its devices first.
//!
//! Every library stays open to the end of the process: libtorch keeps pointers into them.
#![allow(unsafe_code, reason = "opening libraries, and two calls of the driver")]

use std::error::Error;
use std::ffi::{OsStr, c_int, c_uint};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::kernels;

/// The driver's library, as NVIDIA installs it.
const DRIVER: &str = "libcuda.so.1";
/// The kernels, beside libtorch_cpu.
const KERNELS: &str = "libtorch_cuda.so";
/// Where the kernel's part of the driver tells its version.
const DRIVER_VERSION: &str = "/proc/driver/nvidia/version";
/// Chooses among the devices.
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// How far the search came. Its text says what was found, for a message that goes on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The driver's library does not open.
    NoDriver {
        /// What the system says.
        cause: String,
    },
    /// The driver finds no GPU, or does not work.
    NoGpu {
        /// What the driver says.
        cause: String,
    },
    /// There is a GPU, and libtorch has no part for it.
    NoKernels {
        /// Where it should be; `None` where libtorch itself was not found among the open libraries.
        folder: Option<PathBuf>,
    },
    /// libtorch's part for it does not open.
    Unopenable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// Everything is open, and libtorch counts this many devices.
    Devices(usize),
}

impl Found {
    /// Devices that can be computed on.
    pub fn devices(&self) -> usize {
        if let Found::Devices(count) = self { *count } else { 0 }
    }

    /// True where a GPU is there that cannot be used.
    pub fn is_broken(&self) -> bool {
        matches!(self, Found::NoKernels { .. } | Found::Unopenable { .. } | Found::Devices(0))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::NoDriver { cause } => write!(f, "no NVIDIA driver was found ({cause})"),
            Found::NoGpu { cause } => write!(f, "the NVIDIA driver ({}) {cause}{}", version(), visible()),
            Found::NoKernels { folder: Some(folder) } => write!(
                f,
                "libtorch was installed without CUDA (the NVIDIA driver finds a GPU, but {} has no {KERNELS}); \
                 run `cargo xtask setup --cuda`",
                folder.display()
            ),
            Found::NoKernels { folder: None } => {
                write!(f, "libtorch_cpu.so is not among the libraries that this process has open")
            }
            Found::Unopenable { path, cause } => write!(
                f,
                "{} does not open ({cause}); run `cargo xtask setup --cuda`, which installs what it needs",
                path.display()
            ),
            Found::Devices(0) => write!(
                f,
                "the NVIDIA driver ({}) finds a GPU that libtorch cannot use{}; libtorch's warning above may say \
                 why, most often that the driver is too old for it",
                version(),
                visible()
            ),
            Found::Devices(count) => {
                let noun = if *count == 1 { "device" } else { "devices" };
                write!(f, "there {} {count} CUDA {noun}{}", if *count == 1 { "is" } else { "are" }, visible())
            }
        }
    }
}

/// Looks, the first time; afterwards the same answer. Without a driver or a GPU nothing large is opened.
pub fn look() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let count = || {
            kernels::attend_without_cudnn();
            usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
        };
        search(DRIVER.as_ref(), libtorch_folder().as_deref(), count)
    })
}

/// The search, with the driver's library, libtorch's folder, and how to count libtorch's devices.
fn search(driver: &OsStr, libtorch: Option<&Path>, count: impl FnOnce() -> usize) -> Found {
    match gpus(driver) {
        Ok(0) => return Found::NoGpu { cause: "finds no GPU".to_string() },
        Ok(_) => {}
        Err(found) => return found,
    }
    let Some(folder) = libtorch else { return Found::NoKernels { folder: None } };
    let path = folder.join(KERNELS);
    if !path.exists() {
        return Found::NoKernels { folder: Some(folder.to_path_buf()) };
    }
    // Its symbols are for all: libraries that it opens later look for them.
    match open(path.as_os_str(), RTLD_NOW | RTLD_GLOBAL) {
        Ok(library) => std::mem::forget(library),
        Err(cause) => return Found::Unopenable { path, cause },
    }
    Found::Devices(count())
}

/// How many GPUs the driver finds.
fn gpus(driver: &OsStr) -> Result<usize, Found> {
    let library = open(driver, RTLD_NOW | RTLD_LOCAL).map_err(|cause| Found::NoDriver { cause })?;
    let broken = |cause: String| Found::NoGpu { cause };
    // SAFETY: the two functions have had these types since CUDA 2.0 (cuda.h; CUresult is a C enumeration).
    let (init, count) = unsafe {
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0");
        let count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0");
        let missing = |error: libloading::Error| broken(format!("does not work ({})", cause(&error)));
        (init.map_err(missing)?, count.map_err(missing)?)
    };
    let mut found: c_int = 0;
    // SAFETY: flags must be 0; the number is written to a place that lives through the call. libtorch
    // initialises the driver a second time, which the driver allows.
    let results = unsafe { [("cuInit", init(0)), ("cuDeviceGetCount", count(&mut found))] };
    std::mem::forget(library);
    match results.into_iter().find(|&(_, result)| result != 0) {
        // CUDA_ERROR_NO_DEVICE.
        Some((_, 100)) => Ok(0),
        Some((function, result)) => {
            Err(broken(format!("does not work ({function} returned error {result})")))
        }
        None => Ok(usize::try_from(found).unwrap_or(0)),
    }
}

fn open(file: &OsStr, flags: c_int) -> Result<Library, String> {
    // SAFETY: the initialisers that this runs are those of NVIDIA's driver or of libtorch, which are made to
    // be opened so.
    unsafe { Library::open(Some(file), flags) }.map_err(|error| cause(&error))
}

/// What the system says, where it says something.
fn cause(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The folder of the libtorch_cpu that this process runs with.
fn libtorch_folder() -> Option<PathBuf> {
    folder_of("libtorch_cpu.so", &std::fs::read_to_string("/proc/self/maps").ok()?)
}

/// The folder of an open library, from the list that Linux keeps: five columns, then the path.
fn folder_of(library: &str, maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let mut libraries = paths.filter(|path| path.file_name() == Some(OsStr::new(library)));
    libraries.next()?.parent().map(Path::to_path_buf)
}

/// The driver's version, in its own words.
fn version() -> String {
    let text = std::fs::read_to_string(DRIVER_VERSION).unwrap_or_default();
    let line = text.lines().next().map(|line| line.trim_start_matches("NVRM version:").trim());
    line.map_or_else(|| format!("{DRIVER_VERSION} is not there"), str::to_string)
}

/// What narrows the choice of devices.
fn visible() -> String {
    let value = std::env::var(VISIBLE_DEVICES).ok();
    value.map_or_else(String::new, |value| format!(" ({VISIBLE_DEVICES} is \"{value}\")"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A library made of this C code.
    fn library(folder: &Path, name: &str, code: &str) -> PathBuf {
        let (source, library) = (folder.join(format!("{name}.c")), folder.join(name));
        std::fs::write(&source, code).expect("written");
        let compiler =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(compiler.expect("the C compiler that the kernels need too").success());
        library
    }

    fn driver(folder: &Path, init: i32, gpus: i32) -> PathBuf {
        let code = format!(
            "int cuInit(unsigned flags) {{ return {init}; }}\n\
             int cuDeviceGetCount(int *count) {{ *count = {gpus}; return {init}; }}"
        );
        library(folder, &format!("driver_{init}_{gpus}.so"), &code)
    }

    fn not_asked() -> usize {
        panic!("libtorch counts devices only when its CUDA part is open")
    }

    #[test]
    fn without_a_driver_the_library_that_is_missing_is_named() {
        let found = search("libno-such-driver.so.1".as_ref(), None, not_asked);
        let text = found.to_string();
        assert!(text.starts_with("no NVIDIA driver was found (libno-such-driver.so.1: "), "{text}");
        assert!(!found.is_broken() && found.devices() == 0);
    }

    #[test]
    fn each_step_says_what_it_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |driver: &Path| search(driver.as_os_str(), Some(folder.path()), not_asked);

        // The driver: no functions, an error of its own, no GPU.
        let empty = library(folder.path(), "empty.so", "int nothing;");
        let text = at(&empty).to_string();
        assert!(text.contains("does not work") && text.contains("cuInit"), "{text}");
        let text = at(&driver(folder.path(), 803, 0)).to_string();
        assert!(text.contains("does not work (cuInit returned error 803)"), "{text}");
        for none in [driver(folder.path(), 100, 0), driver(folder.path(), 0, 0)] {
            let found = at(&none);
            assert!(found.to_string().contains("finds no GPU") && !found.is_broken(), "{found}");
        }

        // The driver has a GPU: no kernels, kernels that do not open, kernels that do.
        let driver = driver(folder.path(), 0, 1);
        let found = at(&driver);
        let text = found.to_string();
        assert!(text.contains("cargo xtask setup --cuda") && found.is_broken(), "{text}");
        assert!(text.contains(&folder.path().display().to_string()), "{text}");
        library(
            folder.path(),
            KERNELS,
            "extern int cudnnMissing(void); int call(void) { return cudnnMissing(); }",
        );
        let found = at(&driver);
        let text = found.to_string();
        assert!(text.contains("cudnnMissing") && text.contains(KERNELS) && found.is_broken(), "{text}");
        library(folder.path(), KERNELS, "int kernels;");
        let count = |count: usize| search(driver.as_os_str(), Some(folder.path()), move || count);
        assert!(count(0).is_broken() && count(0).to_string().contains("driver is too old"));
        assert!(count(1).to_string().starts_with("there is 1 CUDA device"));
        assert_eq!((count(2).devices(), count(2).is_broken()), (2, false));
    }

    #[test]
    fn libtorch_is_found_where_the_process_has_it() {
        let maps =
            "7f0-7f1 r--p 00000000 08:01 11 /opt/my torch/lib/libtorch_cpu.so\n7f2-7f3 rw-p 0 00:00 0 \n";
        assert_eq!(folder_of("libtorch_cpu.so", maps), Some(PathBuf::from("/opt/my torch/lib")));
        assert_eq!(folder_of("libtorch.so", maps), None);
        // This test is linked with the real one.
        tch::get_num_threads();
        let folder = libtorch_folder().expect("it is linked");
        assert!(folder.join("libtorch_cpu.so").is_file(), "{}", folder.display());
    }
}
