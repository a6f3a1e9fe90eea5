//! Where tensors live and in which precision they are computed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::cuda;
use crate::error::{PolicyError, Result};
use crate::kernels;

/// `device` in an experiment file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// CUDA device 0 if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            _ => number(text).map(DeviceSpec::Cuda).ok_or_else(|| {
                format!("unknown device \"{text}\"; expected \"auto\", \"cpu\" or \"cuda:N\"")
            }),
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> String {
        spec.to_string()
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// `dtype` in an experiment file: the precision of forward and backward. Master weights, optimiser
/// state, log-softmax and losses are f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeSpec {
    /// bf16 where the hardware multiplies it fast (AVX512-BF16, AMX, CUDA), else f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl FromStr for DtypeSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(DtypeSpec::Auto),
            "f32" => Ok(DtypeSpec::F32),
            "bf16" => Ok(DtypeSpec::Bf16),
            _ => Err(format!("unknown dtype \"{text}\"; expected \"auto\", \"f32\" or \"bf16\"")),
        }
    }
}

/// A weight in another precision: f32 becomes bf16 by [`kernels::round_weights`].
pub(crate) fn weight_as(weight: &Tensor, kind: Kind) -> Tensor {
    match (weight.kind(), kind) {
        (Kind::Float, Kind::BFloat16) => kernels::round_weights(weight),
        _ => weight.to_kind(kind),
    }
}

/// What a model computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    /// Where.
    pub device: Device,
    /// Precision of forward and backward. Of bf16 see [`Compute::is_fixed`].
    pub kind: Kind,
}

impl Compute {
    /// f32 on the CPU: the reference for every other choice.
    pub const CPU_F32: Compute = Compute { device: Device::Cpu, kind: Kind::Float };

    /// The precision of master weights on the same device: f32.
    pub fn master(self) -> Self {
        Compute { kind: Kind::Float, ..self }
    }

    /// Whether products are of 16-bit fixed-point numbers: instead of bf16 on a processor that has the instructions. What is
    /// multiplied is kept in f32 then (docs/adr/0008-fixed-point.md).
    pub fn is_fixed(self) -> bool {
        self.kind == Kind::BFloat16 && self.device == Device::Cpu && kernels::has_fixed()
    }

    /// The precision of what goes from one operator to the next.
    pub fn activations(self) -> Kind {
        if self.is_fixed() { Kind::Float } else { self.kind }
    }

    /// The precision that a weight of this name is kept in for products: norms are f32, which costs nothing and keeps their
    /// small updates.
    pub fn kind_of(self, name: &str) -> Kind {
        if name.ends_with("norm.weight") { Kind::Float } else { self.activations() }
    }

    /// A weight of this name as it is computed with.
    pub fn place(self, name: &str, weight: &Tensor) -> Tensor {
        weight_as(&weight.to_device(self.device), self.kind_of(name))
    }

    /// Decides what `auto` means on this machine. Where CUDA may be used, this opens it ([`cuda::look`]): call
    /// it before anything else of libtorch.
    ///
    /// # Errors
    /// If a CUDA device is asked for that this machine does not have: what was found instead.
    pub fn resolve(device: DeviceSpec, dtype: DtypeSpec) -> Result<Self> {
        let device = match device {
            DeviceSpec::Cpu => Device::Cpu,
            DeviceSpec::Auto if cuda::look().devices() > 0 => Device::Cuda(0),
            DeviceSpec::Auto => Device::Cpu,
            DeviceSpec::Cuda(number) if number < cuda::look().devices() => Device::Cuda(number),
            DeviceSpec::Cuda(number) => {
                let (asked, found) = (format!("cuda:{number}"), cuda::look().to_string());
                return Err(PolicyError::NoSuchDevice { asked, found });
            }
        };
        let kind = match dtype {
            DtypeSpec::F32 => Kind::Float,
            DtypeSpec::Bf16 => Kind::BFloat16,
            DtypeSpec::Auto if device != Device::Cpu || cpu_has_bf16() => Kind::BFloat16,
            DtypeSpec::Auto => Kind::Float,
        };
        Ok(Compute { device, kind })
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::BFloat16 { "bf16" } else { "f32" };
        match self.device {
            Device::Cuda(number) => write!(f, "cuda:{number}, {kind}"),
            _ => write!(f, "cpu ({} threads), {kind}", tch::get_num_threads()),
        }
    }
}

/// Why `auto` leaves a GPU unused that is there; `None` where there is none, or it is used.
pub fn unused_gpu(asked: DeviceSpec) -> Option<String> {
    (asked == DeviceSpec::Auto && cuda::look().is_broken()).then(|| cuda::look().to_string())
}

/// Numbers for `device`, `[values]`, without waiting for what the device computes.
pub(crate) fn upload<T: Element>(values: &[T], device: Device) -> Tensor {
    let host = Tensor::from_slice(values);
    if device == Device::Cpu {
        return host;
    }
    // Pinned memory is copied by the device itself; libtorch keeps it until then.
    let host = host.f_internal_pin_memory(device).unwrap_or(host);
    host.to_device_(device, T::KIND, true, false)
}

/// Whether the processor multiplies bf16 matrices in hardware.
fn cpu_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // AMX cannot be asked for on stable Rust; every processor that has it has this too.
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip_and_unknown_ones_are_named() {
        for name in ["auto", "cpu", "cuda:3"] {
            assert_eq!(name.parse::<DeviceSpec>().map(|spec| spec.to_string()), Ok(name.to_string()));
        }
        let error = "gpu".parse::<DeviceSpec>().expect_err("there is no such device");
        assert_eq!(error, "unknown device \"gpu\"; expected \"auto\", \"cpu\" or \"cuda:N\"");
    }
}
