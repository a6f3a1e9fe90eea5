//! Algorithms as pure functions of token statistics.
//!
//! An [`Objective`] never meets the model. It maps the statistics of a micro-batch's response
//! tokens (leaf tensors of one number a token) and the host's data about the same tokens to a
//! scalar loss and named metrics; autograd on the leaves gives d loss / d statistic, which
//! [`crate::head`] turns into gradients of the model. An objective does no I/O, holds no model and
//! draws no random numbers.
//!
//! A new algorithm is one file here and one line in the registry of [`Algorithm`];
//! docs/adding-an-algorithm.md adds one step by step.
//!
//! Every file of `objective/` is an algorithm, but for two: `interface` is what an algorithm is to the rest of the system
//! (options, needs, batches, metrics, description), and [`terms`] is what losses are made of.

mod interface;
pub mod terms;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;

use interface::options;
pub use interface::{
    AlgorithmConfig, Critic, CriticKind, Description, Divergence, Loss, Metrics, MicroBatch, Needs,
    Objective, OptionDescription, ReferenceSync, Statistics, TeacherStatistics, TokenStatistics, Totals,
};

/// Makes the modules and [`Algorithm`] from one line an algorithm. rustfmt does not see modules that a macro declares:
/// `cargo xtask ci` names their files to it.
macro_rules! registry {
    ($($kind:literal => $module:ident::$variant:ident($config:ident), $about:literal;)*) => {
        $(pub mod $module;)*
        $(pub use $module::$config;)*

        /// The registry: `kind` in an experiment file, and the options that belong to it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum Algorithm {
            $(#[doc = $about] #[serde(rename = $kind)] $variant($config),)*
        }

        impl Algorithm {
            /// Every `kind`, in the order of the registry.
            pub const KINDS: &'static [&'static str] = &[$($kind),*];

            /// The `kind` of this algorithm.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// Names of the options of a `kind`; none for an unknown one.
            pub fn option_names(kind: &str) -> &'static [&'static str] {
                match kind { $($kind => serde_introspect::<$config>(),)* _ => &[] }
            }

            /// The same algorithm with presets and defaults written out.
            pub fn resolved(&self) -> Self {
                match self { $(Self::$variant(config) => Self::$variant(config.resolved()),)* }
            }

            /// What there is to say of a `kind`; `None` for an unknown one.
            pub fn describe(kind: &str) -> Option<Description> {
                match kind {
                    $($kind => {
                        let source = include_str!(concat!("objective/", stringify!($module), ".rs"));
                        Some(interface::describe::<$config>($kind, $about, source))
                    })*
                    _ => None,
                }
            }

            fn config_mut(&mut self) -> &mut dyn AlgorithmConfig {
                match self { $(Self::$variant(config) => config,)* }
            }

            fn config(&self) -> &dyn AlgorithmConfig {
                match self { $(Self::$variant(config) => config,)* }
            }
        }
    };
}

registry! {
    "sft" => sft::Sft(SftConfig), "Supervised fine-tuning on the best of n samples.";
    "dpo" => dpo::Dpo(DpoConfig), "Direct preference optimisation on the best sample against the worst.";
    "simpo" => simpo::Simpo(SimpoConfig), "Simple preference optimisation: mean log-probabilities, no reference.";
    "orpo" => orpo::Orpo(OrpoConfig), "Odds-ratio preference optimisation: SFT and preference in one, no reference.";
    "cpo" => cpo::Cpo(CpoConfig), "Contrastive preference optimisation: DPO without reference, plus SFT on the chosen.";
    "kto" => kto::Kto(KtoConfig), "Kahneman-Tversky optimisation on desirable and undesirable responses, unpaired.";
    "grpo" => grpo::Grpo(GrpoConfig), "Group relative policy optimisation: a prompt's samples are each other's baseline.";
    "dr_grpo" => dr_grpo::DrGrpo(DrGrpoConfig), "GRPO without its biases: no division by deviation or by length.";
    "dapo" => dapo::Dapo(DapoConfig), "GRPO with clip-higher, token mean, groups without signal dropped, overlong shaping.";
    "gspo" => gspo::Gspo(GspoConfig), "GRPO whose ratio and clipping are of the sequence.";
    "cispo" => cispo::Cispo(CispoConfig), "GRPO that clips the importance weight and keeps every token's gradient.";
    "rloo" => rloo::Rloo(RlooConfig), "REINFORCE leave-one-out: the others of a group are a sample's baseline.";
    "reinforce_pp" => reinforce_pp::ReinforcePp(ReinforcePpConfig), "REINFORCE++: advantages normalised over the batch, no critic.";
    "remax" => remax::Remax(RemaxConfig), "REINFORCE with the greedy answer's reward as the baseline.";
    "ppo" => ppo::Ppo(PpoConfig), "PPO: a critic's values tell each token's advantage.";
    "reward_model" => reward_model::RewardModel(RewardModelConfig), "A reward model from preferences: Bradley-Terry, as Llama 3 has it.";
    "online_dpo" => online_dpo::OnlineDpo(OnlineDpoConfig), "DPO on the best against the worst of fresh samples.";
    "xpo" => xpo::Xpo(XpoConfig), "Online DPO against the reference's samples, with a bonus for leaving them: exploration.";
    "nash_md" => nash_md::NashMd(NashMdConfig), "Nash-MD: beat the mixture of policy and reference, towards the Nash equilibrium.";
    "distill" => distill::Distill(DistillConfig), "On-policy distillation: a teacher's distribution at every token of one's own samples.";
}

impl Algorithm {
    /// The function that is optimised.
    pub fn objective(&self) -> Box<dyn Objective> {
        self.config().objective()
    }

    /// As [`AlgorithmConfig::fit`].
    pub fn fit(&mut self, max_new_tokens: usize) {
        self.config_mut().fit(max_new_tokens);
    }

    /// As [`AlgorithmConfig::teacher`].
    pub fn teacher(&self) -> Option<&Path> {
        self.config().teacher()
    }

    /// As [`AlgorithmConfig::is_online`].
    pub fn is_online(&self) -> bool {
        self.config().is_online()
    }

    /// Checks the ranges of the options.
    ///
    /// # Errors
    /// As [`AlgorithmConfig::validate`].
    pub fn validate(&self) -> std::result::Result<(), String> {
        self.config().validate()
    }
}
