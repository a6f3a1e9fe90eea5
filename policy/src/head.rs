//! The fused chunked head: statistics of each response token, and the gradient back from them.
//!
//! With z = h Wᵀ the logits of a row, p = softmax(z) and H its entropy,
//!
//! log p_y = z_y − logsumexp(z),  ∂ log p_y / ∂z = e_y − p,  ∂H / ∂z = −p ⊙ (log p + H).
//!
//! So the backward needs z again and nothing else: both directions go over the rows chunk by chunk,
//! and the logits of the whole batch never exist. Logits and everything after them are f32, summed from
//! hidden states and a matrix in the compute precision.
//!
//! Where the kernels run, a chunk is a block of rows and vocabulary entries small enough for the cache;
//! elsewhere it is some rows and the whole vocabulary, in libtorch's ordinary operators.
//!
//! [`divergence`] compares a row's distribution with that of a teacher.
//!
//! A scalar head is one row w: v = h · w, ∂v / ∂h = w, ∂v / ∂w = h ([`values`], [`values_backward`]).

pub mod divergence;

use tch::{Device, Kind, Tensor, no_grad};

use crate::kernels::{self, Ending, Packed, Weight};
use crate::objective::TokenStatistics;

/// Rows whose logits exist at one time where the kernels do not run, on the CPU.
const CHUNK_ROWS: i64 = 128;
/// Bytes of the f32 logits that exist at one time on a device, which wants more work at once.
const DEVICE_CHUNK_BYTES: i64 = 256 << 20;

/// The output matrix `[vocab, hidden]`.
#[derive(Debug)]
pub struct Output {
    matrix: Weight,
    /// Once more, in the order in which the kernels read it.
    packed: Option<Packed>,
}

impl Output {
    /// The matrix as it stands.
    pub fn new(matrix: Weight) -> Self {
        Output { matrix, packed: None }
    }

    /// The same, packed where the kernels run, which pays where it is used more than once.
    pub fn packed(self) -> Self {
        let packed = self.packed.or_else(|| Packed::new(&self.matrix, None));
        Output { packed, ..self }
    }

    /// Handles of both.
    pub fn share(&self) -> Self {
        Output { matrix: self.matrix.frozen(), packed: self.packed.as_ref().map(Packed::share) }
    }

    /// The matrix itself.
    pub fn matrix(&self) -> &Tensor {
        &self.matrix.value
    }

    /// h Wᵀ of hidden states `[rows, hidden]`: f32 `[rows, vocab]`, summed in f32 whatever the precision of the two.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let is_lacking = self.packed.is_none() && self.matrix.fixed;
        let own = is_lacking.then(|| Packed::new(&self.matrix, None)).flatten();
        if let Some(packed) = self.packed.as_ref().or(own.as_ref()) {
            return packed.linear(hidden, Ending::Rounded);
        }
        let matrix = self.matrix();
        let widened = || hidden.to_kind(Kind::Float).matmul(&matrix.to_kind(Kind::Float).tr());
        match hidden.device() {
            // CUDA multiplies bf16 into f32 without an f32 copy of the matrix.
            Device::Cuda(_) if hidden.kind() != Kind::Float => {
                hidden.f_mm_dtype(&matrix.tr(), Kind::Float).unwrap_or_else(|_| widened())
            }
            _ => widened(),
        }
    }
}

/// What the forward finds.
#[derive(Debug)]
pub struct Rows {
    /// Of each response token.
    pub statistics: TokenStatistics,
    /// log Σ exp of the logits, f32 `[response tokens]`, which spares the kernels' backward a pass.
    log_sums: Option<Tensor>,
}

/// d loss / d statistic, f32 `[response tokens]` each.
#[derive(Debug)]
pub struct StatisticGradients {
    /// With respect to the log-probabilities.
    pub logps: Tensor,
    /// With respect to the entropies; `None` where the loss does not depend on them.
    pub entropies: Option<Tensor>,
}

/// (first row, rows) of each chunk of these hidden states.
fn chunks(hidden: &Tensor, output: &Output) -> impl Iterator<Item = (i64, i64)> {
    let rows = hidden.size()[0];
    let step = match hidden.device() {
        Device::Cpu => CHUNK_ROWS,
        _ => (DEVICE_CHUNK_BYTES / (4 * output.matrix.value.size()[0])).max(1),
    };
    (0..rows).step_by(step as usize).map(move |start| (start, step.min(rows - start)))
}

