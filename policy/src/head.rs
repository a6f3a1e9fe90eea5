//! The fused chunked head: statistics of each response token, and the gradient back from them.
//!
//! With z = h Wᵀ the logits of a row, p = softmax(z) and H its entropy,
//!
//! log p_y = z_y − logsumexp(z),  ∂ log p_y / ∂z = e_y − p,  ∂H / ∂z = −p ⊙ (log p + H).
//!
//! So the backward needs z again and nothing else: both directions go over the rows chunk by chunk,
//! and the logits of the whole batch never exist. Logits and everything after them are f32.

use tch::{Kind, Tensor, no_grad};

use crate::objective::TokenStatistics;

/// Rows whose logits exist at one time.
const CHUNK_ROWS: i64 = 128;

/// d loss / d statistic, f32 `[response tokens]` each.
#[derive(Debug)]
pub struct StatisticGradients {
    /// With respect to the log-probabilities.
    pub logps: Tensor,
    /// With respect to the entropies; `None` where the loss does not depend on them.
    pub entropies: Option<Tensor>,
}

fn chunks(rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(CHUNK_ROWS as usize).map(move |start| (start, CHUNK_ROWS.min(rows - start)))
}

/// Log-probabilities over the vocabulary of `length` rows from `start`: f32 `[length, vocab]`.
fn log_probabilities(hidden: &Tensor, output: &Tensor, start: i64, length: i64) -> Tensor {
    hidden.narrow(0, start, length).matmul(&output.tr()).log_softmax(-1, Kind::Float)
}

/// The statistics of `targets` (i64 `[rows]`) given hidden states `[rows, hidden]` and the output
/// matrix `[vocab, hidden]`. Nothing is recorded for autograd.
pub fn statistics(hidden: &Tensor, output: &Tensor, targets: &Tensor) -> TokenStatistics {
    no_grad(|| {
        let rows = hidden.size()[0];
        let (mut logps, mut entropies, mut top1) = (Vec::new(), Vec::new(), Vec::new());
        for (start, length) in chunks(rows) {
            let log_p = log_probabilities(hidden, output, start, length);
            let target =
                log_p.gather(1, &targets.narrow(0, start, length).unsqueeze(1), false).squeeze_dim(1);
            top1.push(target.ge_tensor(&log_p.amax([1], false)).to_kind(Kind::Float));
            entropies.push(-(log_p.exp() * &log_p).sum_dim_intlist(1, false, Kind::Float));
            logps.push(target);
        }
        let join = |parts: Vec<Tensor>| match parts.is_empty() {
            true => Tensor::zeros([0], (Kind::Float, hidden.device())),
            false => Tensor::cat(&parts, 0),
        };
        TokenStatistics { logps: join(logps), entropies: join(entropies), top1: join(top1) }
    })
}

/// The gradient of the hidden states, `[rows, hidden]` in their precision; the output matrix's is
/// added to `output_gradient` (f32 `[vocab, hidden]`) in place.
pub fn backward(
    hidden: &Tensor,
    output: &Tensor,
    targets: &Tensor,
    gradients: &StatisticGradients,
    output_gradient: &mut Tensor,
) -> Tensor {
    no_grad(|| {
        let mut parts = Vec::new();
        for (start, length) in chunks(hidden.size()[0]) {
            let log_p = log_probabilities(hidden, output, start, length);
            let p = log_p.exp();
            let logp_gradient = gradients.logps.narrow(0, start, length).unsqueeze(1);
            let mut d_logits = match &gradients.entropies {
                None => &p * -&logp_gradient,
                Some(entropies) => {
                    let entropy = -(&p * &log_p).sum_dim_intlist(1, true, Kind::Float);
                    let entropy_gradient = entropies.narrow(0, start, length).unsqueeze(1);
                    -(&p * ((log_p + entropy) * entropy_gradient + &logp_gradient))
                }
            };
            let _ = d_logits.scatter_add_(1, &targets.narrow(0, start, length).unsqueeze(1), &logp_gradient);
            let d_logits = d_logits.to_kind(hidden.kind());
            parts.push(d_logits.matmul(output));
            *output_gradient += d_logits.tr().matmul(&hidden.narrow(0, start, length));
        }
        match parts.is_empty() {
            true => hidden.zeros_like(),
            false => Tensor::cat(&parts, 0),
        }
    })
}

