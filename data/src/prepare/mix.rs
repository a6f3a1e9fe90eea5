//! How many times each row is written.

use crate::error::DataError;

/// How many rows each source gives, of `available` ones each, by weights. Without weights, and without a number of rows,
/// each gives all.
pub(super) fn quotas(
    available: &[usize],
    weights: Option<&[f64]>,
    rows: Option<usize>,
) -> Result<Vec<usize>, DataError> {
    let Some(weights) = weights else {
        let Some(rows) = rows else { return Ok(available.to_vec()) };
        let shares: Vec<f64> = available.iter().map(|&count| count as f64).collect();
        return Ok(apportion(&shares, rows));
    };
    if let Some(empty) = available.iter().position(|&count| count == 0) {
        return Err(DataError::Config(format!(
            "nothing is left of source number {}, which has a weight",
            empty + 1
        )));
    }
    let sum: f64 = weights.iter().sum();
    let without_repeats = || {
        let most = available.iter().zip(weights).map(|(&count, weight)| count as f64 * sum / weight);
        most.fold(f64::INFINITY, f64::min) as usize
    };
    Ok(apportion(weights, rows.unwrap_or_else(without_repeats)))
}

/// Parts `rows` by shares, by largest remainders (Hare and Niemeyer). Ties go to the first.
fn apportion(shares: &[f64], rows: usize) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    if sum == 0.0 {
        return vec![0; shares.len()];
    }
    let exact: Vec<f64> = shares.iter().map(|share| share / sum * rows as f64).collect();
    let mut parts: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&one, &other| exact[other].fract().total_cmp(&exact[one].fract()));
    let missing = rows.saturating_sub(parts.iter().sum());
    for &part in order.iter().take(missing) {
        parts[part] += 1;
    }
    parts
}

/// How often each of a source's rows is written, so that there are `quota` in all. There are whole passes, then a part
/// of one, with the rows that come first in `order`.
pub(super) fn copies(order: &[usize], quota: usize) -> Vec<usize> {
    let count = order.len().max(1);
    let mut copies = vec![quota / count; order.len()];
    for &row in order.iter().take(quota % count) {
        copies[row] += 1;
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_decide_how_many_rows_are_written() {
        let of = |weights: Option<&[f64]>, rows| quotas(&[100, 40], weights, rows).expect("rows");
        assert_eq!(of(None, None), [100, 40]);
        assert_eq!(of(None, Some(7)), [5, 2]);
        // 1:1 without repeats: the shorter one decides.
        assert_eq!(of(Some(&[1.0, 1.0]), None), [40, 40]);
        assert_eq!(of(Some(&[3.0, 1.0]), None), [100, 33]);
        assert_eq!(of(Some(&[1.0, 3.0]), Some(400)), [100, 300]);
        assert!(quotas(&[1, 0], Some(&[1.0, 1.0]), None).is_err());
        assert_eq!(copies(&[2, 0, 1], 4), [1, 1, 2]);
        assert_eq!(copies(&[2, 0, 1], 2), [1, 0, 1]);
        assert_eq!(copies(&[], 0), Vec::<usize>::new());
    }
}
