//! The kinds of suites: from a row to what the model is asked, and from its answer to an outcome.
//!
//! - [`rewarded`]: answers that a scorer judges: IFEval, GSM8K;
//! - [`choice`]: questions with choices, by log-probability: ARC, HellaSwag, MMLU (`formats`);
//! - [`perplexity`]: texts and conversations;
//! - [`winrate`]: answers against another's;
//! - [`preference`]: pairs under a reward model.

pub(crate) mod choice;
pub(crate) mod formats;
pub(crate) mod perplexity;
pub(crate) mod preference;
pub(crate) mod rewarded;
pub(crate) mod winrate;

use arriero_buffers::{Completion, Group, Tree};
use arriero_policy::reward_model::Conversations;
use arriero_policy::tokenizer::Tokenizer;
use arriero_reward::RewardError;
use serde_json::{Map, Value};

use crate::config::{Kind, SuiteConfig};
use crate::error::EvalError;
use crate::question::{PromptFormat, Question};
use arriero_results::Figure;
use arriero_results::Outcome;

/// A row of a suite's file.
pub(crate) type Fields = Map<String, Value>;

/// What is done with an item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Task {
    /// The model answers.
    Answer {
        /// What it is asked.
        question: Question,
        /// What scorers check.
        checks: Value,
    },
    /// The model says how probable the branches of these trees are.
    Score(Vec<Tree>),
    /// The reward model scores these conversations.
    Rank(Conversations),
}

/// What a model says of an item.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply<'a> {
    /// Its answers.
    Answers(&'a Group),
    /// Log-probabilities of the tokens that carry loss, of each branch of each tree.
    Logps(&'a [Vec<f32>]),
    /// Scores of the conversations.
    Scores(&'a [f32]),
}

/// A kind of suite at work.
pub(crate) trait Suite: Send {
    /// Takes a row for an example, which stands before the questions.
    ///
    /// # Errors
    /// With a sentence that says what is wrong with the row.
    fn example(&mut self, _fields: &Fields) -> Result<(), String> {
        Err("this suite has no examples".to_string())
    }

    /// What is to be done with a row. `id` is its number among the items.
    ///
    /// # Errors
    /// As [`Suite::example`].
    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String>;

    /// Takes the answer of the opponent: the model that this one is compared with.
    fn opponent_answer(&mut self, _id: u64, _completion: Completion) {}

    /// Gets the answers that are graded next. For suites that would rather have several at once.
    fn prefetch(&mut self, _groups: &[Group]) {}

    /// What came of an item. Its place is filled in by the caller.
    ///
    /// # Errors
    /// With a sentence that says why it cannot be graded.
    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String>;

    /// The figures of the outcomes.
    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure>;
}

/// What suites know of the model that they ask.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its context, in tokens.
    pub max_positions: usize,
}

/// The suite of a configuration that is valid.
pub(crate) fn build(config: &SuiteConfig, context: &Context) -> Result<Box<dyn Suite>, EvalError> {
    let wrong = |message: String| EvalError::Config { suite: config.name().to_string(), message };
    let refused = |cause: RewardError| EvalError::Reward { suite: config.name().to_string(), cause };
    let has_template = context.tokenizer.chat_template().is_some();
    let chat = config.chat.unwrap_or(has_template && config.kind.is_generated());
    if chat && !has_template {
        return Err(wrong("chat is true, but the model has no chat template".to_string()));
    }
    if config.system.is_some() && !chat {
        return Err(wrong(
            "system is given, but nothing goes through the chat template; set chat=true".to_string(),
        ));
    }
    let format = PromptFormat { chat, system: config.system.clone() };
    Ok(match config.kind {
        Kind::Ifeval => Box::new(rewarded::Rewarded::ifeval(config, format).map_err(refused)?),
        Kind::Gsm8k => Box::new(rewarded::Rewarded::gsm8k(config, format).map_err(refused)?),
        Kind::Humaneval => Box::new(rewarded::Rewarded::humaneval(config, format).map_err(refused)?),
        Kind::Arc | Kind::Hellaswag | Kind::Mmlu => {
            Box::new(choice::Choice::new(config.kind, format, context.clone()))
        }
        Kind::Perplexity => Box::new(perplexity::Perplexity::new(config, context.clone()).map_err(wrong)?),
        Kind::Winrate => Box::new(winrate::Winrate::new(config, format).map_err(refused)?),
        Kind::Preference => Box::new(preference::Preference::new(config, context.clone())),
    })
}

/// What ends an answer where no chat template says so and the options do not.
pub(crate) fn stops(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Gsm8k => &["Question:"],
        // As in the paper: what can only begin something else.
        Kind::Humaneval => &["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        _ => &[],
    }
}
