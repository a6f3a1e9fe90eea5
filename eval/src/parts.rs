//! Small parts of what comes of an item.

use std::collections::BTreeMap;

use arriero_buffers::{Completion, Drawn, Finish, UnevenSegment};

/// Numbers by name.
pub(crate) fn scores<const N: usize>(scores: [(&str, f64); N]) -> BTreeMap<String, f64> {
    scores.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// 1 or 0.
pub(crate) fn indicator(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A text that the policy did not draw, without its tokens.
pub(crate) fn fixed_completion(text: String) -> Completion {
    Completion::given(0, Vec::new(), text, Finish::EndOfTurn)
}

/// The most probable one of several texts, with its tokens and their log-probabilities, as if it were decoded greedily.
///
/// # Errors
/// If there is not one log-probability a token.
pub(crate) fn chosen(text: String, tokens: Vec<u32>, logps: Vec<f32>) -> Result<Completion, UnevenSegment> {
    let count = tokens.len();
    let drawn = Drawn { logps, sampled_logps: vec![0.0; count], weight_versions: vec![0; count] };
    Completion::drawn(0, tokens, drawn, text, Finish::EndOfTurn)
}
