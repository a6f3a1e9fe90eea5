//! What is compared, with which programs.

use super::line_of;
use super::measure::{Measured, measure};
use super::toolkits::Toolkits;
use crate::process;
use crate::setup::write_whole;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Batch sizes among which transformers.generate's best is looked for.
const GENERATE_BATCHES: [u32; 4] = [16, 32, 64, 128];

/// For llama-batched-bench: tokens of a prompt, and of each sequence's continuation. Our side has the same.
const DECODE_PROMPT: u32 = 40;
const DECODE_STEPS: u32 = 64;

/// A kind of work that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// A DPO step against TRL's, and the machine's peak beside it
    Dpo,
    /// A GRPO iteration against TRL's
    Grpo,
    /// Sampling against transformers.generate
    Sampling,
    /// Decoding at batch 32 against llama.cpp
    #[value(name = "decode-32")]
    Decode32,
    /// Decoding at batch 128 against llama.cpp
    #[value(name = "decode-128")]
    Decode128,
    /// How the time of an SFT step grows with its tokens
    PackedSft,
    /// Experience through queues and buffer
    DataPlane,
    /// What bf16 changes
    Guard,
}

impl Work {
    /// In the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Dpo,
        Self::Grpo,
        Self::Sampling,
        Self::Decode32,
        Self::Decode128,
        Self::PackedSft,
        Self::DataPlane,
        Self::Guard,
    ];
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// One turn of each side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    pub ours: Measured,
    /// The other toolkit, where there is one.
    pub theirs: Option<Measured>,
    /// The machine's matrix products, where they matter.
    pub peak: Option<Measured>,
}

/// What was measured of one kind of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Coordinated universal time.
    pub when: String,
    /// The commit that was built, `-dirty` if files had changed.
    pub commit: String,
    /// What was run, in the order of a round.
    pub commands: Vec<String>,
    pub rounds: Vec<Round>,
}

impl Outcome {
    /// Keeps it in this folder.
    pub fn write(&self, folder: &Path, work: Work) -> Result<()> {
        write_whole(&folder.join(format!("{work}.json")), &serde_json::to_string_pretty(self)?)
    }

    /// What [`Outcome::write`] kept; `None` if this work was never measured.
    ///
    /// # Errors
    /// If the file is not ours to read.
    pub fn read(folder: &Path, work: Work) -> Result<Option<Self>> {
        let file = folder.join(format!("{work}.json"));
        let Ok(text) = fs::read_to_string(&file) else { return Ok(None) };
        let outcome = serde_json::from_str(&text);
        outcome.map(Some).with_context(|| format!("{} is damaged: remove it", file.display()))
    }
}

/// The programs of all sides.
pub struct Programs<'a> {
    pub workspace: &'a Workspace,
    pub toolkits: &'a Toolkits,
    pub pairs: &'a Path,
    /// Timed steps of a turn.
    pub steps: u32,
}

