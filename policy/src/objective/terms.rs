//! What losses are made of, and several algorithms share.
//!
//! - Of groups of samples: [`advantages`] (baselines, returns, whitening), [`group`] (rewards), [`clip`] (PPO's surrogate),
//!   [`kl`] (estimators), [`correction`] (for a generator that computes otherwise), [`aggregate`] (from tokens to one number).
//! - Of preference pairs: [`pairs`].
//! - Of options: [`ranges`] (what is refused, and in which words), [`sync`] (a reference that follows the policy).

pub mod advantages;
pub mod aggregate;
pub mod clip;
pub mod correction;
pub mod group;
pub mod kl;
pub mod pairs;
pub mod ranges;
pub mod sync;
