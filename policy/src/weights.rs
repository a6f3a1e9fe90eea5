//! Weights by name, and tensors' numbers on the host.

use std::collections::BTreeMap;

use tch::Tensor;

/// Tensors by their Hugging Face names.
pub type Weights = BTreeMap<String, Tensor>;

/// Handles of the same tensors.
pub fn handles(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// A tensor's entries, as f32.
pub(crate) fn to_host(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.numel()];
    tensor
        .flatten(0, -1)
        .to_kind(tch::Kind::Float)
        .to_device(tch::Device::Cpu)
        .copy_data(&mut values, tensor.numel());
    values
}
