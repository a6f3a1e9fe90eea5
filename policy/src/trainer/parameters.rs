//! Tensors that are trained together, with their gradients and their optimiser.

use tch::{Kind, Tensor, no_grad};

use crate::checkpoint::Weights;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::kernels;
use crate::optim::{AdamW, TrainingConfig, norm_and_clip};

/// One trained tensor.
#[derive(Debug)]
struct Parameter {
    name: String,
    /// f32, what the optimiser updates.
    master: Tensor,
    /// What the model computes with, in the precision of that ([`Compute::kind_of`]); the master itself in f32.
    leaf: Tensor,
    /// f32, sum over the micro-batches.
    gradient: Tensor,
}

impl Parameter {
    fn new(name: &str, weight: &Tensor, compute: Compute) -> Self {
        let master = weight.to_device(compute.device).to_kind(Kind::Float).copy();
        let leaf = compute.place(name, &master);
        Parameter { name: name.to_string(), gradient: master.zeros_like(), master, leaf }
    }

    /// The tensor of this name and of its shape.
    fn among<'a>(&self, tensors: &'a Weights, name: &str) -> Result<&'a Tensor> {
        let (name, expected) = (name.to_string(), self.master.size());
        match tensors.get(&name) {
            None => Err(PolicyError::MissingTensor { name }),
            Some(found) if found.size() != expected => {
                Err(PolicyError::WrongShape { name, expected, found: found.size() })
            }
            Some(found) => Ok(found),
        }
    }

    /// The leaf, where it is a tensor of its own.
    fn own_leaf(&self) -> Option<Tensor> {
        (self.leaf.kind() != Kind::Float).then(|| self.leaf.shallow_clone())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Parameters {
    list: Vec<Parameter>,
    optimizer: AdamW,
    /// The factor by which the last step's gradient was clipped; 1 before it is.
    scale: f64,
}

impl Parameters {
    /// Copies of these tensors, to be trained.
    pub fn new(tensors: &Weights, compute: Compute) -> Self {
        let list: Vec<Parameter> =
            tensors.iter().map(|(name, tensor)| Parameter::new(name, tensor, compute)).collect();
        let masters: Vec<Tensor> = list.iter().map(|parameter| parameter.master.shallow_clone()).collect();
        Parameters { optimizer: AdamW::new(&masters), list, scale: 1.0 }
    }

    fn by_name(&self, pick: impl Fn(&Parameter) -> Tensor) -> Weights {
        self.list.iter().map(|parameter| (parameter.name.clone(), pick(parameter))).collect()
    }

    fn each(&self, pick: impl Fn(&Parameter) -> Tensor) -> Vec<Tensor> {
        self.list.iter().map(pick).collect()
    }

    /// Handles of the f32 tensors, which change with the next step.
    pub fn masters(&self) -> Weights {
        self.by_name(|parameter| parameter.master.shallow_clone())
    }

    /// Handles of what the model computes with.
    pub fn leaves(&self) -> Weights {
        self.by_name(|parameter| parameter.leaf.shallow_clone())
    }

    /// Copies of what the model computes with.
    pub fn copies(&self) -> Weights {
        self.by_name(|parameter| parameter.leaf.detach().copy())
    }

    /// Handles of the gradients, to add to.
    pub fn gradients(&self) -> Weights {
        self.by_name(|parameter| parameter.gradient.shallow_clone())
    }

    /// A handle of one gradient, to add to.
    pub fn gradient(&self, name: &str) -> Option<Tensor> {
        let parameter = self.list.iter().find(|parameter| parameter.name == name)?;
        Some(parameter.gradient.shallow_clone())
    }

    /// Copies of the gradients of the last step, after clipping.
    pub fn clipped_gradients(&self) -> Weights {
        self.by_name(|parameter| &parameter.gradient * self.scale)
    }

    /// The optimiser's moments, as `NAME.exp_avg` and `NAME.exp_avg_sq` (PyTorch's names).
    pub fn moments(&self) -> Weights {
        let pairs = self.list.iter().zip(self.optimizer.moments());
        pairs
            .flat_map(|(parameter, (first, second))| {
                [
                    (format!("{}.exp_avg", parameter.name), first.shallow_clone()),
                    (format!("{}.exp_avg_sq", parameter.name), second.shallow_clone()),
                ]
            })
            .collect()
    }

    /// Updates so far.
    pub fn updates(&self) -> i32 {
        self.optimizer.steps()
    }

    /// Goes on with the moments of an earlier optimiser of these tensors, taken over from [`Parameters::moments`] after
    /// `updates`.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn resume(&mut self, moments: &Weights, updates: i32) -> Result<()> {
        let moment = |parameter: &Parameter, which: &str| {
            let found = parameter.among(moments, &format!("{}.{which}", parameter.name))?;
            Ok(found.to_device(parameter.master.device()).to_kind(Kind::Float))
        };
        let both = |parameter| Ok((moment(parameter, "exp_avg")?, moment(parameter, "exp_avg_sq")?));
        let moments = self.list.iter().map(both).collect::<Result<_>>()?;
        self.optimizer = AdamW::resumed(moments, updates);
        Ok(())
    }

    /// Puts these numbers in the place of the trained ones.
    ///
    /// # Errors
    /// If one is missing, has another shape, or is not trained; then nothing has changed.
    pub fn restore(&mut self, tensors: &Weights, compute: Compute) -> Result<()> {
        let is_own = |name: &String| self.list.iter().any(|parameter| parameter.name == *name);
        if let Some(name) = tensors.keys().find(|name| !is_own(name)) {
            let cause = format!("it has the tensor {name}, which is not trained here");
            return Err(PolicyError::WrongState { cause });
        }
        let found = |parameter: &Parameter| parameter.among(tensors, &parameter.name);
        let found = self.list.iter().map(found).collect::<Result<Vec<_>>>()?;
        no_grad(|| {
            for (parameter, found) in self.list.iter_mut().zip(found) {
                parameter.master.copy_(found);
                if let Some(mut leaf) = parameter.own_leaf() {
                    leaf.copy_(&compute.place(&parameter.name, &parameter.master));
                }
            }
        });
        Ok(())
    }

    /// Sets the gradients to 0.
    pub fn zero(&mut self) {
        self.scale = 1.0;
        kernels::zero(&self.each(|parameter| parameter.gradient.shallow_clone()));
    }

    /// Measures the gradients' global norm, and notes by how much the step is to scale them down.
    pub fn clip(&mut self, limit: f64) -> f64 {
        let (norm, scale) = norm_and_clip(&self.each(|parameter| parameter.gradient.shallow_clone()), limit);
        self.scale = scale;
        norm
    }

    /// One optimiser step, after [`Parameters::clip`].
    pub fn step(&mut self, rate: f64, training: &TrainingConfig) {
        let masters = self.each(|parameter| parameter.master.shallow_clone());
        let gradients = self.each(|parameter| parameter.gradient.shallow_clone());
        let leaves: Vec<Option<Tensor>> = self.list.iter().map(Parameter::own_leaf).collect();
        self.optimizer.step(&masters, &leaves, &gradients, self.scale, rate, training);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In bf16 the leaves are what the masters round to, or the masters themselves where products are of fixed-point numbers.
    #[test]
    fn restored_tensors_are_computed_with_as_those_that_were_trained() {
        tch::manual_seed(3);
        let random = |size: i64| Tensor::randn([size], (Kind::Float, tch::Device::Cpu));
        let named = |pick: &dyn Fn(i64) -> Tensor| -> Weights {
            [("a", 1000), ("b.norm.weight", 7)].map(|(name, size)| (name.to_string(), pick(size))).into()
        };
        let start = named(&random);
        for kind in [Kind::Float, Kind::BFloat16] {
            let compute = Compute { kind, ..Compute::CPU_F32 };
            let mut trained = Parameters::new(&start, compute);
            for _ in 0..3 {
                for (name, mut gradient) in trained.gradients() {
                    gradient.copy_(&(random(gradient.size()[0]) + start[&name].sum(Kind::Float)));
                }
                trained.clip(1.0);
                trained.step(1e-2, &TrainingConfig::default());
            }
            let mut restored = Parameters::new(&named(&|size| random(size)), compute);
            let before = restored.leaves();
            restored.restore(&trained.masters(), compute).expect("they fit");
            for (name, expected) in trained.leaves() {
                assert_eq!(restored.leaves()[&name], expected, "{name}");
                assert_eq!(before[&name], expected, "{name}: a handle from before sees it");
                assert_ne!(expected.to_kind(Kind::Float), start[&name], "{name} was trained");
            }
            assert_eq!(restored.masters(), trained.masters());
        }
    }
}
