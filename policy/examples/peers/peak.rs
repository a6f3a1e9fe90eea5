//! What the machine's matrix products reach.

use std::time::Duration;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{Figures, timed};

/// Rows, inner size and columns: square ones, and SmolLM2-135M's with 2,048 rows.
const SHAPES: [(i64, i64, i64); 5] =
    [(2048, 2048, 2048), (4096, 4096, 4096), (2048, 576, 1536), (2048, 1536, 576), (2048, 576, 576)];

/// How long each shape is tried.
const TRIAL: Duration = Duration::from_millis(700);

/// The best rate over the shapes in each precision, in GFLOP/s.
pub fn peak(device: Device) -> Figures {
    let mut figures = Figures::new();
    for (name, kind) in [("bf16", Kind::BFloat16), ("f32", Kind::Float)] {
        let rates = SHAPES.map(|shape| {
            let rate = rate(shape, kind, device);
            eprintln!("{name} {shape:?}: {rate:.0} GFLOP/s");
            rate
        });
        figures.insert(format!("{name}_gflops"), json!(rates.into_iter().fold(0.0, f64::max)));
    }
    figures
}

fn rate((rows, inner, columns): (i64, i64, i64), kind: Kind, device: Device) -> f64 {
    let random = |rows, columns| Tensor::randn([rows, columns], (Kind::Float, device)).to_kind(kind);
    let (input, weight) = (random(rows, inner), random(columns, inner));
    let (mut best, mut spent, mut runs) = (Duration::MAX, Duration::ZERO, 0);
    while spent < TRIAL || runs < 5 {
        let (time, _) = timed(device, || input.linear(&weight, None::<Tensor>));
        (best, spent, runs) = (best.min(time), spent + time, runs + 1);
    }
    2e-9 * (rows * inner * columns) as f64 / best.as_secs_f64()
}
