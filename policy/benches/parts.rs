//! The parts of a training step and of sampling on their own, at SmolLM2-135M's sizes.
//!
//! `cargo bench -p arriero-policy`

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Branch, Tree};
use arriero_policy::forest::Forest;
use arriero_policy::head::{self, StatisticGradients};
use arriero_policy::optim::{AdamW, TrainingConfig};
use arriero_policy::sampling::{SamplingConfig, draw};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};

const VOCABULARY: i64 = 49_152;
const HIDDEN: i64 = 576;
const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn heads(criterion: &mut Criterion) {
    let rows = 256;
    let hidden = Tensor::randn([rows, HIDDEN], F32);
    let output = Tensor::randn([VOCABULARY, HIDDEN], F32) * 0.05;
    let targets = Tensor::randint(VOCABULARY, [rows], (Kind::Int64, Device::Cpu));
    let gradients = StatisticGradients { logps: Tensor::ones([rows], F32), entropies: None };
    let mut output_gradient = output.zeros_like();
    let mut group = criterion.benchmark_group("head");
    group.sample_size(10).throughput(Throughput::Elements(rows as u64));
    group.bench_function("statistics", |bencher| {
        bencher.iter(|| head::statistics(&hidden, &output, &targets))
    });
    group.bench_function("backward", |bencher| {
        bencher.iter(|| head::backward(&hidden, &output, &targets, &gradients, &mut output_gradient));
    });
}

fn packing(criterion: &mut Criterion) {
    let branch = |sample| Branch {
        sample,
        tokens: vec![7; 100],
        is_format: vec![false; 100],
        behaviour_logps: vec![-1.0; 100],
        reference_logps: vec![-1.0; 100],
        reward: 0.5,
        ..Branch::default()
    };
    let tree = |prompt_id| Tree {
        prompt_id,
        prompt: vec![3; 60],
        branches: vec![branch(0), branch(1)],
        ..Tree::default()
    };
    let trees: Vec<Tree> = (0..8).map(tree).collect();
    let views: Vec<&Tree> = trees.iter().collect();
    criterion.bench_function("pack 8 preference pairs", |bencher| {
        bencher.iter(|| Forest::pack(&views, 8192, Device::Cpu).expect("they fit"));
    });
}

fn sampling(criterion: &mut Criterion) {
    let mut stream = Stream::new(1, Purpose::Sampling, 0, 0);
    let logits: Vec<f32> = (0..VOCABULARY as u64).map(|token| 8.0 * stream.uniform(token) as f32).collect();
    let plain = SamplingConfig::default();
    let nucleus = SamplingConfig { top_p: 0.95, temperature: 0.7, ..SamplingConfig::default() };
    let mut group = criterion.benchmark_group("draw a token");
    for (name, config) in [("plain", plain), ("top-p 0.95", nucleus)] {
        let mut position = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                position += 1;
                draw(&logits, &config, &mut stream, position)
            });
        });
    }
}

fn optimizer(criterion: &mut Criterion) {
    let parameters = 10_000_000;
    let mut weights = [Tensor::randn([parameters], F32)];
    let gradients = [Tensor::randn([parameters], F32)];
    let mut optimizer = AdamW::new(&weights);
    let config = TrainingConfig::default();
    let mut group = criterion.benchmark_group("AdamW");
    group.sample_size(10).throughput(Throughput::Elements(parameters as u64));
    group.bench_function("step", |bencher| {
        bencher.iter(|| optimizer.step(&mut weights, &gradients, 1e-5, &config))
    });
}

criterion_group!(benches, heads, packing, sampling, optimizer);
criterion_main!(benches);
