//! Experience through queues and buffer: groups a second, one producer and one consumer.
//!
//! `cargo bench --bench data_plane`

use std::sync::Arc;
use std::time::Duration;

use arriero_buffers::{Branch, ExperienceBuffer, Queue, Tree};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Trees of one iteration.
const TREES: u64 = 4096;

fn tree(prompt_id: u64) -> Tree {
    let branch = |sample| Branch {
        sample,
        tokens: vec![7; 64],
        is_format: vec![false; 64],
        behaviour_logps: vec![-1.0; 64],
        reference_logps: vec![-1.0; 64],
        reward: 0.5,
        ..Branch::default()
    };
    Tree { prompt_id, prompt: vec![3; 64], branches: vec![branch(0), branch(1)], ..Tree::default() }
}

fn data_plane(criterion: &mut Criterion) {
    // As the program does.
    arriero_policy::allocator::keep_large_blocks();
    let trees: Vec<Arc<Tree>> = (0..TREES).map(|id| Arc::new(tree(id))).collect();
    let mut group = criterion.benchmark_group("data plane");
    group.throughput(Throughput::Elements(TREES));
    group.bench_function("queue", |bencher| {
        bencher.iter(|| {
            let queue = Queue::bounded("bench", 64);
            std::thread::scope(|scope| {
                let producer = queue.clone();
                let trees = &trees;
                scope.spawn(move || {
                    for tree in trees {
                        producer
                            .push(Arc::clone(tree), Duration::from_secs(10))
                            .expect("there is a consumer");
                    }
                });
                for _ in 0..TREES {
                    queue.take("worker", Duration::from_secs(10)).expect("there is a producer");
                    queue.done("worker");
                }
            });
        });
    });
    group.bench_function("buffer: insert, shuffle, minibatches", |bencher| {
        bencher.iter_batched(
            || (0..TREES).map(tree).collect::<Vec<_>>(),
            |trees| {
                let mut buffer = ExperienceBuffer::new(TREES as usize);
                for tree in trees {
                    buffer.insert(tree).expect("there is room");
                }
                buffer.minibatches(1, 0, 0, 8).len()
            },
            criterion::BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, data_plane);
criterion_main!(benches);
