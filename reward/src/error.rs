//! What can go wrong.

/// Bytes of foreign text in an error message.
const QUOTED: usize = 300;

/// Why a completion could not be scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewardError {
    /// An option of the scorer is out of its range.
    #[error("the reward's configuration is not valid: {0}")]
    Config(String),
    /// The prompt's `checks` are not what the scorer expects.
    #[error(
        "prompt {prompt}: its `checks` cannot be read: {cause}; \
         write them as {{\"constraints\": [{{\"kind\": \"no_comma\"}}]}}"
    )]
    Checks {
        /// [`Prompt::id`](arriero_buffers::Prompt::id).
        prompt: u64,
        /// What is wrong with them.
        cause: String,
    },
    /// The prompt has nothing to check, so that every completion would score the same.
    #[error(
        "prompt {0} has no constraints to score: give its `checks` at least one, as in \
         {{\"constraints\": [{{\"kind\": \"no_comma\"}}]}}, or choose another reward"
    )]
    NoConstraints(u64),
    /// A member of the prompt's `checks` that the reward needs is not there.
    #[error("prompt {prompt} has no `{name}` to score by: give its `checks` one, as in {example}")]
    MissingCheck {
        /// [`Prompt::id`](arriero_buffers::Prompt::id).
        prompt: u64,
        /// The member.
        name: &'static str,
        /// How `checks` look with it.
        example: &'static str,
    },
    /// A member of the prompt's `checks` is not what the reward needs.
    #[error("prompt {prompt}: `{name}` of its `checks` is wrong: {cause}")]
    Check {
        /// [`Prompt::id`](arriero_buffers::Prompt::id).
        prompt: u64,
        /// The member.
        name: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The scorer was asked to stop while it waited for others.
    #[error("scoring was interrupted")]
    Interrupted,
    /// A program could not be run, for a reason that is not its own.
    #[error(transparent)]
    Sandbox(#[from] arriero_sandbox::SandboxError),
    /// A completion lacks what the reward measures, or whoever was asked about it gave no reward.
    #[error("prompt {prompt}, sample {sample}: {cause}")]
    Completion {
        /// [`Prompt::id`](arriero_buffers::Prompt::id).
        prompt: u64,
        /// [`Completion::sample`](arriero_buffers::Completion::sample).
        sample: u32,
        /// What it lacks, or what went wrong.
        cause: String,
    },
}

impl RewardError {
    /// What it says of a row of a file, whose line is named by the caller.
    pub(crate) fn of_row(&self) -> String {
        match self {
            RewardError::Config(_) | RewardError::Interrupted | RewardError::Sandbox(_) => self.to_string(),
            RewardError::Checks { cause, .. } => format!("what is to be checked cannot be read: {cause}"),
            RewardError::NoConstraints(_) => {
                "no `constraints`; give it some, as in {\"constraints\": [{\"kind\": \"no_comma\"}]}"
                    .to_string()
            }
            RewardError::MissingCheck { name, example, .. } => {
                format!("no `{name}`; give it one, as in {example}")
            }
            RewardError::Check { name, cause, .. } => format!("`{name}` is wrong: {cause}"),
            RewardError::Completion { cause, .. } => cause.clone(),
        }
    }
}

/// The beginning of a foreign text, on one line.
pub(crate) fn quoted(text: &str) -> String {
    if text.len() <= QUOTED {
        return format!("{text:?}");
    }
    let end = (0..=QUOTED).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{:?}… ({} bytes)", &text[..end], text.len())
}
