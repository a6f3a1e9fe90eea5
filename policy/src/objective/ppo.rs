//! Proximal policy optimisation, with a critic.
//!
//! With k_t = log π_old(y_t) − log π_ref(y_t), V_t the critic's value of the state that token t was drawn in, and r the
//! scorer's reward of the response (Schulman et al., 2017, arXiv:1707.06347; Ziegler et al., 2019, arXiv:1909.08593):
//!
//! r_t = − β k_t + [t is last] r,  δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1},  R_t = A_t + V_t
//!
//! L = mean_t [ max(− ρ_t Â_t, − clip(ρ_t, 1 − ε, 1 + ε) Â_t)
//!     + c_v / 2 max((v_t − R_t)², (clip(v_t, V_t ± ε_v) − R_t)²) − c_e H_t ]
//!
//! Â is A whitened over all samples of the stage. The critic is a head on the policy, or a model of its own. β is fixed, or
//! follows the KL (Ziegler et al., §2.2): after each stage β ← β (1 + n / h · clip(KL / target − 1, ± 0.2)), with n its
//! responses. With `kl = "loss"`, the penalty stands in the loss in place of the rewards.
//!
//! Names and defaults are those of TRL 0.24's PPOTrainer, and so is the arithmetic, but for one thing: TRL gives a response
//! that is shorter than the longest of its batch one more step, after its last token, in which the reward comes; here
//! the reward comes with the last token, however long the others are.

use arriero_buffers::{Branch, SelectionRule, Tree};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::advantages::{Whitening, deviation, generalised};
use super::aggregate::{Aggregation, LossMask, aggregate};
use super::clip::Clip;
use super::group::{add_loss, reward_metrics};
use super::kl::KlEstimator;
use super::pairs::{above_zero, at_least_zero};
use super::{
    AlgorithmConfig, Critic, CriticKind, Loss, Metrics, MicroBatch, Needs, Objective, Statistics,
    TokenStatistics,
};

/// The furthest that one stage moves an adaptive β, in shares (Ziegler et al.'s).
const LARGEST_ERROR: f64 = 0.2;

/// Where the KL to the reference is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// In the reward of each token, under the policy that sampled.
    Reward,
    /// In the loss of each token, under the policy that learns.
    Loss,
}

/// PPO's options, under the names of TRL 0.24, whose defaults they have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PpoConfig {
    /// The critic: a head on the policy, or a model of its own, which starts from the policy's weights or from the reward model
    /// that an earlier stage trained, and takes as much memory again. Default `shared` (TRL: a model).
    pub critic: CriticKind,
    /// The critic's learning rate at the peak. Default: `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_learning_rate: Option<f64>,
    /// γ: what a reward is worth one token earlier. Default 1 (TRL's).
    pub gamma: f64,
    /// λ: 0 trusts the critic alone, 1 the rewards alone. Default 0.95 (TRL's).
    pub lam: f64,
    /// ε: how far from 1 a ratio still counts. Default 0.2 (TRL's).
    pub cliprange: f64,
    /// ε_v: how far from the old value a new one still counts. Default 0.2 (TRL's).
    pub cliprange_value: f64,
    /// c_v: weight of the values' loss. Default 0.1 (TRL's).
    pub vf_coef: f64,
    /// Where the KL to the reference is paid. Default `reward` (TRL's).
    pub kl: KlPlace,
    /// β, or where an adaptive β begins; 0 spares the reference. Default 0.05 (TRL's).
    pub kl_coef: f64,
    /// The estimator of the KL. Default `k1` in the reward (TRL's), `k3` in the loss (GRPO's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,
    /// The KL of a response, in nats, that an adaptive β aims at (Ziegler et al.: 6). Default: β is fixed (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_target: Option<f64>,
    /// h: responses in which an adaptive β can move by about a fifth. Default 10 000 (Ziegler et al.'s).
    pub kl_horizon: f64,
    /// Give the rewards of all tokens of a stage variance 1 first. Default false (TRL's).
    pub whiten_rewards: bool,
    /// Give the advantages of all tokens of a stage mean 0 and variance 1. Default true (TRL's).
    pub whiten_advantages: bool,
    /// What a response loses that the token limit cut short. Default: nothing (TRL's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_eos_penalty: Option<f64>,
    /// c_e: weight of the entropy bonus. Default 0 (TRL has none).
    pub entropy_coef: f64,
}

impl Default for PpoConfig {
    fn default() -> Self {
        PpoConfig {
            critic: CriticKind::Shared,
            critic_learning_rate: None,
            gamma: 1.0,
            lam: 0.95,
            cliprange: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            kl: KlPlace::Reward,
            kl_coef: 0.05,
            kl_estimator: None,
            kl_target: None,
            kl_horizon: 10_000.0,
            whiten_rewards: false,
            whiten_advantages: true,
            missing_eos_penalty: None,
            entropy_coef: 0.0,
        }
    }
}