/// Whether the kernels take these hidden states: pairs of neighbours go through the microkernel.
fn is_fast(hidden: &Tensor) -> bool {
    kernels::is_fast(hidden) && hidden.size()[1] % 2 == 0
}

/// Log-probabilities over the vocabulary of `length` rows from `start`: f32 `[length, vocab]`.
fn log_probabilities(hidden: &Tensor, output: &Output, start: i64, length: i64) -> Tensor {
    output.logits(&hidden.narrow(0, start, length)).log_softmax(-1, Kind::Float)
}

fn join(parts: Vec<Tensor>, like: &Tensor) -> Tensor {
    match parts.is_empty() {
        true => Tensor::zeros([0], (Kind::Float, like.device())),
        false => Tensor::cat(&parts, 0),
    }
}

/// The statistics of `targets` (i64 `[rows]`) given hidden states `[rows, hidden]` and the output
/// matrix `[vocab, hidden]`. Nothing is recorded for autograd.
pub fn statistics(hidden: &Tensor, output: &Output, targets: &Tensor) -> Rows {
    no_grad(|| {
        if is_fast(hidden) {
            let rows = kernels::head(hidden, &output.matrix, output.packed.as_ref(), targets);
            let statistics = TokenStatistics {
                logps: &rows.target_logits - &rows.log_sums,
                entropies: rows.entropies,
                top1: rows.target_logits.ge_tensor(&rows.highest).to_kind(Kind::Float),
                values: None,
                teacher: None,
            };
            return Rows { statistics, log_sums: Some(rows.log_sums) };
        }
        let (mut logps, mut entropies, mut top1) = (Vec::new(), Vec::new(), Vec::new());
        for (start, length) in chunks(hidden, output) {
            let log_p = log_probabilities(hidden, output, start, length);
            let target =
                log_p.gather(1, &targets.narrow(0, start, length).unsqueeze(1), false).squeeze_dim(1);
            top1.push(target.ge_tensor(&log_p.amax([1], false)).to_kind(Kind::Float));
            entropies.push(-(log_p.exp() * &log_p).sum_dim_intlist(1, false, Kind::Float));
            logps.push(target);
        }
        let [logps, entropies, top1] = [logps, entropies, top1].map(|parts| join(parts, hidden));
        let statistics = TokenStatistics { logps, entropies, top1, values: None, teacher: None };
        Rows { statistics, log_sums: None }
    })
}

/// The gradient of the hidden states, `[rows, hidden]` in their precision; the output matrix's is
/// added to `output_gradient` (f32 `[vocab, hidden]`) in place, where it is wanted. `rows` is what the
/// forward found on the same tensors.
pub fn backward(
    hidden: &Tensor,
    output: &Output,
    targets: &Tensor,
    rows: &Rows,
    gradients: &StatisticGradients,
    mut output_gradient: Option<&mut Tensor>,
) -> Tensor {
    no_grad(|| {
        if let Some(log_sums) = &rows.log_sums {
            return kernels::head_backward(
                hidden,
                &output.matrix,
                targets,
                (log_sums, &rows.statistics.entropies),
                (&gradients.logps, gradients.entropies.as_ref()),
                output_gradient.as_deref(),
            );
        }
        let mut parts = Vec::new();
        for (start, length) in chunks(hidden, output) {
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
            let hidden = hidden.narrow(0, start, length);
            parts.push(through_output(&d_logits, &hidden, output, output_gradient.as_deref_mut()));
        }
        match parts.is_empty() {
            true => hidden.zeros_like(),
            false => Tensor::cat(&parts, 0),
        }
    })
}

/// The gradient of a chunk's hidden states from that of its logits (f32); the output matrix's is added.
fn through_output(
    d_logits: &Tensor,
    hidden: &Tensor,
    output: &Output,
    output_gradient: Option<&mut Tensor>,
) -> Tensor {
    let d_logits = d_logits.to_kind(hidden.kind());
    if let Some(output_gradient) = output_gradient {
        kernels::add_product(output_gradient, &d_logits.tr(), hidden);
    }
    d_logits.matmul(&output.matrix.value)
}

/// What a scalar head `[1, hidden]` gives hidden states `[rows, hidden]`: f32 `[rows]`, summed in f32. Nothing is recorded
/// for autograd.
pub fn values(hidden: &Tensor, head: &Tensor) -> Tensor {
    no_grad(|| hidden.to_kind(Kind::Float).matmul(&head.to_kind(Kind::Float).view([-1])))
}

