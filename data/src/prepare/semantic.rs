//! Embeddings: duplicates in meaning, and the nearest topic.

/// The cosine of two vectors of unit length.
fn cosine(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// For each vector of unit length: the earlier one, in `order`, that is kept and at least as similar as `threshold`.
/// Only vectors of one group are compared. Time grows with the square of a group.
pub(super) fn duplicates(
    embeddings: &[Vec<f32>],
    groups: &[usize],
    order: &[usize],
    threshold: f64,
) -> Vec<Option<usize>> {
    let mut duplicate_of = vec![None; embeddings.len()];
    let mut kept: std::collections::BTreeMap<usize, Vec<usize>> = std::collections::BTreeMap::new();
    for &number in order {
        let kept = kept.entry(groups[number]).or_default();
        let like = kept
            .iter()
            .find(|&&other| f64::from(cosine(&embeddings[number], &embeddings[other])) >= threshold);
        match like {
            Some(&other) => duplicate_of[number] = Some(other),
            None => kept.push(number),
        }
    }
    duplicate_of
}

/// The most similar of several vectors.
pub(super) fn nearest(vector: &[f32], among: &[Vec<f32>]) -> Option<usize> {
    (0..among.len()).reduce(|best, other| {
        if cosine(vector, &among[other]) > cosine(vector, &among[best]) { other } else { best }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_first_drops_what_is_like_it() {
        let unit = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
        let embeddings = [unit(0.0), unit(20.0), unit(40.0), unit(41.0)];
        // cos 20° = 0.94, cos 40° = 0.77.
        let same = |order: &[usize], groups: &[usize]| duplicates(&embeddings, groups, order, 0.9);
        assert_eq!(same(&[0, 1, 2, 3], &[0; 4]), [None, Some(0), None, Some(2)]);
        // Whoever comes first is kept.
        assert_eq!(same(&[1, 0, 2, 3], &[0; 4]), [Some(1), None, Some(1), Some(1)]);
        assert_eq!(same(&[0, 1, 2, 3], &[0, 1, 0, 1]), [None, None, None, Some(1)]);
        assert_eq!(nearest(&unit(30.0), &[unit(0.0), unit(35.0)]), Some(1));
        assert_eq!(nearest(&unit(30.0), &[]), None);
    }
}
