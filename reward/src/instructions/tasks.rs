//! What is asked of a topic. Every task wants a short answer.

use crate::constraint::Constraint;

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    /// The request; `{}` stands for the topic.
    pub(super) text: &'static str,
    /// True if the request says how long the answer is, so that no constraint may say otherwise.
    fixed_length: bool,
}

const fn fixed(text: &'static str) -> Task {
    Task { text, fixed_length: true }
}

const fn free(text: &'static str) -> Task {
    Task { text, fixed_length: false }
}

/// Every task.
pub(super) const TASKS: &[Task] = &[
    fixed("Write one or two sentences about {}."),
    fixed("Write a slogan about {}."),
    fixed("Write a tweet about {}."),
    fixed("In one sentence, say what you know about {}."),
    fixed("Write a one-line joke about {}."),
    fixed("Give one fact about {}."),
    fixed("Write a caption for a picture about {}."),
    fixed("Write a text message to a friend about {}."),
    free("Explain {} to a child in simple words."),
    free("Tell me why some people like {}."),
    free("Give a short tip about {}."),
    free("Briefly describe {}."),
    free("What should a beginner know about {}? Keep it short."),
    free("Write a short note about {}."),
    free("What comes to your mind when you hear of {}? Answer briefly."),
    free("Write a brief introduction to {}."),
    free("Write a short diary entry about {}."),
    free("Give a short opinion about {}."),
    free("Write a short advertisement about {}."),
    free("Tell a very short story about {}."),
];

impl Task {
    /// True if the answer can have the constraint's shape.
    fn admits(self, constraint: &Constraint) -> bool {
        let shapes = matches!(
            constraint,
            Constraint::Sentences { .. }
                | Constraint::MinWords { .. }
                | Constraint::Paragraphs { .. }
                | Constraint::Bullets { .. }
                | Constraint::NumberedList { .. }
                | Constraint::Json {}
                | Constraint::Title {}
                | Constraint::Postscript {}
        );
        !(self.fixed_length && shapes)
    }
}

/// The tasks that leave room for all the constraints. Never empty.
pub(super) fn admitting(constraints: &[Constraint]) -> Vec<Task> {
    let admits = |task: &&Task| constraints.iter().all(|constraint| task.admits(constraint));
    TASKS.iter().filter(admits).copied().collect()
}
