//! How far the policy's next-token distribution is from a teacher's, over the whole vocabulary, chunk by chunk.
//!
//! With p = softmax(z / τ) the policy's and q the teacher's distribution and m = (1 − β) p + β q,
//!
//! D_β = β KL(q ‖ m) + (1 − β) KL(p ‖ m),  ∂D_β / ∂z = (1 − β) p ⊙ (log(p / m) − KL(p ‖ m)) / τ,
//! D_0 = KL(q ‖ p),  ∂D_0 / ∂z = (p − q) / τ,  D_1 = KL(p ‖ q),  ∂D_1 / ∂z = p ⊙ (log(p / q) − KL(p ‖ q)) / τ
//!
//! (Agarwal et al., "On-Policy Distillation of Language Models", 2024, eq. 1; D_0 and D_1 are what D_β / β and
//! D_β / (1 − β) tend to.) The backward computes both models' logits of a chunk again.

use tch::{Kind, Tensor, no_grad};

use super::{Output, chunks, join, through_output};
use crate::objective::{Divergence, TeacherStatistics};

/// Hidden states `[rows, hidden]` with the output matrix `[vocab, hidden]` that reads them.
pub type Side<'a> = (&'a Tensor, &'a Output);

fn logits((hidden, output): Side<'_>, start: i64, length: i64) -> Tensor {
    output.logits(&hidden.narrow(0, start, length))
}

/// In f64: of large logits an f32 logarithm is off by more than what two sure models differ by.
fn tempered(logits: &Tensor, temperature: f64) -> Tensor {
    let logits = logits.to_kind(Kind::Double);
    match temperature == 1.0 {
        true => logits.log_softmax(-1, Kind::Double),
        false => (logits / temperature).log_softmax(-1, Kind::Double),
    }
}

/// log m.
fn mixture(log_p: &Tensor, log_q: &Tensor, beta: f64) -> Tensor {
    (log_p + (1.0 - beta).ln()).logaddexp(&(log_q + beta.ln()))
}

/// What the teacher says of `targets` (i64 `[rows]`). Both sides have the same rows and the same vocabulary; nothing is
/// recorded for autograd.
pub fn statistics(
    policy: Side<'_>,
    teacher: Side<'_>,
    targets: &Tensor,
    divergence: Divergence,
) -> TeacherStatistics {
    let Divergence { beta, temperature } = divergence;
    no_grad(|| {
        let (mut divergences, mut logps) = (Vec::new(), Vec::new());
        for (start, length) in chunks(policy.0, policy.1) {
            let theirs = logits(teacher, start, length);
            let target =
                theirs.gather(1, &targets.narrow(0, start, length).unsqueeze(1), false).squeeze_dim(1);
            logps.push(target - theirs.logsumexp(1, false));
            let log_p = tempered(&logits(policy, start, length), temperature);
            let log_q = tempered(&theirs, temperature);
            let (p, q) = (log_p.exp(), log_q.exp());
            // p and q sum to 1, so that what their difference adds is nothing but the rounding of their sums: it takes
            // that of the logarithms away, which would drown a small divergence.
            let per_entry = if beta == 0.0 {
                &q * (log_q - log_p) + (p - q)
            } else if beta == 1.0 {
                &p * (log_p - log_q) + (q - p)
            } else {
                let log_m = mixture(&log_p, &log_q, beta);
                q * (log_q - &log_m) * beta + p * (log_p - log_m) * (1.0 - beta)
            };
            divergences.push(per_entry.sum_dim_intlist(1, false, Kind::Double).to_kind(Kind::Float));
        }
        let [divergences, logps] = [divergences, logps].map(|parts| join(parts, policy.0));
        TeacherStatistics { divergences, logps }
    })
}

