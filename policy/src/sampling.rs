//! Choosing tokens.

use arriero_buffers::random::Stream;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::device::upload;
use crate::kernels::{self, DrawOutcome, WantedToken};

/// Below it logits overflow when they are divided.
const LEAST_TEMPERATURE: f64 = 0.01;
/// Above it nothing of the model is left.
const MOST_TEMPERATURE: f64 = 100.0;

/// Bytes of logits that tokens are drawn from at one time on a device.
const DEVICE_BYTES: usize = 256 << 20;

/// How tokens are drawn. The steps apply in this order: temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Tokens a completion may have, its end-of-turn token included. Default 96.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the most probable token. Default 1.
    pub temperature: f64,
    /// Only the k most probable tokens (Fan et al., 2018); 0 for all. Default 0.
    pub top_k: usize,
    /// Only the smallest set of most probable tokens with at least this probability (Holtzman et al.,
    /// 2020). Default 1: all.
    pub top_p: f64,
    /// Only tokens with at least this share of the most probable one's probability (Nguyen et al.,
    /// 2024). Default 0: all.
    pub min_p: f64,
    /// Texts that end a completion; its text ends before them. Default none.
    pub stop: Vec<String>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        SamplingConfig {
            max_new_tokens: 96,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            stop: Vec::new(),
        }
    }
}