impl PpoConfig {
    fn estimator(&self) -> KlEstimator {
        self.kl_estimator.unwrap_or(match self.kl {
            KlPlace::Reward => KlEstimator::K1,
            KlPlace::Loss => KlEstimator::K3,
        })
    }
}

impl AlgorithmConfig for PpoConfig {
    fn objective(&self) -> Box<dyn Objective> {
        Box::new(Ppo::new(self.clone()))
    }

    fn resolved(&self) -> Self {
        PpoConfig { kl_estimator: Some(self.estimator()), ..self.clone() }
    }

    fn validate(&self) -> Result<(), String> {
        let share = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it must be at least 0 and at most 1")),
        };
        share("gamma", self.gamma)?;
        share("lam", self.lam)?;
        share("cliprange", self.cliprange)?;
        above_zero("cliprange_value", self.cliprange_value)?;
        at_least_zero("vf_coef", self.vf_coef)?;
        at_least_zero("kl_coef", self.kl_coef)?;
        above_zero("kl_horizon", self.kl_horizon)?;
        at_least_zero("critic_learning_rate", self.critic_learning_rate.unwrap_or(0.0))?;
        at_least_zero("missing_eos_penalty", self.missing_eos_penalty.unwrap_or(0.0))?;
        if !self.entropy_coef.is_finite() {
            return Err(format!("entropy_coef is {}; it must be a finite number", self.entropy_coef));
        }
        if let Some(target) = self.kl_target {
            above_zero("kl_target", target)?;
            if self.kl_coef == 0.0 {
                return Err("kl_target is set, but kl_coef is 0; give β a beginning above 0".to_string());
            }
        }
        if self.kl == KlPlace::Loss && self.estimator() == KlEstimator::K1 {
            return Err(
                "kl_estimator is \"k1\", whose gradient in the loss is 0 on average; use \"k2\" or \"k3\", \
                        or kl = \"reward\""
                    .to_string(),
            );
        }
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Ppo {
    options: PpoConfig,
    /// β as it stands.
    beta: f64,
    /// KL of a response and number of responses of the last stage, by which an adaptive β is still to move.
    last_kl: Option<(f64, f64)>,
    /// Of all samples of the stage; `None` before its begin.
    whitenings: Option<Whitenings>,
}

/// How rewards and advantages are whitened.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Whitenings {
    rewards: Whitening,
    advantages: Whitening,
}

/// What [`Objective::begin`] sets.
#[derive(Serialize, Deserialize)]
struct PpoState {
    beta: f64,
    last_kl: Option<(f64, f64)>,
    whitenings: Option<Whitenings>,
}

impl Ppo {
    /// The objective of these options.
    pub fn new(options: PpoConfig) -> Self {
        Ppo { beta: options.kl_coef, options, last_kl: None, whitenings: None }
    }

    /// The scorer's reward, less the penalty.
    fn score(&self, branch: &Branch) -> f64 {
        let penalty = self.options.missing_eos_penalty.filter(|_| branch.truncated);
        f64::from(branch.reward) - penalty.unwrap_or(0.0)
    }

    /// KL of each token under the policy that sampled; nothing without a reference.
    fn kl(&self, branch: &Branch) -> Vec<f64> {
        let pairs = branch.old_policy_logps().iter().zip(&branch.reference_logps);
        let estimator = self.options.estimator();
        pairs.map(|(&old, &reference)| estimator.of(f64::from(old), f64::from(reference))).collect()
    }

    /// r_t of each token before it is whitened.
    fn rewards(&self, branch: &Branch) -> Vec<f64> {
        let mut rewards = vec![0.0; branch.loss_tokens()];
        if self.options.kl == KlPlace::Reward && self.beta != 0.0 {
            rewards.iter_mut().zip(self.kl(branch)).for_each(|(reward, kl)| *reward = -self.beta * kl);
        }
        if let Some(last) = rewards.last_mut() {
            *last += self.score(branch);
        }
        rewards
    }

    /// A_t and R_t of each token.
    fn advantages(&self, branch: &Branch, whitening: &Whitening) -> (Vec<f64>, Vec<f64>) {
        let rewards: Vec<f64> =
            self.rewards(branch).into_iter().map(|reward| whitening.scaled(reward)).collect();
        let values: Vec<f64> = branch.old_values.iter().map(|&value| f64::from(value)).collect();
        generalised(&rewards, &values, self.options.gamma, self.options.lam)
    }