impl Programs<'_> {
    /// Lets both sides take turns.
    ///
    /// # Errors
    /// If a program fails.
    pub fn measure(&self, work: Work, rounds: u32) -> Result<Outcome> {
        if work == Work::DataPlane {
            return self.data_plane();
        }
        // Nothing of it is timed, and it comes out the same each time.
        let rounds = if work == Work::Guard { 1 } else { rounds };
        let batch = if work == Work::Sampling { self.best_generate_batch()? } else { 0 };
        let (mut commands, mut measured) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            commands.clear();
            let mut run = |side: &str, mut command: Command| {
                commands.push(self.describe(&command));
                let measured = self.run(&format!("{work}-{side}"), &mut command)?;
                println!("    round {round}, {side}: {}", summary(&measured));
                anyhow::Ok(measured)
            };
            let peak = (work == Work::Dpo).then(|| run("peak", self.our_program("peak"))).transpose()?;
            let ours = run("ours", self.ours(work))?;
            let theirs = self.theirs(work, batch).map(|command| run("theirs", command)).transpose()?;
            measured.push(Round { ours, theirs: theirs.map(with_decode_figures), peak });
        }
        Ok(self.outcome(commands, measured))
    }

    fn ours(&self, work: Work) -> Command {
        let name = match work {
            Work::Decode32 | Work::Decode128 => "decode",
            _ => &work.to_string(),
        };
        let mut command = self.our_program(name);
        let model = match work {
            Work::Decode32 | Work::Decode128 => self.toolkits.endless_model(),
            _ => self.toolkits.model(),
        };
        command.arg("--model").arg(model).arg("--pairs").arg(self.pairs);
        command.args(["--steps", &self.steps.to_string()]);
        match work {
            Work::Decode32 => command.args(["--batch", "32"]),
            Work::Decode128 | Work::Sampling => command.args(["--batch", "128"]),
            _ => &mut command,
        };
        command
    }

    /// The other side's program; nothing where we are measured alone.
    fn theirs(&self, work: Work, batch: u32) -> Option<Command> {
        match work {
            Work::Dpo => Some(self.script("trl_dpo.py")),
            Work::Grpo => Some(self.script("trl_grpo.py")),
            Work::Sampling => {
                let mut command = self.script("hf_generate.py");
                command.args(["--batch", &batch.to_string()]);
                Some(command)
            }
            Work::Decode32 => Some(self.batched_bench(32)),
            Work::Decode128 => Some(self.batched_bench(128)),
            Work::PackedSft | Work::DataPlane | Work::Guard => None,
        }
    }

    fn our_program(&self, name: &str) -> Command {
        let mut command = Command::new(self.workspace.release().join("examples/peers"));
        command.current_dir(self.workspace.root()).arg(name);
        command
    }

    fn script(&self, name: &str) -> Command {
        let mut command = self.toolkits.script(name);
        command.arg("--model").arg(self.toolkits.model()).arg("--pairs").arg(self.pairs);
        command.args(["--steps", &self.steps.to_string()]);
        command
    }

    fn batched_bench(&self, batch: u32) -> Command {
        let mut command = self.toolkits.batched_bench();
        command.arg("-m").arg(self.toolkits.gguf());
        let context = batch * (DECODE_PROMPT + DECODE_STEPS) + 1024;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for (option, value) in [
            ("-c", context.to_string()),
            ("-b", "2048".to_owned()),
            ("-ub", "512".to_owned()),
            ("-npp", DECODE_PROMPT.to_string()),
            ("-ntg", DECODE_STEPS.to_string()),
            ("-npl", batch.to_string()),
            ("-t", threads.to_string()),
            ("--output-format", "jsonl".to_owned()),
        ] {
            command.args([option, &value]);
        }
        command
    }

    /// The batch size at which transformers.generate samples fastest here.
    fn best_generate_batch(&self) -> Result<u32> {
        let mut best = (f64::INFINITY, GENERATE_BATCHES[0]);
        for batch in GENERATE_BATCHES {
            let mut command = self.toolkits.script("hf_generate.py");
            command.arg("--model").arg(self.toolkits.model()).arg("--pairs").arg(self.pairs);
            command.args(["--steps", "1", "--batch", &batch.to_string()]);
            let measured = self.run("sampling-tuning", &mut command)?;
            println!("    transformers.generate, batch {batch}: {}", summary(&measured));
            let seconds = measured.seconds_per_token().context("hf_generate.py prints tokens and seconds")?;
            if seconds < best.0 {
                best = (seconds, batch);
            }
        }
        Ok(best.1)
    }

    /// Criterion's estimates of the data plane's benches, as seconds a tree.
    fn data_plane(&self) -> Result<Outcome> {
        let mut cargo = self.workspace.cargo();
        cargo.args(["bench", "--package", "arriero", "--bench", "data_plane"]);
        let command = self.describe(&cargo);
        let target = self.workspace.release().join("../criterion/data plane");
        if target.exists() {
            // A bench that has another name now would be counted twice.
            fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
        }
        process::run(&mut cargo)?;
        let mut figures = BTreeMap::new();
        for bench in fs::read_dir(&target).with_context(|| format!("cannot read {}", target.display()))? {
            let folder = bench?.path().join("new");
            let (about, estimates) = (folder.join("benchmark.json"), folder.join("estimates.json"));
            if !about.is_file() {
                continue;
            }
            let about: serde_json::Value = serde_json::from_str(&fs::read_to_string(about)?)?;
            let estimates: serde_json::Value = serde_json::from_str(&fs::read_to_string(estimates)?)?;
            let name = about["function_id"].as_str().context("criterion names its benches")?;
            let elements = about["throughput"]["Elements"].as_f64().context("the bench counts its trees")?;
            let time = estimates["median"]["point_estimate"].as_f64().context("criterion gives a median")?;
            figures.insert(name.to_owned(), time * 1e-9 / elements);
        }
        ensure!(!figures.is_empty(), "criterion left no estimates in {}", target.display());
        let ours = Measured { figures, peak_bytes: 0 };
        Ok(self.outcome(vec![command], vec![Round { ours, theirs: None, peak: None }]))
    }

    fn outcome(&self, commands: Vec<String>, rounds: Vec<Round>) -> Outcome {
        let git = ["describe", "--always", "--dirty", "--exclude", "*"];
        Outcome {
            when: line_of(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])),
            commit: line_of(Command::new("git").current_dir(self.workspace.root()).args(git)),
            commands,
            rounds,
        }
    }

    fn run(&self, name: &str, command: &mut Command) -> Result<Measured> {
        let logs = self.toolkits.folder().join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        measure(command, &logs.join(format!("{name}.log")))
    }

    /// The command line for the report. Paths are relative to the checkout, the toolkits' folder is PEERS, and
    /// preference pairs from elsewhere have their name alone.
    fn describe(&self, command: &Command) -> String {
        // Cargo names itself by its place on this machine.
        let program = Path::new(command.get_program());
        let name = program.file_name().filter(|name| *name == "cargo").unwrap_or(program.as_os_str());
        let words = std::iter::once(name).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let root = format!("{}/", self.workspace.root().display());
        let line = words.join(" ").replace(&self.toolkits.folder().display().to_string(), "PEERS");
        let name = self.pairs.file_name().unwrap_or_default().to_string_lossy();
        match self.pairs.starts_with(self.workspace.root()) {
            true => line.replace(&root, ""),
            false => line.replace(&self.pairs.display().to_string(), &name).replace(&root, ""),
        }
    }
}

/// llama-batched-bench has names of its own.
fn with_decode_figures(mut measured: Measured) -> Measured {
    if let (Some(seconds), Some(batch), Some(tokens)) =
        (measured.get("t_tg"), measured.get("pl"), measured.get("tg"))
    {
        let ours = [("seconds_per_step", seconds), ("tokens", batch * tokens), ("steps", 1.0)];
        measured.figures.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    }
    measured
}

fn summary(measured: &Measured) -> String {
    let numbers: Vec<String> =
        measured.figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    format!("{}; {:.2} GB", numbers.join(", "), measured.peak_bytes as f64 / 1e9)
}
