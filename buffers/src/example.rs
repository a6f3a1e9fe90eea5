//! Rows of a dataset in place of samples: what a selection rule sees of a row, and what it learns from it.

use crate::prompt::Message;
use crate::tree::{Branch, Tree};

/// What a row of a dataset holds beside its prompt: TRL's dataset types, as far as a rule tells them apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowContent<'a> {
    /// The answer to a prompt.
    Completion(&'a [Message]),
    /// Two answers to a prompt, of which people preferred one.
    Preference {
        /// The better answer.
        chosen: &'a [Message],
        /// The worse one.
        rejected: &'a [Message],
        /// The better answer as an annotator has mended it.
        edited: Option<&'a [Message]>,
    },
    /// An answer to a prompt that is good or bad.
    Unpaired {
        /// The answer.
        completion: &'a [Message],
        /// True for a good one.
        label: bool,
    },
    /// A whole conversation.
    Conversation(&'a [Message]),
    /// A text.
    Text(&'a str),
}

impl RowContent<'static> {
    /// A row of each type, without words.
    pub const TYPES: [Self; 5] = [
        RowContent::Completion(&[]),
        RowContent::Preference { chosen: &[], rejected: &[], edited: None },
        RowContent::Unpaired { completion: &[], label: true },
        RowContent::Conversation(&[]),
        RowContent::Text(""),
    ];
}

/// What a rule learns from a row.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainingExample<'a> {
    /// Responses to the row's prompt, each with its reward. Of a preference the better ones come first.
    Responses(Vec<(&'a [Message], f32)>),
    /// A whole conversation.
    Conversation(&'a [Message]),
    /// A text.
    Text(&'a str),
    /// Nothing, for this reason (a metric's name: snake case).
    Nothing(&'static str),
}

impl TrainingExample<'_> {
    /// A tree without tokens, for an objective to look at before anything heavy loads. `None` if there is nothing to learn.
    pub fn outline(&self) -> Option<Tree> {
        let rewards: Vec<f32> = match self {
            TrainingExample::Responses(responses) => responses.iter().map(|(_, reward)| *reward).collect(),
            TrainingExample::Conversation(_) | TrainingExample::Text(_) => vec![1.0],
            TrainingExample::Nothing(_) => return None,
        };
        let branch = |reward: f32| Branch { reward, ..Branch::default() };
        Some(Tree { branches: rewards.into_iter().map(branch).collect(), ..Tree::default() })
    }
}
