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

pub mod advantages;
pub mod aggregate;
pub mod clip;
pub mod correction;
mod describe;
pub mod group;
pub mod kl;
mod pairs;
pub mod sync;

use std::collections::BTreeMap;
use std::path::Path;

use arriero_buffers::{Branch, SelectionRule, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_aux::serde_introspection::serde_introspect;
use serde_json::Value;
use tch::{Kind, Tensor};

pub use describe::{Description, OptionDescription};
pub use sync::ReferenceSync;

/// Options of an algorithm: what stands beside `kind` in an experiment file.
pub trait AlgorithmConfig {
    /// The function that is optimised.
    fn objective(&self) -> Box<dyn Objective>;

    /// The same options with presets and defaults written out.
    fn resolved(&self) -> Self
    where
        Self: Sized;

    /// Fills in what follows from how experience is sampled, where it was left open: `max_new_tokens` is the
    /// generator's token limit.
    fn fit(&mut self, _max_new_tokens: usize) {}

    /// The model beside the policy that it learns from, where there is one: a path, or `default`.
    fn teacher(&self) -> Option<&Path> {
        None
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    fn validate(&self) -> std::result::Result<(), String>;

    /// True if it learns from fresh samples of the policy that it trains, a few steps a round: its optimiser then goes on
    /// from round to round.
    fn is_online(&self) -> bool {
        matches!(
            self.objective().needs().selection,
            SelectionRule::Group { .. } | SelectionRule::GroupAgainstGreedy
        )
    }
}

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
                        Some(describe::describe::<$config>($kind, $about, source))
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

/// What an objective needs from the rest of the system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Needs {
    /// How the rejection sampler makes the trees.
    pub selection: SelectionRule,
    /// True if every branch must carry log-probabilities of the frozen reference.
    pub reference: bool,
    /// True if the loss couples the trees of a batch by more than its totals (it sorts them, or needs a
    /// mean over them): the trainer then does not cut the batch, whatever `micro_batch_tokens` says.
    pub whole_batch: bool,
    /// True if every branch must carry the trainer's log-probabilities under the weights that training began
    /// with.
    pub old: bool,
    /// What is computed of each response token.
    pub statistics: Statistics,
    /// How the reference follows the policy; the trainer then keeps it and scores each batch in its step, so that
    /// `reference` is false. `None` where it stays as it is.
    pub sync: Option<ReferenceSync>,
    /// True if every branch must carry [`Branch::mismatched_ratio`], which the trainer finds in the step with a
    /// reference of its own.
    pub mismatched: bool,
}

impl Needs {
    /// Trees that this rule makes, probabilities of their tokens, and nothing else.
    pub const fn of(selection: SelectionRule) -> Self {
        Needs {
            selection,
            reference: false,
            whole_batch: false,
            old: false,
            statistics: Statistics::Probabilities,
            sync: None,
            mismatched: false,
        }
    }

    /// True if the trainer must keep a reference of its own: see [`crate::trainer::Trainer::with_reference`].
    pub fn keeps_reference(&self) -> bool {
        self.sync.is_some() || self.mismatched
    }
}

/// What is computed of each response token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistics {
    /// What the vocabulary's distribution says of it.
    Probabilities,
    /// The same, and a critic's value of the state in which it was drawn. Every branch also carries the values that the
    /// critic gave when training began.
    ProbabilitiesAndValues(Critic),
    /// What the vocabulary's distribution says of it, and how far that is from the distribution of the teacher that
    /// [`AlgorithmConfig::teacher`] names.
    ProbabilitiesAndDivergence(Divergence),
    /// The score of the text that it ends, by a reward model, and nothing of the vocabulary.
    Scores,
}

/// The distance between two distributions: GKD's generalised Jensen-Shannon divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// 0: KL(teacher ‖ policy); 1: KL(policy ‖ teacher); between, that of both to their mixture.
    pub beta: f64,
    /// Divides both models' logits.
    pub temperature: f64,
}

/// Who gives values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Critic {
    /// Where its scalar head sits.
    pub kind: CriticKind,
    /// Its learning rate at the peak; the training's where it is none.
    pub learning_rate: Option<f64>,
}