    fn whitenings_of(&self, trees: &[&Tree]) -> Whitenings {
        let branches = || trees.iter().flat_map(|tree| &tree.branches);
        let rewards = match self.options.whiten_rewards {
            true => Whitening::of(&branches().flat_map(|branch| self.rewards(branch)).collect::<Vec<_>>()),
            false => Whitening::NONE,
        };
        let advantages = match self.options.whiten_advantages {
            true => {
                let advantages = branches().flat_map(|branch| self.advantages(branch, &rewards).0);
                Whitening::of(&advantages.collect::<Vec<_>>())
            }
            false => Whitening::NONE,
        };
        Whitenings { rewards, advantages }
    }

    /// What there is to know of the samples themselves.
    fn sample_metrics(&self, metrics: &mut Metrics, batch: &MicroBatch<'_>) {
        let has_reference = self.options.kl_coef != 0.0;
        for branch in batch.responses() {
            let score = self.score(branch);
            let entropy: f64 = branch.old_policy_logps().iter().map(|&logp| -f64::from(logp)).sum();
            metrics.add("objective/scores", score, 1.0);
            metrics.add("objective/entropy", entropy, 1.0);
            if has_reference {
                let kl: f64 = self.kl(branch).iter().sum();
                let paid = if self.options.kl == KlPlace::Reward { -self.beta * kl } else { 0.0 };
                metrics.add("objective/kl", kl, 1.0);
                metrics.add("objective/non_score_reward", paid, 1.0);
                metrics.add("objective/rlhf_reward", score + paid, 1.0);
            }
        }
        if has_reference {
            metrics.add("objective/kl_coef", self.beta, 1.0);
        }
    }
}

impl Objective for Ppo {
    fn needs(&self) -> Needs {
        let critic = Critic { kind: self.options.critic, learning_rate: self.options.critic_learning_rate };
        Needs {
            reference: self.options.kl_coef != 0.0,
            old: true,
            statistics: Statistics::ProbabilitiesAndValues(critic),
            ..Needs::of(SelectionRule::Group { least: 1, drop_equal: false })
        }
    }

    fn check(&self, experience: &[&Tree]) -> Result<(), String> {
        let lacks = |branch: &Branch| {
            !branch.reward.is_finite() || branch.behaviour_logps.len() != branch.loss_tokens()
        };
        match experience.iter().find(|tree| tree.branches.iter().any(lacks)) {
            None => Ok(()),
            Some(tree) => Err(format!(
                "prompt {} has a response without a reward, or that no policy sampled: PPO learns from samples of the \
                 policy and their rewards; give the experiment prompts and a reward, or change algorithm.kind",
                tree.prompt_id
            )),
        }
    }

    fn begin(&mut self, experience: &[&Tree]) {
        if let (Some(target), Some((kl, responses))) = (self.options.kl_target, self.last_kl.take()) {
            let error = (kl / target - 1.0).clamp(-LARGEST_ERROR, LARGEST_ERROR);
            self.beta *= 1.0 + error * responses / self.options.kl_horizon;
        }
        let branches = || experience.iter().flat_map(|tree| &tree.branches);
        let responses = branches().count() as f64;
        let kl: f64 = branches().flat_map(|branch| self.kl(branch)).sum();
        self.last_kl = (responses > 0.0).then(|| (kl / responses, responses));
        self.whitenings = Some(self.whitenings_of(experience));
    }

    fn state(&self) -> Value {
        let Ppo { beta, last_kl, whitenings, .. } = *self;
        json!(PpoState { beta, last_kl, whitenings })
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let PpoState { beta, last_kl, whitenings } =
            PpoState::deserialize(state).map_err(|error| error.to_string())?;
        *self = Ppo { options: self.options.clone(), beta, last_kl, whitenings };
        Ok(())
    }