/// The gradient of the policy's hidden states, `[rows, hidden]` in their precision, given that of the divergences (f32
/// `[rows]`); the output matrix's is added to `output_gradient` (f32 `[vocab, hidden]`) in place, where it is wanted.
pub fn backward(
    policy: Side<'_>,
    teacher: Side<'_>,
    divergence: Divergence,
    gradients: &Tensor,
    mut output_gradient: Option<&mut Tensor>,
) -> Tensor {
    let Divergence { beta, temperature } = divergence;
    let (hidden, output) = policy;
    no_grad(|| {
        let mut parts = Vec::new();
        for (start, length) in chunks(hidden, output) {
            let log_p = tempered(&logits(policy, start, length), temperature);
            let log_q = tempered(&logits(teacher, start, length), temperature);
            let p = log_p.exp();
            let scale = gradients.narrow(0, start, length).unsqueeze(1) / temperature;
            let d_logits = if beta == 0.0 {
                (p - log_q.exp()) * scale
            } else {
                let (log_m, weight) = match beta == 1.0 {
                    true => (log_q, 1.0),
                    false => (mixture(&log_p, &log_q, beta), 1.0 - beta),
                };
                let ratio = log_p - log_m;
                let mean = (&p * &ratio).sum_dim_intlist(1, true, Kind::Double);
                p * (ratio - mean) * (scale * weight)
            };
            let hidden = hidden.narrow(0, start, length);
            let d_logits = d_logits.to_kind(Kind::Float);
            parts.push(through_output(&d_logits, &hidden, output, output_gradient.as_deref_mut()));
        }
        match parts.is_empty() {
            true => hidden.zeros_like(),
            false => Tensor::cat(&parts, 0),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Weight;

    fn output(matrix: Tensor) -> Output {
        Output::new(Weight::plain(matrix))
    }

    /// p = (3/4, 1/4) against q = (1/2, 1/2): KL(p ‖ q) = 0.130812…, KL(q ‖ p) = 0.143841…, and with β = 1/2
    /// m = (5/8, 3/8), D = (KL(q ‖ m) + KL(p ‖ m)) / 2 = 0.0338231….
    #[test]
    fn divergences_equal_hand_computed_numbers() {
        let row = Tensor::from_slice(&[1.0f32]).view([1, 1]);
        let p = output(Tensor::from_slice(&[3.0f32.ln(), 0.0]).view([2, 1]));
        let q = output(Tensor::from_slice(&[7.0f32, 7.0]).view([2, 1]));
        let targets = Tensor::from_slice(&[0i64]);
        let kl = |a: [f64; 2], b: [f64; 2]| a[0] * (a[0] / b[0]).ln() + a[1] * (a[1] / b[1]).ln();
        let (ps, qs, ms) = ([0.75, 0.25], [0.5, 0.5], [0.625, 0.375]);
        for (beta, expected) in
            [(1.0, 0.130_812_035_941), (0.0, 0.143_841_036_226), (0.5, (kl(qs, ms) + kl(ps, ms)) / 2.0)]
        {
            let divergence = Divergence { beta, temperature: 1.0 };
            let found = statistics((&row, &p), (&row, &q), &targets, divergence);
            let value = found.divergences.double_value(&[0]);
            assert!((value - expected).abs() < 1e-6, "{beta}: {value}, expected {expected}");
            assert!((found.logps.double_value(&[0]) - 0.5f64.ln()).abs() < 1e-6);
        }
        // At temperature 1/2 probabilities are squared: (9/10, 1/10).
        let half = Divergence { beta: 1.0, temperature: 0.5 };
        let found = statistics((&row, &p), (&row, &q), &targets, half).divergences.double_value(&[0]);
        assert!((found - kl([0.9, 0.1], qs)).abs() < 1e-6, "{found}");
    }

    /// A teacher that is the policy is at no distance, and pulls nowhere; no row is no trouble.
    #[test]
    fn equal_distributions_are_at_no_distance() {
        tch::manual_seed(1);
        let float = (Kind::Float, tch::Device::Cpu);
        let (hidden, output) = (Tensor::randn([200, 8], float) * 5.0, output(Tensor::randn([50, 8], float)));
        let targets = Tensor::zeros([200], (Kind::Int64, tch::Device::Cpu));
        for beta in [0.0, 0.3, 1.0] {
            let divergence = Divergence { beta, temperature: 1.5 };
            let side = (&hidden, &output);
            let found = statistics(side, side, &targets, divergence).divergences;
            assert!(found.abs().max().double_value(&[]) < 1e-6, "{beta}");
            let gradient = backward(side, side, divergence, &found.ones_like(), None);
            assert!(gradient.abs().max().double_value(&[]) < 1e-5, "{beta}");
            let none = (&hidden.narrow(0, 0, 0), &output);
            let nothing = statistics(none, none, &targets.narrow(0, 0, 0), divergence).divergences;
            assert_eq!(nothing.size(), [0]);
            assert_eq!(backward(none, none, divergence, &nothing, None).size(), [0, 8]);
        }
    }
}
