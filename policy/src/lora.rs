//! Low-rank adapters: y = x Wᵀ + scale (x Aᵀ) Bᵀ, in which A and B learn and W does not.
//!
//! Hu et al., "LoRA", 2021 (arXiv:2106.09685). Names, defaults and initialisation are those of Hugging Face's
//! PEFT (0.21), whose files [`crate::checkpoint`] reads and writes.

use std::collections::BTreeMap;

use arriero_buffers::random::{Purpose, Stream};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::config::ModelConfig;
use crate::device::weight_as;
use crate::error::{PolicyError, Result};
use crate::weights::Weights;

/// The target that stands for every linear layer but the output matrix.
const ALL_LINEAR: &str = "all-linear";

/// A rank above is a slip of the finger, and would only run out of memory.
const MOST_RANK: usize = 65_536;

/// What is adapted, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank: rows of A, columns of B. Default 8 (PEFT's).
    pub r: usize,
    /// α: the adapter's product is scaled by α / r. Default 8 (PEFT's).
    pub alpha: f64,
    /// Linear layers by the ends of their names, such as `q_proj`, or `all-linear`. Default `q_proj` and
    /// `v_proj` (PEFT's for these architectures).
    pub target_modules: Vec<String>,
    /// Scale by α / √r instead (Kalajdzievski, 2023, arXiv:2312.03732). Default false.
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = ["q_proj", "v_proj"].map(str::to_string).to_vec();
        LoraConfig { r: 8, alpha: 8.0, target_modules, use_rslora: false }
    }
}

/// A linear layer that is adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name in the model, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub outputs: i64,
    pub inputs: i64,
}

impl Module {
    /// PEFT's names of its A `[r, inputs]` and its B `[outputs, r]`.
    fn tensors(&self) -> (String, String) {
        Module::tensors_of(&self.name)
    }

    /// The same for the module of this name.
    pub fn tensors_of(module: &str) -> (String, String) {
        let tensor = |matrix| format!("base_model.model.{module}.lora_{matrix}.weight");
        (tensor("A"), tensor("B"))
    }
}

impl LoraConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    pub fn validate(&self) -> std::result::Result<(), String> {
        if !(1..=MOST_RANK).contains(&self.r) {
            return Err(format!("lora.r is {}; it must be at least 1 and at most {MOST_RANK}", self.r));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(format!("lora.alpha is {}; it must be above 0", self.alpha));
        }
        if self.target_modules.is_empty() {
            return Err(format!("lora.target_modules is empty; name layers, or \"{ALL_LINEAR}\""));
        }
        Ok(())
    }

    /// The factor of B A.
    pub fn scale(&self) -> f64 {
        self.alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    /// The linear layers of `model` that the targets name, in the model's order.
    ///
    /// # Errors
    /// If a target names none.
    pub(crate) fn modules(&self, model: &ModelConfig) -> Result<Vec<Module>> {
        let linear = linear_modules(model);
        let names = |module: &Module, target: &str| {
            target == ALL_LINEAR || module.name == target || module.name.ends_with(&format!(".{target}"))
        };
        for target in &self.target_modules {
            if !linear.iter().any(|module| names(module, target)) {
                return Err(PolicyError::UnknownModule {
                    asked: target.clone(),
                    known: known_targets(&linear),
                });
            }
        }
        let is_target = |module: &Module| self.target_modules.iter().any(|target| names(module, target));
        Ok(linear.into_iter().filter(is_target).collect())
    }

    /// Checks that this model has what the targets name.
    ///
    /// # Errors
    /// If a target names no linear layer of it.
    pub fn check(&self, model: &ModelConfig) -> Result<()> {
        self.modules(model).map(drop)
    }

    /// The targets as PEFT wants them in a list, in which `all-linear` has no meaning.
    pub(crate) fn listed_targets(&self, model: &ModelConfig) -> Vec<String> {
        if self.target_modules.iter().any(|target| target == ALL_LINEAR) {
            return short_names(&linear_modules(model));
        }
        self.target_modules.clone()
    }
}

/// Every matrix of the layers.
fn linear_modules(model: &ModelConfig) -> Vec<Module> {
    let module = |(name, shape): (String, Vec<i64>)| {
        let name = name.strip_suffix("_proj.weight")?;
        let [outputs, inputs] = shape[..] else { return None };
        Some(Module { name: format!("{name}_proj"), outputs, inputs })
    };
    model.tensor_shapes().into_iter().filter_map(module).collect()
}

/// The last parts of the names, each once.
fn short_names(modules: &[Module]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for module in modules {
        let short = module.name.rsplit('.').next().unwrap_or_default();
        if !names.iter().any(|name| name == short) {
            names.push(short.to_string());
        }
    }
    names
}

fn known_targets(modules: &[Module]) -> String {
    let mut names = short_names(modules);
    names.push(ALL_LINEAR.to_string());
    names.join(", ")
}

/// The matrices of an adapter.
#[derive(Debug)]
pub struct Adapter {
    /// What they adapt.
    pub config: LoraConfig,
    /// f32, by PEFT's names: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` `[r, inputs]`,
    /// `….lora_B.weight` `[outputs, r]`.
    pub tensors: Weights,
}

