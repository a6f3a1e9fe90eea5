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

mod options;

use arriero_buffers::selection::WholeGroup;
use arriero_buffers::{Branch, Tree};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::terms::advantages::{Whitening, generalised};
use super::terms::aggregate::{Aggregation, LossMask, aggregate};
use super::terms::clip::{Clip, Clipped};
use super::terms::group::{reward_deviation, reward_metrics};
use super::{Critic, Loss, Metrics, MicroBatch, Needs, Objective, Statistics, TokenStatistics};

pub use options::{KlPlace, PpoConfig};

/// The furthest that one stage moves an adaptive β, in shares (Ziegler et al.'s).
const LARGEST_ERROR: f64 = 0.2;

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
}

/// The terms of a micro-batch's loss, as far as they are logged.
struct Terms {
    policy_loss: Tensor,
    value_loss: Tensor,
    clipped: Clipped,
    /// Â of each token.
    advantages: Tensor,
    errors: ValueErrors,
    /// The KL of each token, where it stands in the loss.
    kl: Option<Tensor>,
}

/// Squared errors of each token's value, and of the same value near the old one.
struct ValueErrors {
    plain: Tensor,
    clipped: Tensor,
}

impl Objective for Ppo {
    fn needs(&self) -> Needs {
        let critic = Critic { kind: self.options.critic, learning_rate: self.options.critic_learning_rate };
        Needs {
            reference: self.options.kl_coef != 0.0,
            old: true,
            statistics: Statistics::ProbabilitiesAndValues(critic),
            ..Needs::of(WholeGroup { least: 1, drop_equal: false })
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
        let PpoConfig { vf_coef, entropy_coef, .. } = self.options;
        let TokenStatistics { logps, entropies, .. } = statistics;
        let Some(values) = &statistics.values else {
            // The trainer gives what `Needs` asks for.
            return Loss { value: Tensor::from(f64::NAN), metrics: Metrics::default() };
        };
        let mean = |per_token: &Tensor| aggregate(per_token, batch, &LossMask::ALL, Aggregation::Token, 1);
        let (advantages, returns) = self.targets(batch);
        let (advantages, returns) = (batch.floats(logps, &advantages), batch.floats(values, &returns));

        let (losses, clipped) = self.clip().token_loss(logps, &advantages, batch);
        let policy_loss = mean(&losses);
        let errors = self.value_errors(values, &returns, batch);
        let value_loss = mean(&errors.plain.maximum(&errors.clipped)) * 0.5;
        let mut value = &policy_loss + &value_loss * vf_coef;
        let is_in_loss = self.options.kl == KlPlace::Loss && self.beta != 0.0;
        let kl = is_in_loss.then(|| self.options.estimator().per_token(logps, &batch.reference_logps(logps)));
        if let Some(kl) = &kl {
            value += mean(kl) * self.beta;
        }
        if entropy_coef != 0.0 {
            value -= mean(entropies) * entropy_coef;
        }

        let terms = Terms { policy_loss, value_loss, clipped, advantages, errors, kl };
        let mut metrics = self.metrics(&terms, statistics, batch);
        metrics.add_part("loss", &value, batch);
        LossMask::ALL.mean(&mut metrics, "val/mean", values, batch);
        Loss { value, metrics }
    }
}

impl Ppo {
    fn clip(&self) -> Clip {
        Clip::new(self.options.cliprange, None)
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

    /// Â and R of each token.
    fn targets(&self, batch: &MicroBatch<'_>) -> (Vec<f64>, Vec<f64>) {
        let whitenings = self.whitenings.unwrap_or_else(|| self.whitenings_of(batch.batch));
        let (mut advantages, mut returns) = (Vec::new(), Vec::new());
        for branch in batch.responses() {
            let (own, its_returns) = self.advantages(branch, &whitenings.rewards);
            advantages.extend(own.into_iter().map(|advantage| whitenings.advantages.whitened(advantage)));
            returns.extend(its_returns);
        }
        (advantages, returns)
    }

    fn value_errors(&self, values: &Tensor, returns: &Tensor, batch: &MicroBatch<'_>) -> ValueErrors {
        let range = self.options.cliprange_value;
        let old = batch.per_token(values, |branch| branch.old_values.clone());
        let (least, most) = (&old - range, &old + range);
        let plain = (values - returns).square();
        let clipped = (values.maximum(&least).minimum(&most) - returns).square();
        ValueErrors { plain, clipped }
    }

    fn metrics(&self, terms: &Terms, statistics: &TokenStatistics, batch: &MicroBatch<'_>) -> Metrics {
        let TokenStatistics { logps, entropies, .. } = statistics;
        let mut metrics = Metrics::default();
        metrics.add_part("loss/policy_avg", &terms.policy_loss, batch);
        metrics.add_part("loss/value_avg", &terms.value_loss, batch);
        terms.clipped.token_metrics(&mut metrics, batch, &LossMask::ALL);

        let differences = logps.detach() - batch.old_logps(logps);
        let ratios = differences.exp();
        // Whether the surrogate's clipped branch is the one that counts.
        let inside = ratios.clamp(1.0 - self.options.cliprange, 1.0 + self.options.cliprange);
        let is_cut = (inside * &terms.advantages).lt_tensor(&(&ratios * &terms.advantages));
        let is_value_cut = terms.errors.clipped.gt_tensor(&terms.errors.plain);
        for (name, per_token) in [
            ("policy/approxkl_avg", &(differences.square() * 0.5)),
            ("policy/clipfrac_avg", &is_cut.to_kind(Kind::Float)),
            ("policy/entropy_avg", entropies),
            ("val/clipfrac_avg", &is_value_cut.to_kind(Kind::Float)),
            ("val/ratio", &ratios),
        ] {
            LossMask::ALL.mean(&mut metrics, name, per_token, batch);
        }
        if let Some(kl) = &terms.kl {
            LossMask::ALL.mean(&mut metrics, self.options.estimator().metric(), kl, batch);
        }
        self.sample_metrics(&mut metrics, batch);
        reward_metrics(&mut metrics, batch, reward_deviation);
        metrics
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
