//! What reading answers and writing them alike have in common.

use regex::Regex;

pub(super) fn literal(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of ours compiles")
}

/// How long the text is up to the brace that closes the one before it; `None` without one.
pub(super) fn balanced(inside: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut escaped = false;
    for (index, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(index),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}