impl Adapter {
    /// An adapter that changes nothing yet: B is zero, A uniform within ± 1 / √inputs (He et al., 2015, with
    /// a = √5, as PEFT has it), drawn under `seed`.
    ///
    /// # Errors
    /// As [`LoraConfig::check`].
    pub fn new(config: &LoraConfig, model: &ModelConfig, seed: u64) -> Result<Self> {
        let mut tensors = Weights::new();
        for (number, module) in config.modules(model)?.iter().enumerate() {
            let mut stream = Stream::new(seed, Purpose::Adapter, number as u64, 0);
            let bound = (module.inputs as f64).sqrt().recip();
            let rank = config.r as i64;
            let draw = |position| ((2.0 * stream.uniform(position) - 1.0) * bound) as f32;
            let entries: Vec<f32> = (0..(rank * module.inputs) as u64).map(draw).collect();
            let (a, b) = module.tensors();
            tensors.insert(a, Tensor::from_slice(&entries).view([rank, module.inputs]));
            tensors.insert(b, Tensor::zeros([module.outputs, rank], (Kind::Float, tch::Device::Cpu)));
        }
        Ok(Adapter { config: config.clone(), tensors })
    }

    /// Checks that its tensors are those that `model` needs for its targets.
    ///
    /// # Errors
    /// If one is missing, has another shape, or adapts what the model lacks: it is another model's.
    pub fn check(&self, model: &ModelConfig) -> Result<()> {
        let shapes = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size()));
        check_shapes("the adapter", &self.config, model, &shapes.collect::<Vec<_>>())
    }

    /// W + scale B A for the adapted matrices of `base`, f32; the others are shared with it.
    ///
    /// # Errors
    /// If adapter or base do not fit `model`.
    pub fn merge(&self, model: &ModelConfig, base: &Weights) -> Result<Weights> {
        self.check(model)?;
        for module in self.config.modules(model)? {
            let name = format!("{}.weight", module.name);
            let expected = vec![module.outputs, module.inputs];
            match base.get(&name).map(Tensor::size) {
                None => return Err(PolicyError::MissingTensor { name }),
                Some(found) if found != expected => {
                    return Err(PolicyError::WrongShape { name, expected, found });
                }
                Some(_) => {}
            }
        }
        Ok(self.merged_into(base, base))
    }

    /// The adapted matrices of `masters` (f32) merged, in the precision of `others`; shared with `others`
    /// what is not adapted. Both are known to fit.
    pub(crate) fn merged_into(&self, masters: &Weights, others: &Weights) -> Weights {
        let merged = |(name, other): (&String, &Tensor)| {
            let (a, b) = Module::tensors_of(name.trim_end_matches(".weight"));
            let tensor = match (self.tensors.get(&a), self.tensors.get(&b)) {
                (Some(a), Some(b)) => {
                    let merged = no_grad(|| add_product(&masters[name], a, b, self.config.scale()));
                    weight_as(&merged, other.kind())
                }
                _ => other.shallow_clone(),
            };
            (name.clone(), tensor)
        };
        others.iter().map(merged).collect()
    }
}

/// W + scale B A, f32, on W's device.
pub(crate) fn add_product(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Tensor {
    let single = |tensor: &Tensor| tensor.to_device(weight.device()).to_kind(Kind::Float);
    single(weight) + single(b).matmul(&single(a)) * scale
}

/// Checks names and shapes (by PEFT's names) against what `model` needs; `place` begins the message.
pub(crate) fn check_shapes(
    place: &str,
    config: &LoraConfig,
    model: &ModelConfig,
    found: &[(String, Vec<i64>)],
) -> Result<()> {
    let wrong = |cause: String| Err(PolicyError::WrongAdapter { place: place.to_string(), cause });
    let layers = model.num_layers;
    let modules = match config.modules(model) {
        Ok(modules) => modules,
        Err(PolicyError::UnknownModule { asked, known }) => {
            return wrong(format!(
                "it targets \"{asked}\", which is no linear layer of this model of {layers} layers ({known})"
            ));
        }
        Err(error) => return Err(error),
    };
    let rank = config.r as i64;
    let wanted: BTreeMap<String, Vec<i64>> = modules
        .iter()
        .flat_map(|module| {
            let (a, b) = module.tensors();
            [(a, vec![rank, module.inputs]), (b, vec![module.outputs, rank])]
        })
        .collect();
    for (name, shape) in found {
        match wanted.get(name) {
            None => {
                return wrong(format!(
                    "it has the tensor {name}, which its targets do not name in this model of {layers} layers"
                ));
            }
            Some(expected) if expected != shape => {
                return wrong(format!(
                    "its tensor {name} has the shape {shape:?}, but this model and r = {rank} need {expected:?}"
                ));
            }
            Some(_) => {}
        }
    }
    match wanted.keys().find(|name| !found.iter().any(|(found, _)| found == *name)) {
        Some(name) => wrong(format!(
            "it lacks the tensor {name}, which its targets name in this model of {layers} layers"
        )),
        None => Ok(()),
    }
}