/// The gradient of the hidden states, `[rows, hidden]` in their precision, given that of [`values`] (f32 `[rows]`); the
/// head's is added to `head_gradient` (f32 `[1, hidden]`) in place.
pub fn values_backward(
    hidden: &Tensor,
    head: &Tensor,
    gradients: &Tensor,
    head_gradient: &mut Tensor,
) -> Tensor {
    no_grad(|| {
        *head_gradient += gradients.unsqueeze(0).matmul(&hidden.to_kind(Kind::Float));
        (gradients.unsqueeze(1) * head.to_kind(Kind::Float)).to_kind(hidden.kind())
    })
}

/// KL(π ‖ π_ref) of the next-token distributions, exact over the vocabulary, in nats: f32 `[rows]`.
pub fn distribution_kl(policy: (&Tensor, &Output), reference: (&Tensor, &Output)) -> Tensor {
    no_grad(|| {
        let parts: Vec<Tensor> = chunks(policy.0, policy.1)
            .map(|(start, length)| {
                let log_p = log_probabilities(policy.0, policy.1, start, length);
                let log_q = log_probabilities(reference.0, reference.1, start, length);
                (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1, false, Kind::Float)
            })
            .collect();
        join(parts, policy.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunked statistics and gradients, with and without the kernels, against autograd on the whole,
    /// in f64.
    #[test]
    fn equals_autograd_on_the_whole_logits() {
        tch::manual_seed(3);
        // More rows and entries than a block has, and neither a multiple of one.
        let (rows, width, vocab) = (600, 70, 333);
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
        let matrix = Output::new(Weight::plain(output_f32.shallow_clone()));
        let gradients =
            StatisticGradients { logps: single(&weights), entropies: Some(single(&entropy_weights)) };
        let best = log_p.argmax(1, false).eq_tensor(&targets).sum(Kind::Int64).int64_value(&[]);
        for plain in [false, true] {
            kernels::plain_only(plain);
            let rows = statistics(&hidden_f32, &matrix, &targets);
            let mut output_gradient = output_f32.zeros_like();
            let hidden_gradient =
                backward(&hidden_f32, &matrix, &targets, &rows, &gradients, Some(&mut output_gradient));
            kernels::plain_only(false);
            let found = rows.statistics;
            for (name, found, expected) in [
                ("log-probability", &found.logps, logps.detach()),
                ("entropy", &found.entropies, entropies.detach()),
                ("hidden gradient", &hidden_gradient, hidden.grad()),
                ("output gradient", &output_gradient, output.grad()),
            ] {
                let error = (found.to_kind(Kind::Double) - &expected).norm().double_value(&[]);
                let relative = error / expected.norm().double_value(&[]);
                assert!(relative < 1e-5, "{name}, plain {plain}: relative error {relative}");
            }
            assert_eq!(found.top1.sum(Kind::Int64).int64_value(&[]), best);
        }
    }

    /// Two rows h = ((1, 2), (3, 4)) under w = (10, −1) and d loss / d v = (1, 0.5).
    #[test]
    fn a_scalar_head_equals_hand_computed_numbers() {
        let hidden = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let head = Tensor::from_slice(&[10.0f32, -1.0]).view([1, 2]);
        let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.flatten(0, -1)).expect("numbers");
        assert_eq!(numbers(&values(&hidden, &head)), [8.0, 26.0]);
        let mut head_gradient = head.ones_like();
        let gradients = Tensor::from_slice(&[1.0f32, 0.5]);
        let hidden_gradient = values_backward(&hidden, &head, &gradients, &mut head_gradient);
        assert_eq!(numbers(&hidden_gradient), [10.0, -1.0, 5.0, -0.5]);
        // What was there before, 1, is added to.
        assert_eq!(numbers(&head_gradient), [3.5, 5.0]);
    }

    /// p = (3/4, 1/4) against q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081203594…
    #[test]
    fn kl_equals_a_hand_computed_number() {
        let row = Tensor::from_slice(&[1.0f32]).view([1, 1]);
        let side = |logits: &[f32]| Output::new(Weight::plain(Tensor::from_slice(logits).view([2, 1])));
        let (p, q) = (side(&[3.0f32.ln(), 0.0]), side(&[0.0, 0.0]));
        let kl = distribution_kl((&row, &p), (&row, &q)).double_value(&[0]);
        assert!((kl - 0.130_812_035_941).abs() < 1e-6, "{kl}");
    }
}
