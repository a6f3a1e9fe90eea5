//! Our side of `cargo xtask bench peers`: the work that the scripts in `benches/peers` do in other toolkits.
//!
//! Each subcommand does one kind of work, one step of it as warm-up and then `--steps` timed ones, and prints one line
//! of JSON: `{"seconds_per_step": …, "tokens": …, "steps": …}`, the time a median, the tokens a sum over the timed
//! steps.
//!
//! - [`training`]: a DPO step, a GRPO iteration, packed SFT steps of several sizes
//! - [`generation`]: sampling with natural stops, decoding at a fixed batch size
//! - [`guard`]: what bf16 changes
//! - [`peak`]: what the machine's matrix products reach
//! - [`flops`]: the useful arithmetic of a step
//! - [`data`]: preference pairs as trees
//!
//! `cargo run --release -p arriero-policy --example peers -- dpo --model DIR --pairs benches/peers/pairs.jsonl`

mod data;
mod flops;
mod generation;
mod guard;
mod peak;
mod training;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arriero_policy::allocator;
use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec};
use clap::{Args, Parser};
use serde_json::{Map, Value, json};
use tch::Device;

#[derive(Parser)]
#[command(about = "The work that other toolkits are compared on")]
enum Work {
    /// DPO steps on 8 preference pairs, the reference's scores included
    Dpo(Given),
    /// GRPO iterations: 4 prompts, 8 completions each of up to 64 tokens, reference, update
    Grpo {
        #[command(flatten)]
        given: Given,
        /// The algorithm with its options, as JSON
        #[arg(long, default_value = r#"{"kind": "grpo", "beta": 0.04}"#)]
        algorithm: String,
    },
    /// 16 prompts, 8 samples each, natural stops, at most 128 tokens
    Sampling(Given),
    /// Decoding alone: 64 steps at one batch size; wants a model without an end of turn
    Decode(Given),
    /// SFT steps on 512, 1,024, 2,048 and 4,096 packed tokens
    PackedSft(Given),
    /// bf16 against f32: sequences' log-probabilities, the losses of 50 DPO steps; the sampler against the trainer
    Guard(Given),
    /// The best rate of the machine's matrix products, in GFLOP/s
    Peak {
        /// Where: auto, cpu or cuda:N
        #[arg(long, default_value = "cpu")]
        device: DeviceSpec,
    },
}

/// What the subcommands are told.
#[derive(Args)]
struct Given {
    /// A Hugging Face directory or a GGUF file
    #[arg(long)]
    model: PathBuf,
    /// JSON lines with prompt, chosen and rejected, in TRL's conversational format
    #[arg(long)]
    pairs: PathBuf,
    /// Timed steps, after one that is not
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Sequences decoded at once
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Where: auto, cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Precision of forward and backward: auto, bf16 or f32
    #[arg(long, default_value = "auto")]
    dtype: DtypeSpec,
}

impl Given {
    fn compute(&self) -> Result<Compute> {
        Ok(Compute::resolve(self.device, self.dtype)?)
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a kind of work gives: the line that is printed.
type Figures = Map<String, Value>;

/// The figures of timed steps.
fn figures(mut seconds: Vec<Duration>, tokens: u64) -> Figures {
    let steps = seconds.len();
    let mut figures = Figures::new();
    figures.insert("seconds_per_step".to_owned(), json!(median(&mut seconds).as_secs_f64()));
    figures.insert("tokens".to_owned(), json!(tokens));
    figures.insert("steps".to_owned(), json!(steps));
    figures
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(durations: &mut [Duration]) -> Duration {
    durations.sort();
    let middle = durations.len() / 2;
    if durations.len() % 2 == 1 {
        return durations[middle];
    }
    (durations[middle - 1] + durations[middle]) / 2
}

/// How long work takes, with what it left a device to do.
fn timed<T>(device: Device, work: impl FnOnce() -> T) -> (Duration, T) {
    let wait = || {
        if let Device::Cuda(number) = device {
            tch::Cuda::synchronize(number as i64);
        }
    };
    wait();
    let start = Instant::now();
    let result = work();
    wait();
    (start.elapsed(), result)
}

fn main() -> Result<()> {
    allocator::keep_large_blocks();
    let work = Work::parse();
    let figures = match &work {
        Work::Dpo(given) => training::dpo(given)?,
        Work::Grpo { given, algorithm } => training::grpo(given, algorithm)?,
        Work::Sampling(given) => generation::sampling(given)?,
        Work::Decode(given) => generation::decode(given)?,
        Work::PackedSft(given) => training::packed_sft(given)?,
        Work::Guard(given) => guard::guard(given)?,
        Work::Peak { device } => peak::peak(Compute::resolve(*device, DtypeSpec::Auto)?.device),
    };
    println!("{}", Value::Object(figures));
    Ok(())
}
