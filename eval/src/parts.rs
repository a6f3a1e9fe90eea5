//! Small parts of what comes of an item.

use std::collections::BTreeMap;

use arriero_buffers::Completion;

/// Numbers by name.
pub(crate) fn scores<const N: usize>(scores: [(&str, f64); N]) -> BTreeMap<String, f64> {
    scores.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// 1 or 0.
pub(crate) fn number(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A completion that nothing drew: a choice, a text.
pub(crate) fn given(text: String, tokens: Vec<u32>, logps: Vec<f32>) -> Completion {
    Completion {
        sample: 0,
        sampled_logps: vec![0.0; logps.len()],
        weight_versions: vec![0; logps.len()],
        tokens,
        logps,
        text,
        finish: arriero_buffers::Finish::EndOfTurn,
    }
}