/// Where a critic's scalar head sits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// On the policy: both learn from the same hidden states.
    #[default]
    Shared,
    /// On a decoder of its own.
    Model,
}

/// An alignment algorithm.
pub trait Objective: Send {
    /// What it must be given.
    fn needs(&self) -> Needs;

    /// The loss of a micro-batch, as its share of the whole batch's loss: the sum over the
    /// micro-batches of a batch is the loss of the batch, so that its gradients do not depend on how
    /// it was cut. Under [`Needs::whole_batch`] the micro-batch is the batch.
    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss;

    /// Why a tree is left out before training; nothing if it is of use. One word for the record.
    fn refuses(&self, _tree: &Tree) -> Option<&'static str> {
        None
    }

    /// Looks at all trees of a stage, but for those that it refuses, before anything else is done with them.
    ///
    /// # Errors
    /// A sentence that says what the objective cannot learn from, and what to do.
    fn check(&self, _experience: &[&Tree]) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Told of all trees of a stage, with everything that it [`Needs`] about them, before the first step.
    fn begin(&mut self, _experience: &[&Tree]) {}

    /// Told of every optimiser step that was taken, with the batch's metrics: where running statistics
    /// move on. A step that failed is not told.
    fn stepped(&mut self, _metrics: &BTreeMap<String, f64>) {}

    /// All that [`Objective::begin`] and [`Objective::stepped`] have set, as plain data: what another objective of the same
    /// options goes on from. `null` where there is no such thing.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Goes on from what [`Objective::state`] gave.
    ///
    /// # Errors
    /// If it is of another objective: what was expected.
    fn restore(&mut self, state: &Value) -> std::result::Result<(), String> {
        match state {
            Value::Null => Ok(()),
            found => Err(format!("expected none, found {found}")),
        }
    }
}

/// What the heads compute of each response token that carries loss. All tensors are f32, `[response tokens]`, in
/// the order of trees, branches, tokens; under [`Statistics::Scores`] all but the values are empty. A token without
/// loss has no statistics.
#[derive(Debug)]
pub struct TokenStatistics {
    /// Log-probability of the token, in nats.
    pub logps: Tensor,
    /// Entropy of the distribution that the token was drawn from, in nats.
    pub entropies: Tensor,
    /// 1 where the token is the most probable one, else 0. Carries no gradient.
    pub top1: Tensor,
    /// A critic's value of the state that the token was drawn in, or a reward model's score of the text that the token
    /// ends; `None` where nobody asked for it.
    pub values: Option<Tensor>,
    /// What a teacher says of it; `None` where nobody asked for it.
    pub teacher: Option<TeacherStatistics>,
}

/// What a teacher says of each response token: f32 `[response tokens]` each.
#[derive(Debug)]
pub struct TeacherStatistics {
    /// [`Divergence`] of the policy's distribution from the teacher's at the token, in nats.
    pub divergences: Tensor,
    /// Log-probability of the token under the teacher, untempered. Carries no gradient.
    pub logps: Tensor,
}

/// Counts over the whole batch of which a micro-batch is a part: the denominators of means. Those of the parts of a batch add
/// up to those of the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Trees.
    pub trees: usize,
    /// Response tokens that carry loss.
    pub tokens: usize,
    /// Response tokens of first branches (the chosen ones of preference pairs).
    pub first_branch_tokens: usize,
    /// Responses.
    pub responses: usize,
}

impl Totals {
    /// Counts the batch.
    pub fn of(batch: &[&Tree]) -> Self {
        Totals {
            trees: batch.len(),
            tokens: batch.iter().map(|tree| tree.loss_tokens()).sum(),
            first_branch_tokens: batch
                .iter()
                .filter_map(|tree| tree.branches.first())
                .map(Branch::loss_tokens)
                .sum(),
            responses: batch.iter().map(|tree| tree.branches.len()).sum(),
        }
    }
}

impl std::ops::Add for Totals {
    type Output = Totals;

    fn add(self, other: Totals) -> Totals {
        Totals {
            trees: self.trees + other.trees,
            tokens: self.tokens + other.tokens,
            first_branch_tokens: self.first_branch_tokens + other.first_branch_tokens,
            responses: self.responses + other.responses,
        }
    }
}

