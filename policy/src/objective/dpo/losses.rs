//! The losses of a preference pair that DPO can be run with, under TRL's names.
//!
//! Below, with m_t the mask, ρ(y) = Σ_t m_t [log π(y_t) − log π_ref(y_t)] is a response's log-ratio,
//! h = ρ(y⁺) − ρ(y⁻), |y| the number of tokens with m_t = 1, and ε is `label_smoothing`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, MapAccess, Visitor, value::StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tch::Tensor;

use crate::objective::terms::pairs::Pair;

/// The loss of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// −(1 − ε) log σ(βh) − ε log σ(−βh): DPO (Rafailov et al., 2023, eq. 7); with ε > 0 the conservative
    /// form (Mitchell, "A note on DPO with noisy preferences", 2023).
    Sigmoid,
    /// max(0, 1 − βh): SLiC's hinge (Zhao et al., 2023) on DPO's reward.
    Hinge,
    /// (ρ(y⁺)/|y⁺| − ρ(y⁻)/|y⁻| − 1/(2β))²: IPO (Azar et al., 2023, eq. 17), whose τ is β, on means over
    /// tokens as in TRL.
    Ipo,
    /// KL of σ(βh) from (1 − ε, ε): EXO on pairs (Ji et al., 2024, eq. 16). ε must be above 0.
    ExoPair,
    /// −log σ(βρ⁺) − ½ log σ(−βρ⁺) − ½ log σ(−βρ⁻): NCA on pairs (Chen et al., 2024).
    NcaPair,
    /// [−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε): unbiased where a share ε of the labels is flipped
    /// (Chowdhury et al., "Provably Robust DPO", 2024).
    Robust,
    /// −log σ(βρ⁺ − δ) − log σ(−(βρ⁻ − δ)): BCO on pairs (Jung et al., 2024). δ is the running mean over
    /// the steps of the batch's mean reward βρ, this batch's included (as in TRL 0.24; TRL 1.16 has δ = 0).
    BcoPair,
    /// (ρ⁺ − 1/(2β))² + (ρ⁻ + 1/(2β))²: SPPO with hard labels (Wu et al., 2024, eq. 4.7 with P of 1 and 0).
    SppoHard,
    /// The sigmoid loss between the sorted policy margins and the sorted reference margins of the batch:
    /// first-order stochastic dominance (AOT; Melnyk et al., 2024), on pairs.
    Aot,
    /// The sigmoid loss between the sorted ρ⁺ and the sorted ρ⁻ of the batch: AOT for unpaired data.
    AotUnpaired,
    /// 1 − σ(βρ⁺) + σ(βρ⁻): APO-zero (D'Oosterlinck et al., 2024, eq. 7): raises the chosen responses.
    ApoZero,
    /// σ(βρ⁺) + 1 − σ(βh): APO-down (eq. 8): lowers both, the rejected ones more.
    ApoDown,
    /// (1 − s) (−log σ(βh)) + s exp(−βh), s = σ(βh/τ): DiscoPOP (Lu et al., 2024, eq. 5).
    Discopop,
    /// −log σ(β [ρ(y⁺)/|y⁺| − ρ(y⁻)/|y⁻|]): DPO on means over tokens, as in Tülu 3 (Lambert et al., 2024).
    SigmoidNorm,
}

impl DpoLoss {
    /// True if a pair's loss depends on the other pairs of its batch.
    pub fn couples_pairs(self) -> bool {
        matches!(self, DpoLoss::Aot | DpoLoss::AotUnpaired | DpoLoss::BcoPair)
    }
}

/// What the losses are computed from.
pub(super) struct PairLogps {
    /// ρ.
    pub ratios: Pair,
    /// Σ_t m_t log π(y_t).
    pub policy: Pair,
    /// Σ_t m_t log π_ref(y_t).
    pub reference: Pair,
    /// |y|.
    pub lengths: Pair,
}

/// The numbers in the losses.
pub(super) struct Coefficients {
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// τ.
    pub discopop_tau: f64,
    /// δ.
    pub bco_delta: f64,
}

/// −(1 − ε) log σ(x) − ε log σ(−x).
pub(in crate::objective) fn smoothed_sigmoid(x: &Tensor, label_smoothing: f64) -> Tensor {
    -x.log_sigmoid() * (1.0 - label_smoothing) - (-x).log_sigmoid() * label_smoothing
}

/// max(0, 1 − x).
pub(in crate::objective) fn hinge(x: &Tensor) -> Tensor {
    (-x + 1.0).relu()
}

