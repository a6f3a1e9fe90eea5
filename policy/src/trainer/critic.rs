//! A critic in training: a scalar head on the policy's hidden states, or on those of a decoder of its own.
//!
//! The value of a token is read where the token is predicted: it is the value of the state in which it was drawn.

use tch::{Kind, Tensor};

use super::parameters::Parameters;
use crate::checkpoint::Weights;
use crate::config::{ModelConfig, SCORE};
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::forest::Forest;
use crate::model::Model;
use crate::objective::{self, CriticKind};
use crate::pass::Pass;

/// The head of a critic on the policy, `[1, hidden]`.
pub const VALUE_HEAD: &str = "value_head.weight";

#[derive(Debug)]
pub(super) struct Critic {
    /// A decoder of its own; `None` where the head reads the policy's hidden states.
    model: Option<Model>,
    /// The head's name.
    head: &'static str,
    pub parameters: Parameters,
    /// The head, as it is computed with.
    leaf: Tensor,
    learning_rate: Option<f64>,
}

impl Critic {
    /// A critic that values everything at 0. One of its own starts from the decoder in `policy` (f32).
    pub fn fresh(
        wanted: objective::Critic,
        config: &ModelConfig,
        policy: &Weights,
        compute: Compute,
    ) -> Result<Self> {
        let head = Tensor::zeros([1, config.hidden_size as i64], (Kind::Float, tch::Device::Cpu));
        let mut weights = Weights::new();
        if wanted.kind == CriticKind::Model {
            weights.extend(policy.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        }
        weights.insert(head_of(wanted.kind).to_string(), head);
        Critic::new(wanted, config, &weights, compute)
    }

    /// A critic that starts from a copy of `weights`: the head alone, or a whole reward model.
    pub fn new(
        wanted: objective::Critic,
        config: &ModelConfig,
        weights: &Weights,
        compute: Compute,
    ) -> Result<Self> {
        let head = head_of(wanted.kind);
        let config = config.with_score(None);
        let tensor = |name: &str| match weights.get(name) {
            Some(tensor) => Ok((name.to_string(), tensor.shallow_clone())),
            None => Err(PolicyError::MissingTensor { name: name.to_string() }),
        };
        let names = match wanted.kind {
            CriticKind::Shared => vec![head.to_string()],
            CriticKind::Model => config.tensor_shapes().into_iter().map(|(name, _)| name).collect(),
        };
        let own = names.iter().map(|name| tensor(name)).collect::<Result<Weights>>()?;
        let (expected, found) = (vec![1, config.hidden_size as i64], own[head].size());
        if found != expected {
            return Err(PolicyError::WrongShape { name: head.to_string(), expected, found });
        }
        let parameters = Parameters::new(&own, compute);
        let leaves = parameters.leaves();
        let model = match wanted.kind {
            CriticKind::Shared => None,
            CriticKind::Model => Some(Model::trainable(&config, &leaves, &parameters.gradients(), compute)?),
        };
        let leaf = leaves[head].shallow_clone();
        Ok(Critic { model, head, parameters, leaf, learning_rate: wanted.learning_rate })
    }

    /// A forward pass through its own decoder; `None` where it has none.
    pub fn record<'a>(&'a self, forest: &'a Forest, checkpointing: bool) -> Option<Pass<'a>> {
        self.model.as_ref().map(|model| Pass::record(model, forest, checkpointing))
    }

    /// Hidden states of its own decoder; `None` where it has none.
    pub fn hidden(&self, forest: &Forest) -> Option<Tensor> {
        self.model.as_ref().map(|model| model.predictors(forest))
    }

    /// The head and its gradient, to add to.
    pub fn head(&self) -> (Tensor, Tensor) {
        let gradient = self.parameters.gradient(self.head);
        (self.leaf.shallow_clone(), gradient.unwrap_or_else(|| self.leaf.zeros_like()))
    }

    /// Its learning rate where the policy's is `rate` and peaks at `peak`.
    pub fn learning_rate(&self, rate: f64, peak: f64) -> f64 {
        match self.learning_rate {
            Some(own) if peak > 0.0 => rate * own / peak,
            Some(own) => own,
            None => rate,
        }
    }
}

fn head_of(kind: CriticKind) -> &'static str {
    match kind {
        CriticKind::Shared => VALUE_HEAD,
        CriticKind::Model => SCORE,
    }
}
