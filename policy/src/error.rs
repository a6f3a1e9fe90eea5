//! What can go wrong, in words for the person who can mend it.

use std::path::{Path, PathBuf};

/// Everything that this crate refuses. Each message says what was expected, what was found, where, and
/// what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// There is nothing at the model's path.
    #[error(
        "there is no model at {path}; expected a Hugging Face directory (config.json, *.safetensors, \
         tokenizer.json) or a GGUF file"
    )]
    NoModel {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The model that set-up brings is not there.
    #[error("the default model is not at {path}; run `cargo xtask setup`, or name a model yourself")]
    NoDefaultModel {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read: {cause}; put the file there, or make it readable")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {cause}")]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// A file is not what its name says, or ends early.
    #[error("{path} is broken: {cause}; fetch or convert the model again")]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A model that this program does not know how to run.
    #[error("{path}: {found} is not supported; supported: {supported}")]
    Unsupported {
        /// Where it is asked for.
        path: PathBuf,
        /// What is asked for.
        found: String,
        /// What could be asked for.
        supported: String,
    },
    /// A reward model is asked for, and this is none.
    #[error(
        "{path} is a reward model without a value head: it has no {tensor}; train one with kind = \"reward_model\", \
         or name an AutoModelForSequenceClassification of one label"
    )]
    NoScoreHead {
        /// The model.
        path: PathBuf,
        /// The head's name.
        tensor: &'static str,
    },
    /// A language model is asked for, and this is a reward model.
    #[error(
        "{path} is a reward model, which gives scores and no tokens; name the language model here, and this one \
         under [reward] with kind = \"reward_model\""
    )]
    NoVocabularyHead {
        /// The model.
        path: PathBuf,
    },
    /// The tokenizer belongs to another model.
    #[error(
        "the tokenizer of {path} has {tokenizer} tokens, but the model's embedding has {model} rows: they do \
         not belong together; put the model's own tokenizer.json there"
    )]
    WrongTokenizer {
        /// The model.
        path: PathBuf,
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// The tokenizer refuses a text or some ids.
    #[error("the tokenizer failed: {cause}")]
    Tokenizer {
        /// In its own words.
        cause: String,
    },
    /// The chat template refuses a conversation.
    #[error("the model's chat template refuses this conversation: {cause}")]
    Template {
        /// In its own words.
        cause: String,
    },
    /// The chat template cannot be read, whatever the conversation.
    #[error("the model's chat template cannot be read: {cause}")]
    TemplateUnreadable {
        /// The file, the line, and why.
        cause: String,
    },
    /// A forward pass gave numbers that are none.
    #[error(
        "the model's logits are not finite (NaN or infinite), so that no token can be drawn: its weights are broken, or \
         its numbers overflow; check the weights, or compute in f32"
    )]
    LogitsNotFinite,
    /// The machine lacks the device.
    #[error("device {asked} was asked for, but {found}; use device = \"cpu\" or \"auto\" to do without it")]
    NoSuchDevice {
        /// The device.
        asked: String,
        /// What there is instead.
        found: String,
    },
    /// A prompt without a token.
    #[error("prompt {prompt_id} is empty; a prompt needs at least one token")]
    EmptyPrompt {
        /// Which.
        prompt_id: u64,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "prompt {prompt_id} has {tokens} tokens, but the model's context has {limit}, and an answer needs room \
         as well; shorten it or leave it out"
    )]
    PromptTooLong {
        /// Which.
        prompt_id: u64,
        /// Its length.
        tokens: usize,
        /// The context.
        limit: usize,
    },
    /// A request with an option out of its range.
    #[error("{message}")]
    WrongRequest {
        /// The option, its value and its range.
        message: String,
    },
    /// A prompt with its response exceeds the context.
    #[error(
        "prompt {prompt_id} with its response has {tokens} tokens, but the model's context has {limit}; \
             lower max_new_tokens, or shorten the prompt"
    )]
    SequenceTooLong {
        /// Which.
        prompt_id: u64,
        /// The length of both.
        tokens: usize,
        /// The context.
        limit: usize,
    },
    /// Weights that lack a tensor.
    #[error("the weights lack the tensor {name}")]
    MissingTensor {
        /// Its Hugging Face name.
        name: String,
    },
    /// A tensor that does not fit the configuration.
    #[error("the tensor {name} has the shape {found:?}, but the configuration says {expected:?}")]
    WrongShape {
        /// Its Hugging Face name.
        name: String,
        /// What the configuration says.
        expected: Vec<i64>,
        /// What was found.
        found: Vec<i64>,
    },
    /// A target of adapters that the model lacks.
    #[error("lora.target_modules names \"{asked}\", which is no linear layer of this model; known: {known}")]
    UnknownModule {
        /// What was asked for.
        asked: String,
        /// What could be asked for.
        known: String,
    },
    /// An adapter of another base model.
    #[error("{place} does not fit this model: {cause}; use it with the base model that it was trained on")]
    WrongAdapter {
        /// Which adapter.
        place: String,
        /// What was expected, and what was found.
        cause: String,
    },
    /// A teacher whose next-token distributions are over other tokens than the policy's.
    #[error(
        "the teacher {teacher} has another vocabulary than the policy: {cause}; distillation compares what both say of \
         the same tokens, so name a model of the policy's family"
    )]
    WrongTeacher {
        /// Its path.
        teacher: String,
        /// What was expected, and what was found.
        cause: String,
    },
    /// A trainer of an objective that compares the policy with a teacher was given none.
    #[error("the objective compares the policy with a teacher, and there is none; give the trainer one")]
    NoTeacher,
    /// A model that has no mean with others.
    #[error("{name} cannot be averaged with the others: {cause}; average models of one shape and vocabulary")]
    CannotAverage {
        /// Which.
        name: String,
        /// What was expected, and what was found.
        cause: String,
    },
    /// Weights of another version than the one asked for.
    #[error("weights of version {asked} were asked for, but version {held} is held")]
    WrongVersion {
        /// What was asked for.
        asked: u32,
        /// What there is.
        held: u32,
    },
    /// No memory for keys and values.
    #[error("no memory for {mebibytes} MiB of keys and values; lower batch, samples or max_new_tokens")]
    CacheTooLarge {
        /// What was asked of the system.
        mebibytes: usize,
    },
    /// A request that would need more than the whole cache.
    #[error(
        "{sequences} sequences of up to {tokens} tokens need {needed} MiB of keys and values, and the cache may have \
         {limit} MiB; raise cache_memory where it is set, lower samples or max_new_tokens, or free memory"
    )]
    CacheTooSmall {
        /// Samples of the request.
        sequences: usize,
        /// The most tokens that each can have.
        tokens: usize,
        /// What they need, in MiB.
        needed: usize,
        /// What there is, in MiB.
        limit: usize,
    },
    /// A tree that does not fit a forward and backward pass.
    #[error(
        "prompt {prompt_id} and its responses have {tokens} tokens, more than the {budget} that may go through the \
         model at once; raise activation_memory (or micro_batch_tokens, where it is set), set \
         activation_checkpointing = true, or lower samples or max_new_tokens"
    )]
    TreeOverBudget {
        /// Which.
        prompt_id: u64,
        /// Its size.
        tokens: usize,
        /// The budget.
        budget: usize,
    },
    /// An objective wants a reference in the step, and the trainer has none.
    #[error(
        "the objective wants a reference in every step, and the trainer was given none; see Trainer::with_reference"
    )]
    NoReference,
    /// A share of a batch for an objective that couples the batch's trees.
    #[error(
        "the objective compares all {batch} trees of a batch with one another, and was given {trees} of them; give them to \
         one learner"
    )]
    CoupledBatch {
        /// What was given.
        trees: usize,
        /// The whole.
        batch: usize,
    },
    /// What was kept of a training does not belong to the one that is to go on.
    #[error(
        "the training's state cannot be resumed: {cause}; resume it with the options that it was written under, or resume an \
         earlier one"
    )]
    WrongState {
        /// What was expected, and what was found.
        cause: String,
    },
    /// A number overflowed or was never one.
    #[error(
        "the {what} is not finite because of {}; no weight was changed. A lower learning_rate or dtype = \"f32\" may \
         help, or leaving these out",
        listed(sequences)
    )]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Where it comes from: the numbers of a prompt and of one of its responses each.
        sequences: Vec<(u64, u32)>,
    },
}

/// Sequences that an error names one by one.
const NAMED: usize = 16;

/// `prompt 3 (response 0), prompt 8 (response 1), …`.
fn listed(sequences: &[(u64, u32)]) -> String {
    let named = sequences.iter().take(NAMED);
    let named: Vec<String> =
        named.map(|(prompt, response)| format!("prompt {prompt} (response {response})")).collect();
    match sequences.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

impl PolicyError {
    pub(crate) fn broken(path: &Path, cause: impl ToString) -> Self {
        PolicyError::Broken { path: path.to_path_buf(), cause: cause.to_string() }
    }

    pub(crate) fn unsupported(path: &Path, found: impl Into<String>, supported: impl Into<String>) -> Self {
        PolicyError::Unsupported {
            path: path.to_path_buf(),
            found: found.into(),
            supported: supported.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, PolicyError>;
