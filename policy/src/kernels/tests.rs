use tch::{Device, Kind, Tensor};

use super::{Ending, Packed, Rotation, Weight, gated, is_fast, linear, plain_only, rotate, round_weights};

/// Half a unit in the last place of bf16, of a number at the lower end of its binade.
const ROUNDED_ONCE: f64 = 1.01 / 256.0;

fn random(shape: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
}

fn weight(shape: &[i64], seed: i64) -> Weight {
    Weight { value: (random(shape, seed) * 0.25).to_kind(Kind::BFloat16), gradient: None }
}

/// The largest |a − b| / |b|, of numbers of bf16 against exact ones.
fn off(found: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(found.size(), exact.size());
    ((found.to_kind(Kind::Double) - exact).abs() / exact.abs().clamp_min(1e-3)).max().double_value(&[])
}

fn exact(x: &Tensor, weight: &Weight) -> Tensor {
    x.to_kind(Kind::Double).matmul(&weight.value.to_kind(Kind::Double).tr())
}

#[test]
fn bf16_products_round_once_on_their_way_to_the_next_product() {
    let x = random(&[37, 96], 1);
    if !is_fast(&x) {
        eprintln!(
            "skipped: this processor has no AVX512-BF16, and libtorch's own operators round after each step"
        );
        return;
    }
    let (gate, up, bias) = (weight(&[130, 96], 2), weight(&[130, 96], 3), weight(&[130], 4));
    let found = gated(&x, &[(&gate, Some(&bias)), (&up, None)]);
    let expected = (exact(&x, &gate) + bias.value.to_kind(Kind::Double)).silu() * exact(&x, &up);
    assert!(off(&found, &expected) < ROUNDED_ONCE, "{}", off(&found, &expected));
    // What rounds each product first is off by more.
    let sides = [(&gate, Some(&bias)), (&up, None)].map(|side| linear(&x, &[side], Ending::Rounded));
    assert!(off(&(sides[0].silu() * &sides[1]), &expected) > 1.5 * ROUNDED_ONCE);

    // Three heads of 8, of which two are rotated.
    let qkv = weight(&[24, 96], 5);
    let positions = Tensor::arange(37, (Kind::Int64, Device::Cpu));
    let angles = (positions.unsqueeze(1).to_kind(Kind::Float) * 0.1).expand([37, 8], false).contiguous();
    let angles = (angles.cos(), angles.sin());
    let rotation = Rotation { positions: &positions, angles: &angles, heads: 2 };
    let wide = exact(&x, &qkv).to_kind(Kind::Float);
    let expected = rotate(&wide.copy(), rotation).to_kind(Kind::Double);
    let found = linear(&x, &[(&qkv, None)], Ending::Rotated(rotation));
    assert!(off(&found, &expected) < ROUNDED_ONCE, "{}", off(&found, &expected));
    let twice = rotate(&linear(&x, &[(&qkv, None)], Ending::Rounded), rotation);
    assert!(off(&twice, &expected) > 1.5 * ROUNDED_ONCE);

    // What is added to the residual stream is not rounded at all.
    let residual = random(&[37, 24], 6).to_kind(Kind::Float);
    let found = linear(&x, &[(&qkv, None)], Ending::Onto(&residual));
    assert!(found.allclose(&(&residual + wide), 1e-5, 1e-5, false));

    // Packed matrices give the same numbers.
    let pack = |weight: &Weight, bias: Option<&Weight>| {
        Packed::new(&weight.value, bias.map(|bias| bias.value.shallow_clone())).expect("it is fast here")
    };
    let (gate_packed, up_packed, qkv_packed) = (pack(&gate, Some(&bias)), pack(&up, None), pack(&qkv, None));
    assert!(gate_packed.gated(&up_packed, &x).equal(&gated(&x, &[(&gate, Some(&bias)), (&up, None)])));
    for ending in [Ending::Rounded, Ending::Onto(&residual), Ending::Rotated(rotation)] {
        assert!(qkv_packed.linear(&x, ending).equal(&linear(&x, &[(&qkv, None)], ending)));
    }
}

