//! Smoke test of CUDA against the CPU, on a tiny random model. Where no device is visible it says so.
//!
//! A program of its own, and one test: CUDA is to be opened before anything else of libtorch is used.

use std::path::Path;
use std::sync::Arc;

use arriero_buffers::{Branch, Message, Prompt, Tree};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::cuda;
use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec};
use arriero_policy::forest::Forest;
use arriero_policy::generate::{GenerationConfig, GroupSampler};
use arriero_policy::model::Model;
use arriero_policy::objective::{Algorithm, DpoConfig};
use arriero_policy::optim::TrainingConfig;
use arriero_policy::sampling::SamplingConfig;
use arriero_policy::trainer::Trainer;
use tch::{Device, Kind, Tensor, no_grad};

fn pair(prompt_id: u64) -> Tree {
    let first = 5 + 40 * prompt_id as u32;
    let branch = |sample: u32, length: u32| Branch {
        sample,
        tokens: (0..length).map(|token| first + 7 * (sample + 1) + 3 * token).collect(),
        is_format: vec![false; length as usize],
        behaviour_logps: vec![-5.0; length as usize],
        reference_logps: vec![-5.7; length as usize],
        reward: 0.0,
        ..Branch::default()
    };
    Tree {
        prompt_id,
        prompt: (first..first + 6).collect(),
        branches: vec![branch(0, 5), branch(1, 8)],
        ..Tree::default()
    }
}

/// Logits of a packed batch, the loss and the gradients of a DPO step, and answers: greedy ones, and ones drawn from a
/// truncated and from the whole distribution.
struct Results {
    logits: Tensor,
    loss: f64,
    gradients: Vec<(String, Tensor)>,
    answers: Vec<Vec<u32>>,
}

fn results(checkpoint: &Checkpoint, compute: Compute) -> Results {
    let Checkpoint { config, weights, tokenizer, .. } = checkpoint;
    let model = Model::new(config, weights, compute).expect("it fits");
    let pairs = [pair(0), pair(1), pair(2)];
    let pairs: Vec<&Tree> = pairs.iter().collect();
    let forest = Forest::pack(&pairs, config.max_positions, compute.device).expect("it fits");
    let host = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let logits = no_grad(|| host(&model.logits(&model.predictors(&forest))));

    let objective = Algorithm::Dpo(DpoConfig::default()).objective();
    let training = TrainingConfig { warmup_ratio: 0.0, max_grad_norm: 1e9, ..TrainingConfig::default() };
    let mut trainer = Trainer::new(config, weights, compute, objective, training, 2).expect("it fits");
    let loss = trainer.step(&pairs).expect("a step").metrics["loss"];
    let gradients = trainer.gradients().iter().map(|(name, tensor)| (name.clone(), host(tensor))).collect();

    let whole = SamplingConfig { max_new_tokens: 24, ..SamplingConfig::default() };
    let truncated = SamplingConfig { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.01, ..whole.clone() };
    let greedy = SamplingConfig { temperature: 0.0, ..whole.clone() };
    let mut answers = Vec::new();
    for sampling in [greedy, truncated, whole] {
        let options = GenerationConfig { sampling, samples: 2, batch: 4, seed: 1 };
        let model = Model::new(config, weights, compute).expect("it fits");
        let mut generator = GroupSampler::new(model, 0, tokenizer.clone(), options);
        for (id, prompt) in pairs.iter().enumerate() {
            let asked =
                Prompt { id: id as u64, messages: vec![Message::user("")], checks: serde_json::Value::Null };
            generator.submit_tokens(Arc::new(asked), prompt.prompt.repeat(3)).expect("it fits");
        }
        let groups = generator.run().expect("it generates");
        let completions = groups.into_iter().flat_map(|group| group.completions);
        answers.extend(completions.map(|completion| completion.tokens().collect()));
    }
    Results { logits, loss, gradients, answers }
}

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]).max(1e-12)
}

/// `plain` as against `expected`: the largest relative errors that f32 sums in another order may make.
fn assert_equal(what: &str, found: &Results, expected: &Results, tolerance: f64) {
    let error = relative(&found.logits, &expected.logits);
    assert!(error < tolerance, "{what}: logits differ by {error:.1e}");
    let error = (found.loss - expected.loss).abs() / expected.loss.abs();
    assert!(error < tolerance, "{what}: loss {} against {}", found.loss, expected.loss);
    assert_eq!(found.gradients.len(), expected.gradients.len());
    for ((name, found), (_, expected)) in found.gradients.iter().zip(&expected.gradients) {
        let error = relative(found, expected);
        assert!(error < tolerance, "{what}: the gradient of {name} differs by {error:.1e}");
    }
}

/// The ordinary operators, which are what CUDA computes with, against the kernels on the CPU; then CUDA
/// against the CPU.
#[test]
fn cuda_and_its_operators_equal_the_kernels() {
    let cuda = cuda::look();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let checkpoint = Checkpoint::open(&fixture).expect("the fixture");
    let cpu = results(&checkpoint, Compute::CPU_F32);
    assert!(cpu.answers.iter().all(|answer| !answer.is_empty()) && cpu.answers.len() == 18);

    let plain = |compute: Compute| {
        arriero_policy::kernels::plain_only(true);
        let found = results(&checkpoint, compute);
        arriero_policy::kernels::plain_only(false);
        found
    };
    let found = plain(Compute::CPU_F32);
    assert_equal("ordinary operators in f32", &found, &cpu, 1e-5);
    assert_eq!(found.answers, cpu.answers);
    let bf16 = Compute { kind: Kind::BFloat16, ..Compute::CPU_F32 };
    assert_equal("ordinary operators in bf16", &plain(bf16), &cpu, 0.05);
    assert_equal("the kernels in bf16", &results(&checkpoint, bf16), &cpu, 0.05);

    if cuda.devices() == 0 {
        println!("CUDA: skipped: no CUDA device ({cuda})");
        return;
    }
    let on_cuda = |dtype| Compute::resolve(DeviceSpec::Cuda(0), dtype).expect("there is a device");
    let found = results(&checkpoint, on_cuda(DtypeSpec::F32));
    assert_equal("CUDA in f32", &found, &cpu, 1e-3);
    assert_eq!(found.answers, cpu.answers);
    assert_equal("CUDA in bf16", &results(&checkpoint, on_cuda(DtypeSpec::Bf16)), &cpu, 0.05);
}
