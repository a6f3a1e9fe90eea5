//! AdamW over f32 master weights, clipping by the global norm, and learning-rate schedules.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::ModelConfig;
use crate::device::Compute;
use crate::kernels::{self, AdamWStep};
use crate::lora::LoraConfig;

/// Options of training that every algorithm shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Peak learning rate. Default 1e-5 (Llama 3 §4.1.3 uses it for SFT of its largest model).
    pub learning_rate: f64,
    /// Shape of the learning rate after the warm-up. Default linear (TRL's).
    pub schedule: Schedule,
    /// Share of the steps over which the rate rises from 0. Default 0.1.
    pub warmup_ratio: f64,
    /// Passes over a round's experience. Default 1.
    pub epochs: usize,
    /// Trees (prompts) in an optimiser step. Default 8.
    pub batch_size: usize,
    /// MiB that the activations of a forward and backward pass may take. It says how many tokens go
    /// through at once; what is over it waits its turn, and the gradients add up. It changes no result.
    /// Default 1024.
    pub activation_memory: usize,
    /// Tokens in a forward and backward pass. Default: what `activation_memory` holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// Keep only what stands between the layers and compute the rest again in the backward (Chen et al.,
    /// 2016): a sixteenth of the memory of activations for a third more time. Default false.
    pub activation_checkpointing: bool,
    /// Global gradient norm above which gradients are scaled down. Default 1.
    pub max_grad_norm: f64,
    /// Decoupled weight decay. Default 0 (TRL's).
    pub weight_decay: f64,
    /// Decay rates of AdamW's two moments. Default 0.9 and 0.999.
    pub betas: (f64, f64),
    /// AdamW's ε. Default 1e-8.
    pub eps: f64,
    /// What becomes of the optimiser and of the learning rate's schedule between the rounds of a stage. Default:
    /// `continue` for algorithms that learn from their own fresh samples, whose rounds have few steps; `fresh` for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<AcrossRounds>,
    /// Train adapters, and leave the weights as they are. Default: train all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        TrainingConfig {
            learning_rate: 1e-5,
            schedule: Schedule::Linear,
            warmup_ratio: 0.1,
            epochs: 1,
            batch_size: 8,
            activation_memory: 1024,
            micro_batch_tokens: None,
            activation_checkpointing: false,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            betas: (0.9, 0.999),
            eps: 1e-8,
            optimizer: None,
            lora: None,
        }
    }
}

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

/// What becomes of the optimiser and the schedule between the rounds of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcrossRounds {
    /// Moments of 0 and a schedule of its own for each round.
    Fresh,
    /// The moments stay, and one schedule reaches from the first round to the last.
    Continue,
}