    fn loss(&self, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Loss {
        let options = &self.options;
        let (logps, mut metrics) = (&statistics.logps, Metrics::default());
        let Some(values) = &statistics.values else {
            // The trainer gives what `Needs` asks for.
            return Loss { value: Tensor::from(f64::NAN), metrics };
        };
        let mask = LossMask { skip_truncated: false };
        let whitenings = self.whitenings.unwrap_or_else(|| self.whitenings_of(batch.batch));
        let (mut advantages, mut returns) = (Vec::new(), Vec::new());
        for branch in batch.responses() {
            let (own, its_returns) = self.advantages(branch, &whitenings.rewards);
            advantages.extend(own.into_iter().map(|advantage| whitenings.advantages.whitened(advantage)));
            returns.extend(its_returns);
        }
        let mean = |per_token: &Tensor| aggregate(per_token, batch, &mask, Aggregation::Token, 1);

        let clip = Clip { low: options.cliprange, high: options.cliprange, dual: None };
        let losses = clip.token_loss(logps, &batch.floats(logps, &advantages), batch, &mask, &mut metrics);
        let policy_loss = mean(&losses);

        let returns = batch.floats(values, &returns);
        let old_values = batch.per_token(values, |branch| branch.old_values.clone());
        let (least, most) = (&old_values - options.cliprange_value, &old_values + options.cliprange_value);
        let errors = (values - &returns).square();
        let clipped_errors = (values.maximum(&least).minimum(&most) - &returns).square();
        let value_loss = mean(&errors.maximum(&clipped_errors)) * 0.5;
        let mut value = &policy_loss + &value_loss * options.vf_coef;

        if options.kl == KlPlace::Loss && self.beta != 0.0 {
            let reference = batch.per_token(logps, |branch| branch.reference_logps.clone());
            let kl = options.estimator().per_token(logps, &reference);
            mask.mean(&mut metrics, options.estimator().metric(), &kl, batch);
            value += mean(&kl) * self.beta;
        }
        if options.entropy_coef != 0.0 {
            value -= mean(&statistics.entropies) * options.entropy_coef;
        }

        add_loss(&mut metrics, batch, "loss", value.double_value(&[]));
        add_loss(&mut metrics, batch, "loss/policy_avg", policy_loss.double_value(&[]));
        add_loss(&mut metrics, batch, "loss/value_avg", value_loss.double_value(&[]));
        let old = batch.per_token(logps, |branch| branch.old_policy_logps().to_vec());
        let differences = logps.detach() - old;
        let clipped = clipped_errors.gt_tensor(&errors).to_kind(Kind::Float);
        // Whether the surrogate's clipped branch is the one that counts.
        let [ratios, advantages] = [differences.exp(), batch.floats(logps, &advantages)];
        let inside = ratios.clamp(1.0 - options.cliprange, 1.0 + options.cliprange);
        let cut = (inside * &advantages).lt_tensor(&(&ratios * &advantages)).to_kind(Kind::Float);
        for (name, per_token) in [
            ("policy/approxkl_avg", &(differences.square() * 0.5)),
            ("policy/clipfrac_avg", &cut),
            ("policy/entropy_avg", &statistics.entropies),
            ("val/clipfrac_avg", &clipped),
            ("val/ratio", &ratios),
            ("val/mean", values),
        ] {
            mask.mean(&mut metrics, name, per_token, batch);
        }
        self.sample_metrics(&mut metrics, batch);
        reward_metrics(&mut metrics, batch, |tree| {
            deviation(&tree.branches.iter().map(|branch| branch.reward.into()).collect::<Vec<_>>())
        });
        Loss { value, metrics }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two responses of KL 3 and 6 with a target of 4: 4.5 / 4 − 1 = 0.125, of which 2 / 100 counts.
    #[test]
    fn an_adaptive_coefficient_follows_the_kl_of_the_stage_before() {
        let branch = |reference: f32| Branch {
            tokens: vec![1],
            old_logps: vec![0.0],
            old_values: vec![0.0],
            reference_logps: vec![reference],
            ..Branch::default()
        };
        let tree = |references: &[f32]| Tree {
            branches: references.iter().map(|&reference| branch(reference)).collect(),
            ..Tree::default()
        };
        let options =
            PpoConfig { kl_target: Some(4.0), kl_horizon: 100.0, kl_coef: 0.1, ..PpoConfig::default() };
        let mut ppo = Ppo::new(options);
        ppo.begin(&[&tree(&[-3.0, -6.0])]);
        assert_eq!(ppo.beta, 0.1);
        // Far above the target counts as a fifth above, and that of no response not at all.
        ppo.begin(&[&tree(&[-90.0])]);
        assert!((ppo.beta - 0.1 * (1.0 + 0.125 * 0.02)).abs() < 1e-12, "{}", ppo.beta);
        let before = ppo.beta;
        ppo.begin(&[]);
        assert!((ppo.beta - before * (1.0 + 0.2 * 0.01)).abs() < 1e-12, "{}", ppo.beta);
        let before = ppo.beta;
        ppo.begin(&[]);
        assert_eq!(ppo.beta, before);
    }

    #[test]
    fn samples_without_a_reward_are_refused() {
        let ppo = Ppo::new(PpoConfig::default());
        let branch = Branch { tokens: vec![1, 2], behaviour_logps: vec![-1.0, -2.0], ..Branch::default() };
        let tree = |branch: Branch| Tree { prompt_id: 3, branches: vec![branch], ..Tree::default() };
        assert_eq!(ppo.check(&[&tree(branch.clone())]), Ok(()));
        for wrong in [
            Branch { reward: f32::NAN, ..branch.clone() },
            Branch { behaviour_logps: Vec::new(), ..branch.clone() },
        ] {
            let error = ppo.check(&[&tree(wrong)]).expect_err("refused");
            assert!(error.contains("prompt 3 has a response without a reward"), "{error}");
        }
    }
}
