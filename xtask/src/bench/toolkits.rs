//! The toolkits that we compare with: TRL and transformers from pinned wheels, llama.cpp from its sources.
//!
//! Everything lies in one folder, made part by part. A part has a stamp with the pins that it was made from. It is made
//! again when they change, or when it was not finished.

use crate::prerequisites;
use crate::process;
use crate::setup::{self, write_whole};
use crate::venv::Venv;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const PEERS: &str = include_str!("../../requirements/peers.txt");
const LLAMA_CPP: &str = include_str!("../../requirements/llama_cpp.txt");

/// The toolkits in their folder.
pub struct Toolkits {
    folder: PathBuf,
    scripts: PathBuf,
}

impl Toolkits {
    /// Installs what is not there yet.
    ///
    /// # Errors
    /// If the machine lacks something, or pip, the conversion or a compiler fails.
    pub fn install(workspace: &Workspace, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let lock = File::create(folder.join("lock"))
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        lock.lock().context("cannot lock the toolkits' folder")?;
        let toolkits = Self { folder, scripts: workspace.root().join("benches/peers") };
        let requirements = workspace.root().join("xtask/requirements/peers.txt");
        toolkits.part("venv", PEERS, || {
            let venv = toolkits.venv();
            venv.make(&prerequisites::check()?)?;
            venv.install(&requirements, &[], "8 GB")
        })?;
        toolkits.part("model", PEERS, || toolkits.convert_model(&setup::model(workspace)))?;
        toolkits.part("llama.cpp", LLAMA_CPP, || toolkits.build_llama_cpp())?;
        toolkits.part("gguf", &format!("{PEERS}{LLAMA_CPP}"), || toolkits.convert_gguf())?;
        Ok(toolkits)
    }

    /// Makes one part unless its stamp says that it was made from these pins.
    fn part(&self, name: &str, pins: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = self.folder.join(format!("{name}.stamp"));
        if fs::read_to_string(&stamp).is_ok_and(|found| found == pins) {
            return Ok(());
        }
        if stamp.exists() {
            fs::remove_file(&stamp).with_context(|| format!("cannot remove {}", stamp.display()))?;
        }
        let started = Instant::now();
        println!("==> peers: {name}");
        make().with_context(|| format!("cannot make {name} in {}", self.folder.display()))?;
        write_whole(&stamp, pins)?;
        println!("==> peers: {name}: {}", process::seconds(started.elapsed()));
        Ok(())
    }

    /// The default model as Hugging Face directories.
    fn convert_model(&self, gguf: &Path) -> Result<()> {
        let mut convert = self.script("convert_model.py");
        process::run(convert.arg(gguf).arg(self.model()).arg(self.endless_model()))
    }

    /// llama.cpp's batched bench, from the source distribution of its Python bindings.
    fn build_llama_cpp(&self) -> Result<()> {
        let (download, build) = (self.folder.join("download"), self.llama_cpp().join("build"));
        for folder in [&download, &self.sources()] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
        }
        // pip asks the package's build backend for its metadata, which asks for these two.
        let mut pip = self.python();
        pip.args([
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
        ])
        .args(["--no-binary", ":all:", "--dest"])
        .arg(&download)
        .arg(LLAMA_CPP.lines().last().unwrap_or_default());
        process::run(pip.env("PATH", self.path()?))?;
        let archive = fs::read_dir(&download)?.next().context("pip downloaded no source distribution")??;
        process::run(
            Command::new("tar")
                .arg("-xzf")
                .arg(archive.path())
                .arg("-C")
                .arg(self.sources())
                .args(["--strip-components", "1"]),
        )?;
        let cmake = || -> Result<Command> {
            let mut cmake = Command::new(self.venv().program("cmake"));
            cmake.env("PATH", self.path()?);
            Ok(cmake)
        };
        let options = [
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DGGML_NATIVE=ON",
            "-DBUILD_SHARED_LIBS=OFF",
            // Hundreds of warnings that are not ours to mend.
            "-DCMAKE_C_FLAGS=-w",
            "-DCMAKE_CXX_FLAGS=-w",
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_SERVER=OFF",
        ];
        process::run(cmake()?.arg("-S").arg(self.llama_cpp()).arg("-B").arg(&build).args(options))?;
        process::step(cmake()?.arg("--build").arg(&build).args(["--target", "llama-batched-bench"]))
    }

    /// The model as a bf16 GGUF file.
    fn convert_gguf(&self) -> Result<()> {
        let mut convert = self.python();
        convert.arg(self.llama_cpp().join("convert_hf_to_gguf.py")).arg(self.model());
        process::run(convert.args(["--outtype", "bf16", "--outfile"]).arg(self.gguf()))
    }

    /// The folder of all of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model in f32, as a Hugging Face directory.
    pub fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// The same model with an end of turn that it never gives.
    pub fn endless_model(&self) -> PathBuf {
        self.folder.join("model-endless")
    }

    /// The same model in bf16, as a GGUF file.
    pub fn gguf(&self) -> PathBuf {
        self.folder.join("model-bf16.gguf")
    }

    /// A script of `benches/peers`, run by the toolkits' Python.
    pub fn script(&self, name: &str) -> Command {
        let mut python = self.python();
        python.arg(self.scripts.join(name));
        python
    }

    /// llama.cpp's benchmark of decoding at a batch size.
    pub fn batched_bench(&self) -> Command {
        Command::new(self.llama_cpp().join("build/bin/llama-batched-bench"))
    }

    /// The pins of the toolkits, such as `trl==1.16.0`.
    pub fn versions(&self) -> Vec<&'static str> {
        PEERS.lines().chain(LLAMA_CPP.lines()).filter(|line| line.contains("==")).collect()
    }

    fn python(&self) -> Command {
        let mut python = Command::new(self.venv().python());
        python.envs([
            ("HF_HUB_OFFLINE", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
            // The scripts lie in the checkout.
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ]);
        python
    }

    fn venv(&self) -> Venv {
        Venv::at(self.folder.join("venv"))
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("llama-cpp-python")
    }

    fn llama_cpp(&self) -> PathBuf {
        self.sources().join("vendor/llama.cpp")
    }

    /// PATH with the environment's programs in front: CMake looks for ninja there.
    fn path(&self) -> Result<std::ffi::OsString> {
        let own = self.folder.join("venv/bin");
        let others = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&others)))?)
    }
}
