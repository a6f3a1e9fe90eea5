use tch::{Device, Kind, Tensor};

use super::{
    AttentionShape, Ending, Packed, Rotation, Weight, attention, gated, has_fixed, linear, plain_only,
    rotate, round_weights,
};

fn random(shape: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn fixed(shape: &[i64], seed: i64) -> Weight {
    Weight { value: random(shape, seed) * 0.25, gradient: None, fixed: true }
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(wide(tensor).flatten(0, -1)).expect("a vector")
}

fn product(x: &Tensor, weight: &Weight) -> Tensor {
    wide(x).matmul(&wide(&weight.value).tr())
}

fn relative(found: &Tensor, exact: &Tensor) -> f64 {
    ((wide(found) - exact).norm() / exact.norm()).double_value(&[])
}

/// False, with a word, where there is nothing to test.
fn fixed_products_run() -> bool {
    if !has_fixed() {
        eprintln!("skipped: this processor has no AVX512-VNNI and AVX512-BF16");
    }
    has_fixed()
}

/// The most that rounding can do to x Wᵀ. A block of 64 of the contracted axis has steps of its largest number / 8191 in a row
/// of x, of its largest / 4093 in a row of W; each number is off by half a step.
fn bound(x: &Tensor, weight: &Tensor) -> Tensor {
    let length = x.size()[1];
    let mut sum = Tensor::zeros([x.size()[0], weight.size()[0]], (Kind::Double, Device::Cpu));
    for start in (0..length).step_by(64) {
        let block = |tensor: &Tensor| wide(&tensor.narrow(1, start, 64.min(length - start))).abs();
        let (x, weight) = (block(x), block(weight));
        let (off_x, off_weight) = (x.amax([1], true) / 8191.0 / 2.0, weight.amax([1], true) / 4093.0 / 2.0);
        let sums = |tensor: &Tensor| tensor.sum_dim_intlist(1, true, Kind::Double);
        sum += &off_x * sums(&weight).tr() + sums(&x) * off_weight.tr() + 64.0 * off_x * off_weight.tr();
    }
    sum
}

/// Rows, columns and depths that fill no block, and numbers of very different sizes.
#[test]
fn fixed_products_are_within_the_bound_of_their_rounding() {
    if !fixed_products_run() {
        return;
    }
    for (rows, depth, outputs) in [(1, 2, 2), (5, 64, 64), (67, 200, 130), (600, 576, 70)] {
        let x = random(&[rows, depth], 1) * (random(&[rows, 1], 2) * 5.0).exp();
        // One number of a block that is far above the others takes precision from them.
        let _ = x.get(0).get(depth / 2).fill_(1e3);
        let weight = fixed(&[outputs, depth], 3);
        let (found, exact) = (linear(&x, &[(&weight, None)], Ending::Rounded), product(&x, &weight));
        let most: Tensor = bound(&x, &weight.value) + exact.abs() * 1e-6;
        let over = ((wide(&found) - &exact).abs() / most).max().double_value(&[]);
        assert!(over <= 1.0, "{rows} × {depth} × {outputs}: {over}");
        // Of bf16 products it is 0.0023.
        let ordinary = (rows > 1 && depth >= 64).then(|| found.narrow(0, 1, rows - 1));
        let error = ordinary.map_or(0.0, |found| relative(&found, &exact.narrow(0, 1, rows - 1)));
        assert!(error < 3e-4, "{rows} × {depth} × {outputs}: relative error {error}");
    }
}

#[test]
fn fixed_sums_do_not_overflow_and_numbers_that_are_none_stay_in_their_row() {
    if !fixed_products_run() {
        return;
    }
    let x = Tensor::ones([4, 128], (Kind::Float, Device::Cpu));
    let ones =
        Weight { value: Tensor::ones([2, 128], (Kind::Float, Device::Cpu)), gradient: None, fixed: true };
    let _ = x.get(1).fill_(-3.0);
    let _ = x.get(2).get(7).fill_(f64::NAN);
    let _ = x.get(3).fill_(0.0);
    let found = numbers(&linear(&x, &[(&ones, None)], Ending::Rounded).select(1, 0));
    assert!((found[0] - 128.0).abs() < 1e-4 && (found[1] + 384.0).abs() < 1e-3, "{found:?}");
    assert!(found[2].is_nan() && found[3] == 0.0, "{found:?}");
    let _ = x.get(2).get(7).fill_(f64::INFINITY);
    let found = numbers(&linear(&x, &[(&ones, None)], Ending::Rounded).select(1, 0));
    assert!(!found[2].is_finite() && found[0].is_finite(), "{found:?}");
}

/// Weights that are whole multiples of something, as those of quantised files are, move by what an update says: were they on
/// the steps, they would not move, and midway between two they would move by half a step, ten times too far.
#[test]
fn small_changes_of_weights_that_are_whole_multiples_are_neither_lost_nor_blown_up() {
    if !fixed_products_run() {
        return;
    }
    // Of 4095 steps one for 63 is whole, and one for 126 lies midway.
    for greatest in [63, 126, 127] {
        tch::manual_seed(4);
        let whole = Tensor::randint_low(-greatest, greatest + 1, [64, 640], (Kind::Float, Device::Cpu));
        let _ = whole.slice(1, 0, None, 64).fill_(greatest as f64);
        let product = |value: Tensor| {
            let x = Tensor::ones([1, 640], (Kind::Float, Device::Cpu));
            linear(&x, &[(&Weight { value, gradient: None, fixed: true }, None)], Ending::Rounded)
        };
        // A twentieth of a step. The greatest number of a block, which sets its scale, stays.
        let change = Tensor::full([64, 640], greatest as f64 / 4093.0 / 20.0, (Kind::Float, Device::Cpu));
        let _ = change.slice(1, 0, None, 64).fill_(0.0);
        let moved = (product(&whole + &change) - product(whole)).mean(Kind::Double).double_value(&[]);
        let share = moved / change.sum_dim_intlist(1, false, Kind::Double).double_value(&[0]);
        // Of so few different weights the steps are not met evenly.
        assert!((share - 1.0).abs() < 0.4, "greatest {greatest}: moved by {share} of the change");
    }
}

/// What becomes of the sums of a fixed product, and that packed matrices give the same numbers.
#[test]
fn fixed_products_go_on_in_f32() {
    if !fixed_products_run() {
        return;
    }
    let x = random(&[37, 96], 1);
    let (gate, up, bias) = (fixed(&[130, 96], 2), fixed(&[130, 96], 3), fixed(&[130], 4));
    let found = gated(&x, &[(&gate, Some(&bias)), (&up, None)]);
    let expected = (product(&x, &gate) + wide(&bias.value)).silu() * product(&x, &up);
    assert!(relative(&found, &expected) < 3e-4, "{}", relative(&found, &expected));

    // Three heads of 8, of which two are rotated.
    let qkv = fixed(&[24, 96], 5);
    let positions = Tensor::arange(37, (Kind::Int64, Device::Cpu));
    let angles = (positions.unsqueeze(1).to_kind(Kind::Float) * 0.1).expand([37, 8], false).contiguous();
    let angles = (angles.cos(), angles.sin());
    let rotation = Rotation { positions: &positions, angles: &angles, heads: 2 };
    let plain = linear(&x, &[(&qkv, None)], Ending::Rounded);
    let found = linear(&x, &[(&qkv, None)], Ending::Rotated(rotation));
    assert!(found.equal(&rotate(&plain.copy(), rotation)));

    let residual = random(&[37, 24], 6);
    let found = linear(&x, &[(&qkv, None)], Ending::Onto(&residual));
    assert!(found.equal(&(&residual + &plain)));

    let pack = |weight: &Weight, bias: Option<&Weight>| {
        Packed::new(weight, bias.map(|bias| bias.value.shallow_clone())).expect("it is fast here")
    };
    let (gate_packed, up_packed, qkv_packed) = (pack(&gate, Some(&bias)), pack(&up, None), pack(&qkv, None));
    assert!(gate_packed.gated(&up_packed, &x).equal(&gated(&x, &[(&gate, Some(&bias)), (&up, None)])));
    for ending in [Ending::Rounded, Ending::Onto(&residual), Ending::Rotated(rotation)] {
        assert!(qkv_packed.linear(&x, ending).equal(&linear(&x, &[(&qkv, None)], ending)));
    }
    // What decoding's attention gives is bf16.
    let narrow = x.to_kind(Kind::BFloat16);
    let found = linear(&narrow, &[(&qkv, None)], Ending::Rounded);
    assert!(relative(&found, &product(&narrow, &qkv)) < 3e-4);
}

/// The gradients of x and of a matrix, of the fixed operators against autograd's in f64.
#[test]
fn fixed_gradients_are_those_of_the_exact_products() {
    if !fixed_products_run() {
        return;
    }
    let x = random(&[37, 96], 1).set_requires_grad(true);
    let trained = |shape: &[i64], seed: i64| Weight {
        gradient: Some(Tensor::zeros(shape, (Kind::Float, Device::Cpu))),
        ..fixed(shape, seed)
    };
    let (gate, up, qkv) = (trained(&[64, 96], 2), trained(&[64, 96], 3), trained(&[24, 96], 5));
    let residual = random(&[37, 24], 6).set_requires_grad(true);
    let positions = Tensor::arange(37, (Kind::Int64, Device::Cpu));
    let angles = (positions.unsqueeze(1).to_kind(Kind::Float) * 0.1).expand([37, 8], false).contiguous();
    let angles = (angles.cos(), angles.sin());
    let rotation = Rotation { positions: &positions, angles: &angles, heads: 2 };

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let (x_exact, gate_exact, up_exact, qkv_exact) =
        (leaf(&x), leaf(&gate.value), leaf(&up.value), leaf(&qkv.value));
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
    let of = |weight: &Weight| weight.gradient.as_ref().expect("it has one").shallow_clone();
    for (name, found, exact) in [
        ("x", x.grad(), x_exact.grad()),
        ("gate", of(&gate), gate_exact.grad()),
        ("up", of(&up), up_exact.grad()),
        ("qkv", of(&qkv), qkv_exact.grad()),
    ] {
        assert!(relative(&found, &exact) < 0.01, "{name}: {}", relative(&found, &exact));
    }
    assert!(residual.grad().equal(&random(&[37, 24], 9)), "what is added to passes its gradient on");
}

/// A prompt of 40 tokens with two branches, heads that share keys, with a window and without: attention of fixed-point numbers
/// and its gradient against that in f32.
#[test]
fn fixed_attention_equals_that_in_f32() {
    if !fixed_products_run() {
        return;
    }
    for (head_dim, window) in [(64, 0), (24, 0), (80, 17)] {
        let shape = AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
            window,
        };
        let layout = [0, 3, 40, 35, 7];
        let factors = random(&[82, 4 * head_dim], 2);
        let [narrow, exact] = [true, false].map(|fixed| {
            let qkv = random(&[82, 8 * head_dim], 1).set_requires_grad(true);
            let found = attention(&qkv, &layout, &shape, fixed);
            (&found * &factors).sum(Kind::Float).backward();
            (found, qkv.grad())
        });
        let (value, gradient) = (relative(&narrow.0, &wide(&exact.0)), relative(&narrow.1, &wide(&exact.1)));
        assert!(value < 3e-4, "head_dim {head_dim}: relative error {value}");
        assert!(gradient < 0.01, "head_dim {head_dim}: relative error {gradient} of the gradient");
    }
}