impl TrainingConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        let Self { betas: (beta1, beta2), .. } = self;
        for (name, value) in [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("activation_memory", self.activation_memory),
            ("micro_batch_tokens", self.micro_batch_tokens.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(format!("{name} is 0; it must be at least 1"));
            }
        }
        for (name, value, range, holds) in [
            ("learning_rate", self.learning_rate, "at least 0", self.learning_rate >= 0.0),
            ("warmup_ratio", self.warmup_ratio, "between 0 and 1", (0.0..=1.0).contains(&self.warmup_ratio)),
            ("max_grad_norm", self.max_grad_norm, "above 0", self.max_grad_norm > 0.0),
            ("weight_decay", self.weight_decay, "at least 0", self.weight_decay >= 0.0),
            ("betas", *beta1, "at least 0 and below 1", (0.0..1.0).contains(beta1)),
            ("betas", *beta2, "at least 0 and below 1", (0.0..1.0).contains(beta2)),
            ("eps", self.eps, "above 0", self.eps > 0.0),
        ] {
            if !holds || value.is_nan() || value == f64::INFINITY && name != "max_grad_norm" {
                return Err(format!("{name} is {value}; it must be {range}"));
            }
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::validate)
    }

    /// Tokens that go through a model at once: `micro_batch_tokens`, or what `activation_memory` holds.
    pub fn token_budget(&self, model: &ModelConfig, compute: Compute) -> usize {
        let bytes = activation_bytes(model, compute, self.activation_checkpointing);
        self.micro_batch_tokens
            .unwrap_or_else(|| (self.activation_memory.saturating_mul(1 << 20) / bytes).max(1))
    }

    /// The learning rate of step `step` (from 0) of `total`.
    pub fn learning_rate_at(&self, step: usize, total: usize) -> f64 {
        let warmup = (self.warmup_ratio * total as f64).ceil() as usize;
        if step < warmup {
            return self.learning_rate * (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (total.max(warmup + 1) - warmup) as f64;
        let factor = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.learning_rate * factor
    }
}

/// Bytes of activations that a token keeps until its backward.
fn activation_bytes(model: &ModelConfig, compute: Compute, checkpointing: bool) -> usize {
    let hidden = model.hidden_size;
    let attention = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
    // What attention gives is kept for it and for the projection after it.
    let attended = if compute.is_fixed() { model.num_heads * model.head_dim } else { 0 };
    let element = if compute.kind == Kind::Float { 4 } else { 2 };
    // The residual stream twice, in f32; two norms' outputs, what the projections read, gate, up and their product.
    let layer = 4 * 2 * hidden + element * (2 * hidden + attention + attended + 3 * model.intermediate_size);
    // Beside a layer's own, its gradients of the same sizes while it is in work.
    match checkpointing {
        true => model.num_layers * 4 * hidden + 2 * layer,
        false => (model.num_layers + 1) * layer,
    }
}

/// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019 (arXiv:1711.05101).
#[derive(Debug)]
pub struct AdamW {
    /// (first moment, second moment) of each parameter, f32.
    moments: Vec<(Tensor, Tensor)>,
    steps: i32,
}

impl AdamW {
    /// Fresh state for these parameters.
    pub fn new(parameters: &[Tensor]) -> Self {
        let zeros = |parameter: &Tensor| parameter.zeros_like().to_kind(Kind::Float);
        let moments = parameters.iter().map(|parameter| (zeros(parameter), zeros(parameter))).collect();
        AdamW { moments, steps: 0 }
    }

    /// (first moment, second moment) of each parameter.
    pub fn moments(&self) -> &[(Tensor, Tensor)] {
        &self.moments
    }

    /// The same with the state of an earlier optimiser of these parameters, whose tensors it takes over.
    pub fn resumed(moments: Vec<(Tensor, Tensor)>, steps: i32) -> Self {
        AdamW { moments, steps }
    }

    /// Updates so far.
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// One update of `parameters` (f32) by `scale` times `gradients` (f32), in place. The leaf of each
    /// parameter, where it is a tensor of its own, gets the new weights in its precision.
    ///
    /// # Panics
    /// If tensors of a device are to be scaled, which [`norm_and_clip`] has done there.
    pub fn step(
        &mut self,
        parameters: &[Tensor],
        leaves: &[Option<Tensor>],
        gradients: &[Tensor],
        scale: f64,
        rate: f64,
        config: &TrainingConfig,
    ) {
        self.steps += 1;
        let (beta1, beta2) = config.betas;
        let step = AdamWStep {
            rate: rate as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: config.eps as f32,
            decay: config.weight_decay as f32,
            correction1: (1.0 - beta1.powi(self.steps)) as f32,
            correction2_sqrt: (1.0 - beta2.powi(self.steps)).sqrt() as f32,
            gradient_scale: scale as f32,
        };
        no_grad(|| {
            if !are_on_cpu(parameters) {
                return kernels::adamw_together(
                    parameters,
                    gradients,
                    &self.moments,
                    leaves,
                    &step,
                    self.steps,
                );
            }
            let tensors = parameters.iter().zip(leaves).zip(gradients).zip(&self.moments);
            for (((parameter, leaf), gradient), (first, second)) in tensors {
                kernels::adamw(parameter, gradient, (first, second), leaf.as_ref(), &step);
            }
        });
    }
}

fn are_on_cpu(tensors: &[Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device() == Device::Cpu)
}

/// The global norm of gradients (f32), and the factor by which [`AdamW::step`] is to bring it down to `limit` where it is above.
/// On the CPU that costs the step nothing; on a device the gradients are scaled here, and the factor is 1.
pub fn norm_and_clip(gradients: &[Tensor], limit: f64) -> (f64, f64) {
    let factor = |norm: f64| if norm > limit { limit / norm } else { 1.0 };
    if are_on_cpu(gradients) {
        let norm = gradients.iter().map(kernels::square_sum).sum::<f64>().sqrt();
        return (norm, factor(norm));
    }
    let norm = kernels::norm(gradients);
    if factor(norm) != 1.0 {
        kernels::multiply(gradients, factor(norm));
    }
    (norm, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).expect("a vector")
    }

    /// Two steps by hand: w = 1, g = 0.5 then −1, rate 0.1, decay 0.01, β = (0.9, 0.99), ε = 0.
    /// m₁ = 0.05, v₁ = 0.0025: both corrections give 0.5 / 0.5 = 1, so w = 0.999 − 0.1 = 0.899.
    /// m₂ = −0.055, v₂ = 0.012475: (−0.055 / 0.19) / √(0.012475 / 0.0199) = −0.365604…, so
    /// w = 0.899 · 0.999 + 0.0365604… = 0.9346614….
    #[test]
    fn adamw_follows_the_paper() {
        let config =
            TrainingConfig { weight_decay: 0.01, betas: (0.9, 0.99), eps: 0.0, ..Default::default() };
        let parameters = [Tensor::from_slice(&[1.0f32])];
        let leaves = [Some(Tensor::from_slice(&[1.0f32]).to_kind(Kind::BFloat16))];
        let mut optimizer = AdamW::new(&parameters);
        optimizer.step(&parameters, &leaves, &[Tensor::from_slice(&[1.0f32])], 0.5, 0.1, &config);
        assert!((values(&parameters[0])[0] - 0.899).abs() < 1e-6);
        // 0.899 lies between the bf16 numbers 0.8984375 and 0.90234375.
        assert_eq!(leaves[0].as_ref().map(values), Some(vec![0.8984375]));
        optimizer.step(&parameters, &leaves, &[Tensor::from_slice(&[-1.0f32])], 1.0, 0.1, &config);
        let direction = (-0.055f64 / 0.19) / (0.012475f64 / 0.0199).sqrt();
        assert!((values(&parameters[0])[0] - (0.899 * 0.999 - 0.1 * direction)).abs() < 1e-6);
    }

    /// Three steps from the same start: the kernel, and what a device does.
    #[test]
    fn the_kernel_equals_ordinary_operators() {
        tch::manual_seed(5);
        let random = || Tensor::randn([1000], (Kind::Float, Device::Cpu));
        let start = random();
        let state = || (start.copy(), start.zeros_like(), start.zeros_like(), start.to_kind(Kind::BFloat16));
        let (kernel, plain) = (state(), state());
        for step in 1..=3 {
            let numbers = AdamWStep {
                rate: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                decay: 0.01,
                correction1: 1.0 - 0.9f32.powi(step),
                correction2_sqrt: (1.0 - 0.99f32.powi(step)).sqrt(),
                gradient_scale: 0.5,
            };
            let gradient = random();
            kernels::adamw(&kernel.0, &gradient, (&kernel.1, &kernel.2), Some(&kernel.3), &numbers);
            kernels::multiply(std::slice::from_ref(&gradient), 0.5);
            kernels::adamw_together(
                std::slice::from_ref(&plain.0),
                &[gradient],
                &[(plain.1.shallow_clone(), plain.2.shallow_clone())],
                &[Some(plain.3.shallow_clone())],
                &AdamWStep { gradient_scale: 1.0, ..numbers },
                step,
            );
        }
        for (kernel, plain) in [(&kernel.0, &plain.0), (&kernel.1, &plain.1), (&kernel.2, &plain.2)] {
            let error = (kernel - plain).norm().double_value(&[]) / kernel.norm().double_value(&[]);
            assert!(error < 1e-6, "relative error {error}");
        }
        assert!((kernel.3 - plain.3).abs().max().double_value(&[]) < 0.04);
    }

    #[test]
    fn the_norm_equals_ordinary_operators() {
        let gradients = [Tensor::from_slice(&[3.0f32]), Tensor::from_slice(&[0.0f32, 4.0])];
        assert!((kernels::norm(&gradients) - 5.0).abs() < 1e-6);
        kernels::multiply(&gradients, 0.2);
        assert!((norm_and_clip(&gradients, 10.0).0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn clipping_is_by_the_norm_of_the_whole() {
        let gradients = [Tensor::from_slice(&[3.0f32]), Tensor::from_slice(&[0.0f32, 4.0])];
        assert_eq!(norm_and_clip(&gradients, 10.0), (5.0, 1.0));
        assert_eq!(norm_and_clip(&gradients, 1.0), (5.0, 0.2));
    }

    #[test]
    fn schedules_warm_up_and_come_down() {
        let config = TrainingConfig { learning_rate: 1.0, warmup_ratio: 0.2, ..Default::default() };
        let rates = |schedule| -> Vec<f64> {
            let config = TrainingConfig { schedule, ..config.clone() };
            (0..10).map(|step| config.learning_rate_at(step, 10)).collect()
        };
        assert_eq!(rates(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Schedule::Linear), [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
        assert!((rates(Schedule::Cosine)[6] - 0.5).abs() < 1e-12);
        assert_eq!(TrainingConfig { learning_rate: 1.0, ..config }.learning_rate_at(0, 1), 1.0);
    }
}
