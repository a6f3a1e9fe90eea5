//! On-policy distillation: a teacher's word on every token of the policy's own samples.
//!
//! With π_T the teacher and s_t the state in which the t-th of a batch's N response tokens was drawn,
//!
//! L = (1 / N) Σ_t D_β(π_T(· | s_t), π(· | s_t))  or  L = − (1 / N) Σ_t ρ_t [log π_T(y_t) − log π_old(y_t)],
//!
//! where ρ_t = π(y_t) / π_old(y_t). The first is GKD's (Agarwal et al., "On-Policy Distillation of Language Models", 2024,
//! eq. 1), exact over the vocabulary ([`crate::head::divergence`]): β = 0 is KL(π_T ‖ π), β = 1 the reverse KL(π ‖ π_T), and
//! between them stands the generalised Jensen-Shannon divergence. No gradient goes through the sampling. The second is the
//! reverse KL of the drawn tokens alone as a policy gradient with a reward at each token (Lu, "On-Policy Distillation",
//! Thinking Machines Lab, 2025).
//!
//! The reward of a sample is not read. GKD's λ, the share of the policy's own samples in what it learns from, is 1 where the
//! stage samples and 0 where it has a dataset; two stages of an arm, one of each, mix them.

use std::path::{Path, PathBuf};

use arriero_buffers::Tree;
use arriero_buffers::selection::{Everything, SelectionRule, WholeGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::terms::ranges;
use super::{
    AlgorithmConfig, Divergence, Loss, Metrics, MicroBatch, Needs, Objective, Statistics, TeacherStatistics,
    TokenStatistics, options,
};

/// What the policy is held against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DistillLoss {
    /// The teacher's distribution over the whole vocabulary (GKD).
    #[default]
    Divergence,
    /// The teacher's log-probability of the drawn token, as its reward: the reverse KL, estimated. It wants samples of the
    /// policy, no dataset.
    SampledReverseKl,
}

options! {
    /// Distillation's options.
    pub struct DistillConfig {
        /// The teacher: a Hugging Face directory or a GGUF file of the policy's vocabulary, or `default` for the model that
        /// set-up brought. It must be given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub teacher: Option<PathBuf> = None,
        /// What the policy is held against. Default `"divergence"` (GKD's).
        pub loss: DistillLoss = DistillLoss::Divergence,
        /// β: 0 is the forward KL, which covers all that the teacher does; 1 the reverse KL, which keeps to what it does most.
        /// `sampled_reverse_kl` does not read it. Default 1 (that of TRL's DistillationTrainer; its GKDTrainer has 0.5).
        pub beta: f64 = 1.0,
        /// τ: divides both models' logits within the divergence; the sampler has its own. `sampled_reverse_kl` does not read
        /// it. Default 1 (TRL's).
        pub temperature: f64 = 1.0,
    }
}

impl AlgorithmConfig for DistillConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Distill { options: self.clone() })
    }

    fn teacher(&self) -> Option<&Path> {
        self.teacher.as_deref()
    }

    fn validate(&self) -> Result<(), String> {
        if self.teacher.as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(
                "teacher is missing; name a model of the policy's vocabulary: a Hugging Face directory, a \
                        GGUF file, or \"default\""
                    .to_string(),
            );
        }
        ranges::within("beta", self.beta, (0.0..=1.0).contains(&self.beta), "from 0 to 1")?;
        ranges::above_zero("temperature", self.temperature)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Distill {
    options: DistillConfig,
}

impl Objective for Distill {
    fn needs(&self) -> Needs {
        let (divergence, selection) = match self.options.loss {
            DistillLoss::Divergence => (
                Divergence { beta: self.options.beta, temperature: self.options.temperature },
                SelectionRule::from(Everything),
            ),
            // The exact reverse KL beside its estimate, for the record.
            DistillLoss::SampledReverseKl => (
                Divergence { beta: 1.0, temperature: 1.0 },
                WholeGroup { least: 1, drop_equal: false }.into(),
            ),
        };
        Needs { statistics: Statistics::ProbabilitiesAndDivergence(divergence), ..Needs::of(selection) }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        let is_foreign = |tree: &Tree| {
            tree.branches.iter().any(|branch| branch.behaviour_logps.len() != branch.loss_tokens())
        };
        match experience.iter().find(|tree| is_foreign(tree)) {
            Some(tree) if self.options.loss == DistillLoss::SampledReverseKl => Err(format!(
                "prompt {} has a response that the policy did not sample, from which loss = \"sampled_reverse_kl\" \
                 cannot learn; set loss = \"divergence\", or sample",
                tree.prompt_id
            )),
            _ => Ok(()),
        }
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let logps = &statistics.logps;
        let tokens = batch.totals.tokens.max(1) as f64;
        let teacher = statistics.teacher.as_ref().expect("the trainer gives what an objective needs");
        let mut metrics = metrics(teacher, statistics);
        let value = match self.options.loss {
            DistillLoss::Divergence => teacher.divergences.sum(Kind::Float) / tokens,
            DistillLoss::SampledReverseKl => {
                let old = batch.old_logps(logps);
                let rewards = &teacher.logps - &old;
                let ratios = (logps - old).exp();
                metrics.add_entries("ratio/mean", &ratios.detach());
                -(ratios * rewards).sum(Kind::Float) / tokens
            }
        };
        metrics.add_part("loss", &value, batch);
        Loss { value, metrics }
    }
}

fn metrics(teacher: &TeacherStatistics, statistics: &TokenStatistics) -> Metrics {
    let mut metrics = Metrics::default();
    metrics.add_entries("divergence", &teacher.divergences.detach());
    metrics.add_entries("teacher/kl/k1", &(statistics.logps.detach() - &teacher.logps));
    metrics.add_entries("teacher/logps", &teacher.logps);
    metrics.add_entries("entropy", &statistics.entropies.detach());
    metrics.add_entries("mean_token_accuracy", &statistics.top1);
    metrics
}
