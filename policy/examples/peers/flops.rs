//! The useful arithmetic of a step: that of its matrix products, each counted once however often it is computed.

use arriero_buffers::Tree;
use arriero_policy::config::ModelConfig;

/// Floating-point operations of one forward pass over packed trees.
///
/// A weight costs two a token; the output matrix only where a response token is predicted; attention's two products
/// only where a token sees another. A backward pass costs twice as much.
pub fn forward(config: &ModelConfig, trees: &[Tree]) -> f64 {
    let size = |shape: &[i64]| shape.iter().product::<i64>() as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let layers: f64 = config
        .tensor_shapes()
        .iter()
        .filter(|(name, _)| name.starts_with("model.layers."))
        .map(|(_, shape)| size(shape))
        .sum();
    let attention = (4 * config.num_layers * config.num_heads * config.head_dim) as f64;
    let tree = |tree: &Tree| {
        let prompt = tree.prompt.len() as f64;
        let mut tokens = prompt;
        let mut seen = prompt * (prompt + 1.0) / 2.0;
        for branch in &tree.branches {
            // The last token of a response is a target and no input.
            let inputs = branch.tokens.len() as f64 - 1.0;
            tokens += inputs;
            seen += inputs * prompt + inputs * (inputs + 1.0) / 2.0;
        }
        2.0 * layers * tokens + 2.0 * head * tree.loss_tokens() as f64 + attention * seen
    };
    trees.iter().map(tree).sum()
}