/// The gradients of x and of a matrix, of the bf16 operators against autograd's in f64.
#[test]
fn bf16_gradients_are_those_of_the_exact_products() {
    let x = random(&[37, 96], 1).set_requires_grad(true);
    let trained = |shape: &[i64], seed: i64| Weight {
        gradient: Some(Tensor::zeros(shape, (Kind::Float, Device::Cpu))),
        ..weight(shape, seed)
    };
    let (gate, up, qkv) = (trained(&[64, 96], 2), trained(&[64, 96], 3), trained(&[24, 96], 5));
    let residual = random(&[37, 24], 6).to_kind(Kind::Float).set_requires_grad(true);
    let positions = Tensor::arange(37, (Kind::Int64, Device::Cpu));
    let angles = (positions.unsqueeze(1).to_kind(Kind::Float) * 0.1).expand([37, 8], false).contiguous();
    let angles = (angles.cos(), angles.sin());
    let rotation = Rotation { positions: &positions, angles: &angles, heads: 2 };

    let wide = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true);
    let (x_exact, gate_exact, up_exact, qkv_exact) =
        (wide(&x), wide(&gate.value), wide(&up.value), wide(&qkv.value));
    let product = |matrix: &Tensor| x_exact.matmul(&matrix.tr());
    let rotated = |qkv: Tensor| {
        let (cos, sin) = (angles.0.to_kind(Kind::Double), angles.1.to_kind(Kind::Double));
        let head = |from: i64| {
            let head = qkv.narrow(1, from, 8);
            let turned = Tensor::cat(&[-head.narrow(1, 4, 4), head.narrow(1, 0, 4)], 1);
            head * &cos + turned * &sin
        };
        Tensor::cat(&[head(0), head(8), qkv.narrow(1, 16, 8)], 1)
    };
    // Each output with how much every number of it counts.
    let share = |y: &Tensor, seed: i64| {
        let factors = random(&y.size(), seed).to_kind(Kind::Double);
        (y.to_kind(Kind::Double) * factors).sum(Kind::Double)
    };
    let found = share(&gated(&x, &[(&gate, None), (&up, None)]), 7)
        + share(&linear(&x, &[(&qkv, None)], Ending::Rotated(rotation)), 8)
        + share(&linear(&x, &[(&qkv, None)], Ending::Onto(&residual)), 9);
    found.backward();
    let exact = share(&(product(&gate_exact).silu() * product(&up_exact)), 7)
        + share(&rotated(product(&qkv_exact)), 8)
        + share(&product(&qkv_exact), 9);
    exact.backward();
    let error = |found: &Tensor, exact: &Tensor| {
        ((found.to_kind(Kind::Double) - exact).norm() / exact.norm()).double_value(&[])
    };
    let of = |weight: &Weight| weight.gradient.as_ref().expect("it has one").shallow_clone();
    for (name, found, exact) in [
        ("x", x.grad(), x_exact.grad()),
        ("gate", of(&gate), gate_exact.grad()),
        ("up", of(&up), up_exact.grad()),
        ("qkv", of(&qkv), qkv_exact.grad()),
    ] {
        assert!(error(&found, &exact) < 0.01, "{name}: {}", error(&found, &exact));
    }
    let factors = random(&[37, 24], 9).to_kind(Kind::Float);
    assert!(residual.grad().equal(&factors), "what is added to passes its gradient on");
}

/// Rows and columns that fill no block, in both precisions, against libtorch's product in f64.
#[test]
fn packed_products_equal_the_ordinary_ones() {
    tch::manual_seed(5);
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-6)] {
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
        let (matrix, bias) = (random([101, 38]), random([1, 101]).squeeze());
        let Some(packed) = Packed::new(&matrix, Some(bias.shallow_clone())) else {
            println!("skipped: no microkernel for {kind:?} here");
            continue;
        };
        for rows in [1, 17, 70, 600] {
            let x = random([rows, 38]);
            let found = packed.wide(&x).to_kind(Kind::Double);
            let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let expected = wide(&x).matmul(&wide(&matrix).tr()) + wide(&bias);
            let error = ((found - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(error < tolerance, "{kind:?}, {rows} rows: relative error {error}");
            // A row does not depend on its neighbours.
            let alone = packed.wide(&x.narrow(0, rows - 1, 1));
            assert_eq!(alone, packed.wide(&x).narrow(0, rows - 1, 1));
        }
    }
}

/// Numbers of bf16 stay what they are; between two of them as many go up as the distance says, and a number that
/// grows never rounds lower. The kernel and libtorch's operators choose the same.
#[test]
fn weights_are_rounded_without_bias() {
    let numbers =
        |tensor: &Tensor| -> Vec<f64> { Vec::try_from(tensor.to_kind(Kind::Double)).expect("a vector") };
    tch::manual_seed(5);
    let exact = Tensor::randn([1000], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    assert_eq!(numbers(&round_weights(&exact.to_kind(Kind::Float))), numbers(&exact));
    // From 1 to the next number of bf16 it is 1/128.
    let mut before = vec![f64::MIN; 100_000];
    for part in [0.0, 0.01, 0.25, 0.5, 0.99, 1.0] {
        for sign in [1.0, -1.0] {
            let x = Tensor::full([100_000], sign * (1.0 + part / 128.0), (Kind::Float, Device::Cpu));
            let rounded = round_weights(&x);
            plain_only(true);
            let plain = round_weights(&x);
            plain_only(false);
            assert_eq!(numbers(&rounded), numbers(&plain));
            let up = (numbers(&rounded).iter().map(|x| x.abs()).sum::<f64>() / 1e5 - 1.0) * 128.0;
            assert!((up - part).abs() < 0.005, "{part}: {up} went up");
            if sign > 0.0 {
                let now = numbers(&rounded);
                assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "{part}: some went down");
                before = now;
            }
        }
    }
    let odd = Tensor::from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0]);
    let kept = numbers(&round_weights(&odd));
    assert!(kept[0] == f64::INFINITY && kept[1] == f64::NEG_INFINITY && kept[2].is_nan(), "{kept:?}");
    assert_eq!(kept[3..], [0.0, 0.0]);
}

#[test]
fn inputs_that_make_no_pairs_are_not_packed() {
    assert!(Packed::new(&Tensor::zeros([4, 7], (Kind::BFloat16, Device::Cpu)), None).is_none());
}
