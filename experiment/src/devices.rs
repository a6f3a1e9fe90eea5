//! Where each of the actors that touch tensors computes.

use std::fmt;

use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec, unused_gpu};
use serde::{Deserialize, Serialize};

/// `[devices]` of an experiment file. Default of each: `model.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePlan {
    /// Samples experience.
    pub generator: DeviceSpec,
    /// Trains.
    pub learner: DeviceSpec,
    /// Scores experience with the initial weights.
    pub reference: DeviceSpec,
    /// Answers the held-out prompts.
    pub evaluator: DeviceSpec,
}

impl DevicePlan {
    /// The same for all.
    pub fn all(device: DeviceSpec) -> Self {
        DevicePlan { generator: device, learner: device, reference: device, evaluator: device }
    }

    fn named(&self) -> [(&'static str, DeviceSpec); 4] {
        let DevicePlan { generator, learner, reference, evaluator } = *self;
        [("generator", generator), ("learner", learner), ("reference", reference), ("evaluator", evaluator)]
    }
}

/// What a [`DevicePlan`] comes to on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Computes {
    /// Samples.
    pub generator: Compute,
    /// Trains.
    pub learner: Compute,
    /// Scores with frozen weights.
    pub reference: Compute,
    /// Answers the held-out prompts.
    pub evaluator: Compute,
}

impl Computes {
    /// Finds the devices.
    ///
    /// # Errors
    /// If a device is not there.
    pub fn resolve(plan: &DevicePlan, dtype: DtypeSpec) -> arriero_policy::Result<Self> {
        let [generator, learner, reference, evaluator] =
            plan.named().map(|(_, device)| Compute::resolve(device, dtype));
        Ok(Computes {
            generator: generator?,
            learner: learner?,
            reference: reference?,
            evaluator: evaluator?,
        })
    }
}

impl fmt::Display for Computes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Computes { generator, learner, reference, evaluator } = self;
        if [generator, reference, evaluator].iter().all(|compute| *compute == learner) {
            return learner.fmt(f);
        }
        write!(
            f,
            "generator on {generator}; learner on {learner}; reference on {reference}; evaluator on {evaluator}"
        )
    }
}

/// Says why a GPU goes unused. Empty where there is no GPU, or the experiment asks for the CPU.
pub fn unused(plan: &DevicePlan) -> String {
    let why = plan.named().into_iter().find_map(|(_, device)| unused_gpu(device));
    why.map_or_else(String::new, |why| format!("; the GPU is not used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_is_said_once_and_several_by_actor() {
        let cpu = DevicePlan::all(DeviceSpec::Cpu);
        let same = Computes::resolve(&cpu, DtypeSpec::F32).expect("there is a CPU");
        assert_eq!(same.to_string(), Compute::CPU_F32.to_string());
        let bf16 = Compute::resolve(DeviceSpec::Cpu, DtypeSpec::Bf16).expect("there is a CPU");
        let text = Computes { generator: bf16, ..same }.to_string();
        assert!(text.starts_with(&format!("generator on {bf16}; learner on {}", Compute::CPU_F32)), "{text}");
        assert_eq!(unused(&cpu), "");
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let plan = DevicePlan { evaluator: DeviceSpec::Cuda(99), ..DevicePlan::all(DeviceSpec::Cpu) };
        let error = Computes::resolve(&plan, DtypeSpec::F32).expect_err("nobody has a hundred").to_string();
        assert!(error.starts_with("device cuda:99 was asked for, but "), "{error}");
    }
}