/// The host's side of a micro-batch.
#[derive(Debug)]
pub struct MicroBatch<'a> {
    /// Its trees, in the order of the statistics.
    pub trees: &'a [&'a Tree],
    /// Counts of the whole batch.
    pub totals: Totals,
    /// The whole batch, of which `trees` is a part: for statistics over all of its rewards.
    pub batch: &'a [&'a Tree],
}

impl<'a> MicroBatch<'a> {
    /// All of a batch.
    pub fn whole(batch: &'a [&'a Tree]) -> Self {
        MicroBatch { trees: batch, totals: Totals::of(batch), batch }
    }
}

impl MicroBatch<'_> {
    /// One number a response token, in the order of the statistics: `[response tokens]`, f32.
    pub fn per_token(&self, like: &Tensor, values: impl Fn(&Branch) -> Vec<f32>) -> Tensor {
        let flat: Vec<f32> = self.trees.iter().flat_map(|tree| &tree.branches).flat_map(values).collect();
        Tensor::from_slice(&flat).to_device(like.device())
    }

    /// The responses, in the order of the statistics.
    pub fn responses(&self) -> impl Iterator<Item = &Branch> {
        self.trees.iter().flat_map(|tree| &tree.branches)
    }

    /// Numbers of the host, of tokens or of responses, as an f32 tensor on the device of `like`.
    pub fn floats(&self, like: &Tensor, values: &[f64]) -> Tensor {
        let single: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Tensor::from_slice(&single).to_device(like.device())
    }

    /// Gives each token the number of its response: `[responses]` to `[response tokens]`.
    pub fn spread(&self, per_response: &Tensor) -> Tensor {
        let owners: Vec<i64> = self
            .responses()
            .enumerate()
            .flat_map(|(owner, branch)| std::iter::repeat_n(owner as i64, branch.loss_tokens()))
            .collect();
        per_response.index_select(0, &Tensor::from_slice(&owners).to_device(per_response.device()))
    }

    /// Sums of a per-token tensor over the branches with number `branch` of each tree: `[trees]`.
    pub fn sum_over_branch(&self, per_token: &Tensor, branch: usize) -> Tensor {
        self.grouped_sums(per_token, self.trees.len(), |tree, index, _| (index == branch).then_some(tree))
    }

    /// Sums of a per-token tensor over each response: `[responses]`, in the order of trees, branches.
    pub fn sum_per_response(&self, per_token: &Tensor) -> Tensor {
        let responses = self.trees.iter().map(|tree| tree.branches.len()).sum();
        self.grouped_sums(per_token, responses, |_, _, response| Some(response))
    }

    /// Sums over groups of responses; `group` gets the numbers of the tree, of the branch in its tree and
    /// of the response in the micro-batch.
    fn grouped_sums(
        &self,
        per_token: &Tensor,
        groups: usize,
        group: impl Fn(usize, usize, usize) -> Option<usize>,
    ) -> Tensor {
        let mut rows = Vec::new();
        let mut owners = Vec::new();
        let (mut row, mut response) = (0i64, 0);
        for (tree_index, tree) in self.trees.iter().enumerate() {
            for (index, branch) in tree.branches.iter().enumerate() {
                let length = branch.loss_tokens();
                if let Some(owner) = group(tree_index, index, response) {
                    rows.extend(row..row + length as i64);
                    owners.extend(std::iter::repeat_n(owner as i64, length));
                }
                row += length as i64;
                response += 1;
            }
        }
        let device = per_token.device();
        let values = per_token.index_select(0, &Tensor::from_slice(&rows).to_device(device));
        Tensor::zeros([groups as i64], (Kind::Float, device)).index_add(
            0,
            &Tensor::from_slice(&owners).to_device(device),
            &values,
        )
    }
}

/// A loss with what there is to know about it.
#[derive(Debug)]
pub struct Loss {
    /// The scalar to differentiate.
    pub value: Tensor,
    /// What to log.
    pub metrics: Metrics,
}

/// Means, maxima and minima by name; means are kept as sums and weights so that micro-batches add up exactly.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Sum and weight by name.
    means: BTreeMap<&'static str, (f64, f64)>,
    maxima: BTreeMap<&'static str, f64>,
    minima: BTreeMap<&'static str, f64>,
    calibrations: BTreeMap<&'static str, [Bin; BINS]>,
}