/// (h − 1/(2τ))².
pub(in crate::objective) fn ipo(h: &Tensor, tau: f64) -> Tensor {
    (h - 0.5 / tau).square()
}

impl DpoLoss {
    /// The loss of each pair, `[pairs]`; AOT's entries are of the sorted batch.
    pub(super) fn per_pair(self, logps: &PairLogps, coefficients: &Coefficients) -> Tensor {
        let &Coefficients { beta, label_smoothing, discopop_tau, bco_delta } = coefficients;
        let PairLogps { ratios, policy, reference, lengths } = logps;
        let rewards = || ratios.map(|ratio| ratio * beta);
        let scaled_margin = || ratios.margin() * beta;
        let sorted = |values: &Tensor| values.sort(0, false).0;
        match self {
            DpoLoss::Sigmoid => smoothed_sigmoid(&scaled_margin(), label_smoothing),
            DpoLoss::Hinge => hinge(&scaled_margin()),
            DpoLoss::Ipo => ipo(&ratios.over(lengths).margin(), beta),
            DpoLoss::ExoPair => {
                let x = scaled_margin();
                let against = |x: &Tensor, label: f64| x.sigmoid() * (x.log_sigmoid() - label.ln());
                against(&x, 1.0 - label_smoothing) + against(&-x, label_smoothing)
            }
            DpoLoss::NcaPair => {
                let Pair { chosen, rejected } = rewards();
                -chosen.log_sigmoid() - (-chosen).log_sigmoid() * 0.5 - (-rejected).log_sigmoid() * 0.5
            }
            DpoLoss::Robust => {
                let x = scaled_margin();
                (-x.log_sigmoid() * (1.0 - label_smoothing) + (-x).log_sigmoid() * label_smoothing)
                    / (1.0 - 2.0 * label_smoothing)
            }
            DpoLoss::BcoPair => {
                let Pair { chosen, rejected } = rewards();
                -(chosen - bco_delta).log_sigmoid() - (bco_delta - rejected).log_sigmoid()
            }
            DpoLoss::SppoHard => {
                (&ratios.chosen - 0.5 / beta).square() + (&ratios.rejected + 0.5 / beta).square()
            }
            DpoLoss::Aot => {
                let gap = sorted(&policy.margin()) - sorted(&reference.margin());
                smoothed_sigmoid(&(gap * beta), label_smoothing)
            }
            DpoLoss::AotUnpaired => {
                let gap = sorted(&ratios.chosen) - sorted(&ratios.rejected);
                smoothed_sigmoid(&(gap * beta), label_smoothing)
            }
            DpoLoss::ApoZero => {
                // 1 − σ(x) is σ(−x), which keeps its digits where σ(x) is near 1.
                let Pair { chosen, rejected } = rewards();
                (-chosen).sigmoid() + rejected.sigmoid()
            }
            DpoLoss::ApoDown => (&ratios.chosen * beta).sigmoid() + (-scaled_margin()).sigmoid(),
            DpoLoss::Discopop => {
                let x = scaled_margin();
                let gate = &x / discopop_tau;
                // exp(−x) alone overflows where its weight σ(x/τ) vanishes.
                -x.log_sigmoid() * (-&gate).sigmoid() + (gate.log_sigmoid() - &x).exp()
            }
            DpoLoss::SigmoidNorm => smoothed_sigmoid(&(ratios.over(lengths).margin() * beta), 0.0),
        }
    }
}

/// Losses with their weights. In an experiment file either one name (`"sigmoid"`, with weight 1) or a
/// table of weights (`{ sigmoid = 0.8, bco_pair = 0.2 }`).
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(with = "DpoLoss")]
pub struct WeightedLosses(pub BTreeMap<DpoLoss, f64>);

impl From<DpoLoss> for WeightedLosses {
    fn from(loss: DpoLoss) -> Self {
        WeightedLosses(BTreeMap::from([(loss, 1.0)]))
    }
}

impl Serialize for WeightedLosses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.first_key_value() {
            Some((loss, weight)) if self.0.len() == 1 && *weight == 1.0 => loss.serialize(serializer),
            _ => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for WeightedLosses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = WeightedLosses;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of a loss, or a table from names to weights")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
                DpoLoss::deserialize(StrDeserializer::new(name)).map(WeightedLosses::from)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut weights = BTreeMap::new();
                while let Some((loss, weight)) = map.next_entry()? {
                    weights.insert(loss, weight);
                }
                Ok(WeightedLosses(weights))
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}