/// Rows and columns that fill no block, in both ways of multiplying, against libtorch's product in f64.
#[test]
fn packed_products_equal_the_ordinary_ones() {
    for (fixed, tolerance) in [(false, 1e-6), (true, 3e-4)] {
        if fixed && !fixed_products_run() {
            continue;
        }
        let (matrix, bias) =
            (Weight { value: random(&[101, 38], 5), gradient: None, fixed }, random(&[101], 6));
        let Some(packed) = Packed::new(&matrix, Some(bias.shallow_clone())) else {
            println!("skipped: no microkernel here");
            continue;
        };
        for rows in [1, 17, 70, 600] {
            let x = random(&[rows, 38], 7);
            let found = packed.linear(&x, Ending::Rounded);
            let expected = product(&x, &matrix) + wide(&bias);
            let error = relative(&found, &expected);
            assert!(error < tolerance, "fixed {fixed}, {rows} rows: relative error {error}");
            // A row does not depend on its neighbours.
            let alone = packed.linear(&x.narrow(0, rows - 1, 1), Ending::Rounded);
            assert_eq!(alone, found.narrow(0, rows - 1, 1));
        }
    }
}

/// Numbers of bf16 stay what they are; between two of them as many go up as the distance says, and a number that
/// grows never rounds lower. The kernel and libtorch's operators choose the same.
#[test]
fn weights_are_rounded_without_bias() {
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
    let matrix =
        |fixed| Weight { value: Tensor::zeros([4, 7], (Kind::Float, Device::Cpu)), gradient: None, fixed };
    assert!(Packed::new(&matrix(false), None).is_none() && Packed::new(&matrix(true), None).is_none());
}