/// KL(π ‖ π_ref) of the next-token distributions, exact over the vocabulary, in nats: f32 `[rows]`.
pub fn distribution_kl(policy: (&Tensor, &Tensor), reference: (&Tensor, &Tensor)) -> Tensor {
    no_grad(|| {
        let parts: Vec<Tensor> = chunks(policy.0.size()[0])
            .map(|(start, length)| {
                let log_p = log_probabilities(policy.0, policy.1, start, length);
                let log_q = log_probabilities(reference.0, reference.1, start, length);
                (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1, false, Kind::Float)
            })
            .collect();
        match parts.is_empty() {
            true => Tensor::zeros([0], (Kind::Float, policy.0.device())),
            false => Tensor::cat(&parts, 0),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunked statistics and gradients against autograd on the whole, in f64, over more rows
    /// than a chunk has.
    #[test]
    fn equals_autograd_on_the_whole_logits() {
        tch::manual_seed(3);
        let (rows, width, vocab) = (CHUNK_ROWS + 37, 12, 50);
        let double = (Kind::Double, tch::Device::Cpu);
        let hidden = Tensor::randn([rows, width], double).set_requires_grad(true);
        let output = Tensor::randn([vocab, width], double).set_requires_grad(true);
        let targets = Tensor::randint(vocab, [rows], (Kind::Int64, tch::Device::Cpu));
        let weights = Tensor::randn([rows], double);
        let entropy_weights = Tensor::randn([rows], double);

        let log_p = hidden.matmul(&output.tr()).log_softmax(-1, Kind::Double);
        let logps = log_p.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let entropies = -(log_p.exp() * &log_p).sum_dim_intlist(1, false, Kind::Double);
        (&logps * &weights + &entropies * &entropy_weights).sum(Kind::Double).backward();

        let single = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float);
        let (hidden_f32, output_f32) = (single(&hidden), single(&output));
        let found = statistics(&hidden_f32, &output_f32, &targets);
        let gradients =
            StatisticGradients { logps: single(&weights), entropies: Some(single(&entropy_weights)) };
        let mut output_gradient = output_f32.zeros_like();
        let hidden_gradient = backward(&hidden_f32, &output_f32, &targets, &gradients, &mut output_gradient);

        for (name, found, expected) in [
            ("log-probability", &found.logps, logps.detach()),
            ("entropy", &found.entropies, entropies.detach()),
            ("hidden gradient", &hidden_gradient, hidden.grad()),
            ("output gradient", &output_gradient, output.grad()),
        ] {
            let error = (found.to_kind(Kind::Double) - &expected).norm().double_value(&[]);
            let relative = error / expected.norm().double_value(&[]);
            assert!(relative < 1e-5, "{name}: relative error {relative}");
        }
        let best = log_p.argmax(1, false).eq_tensor(&targets).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(found.top1.sum(Kind::Int64).int64_value(&[]), best);
    }

    /// p = (3/4, 1/4) against q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081203594…
    #[test]
    fn kl_equals_a_hand_computed_number() {
        let row = Tensor::from_slice(&[1.0f32]).view([1, 1]);
        let p = Tensor::from_slice(&[3.0f32.ln(), 0.0]).view([2, 1]);
        let q = Tensor::from_slice(&[0.0f32, 0.0]).view([2, 1]);
        let kl = distribution_kl((&row, &p), (&row, &q)).double_value(&[0]);
        assert!((kl - 0.130_812_035_941).abs() < 1e-6, "{kl}");
    }
}