impl SamplingConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that names the option, its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        if self.max_new_tokens == 0 {
            return Err("max_new_tokens is 0; it must be at least 1".to_string());
        }
        let temperature = self.temperature;
        if temperature != 0.0 && !(LEAST_TEMPERATURE..=MOST_TEMPERATURE).contains(&temperature) {
            return Err(format!(
                "temperature is {temperature}; it must be 0 (greedy) or from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}"
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(format!("top_p is {}; it must be above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(format!("min_p is {}; it must be between 0 and 1", self.min_p));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err("stop has an empty text, which every answer contains; remove it".to_string());
        }
        Ok(())
    }
}

impl SamplingConfig {
    /// Whether tokens are left out of the distribution.
    fn truncates(&self) -> bool {
        self.temperature > 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The token.
    pub token: u32,
    /// Its log-probability under the untempered, untruncated distribution.
    pub logp: f32,
    /// Its log-probability under the distribution that it was drawn from.
    pub sampled_logp: f32,
}

/// Draws a token from logits over the vocabulary, using the number at `position` of `stream`.
///
/// Sums run in f64 in the order of the vocabulary, so that the result depends on the logits alone.
///
/// # Panics
/// If there are no logits.
pub fn draw(logits: &[f32], config: &SamplingConfig, stream: &mut Stream, position: u64) -> Draw {
    let (best, highest) = argmax(logits);
    let total = exp_sum(logits, highest, 1.0);
    let logp = |token: usize| (f64::from(logits[token] - highest) - total.ln()) as f32;
    if config.temperature == 0.0 {
        return Draw { token: best as u32, logp: logp(best), sampled_logp: 0.0 };
    }
    let scale = (1.0 / config.temperature) as f32;
    let uniform = stream.uniform(position);
    let (token, sampled_logp) = if config.truncates() {
        draw_truncated(logits, highest, scale, config, uniform)
    } else {
        let total = if scale == 1.0 { total } else { exp_sum(logits, highest, scale) };
        let weight = |token: usize| f64::from(((logits[token] - highest) * scale).exp());
        let token = walk((0..logits.len()).map(|token| (token, weight(token))), uniform * total);
        (token, f64::from((logits[token] - highest) * scale) - total.ln())
    };
    Draw { token: token as u32, logp: logp(token), sampled_logp: sampled_logp as f32 }
}

/// A token that is wanted: the row of the logits that it reads, how it is drawn, and the stream and the position in it that
/// its random number is taken from.
pub type Wanted<'a> = (usize, &'a SamplingConfig, &'a mut Stream, u64);

/// What [`draw`] gives for each of `wanted`, in one go and in parallel. Logits are f32 `[rows, vocabulary]`.
///
/// Where no option truncates the distribution, a kernel draws: its sums run in f32 over 256 logits each, and in f64 over
/// these. On a device the tokens are drawn there, and only they come to the host.
pub fn draw_all(logits: &Tensor, wanted: &mut [Wanted<'_>]) -> Vec<Draw> {
    let vocabulary = logits.size()[1] as usize;
    if logits.device() != Device::Cpu {
        let rows = (DEVICE_BYTES / (4 * vocabulary)).max(1);
        return wanted.chunks_mut(rows).flat_map(|wanted| draw_together(logits, wanted)).collect();
    }
    if wanted.iter().any(|(_, config, ..)| config.truncates()) {
        let logits = host_copy(logits);
        let one = |(row, config, stream, position): &mut Wanted<'_>| {
            draw(&logits[*row * vocabulary..][..vocabulary], config, stream, *position)
        };
        return wanted.par_iter_mut().map(one).collect();
    }
    let plain = wanted.iter_mut().map(|(row, config, stream, position)| WantedToken {
        source: *row as i64,
        scale: if config.temperature == 0.0 { 0.0 } else { (1.0 / config.temperature) as f32 },
        uniform: if config.temperature == 0.0 { 0.0 } else { stream.uniform(*position) },
    });
    let drawn = kernels::draw(&logits.contiguous(), &plain.collect::<Vec<_>>());
    let draw = |drawn: DrawOutcome| Draw {
        token: drawn.token as u32,
        logp: drawn.logp,
        sampled_logp: drawn.sampled_logp,
    };
    drawn.into_iter().map(draw).collect()
}

/// [`draw`] for all of `wanted` where the logits lie, with libtorch's ordinary operators: one small copy there, one small copy
/// back.
fn draw_together(logits: &Tensor, wanted: &mut [Wanted<'_>]) -> Vec<Draw> {
    let device = logits.device();
    let vocabulary = logits.size()[1];
    let is_greedy = |config: &SamplingConfig| config.temperature == 0.0;
    let columns: [Vec<f64>; 7] = [
        wanted.iter().map(|(row, ..)| *row as f64).collect(),
        wanted.iter().map(|(_, config, ..)| f64::from(u8::from(is_greedy(config)))).collect(),
        wanted.iter().map(|(_, c, ..)| if is_greedy(c) { 1.0 } else { 1.0 / c.temperature }).collect(),
        wanted.iter_mut().map(|(_, _, stream, position)| stream.uniform(*position)).collect(),
        wanted
            .iter()
            .map(|(_, c, ..)| if c.top_k == 0 { vocabulary } else { c.top_k as i64 } as f64)
            .collect(),
        wanted.iter().map(|(_, config, ..)| config.top_p).collect(),
        wanted.iter().map(|(_, config, ..)| config.min_p).collect(),
    ];
    let columns = upload(&columns.concat(), device).view([7, -1, 1]);
    let [rows, greedy, scale, uniform, top_k, top_p, min_p] =
        [0, 1, 2, 3, 4, 5, 6].map(|column| columns.get(column));

    let logits = logits.index_select(0, &rows.squeeze_dim(1).to_kind(Kind::Int64));
    let below = &logits - logits.amax([1], true);
    let total = below.exp().sum_dim_intlist(1, true, Kind::Double);
    let scaled = &below * scale.to_kind(Kind::Float);
    let mut weights = scaled.exp();
    if wanted.iter().any(|(_, config, ..)| config.truncates()) {
        // The most probable first; equal ones in the order of the vocabulary.
        let (sorted, order) = weights.sort_stable(true, 1, true);
        let places = Tensor::arange(vocabulary, (Kind::Int64, device)).unsqueeze(0);
        let among_first = places.lt_tensor(&top_k);
        let running = (&sorted * &among_first).cumsum(1, Kind::Double);
        let before = &running - &sorted;
        let kept = before.lt_tensor(&(top_p * running.narrow(1, vocabulary - 1, 1)));
        // The most probable token has weight 1, so that the threshold is min-p itself.
        let kept =
            kept.logical_or(&places.eq(0)).logical_and(&among_first).logical_and(&sorted.ge_tensor(&min_p));
        weights = weights.zeros_like().scatter(1, &order, &(sorted * kept));
    }
    let running = weights.cumsum(1, Kind::Double);
    let sampled_total = running.narrow(1, vocabulary - 1, 1);
    let passed = running.le_tensor(&(uniform * &sampled_total)).sum_dim_intlist(1, true, Kind::Int64);
    // Where rounding keeps the running sum from passing, the last token of any weight.
    let last = vocabulary - 1 - weights.gt(0.0).to_kind(Kind::Int).flip([1]).argmax(1, true);
    let is_greedy = greedy.gt(0.5);
    let token = logits.argmax(1, true).where_self(&is_greedy, &passed.minimum(&last));
    let of_token = |numbers: &Tensor| numbers.gather(1, &token, false).to_kind(Kind::Double);
    let logp = of_token(&below) - total.log();
    let sampled_logp = (of_token(&scaled) - sampled_total.log()).masked_fill(&is_greedy, 0.0);

    let drawn = Tensor::cat(&[token.to_kind(Kind::Double), logp, sampled_logp], 1).to_device(Device::Cpu);
    let mut numbers = vec![0.0f64; drawn.numel()];
    drawn.copy_data(&mut numbers, drawn.numel());
    let draw = |row: &[f64]| Draw { token: row[0] as u32, logp: row[1] as f32, sampled_logp: row[2] as f32 };
    numbers.chunks_exact(3).map(draw).collect()
}

/// The logits one after the other, on the host.
pub fn host_copy(logits: &Tensor) -> Vec<f32> {
    let mut copy = vec![0.0; logits.numel()];
    logits.to_device(Device::Cpu).contiguous().copy_data(&mut copy, logits.numel());
    copy
}

/// A token that could have been drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alternative {
    /// The token.
    pub token: u32,
    /// Its log-probability under the untempered, untruncated distribution.
    pub logp: f32,
}

/// The `count` most probable tokens, the first one first; equal ones in the order of the vocabulary.
/// `drawn` is what [`draw`] gave for these logits, and has the same log-probability among them.
pub fn alternatives(logits: &[f32], drawn: &Draw, count: usize) -> Vec<Alternative> {
    if count == 0 {
        return Vec::new();
    }
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |token: u32| logits[token as usize];
    let order = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, order);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(order);
    let total = f64::from(logit(drawn.token)) - f64::from(drawn.logp);
    let alternative = |token| Alternative { token, logp: (f64::from(logit(token)) - total) as f32 };
    tokens.into_iter().map(alternative).collect()
}

fn draw_truncated(
    logits: &[f32],
    highest: f32,
    scale: f32,
    config: &SamplingConfig,
    uniform: f64,
) -> (usize, f64) {
    let mut kept: Vec<(usize, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| (token, f64::from(((logit - highest) * scale).exp())))
        .collect();
    // The most probable first; equal ones in the order of the vocabulary.
    let order = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if config.top_k > 0 && config.top_k < kept.len() {
        kept.select_nth_unstable_by(config.top_k - 1, order);
        kept.truncate(config.top_k);
    }
    if config.top_p < 1.0 {
        kept.sort_unstable_by(order);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut before = 0.0;
        let length = kept.iter().take_while(|(_, weight)| {
            let wanted = before < config.top_p * total;
            before += weight;
            wanted
        });
        let length = length.count().max(1);
        kept.truncate(length);
    }
    // The most probable token has weight 1, so that the threshold is min-p itself.
    kept.retain(|&(_, weight)| weight >= config.min_p);
    kept.sort_unstable_by_key(|&(token, _)| token);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let token = walk(kept.iter().copied(), uniform * total);
    (token, f64::from((logits[token] - highest) * scale) - total.ln())
}

/// The item at which the running sum of weights passes `target`; the last item of any weight where
/// rounding keeps it from passing.
fn walk(items: impl Iterator<Item = (usize, f64)>, target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in items {
        if weight > 0.0 {
            sum += weight;
            last = token;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The first of the highest logits. A logit that is no number never wins.
fn argmax(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best
}

fn exp_sum(logits: &[f32], highest: f32, scale: f32) -> f64 {
    logits.iter().map(|logit| f64::from(((logit - highest) * scale).exp())).sum()
}

#[cfg(test)]
mod tests {
    use arriero_buffers::random::Purpose;

    use super::*;

    /// Probabilities 0.5, 0.25, 0.125, 0.125.
    const LOGITS: [f32; 4] = [std::f32::consts::LN_2, 0.0, -std::f32::consts::LN_2, -std::f32::consts::LN_2];

    fn shares(config: &SamplingConfig) -> Vec<f64> {
        let mut stream = Stream::new(9, Purpose::Sampling, 0, 0);
        let mut counts = [0.0; 4];
        let n = 20_000;
        for position in 0..n {
            let drawn = draw(&LOGITS, config, &mut stream, position);
            counts[drawn.token as usize] += 1.0 / n as f64;
        }
        counts.to_vec()
    }

    fn assert_shares(config: SamplingConfig, expected: [f64; 4]) {
        let found = shares(&config);
        // Four standard deviations of a share of 0.5 over 20,000 draws.
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.0142), "{config:?}: {found:?}");
        let mut stream = Stream::new(1, Purpose::Sampling, 0, 0);
        for position in 0..50 {
            let drawn = draw(&LOGITS, &config, &mut stream, position);
            let probability = f64::from(drawn.sampled_logp).exp();
            assert!((probability - expected[drawn.token as usize]).abs() < 1e-6);
            let logp = [0.5f64, 0.25, 0.125, 0.125][drawn.token as usize].ln();
            assert!((f64::from(drawn.logp) - logp).abs() < 1e-6);
        }
    }

    #[test]
    fn draws_from_the_distribution_it_reports() {
        let plain = SamplingConfig::default();
        assert_shares(plain.clone(), [0.5, 0.25, 0.125, 0.125]);
        // Squares: 16, 4, 1, 1 of 22.
        let half = SamplingConfig { temperature: 0.5, ..plain.clone() };
        assert_shares(half, [16.0 / 22.0, 4.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0]);
        assert_shares(SamplingConfig { top_k: 2, ..plain.clone() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        assert_shares(SamplingConfig { top_p: 0.8, ..plain.clone() }, [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]);
        assert_shares(SamplingConfig { top_p: 0.5, ..plain.clone() }, [1.0, 0.0, 0.0, 0.0]);
        assert_shares(SamplingConfig { min_p: 0.3, ..plain.clone() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    }

    /// Rows of 700 logits (three blocks of the kernel, the last one not whole), some of them −∞.
    #[test]
    fn the_kernel_draws_what_the_plain_loop_draws() {
        tch::manual_seed(3);
        let vocabulary = 700;
        let logits = Tensor::randn([6, vocabulary], (tch::Kind::Float, Device::Cpu)) * 4.0;
        let _ = logits.get(5).narrow(0, 300, 400).fill_(f64::NEG_INFINITY);
        let host = host_copy(&logits);
        let mut drawn = 0;
        for temperature in [1.0, 0.7, 0.0] {
            let config = SamplingConfig { temperature, ..SamplingConfig::default() };
            let stream = |row: u64| Stream::new(2, Purpose::Sampling, row, 0);
            for position in 0..200 {
                let mut streams: Vec<Stream> = (0..6).map(stream).collect();
                // In another order than the rows'.
                let mut wanted: Vec<_> = streams
                    .iter_mut()
                    .enumerate()
                    .map(|(row, stream)| (5 - row, &config, stream, position))
                    .collect();
                for (found, row) in draw_all(&logits, &mut wanted).into_iter().zip((0..6).rev()) {
                    let own = &host[row * vocabulary as usize..][..vocabulary as usize];
                    let expected = draw(own, &config, &mut stream(5 - row as u64), position);
                    assert_eq!(found.token, expected.token, "row {row}, position {position}");
                    assert!((found.logp - expected.logp).abs() < 1e-5, "{found:?}, {expected:?}");
                    assert!(
                        (found.sampled_logp - expected.sampled_logp).abs() < 1e-5,
                        "{found:?}, {expected:?}"
                    );
                    drawn += 1;
                }
            }
        }
        assert_eq!(drawn, 3600);
    }

    /// Uniform numbers at the ends: the first and the last token of any weight.
    #[test]
    fn the_kernel_never_draws_what_has_no_weight() {
        let logits = Tensor::full([1, 700], f64::NEG_INFINITY, (tch::Kind::Float, Device::Cpu));
        for token in [260, 400] {
            let _ = logits.narrow(1, token, 1).fill_(1.0);
        }
        for (uniform, token) in [(0.0, 260), (0.499, 260), (0.501, 400), (1.0 - 1e-16, 400)] {
            let drawn = kernels::draw(&logits, &[WantedToken { source: 0, scale: 1.0, uniform }]);
            assert_eq!(drawn[0].token, token, "{uniform}");
            assert!((drawn[0].logp - 0.5f32.ln()).abs() < 1e-6);
        }
    }

    /// What a device draws, with every option and several at once, is what [`draw`] draws.
    #[test]
    fn drawing_together_equals_drawing_one_by_one() {
        tch::manual_seed(11);
        let logits = Tensor::randn([40, 500], (Kind::Float, Device::Cpu)) * 4.0;
        // Equal logits, of which truncation keeps the first ones.
        let _ = logits.narrow(0, 3, 1).fill_(1.0);
        let _ = logits.narrow(1, 20, 9).fill_(f64::NEG_INFINITY);
        let plain = SamplingConfig::default();
        let configs = [
            plain.clone(),
            SamplingConfig { temperature: 0.0, ..plain.clone() },
            SamplingConfig { temperature: 1.7, top_k: 7, ..plain.clone() },
            SamplingConfig { top_p: 0.8, ..plain.clone() },
            SamplingConfig { temperature: 0.6, min_p: 0.1, ..plain.clone() },
            SamplingConfig { top_k: 50, top_p: 0.5, min_p: 0.02, ..plain.clone() },
            SamplingConfig { top_k: 9999, top_p: 1e-9, ..plain.clone() },
        ];
        for configs in [&configs[..1], &configs[1..2], &configs] {
            let stream = |row: u64| Stream::new(2, Purpose::Sampling, row, 1);
            let rows = || (0..200u64).map(|wanted| ((wanted * 7 % 40) as usize, wanted));
            let mut streams: Vec<Stream> = rows().map(|(_, wanted)| stream(wanted)).collect();
            let mut wanted: Vec<Wanted<'_>> = rows()
                .zip(&mut streams)
                .map(|((row, wanted), stream)| {
                    (row, &configs[wanted as usize % configs.len()], stream, wanted)
                })
                .collect();
            let found = draw_together(&logits, &mut wanted);
            for ((row, wanted), found) in rows().zip(found) {
                let values: Vec<f32> = Vec::try_from(logits.get(row as i64)).expect("a row");
                let config = &configs[wanted as usize % configs.len()];
                let expected = draw(&values, config, &mut stream(wanted), wanted);
                assert_eq!(found.token, expected.token, "{config:?}");
                for (found, expected) in
                    [(found.logp, expected.logp), (found.sampled_logp, expected.sampled_logp)]
                {
                    assert!((found - expected).abs() < 1e-5, "{config:?}: {found}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let config = SamplingConfig { temperature: 0.0, ..SamplingConfig::default() };
        let mut stream = Stream::new(9, Purpose::Sampling, 0, 0);
        let drawn = draw(&[0.0, 1.0, 1.0], &config, &mut stream, 0);
        assert_eq!((drawn.token, drawn.sampled_logp), (1, 0.0));
        let expected = -(2.0f32 + (-1.0f32).exp()).ln();
        assert!((drawn.logp - expected).abs() < 1e-6);
    }

    #[test]
    fn alternatives_are_the_most_probable_tokens() {
        let config = SamplingConfig::default();
        let drawn = draw(&LOGITS, &config, &mut Stream::new(1, Purpose::Sampling, 0, 0), 0);
        let found = alternatives(&LOGITS, &drawn, 3);
        assert_eq!(found.iter().map(|found| found.token).collect::<Vec<_>>(), [0, 1, 2]);
        for (found, probability) in found.iter().zip([0.5f64, 0.25, 0.125]) {
            assert!((f64::from(found.logp) - probability.ln()).abs() < 1e-6, "{found:?}");
        }
        let all = alternatives(&LOGITS, &drawn, 9);
        assert_eq!(all.len(), 4);
        assert!(all.contains(&Alternative { token: drawn.token, logp: drawn.logp }), "{all:?}");
    }

    #[test]
    fn the_same_position_draws_the_same_token() {
        let config = SamplingConfig::default();
        let tokens = |positions: &mut dyn Iterator<Item = u64>| -> Vec<(u64, u32)> {
            let mut stream = Stream::new(4, Purpose::Sampling, 8, 2);
            let mut drawn: Vec<_> = positions
                .map(|position| (position, draw(&LOGITS, &config, &mut stream, position).token))
                .collect();
            drawn.sort_unstable();
            drawn
        };
        assert_eq!(tokens(&mut (0..40)), tokens(&mut (0..40).rev()));
    }
}