/// Bins of a probability from 1/2 to 1.
const BINS: usize = 10;

/// Predictions of about the same confidence.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    count: f64,
    confidence: f64,
    right: f64,
}

impl Metrics {
    /// Adds `sum`, which is a sum over `weight` items, to the mean called `name`.
    pub fn add(&mut self, name: &'static str, sum: f64, weight: f64) {
        let entry = self.means.entry(name).or_default();
        entry.0 += sum;
        entry.1 += weight;
    }

    /// Raises the maximum called `name` to `value`.
    pub fn raise(&mut self, name: &'static str, value: f64) {
        let entry = self.maxima.entry(name).or_insert(value);
        *entry = entry.max(value);
    }

    /// Lowers the minimum called `name` to `value`.
    pub fn lower(&mut self, name: &'static str, value: f64) {
        let entry = self.minima.entry(name).or_insert(value);
        *entry = entry.min(value);
    }

    /// Adds a prediction between two to the expected calibration error called `name`: how probable it was told to be that
    /// it is right (from 1/2 to 1), and whether it was. With ten bins of equal width,
    /// Σ_b n_b / n · |share of right ones in b − mean confidence in b| (Guo et al., 2017, arXiv:1706.04599).
    pub fn predict(&mut self, name: &'static str, confidence: f64, is_right: bool) {
        let bins = self.calibrations.entry(name).or_default();
        let bin = ((confidence - 0.5) * 2.0 * BINS as f64) as usize;
        let bin = &mut bins[bin.min(BINS - 1)];
        bin.count += 1.0;
        bin.confidence += confidence;
        bin.right += f64::from(u8::from(is_right));
    }

    /// Adds all of a tensor's entries to the mean called `name`.
    pub fn add_entries(&mut self, name: &'static str, entries: &Tensor) {
        self.add(name, entries.sum(Kind::Double).double_value(&[]), entries.numel() as f64);
    }

    /// Adds another micro-batch's sums.
    pub fn merge(&mut self, other: &Metrics) {
        for (name, (sum, weight)) in &other.means {
            self.add(name, *sum, *weight);
        }
        for (name, value) in &other.maxima {
            self.raise(name, *value);
        }
        for (name, value) in &other.minima {
            self.lower(name, *value);
        }
        for (name, others) in &other.calibrations {
            let bins = self.calibrations.entry(name).or_default();
            for (bin, other) in bins.iter_mut().zip(others) {
                bin.count += other.count;
                bin.confidence += other.confidence;
                bin.right += other.right;
            }
        }
    }

    /// The values by name. A mean over nothing is left out.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let means = self.means.iter().filter(|(_, (_, weight))| *weight > 0.0);
        let means = means.map(|(name, (sum, weight))| (name.to_string(), sum / weight));
        let extremes = self.maxima.iter().chain(&self.minima);
        let extremes = extremes.map(|(name, value)| (name.to_string(), *value));
        let calibration = |(name, bins): (&&str, &[Bin; BINS])| {
            let total: f64 = bins.iter().map(|bin| bin.count).sum();
            let gap: f64 = bins.iter().map(|bin| (bin.right - bin.confidence).abs()).sum();
            (name.to_string(), gap / total)
        };
        means.chain(extremes).chain(self.calibrations.iter().map(calibration)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bins: three predictions at 0.52 of which one is right, one at 0.9 that is right:
    /// 3/4 |1/3 − 0.52| + 1/4 |1 − 0.9| = 0.165.
    #[test]
    fn calibration_errors_equal_a_hand_computed_number_however_they_are_cut() {
        let predictions = [(0.52, true), (0.52, false), (0.9, true), (0.52, false)];
        let mut all = Metrics::default();
        for piece in predictions.chunks(3) {
            let mut metrics = Metrics::default();
            piece.iter().for_each(|&(confidence, is_right)| metrics.predict("e", confidence, is_right));
            all.merge(&metrics);
        }
        assert!((all.values()["e"] - 0.165).abs() < 1e-12, "{:?}", all.values());
        let mut certain = Metrics::default();
        certain.predict("e", 1.0, true);
        assert_eq!(certain.values()["e"], 0.0);
    }
}
