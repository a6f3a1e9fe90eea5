//! The parts of a training step and of sampling on their own, at SmolLM2-135M's sizes.
//!
//! `cargo bench -p arriero-policy`

use std::path::Path;

use arriero_buffers::random::{Purpose, Stream};
use arriero_buffers::{Branch, Tree};
use arriero_policy::checkpoint::Weights;
use arriero_policy::config::ModelConfig;
use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec};
use arriero_policy::forest::Forest;
use arriero_policy::head::{self, Output, StatisticGradients};
use arriero_policy::kernels::Weight;
use arriero_policy::model::Model;
use arriero_policy::optim::{AdamW, TrainingConfig};
use arriero_policy::sampling::{SamplingConfig, draw};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};

const VOCABULARY: i64 = 49_152;
const HIDDEN: i64 = 576;
const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn heads(criterion: &mut Criterion) {
    let rows = 256;
    let hidden = Tensor::randn([rows, HIDDEN], F32);
    let output = Tensor::randn([VOCABULARY, HIDDEN], F32) * 0.05;
    let targets = Tensor::randint(VOCABULARY, [rows], (Kind::Int64, Device::Cpu));
    let gradients = StatisticGradients { logps: Tensor::ones([rows], F32), entropies: None };
    let compute = Compute::resolve(DeviceSpec::Cpu, DtypeSpec::Auto).expect("there is a CPU");
    let mut output_gradient = output.zeros_like();
    let hidden = hidden.to_kind(compute.activations());
    let value = output.to_kind(compute.activations());
    let output = Output::new(Weight { value, gradient: None, fixed: compute.is_fixed() });
    let found = head::statistics(&hidden, &output, &targets);
    let mut group = criterion.benchmark_group("head");
    group.sample_size(10).throughput(Throughput::Elements(rows as u64));
    group.bench_function("statistics", |bencher| {
        bencher.iter(|| head::statistics(&hidden, &output, &targets))
    });
    group.bench_function("backward", |bencher| {
        bencher.iter(|| {
            head::backward(&hidden, &output, &targets, &found, &gradients, Some(&mut output_gradient))
        });
    });
}

/// Eight prompts of 60 tokens with two responses of 100 each.
fn preference_pairs() -> Vec<Tree> {
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
    (0..8).map(tree).collect()
}

/// A layer with SmolLM2-135M's attention and next to nothing else: projections, rotary positions, attention within
/// each tree.
fn attention(criterion: &mut Criterion) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": HIDDEN,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_hf_json(&config, Path::new("config.json")).expect("a Llama");
    let compute = Compute::resolve(DeviceSpec::Cpu, DtypeSpec::Auto).expect("there is a CPU");
    let random = |shape: Vec<i64>| (Tensor::randn(shape, F32) * 0.05).to_kind(compute.kind);
    let weights: Weights =
        config.tensor_shapes().into_iter().map(|(name, shape)| (name, random(shape))).collect();
    let gradient =
        |(name, weight): (&String, &Tensor)| (name.clone(), weight.zeros_like().to_kind(Kind::Float));
    let gradients: Weights = weights.iter().map(gradient).collect();
    let model = Model::trainable(&config, &weights, &gradients, compute).expect("the weights fit");
    let trees = preference_pairs();
    let forest = Forest::pack(&trees.iter().collect::<Vec<_>>(), 8192, Device::Cpu).expect("they fit");
    let mut group = criterion.benchmark_group("attention layer, 8 preference pairs");
    group.throughput(Throughput::Elements(forest.len() as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| no_grad(|| model.forest(&forest, &mut |_, _| ())));
    });
    group.bench_function("forward and backward", |bencher| {
        bencher.iter(|| model.forest(&forest, &mut |_, _| ()).sum(Kind::Float).backward());
    });
}

fn packing(criterion: &mut Criterion) {
    let trees = preference_pairs();
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
    let weights = [Tensor::randn([parameters], F32)];
    let gradients = [Tensor::randn([parameters], F32)];
    let mut optimizer = AdamW::new(&weights);
    let config = TrainingConfig::default();
    let mut group = criterion.benchmark_group("AdamW");
    group.sample_size(10).throughput(Throughput::Elements(parameters as u64));
    group.bench_function("step", |bencher| {
        bencher.iter(|| optimizer.step(&weights, &[None], &gradients, 1.0, 1e-5, &config))
    });
}

criterion_group!(benches, heads, attention, packing, sampling, optimizer);
criterion_main!(benches);
