//! A question: what a model is asked, as text and as tokens.

use arriero_buffers::{Branch, Message, Role, Tree};
use arriero_policy::PolicyError;
use arriero_policy::tokenizer::Tokenizer;

/// What a model is asked, before it is tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    /// The assistant is to answer.
    Chat(Vec<Message>),
    /// The text is to be continued as it stands.
    Text(String),
}

impl Question {
    /// As a person would read it.
    pub fn shown(&self) -> String {
        match self {
            Question::Text(text) => text.clone(),
            Question::Chat(messages) => {
                let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
                contents.join("\n")
            }
        }
    }

    /// The conversation that an answer continues.
    pub fn messages(&self) -> Vec<Message> {
        match self {
            Question::Chat(messages) => messages.clone(),
            Question::Text(text) => vec![Message::user(text.as_str())],
        }
    }

    /// The tokens that the model goes on from.
    ///
    /// # Errors
    /// If the chat template refuses the conversation.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, PolicyError> {
        match self {
            Question::Chat(messages) => tokenizer.prompt_tokens(messages),
            Question::Text(text) => tokenizer.text_tokens(text),
        }
    }

    /// The question with its choices, as one tree. A choice's tokens are those that the text with it has more than the
    /// question alone. `delimiter` stands between the two, and belongs to the choice.
    ///
    /// # Errors
    /// As [`Question::tokens`], or if a choice is empty.
    pub fn tree(
        &self,
        id: u64,
        tokenizer: &Tokenizer,
        delimiter: &str,
        choices: &[String],
    ) -> Result<Tree, PolicyError> {
        let (text, is_rendered) = match self {
            Question::Text(text) => (text.clone(), false),
            Question::Chat(messages) => (tokenizer.render(messages)?, tokenizer.chat_template().is_some()),
        };
        let encode = |text: &str| match is_rendered {
            true => tokenizer.encode(text),
            false => tokenizer.text_tokens(text),
        };
        let question = encode(&text)?;
        let wholes: Vec<Vec<u32>> = choices
            .iter()
            .map(|choice| encode(&format!("{text}{delimiter}{choice}")))
            .collect::<Result<_, _>>()?;
        Ok(tree(id, &question, &wholes, first_token(tokenizer)))
    }
}

/// The token before the first one of a text: the one that begins a text, or, where the vocabulary has none, the one
/// that ends a text.
pub(crate) fn first_token(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos_id().or_else(|| tokenizer.eos_id())
}

/// The wholes as branches off what they share with the question. A tokenizer may merge the question's end with a
/// choice's beginning. As in lm-evaluation-harness, the question then ends after as many tokens as it has alone. Those
/// of them that stand in a branch carry no loss. The last token of a branch always does.
fn tree(id: u64, question: &[u32], wholes: &[Vec<u32>], first: Option<u32>) -> Tree {
    let shared = |whole: &Vec<u32>| question.iter().zip(whole).take_while(|(a, b)| a == b).count();
    let shortest = wholes.iter().map(|whole| whole.len().saturating_sub(1)).min().unwrap_or(0);
    let shared = wholes.iter().map(shared).min().unwrap_or(0).min(shortest);
    // Something must stand before what is predicted.
    let prompt: Vec<u32> = match shared {
        0 => first.into_iter().collect(),
        shared => question[..shared].to_vec(),
    };
    let branch = |(sample, whole): (usize, &Vec<u32>)| {
        let tokens = whole[shared..].to_vec();
        let context = (question.len() - shared).min(tokens.len().saturating_sub(1));
        let is_context = match context {
            0 => Vec::new(),
            context => (0..tokens.len()).map(|index| index < context).collect(),
        };
        Branch { sample: sample as u32, tokens, is_context, ..Branch::default() }
    };
    Tree {
        prompt_id: id,
        prompt,
        branches: wholes.iter().enumerate().map(branch).collect(),
        ..Tree::default()
    }
}

/// How a suite's items become questions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PromptFormat {
    /// Whether through the chat template.
    pub chat: bool,
    /// Standing instructions.
    pub system: Option<String>,
}

impl PromptFormat {
    /// A conversation with the standing instructions before it, or the text of its one message.
    ///
    /// # Errors
    /// If there are several messages and no chat template.
    pub fn question(&self, messages: &[Message]) -> Result<Question, String> {
        if self.chat {
            let has_system = messages.first().is_some_and(|first| first.role == Role::System);
            let system = self.system.iter().filter(|_| !has_system);
            let system = system.map(|text| Message::new(Role::System, text.as_str()));
            return Ok(Question::Chat(system.chain(messages.iter().cloned()).collect()));
        }
        match messages {
            [only] => Ok(Question::Text(only.content.clone())),
            _ => Err(format!(
                "without a chat template a prompt must be one message, and this one has {}; set chat=true, or leave \
                 such rows out",
                messages.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_branch_off_what_they_share() {
        let tree = |question: &[u32], wholes: &[&[u32]]| {
            let wholes: Vec<Vec<u32>> = wholes.iter().map(|whole| whole.to_vec()).collect();
            let tree = super::tree(7, question, &wholes, Some(0));
            let branches: Vec<(Vec<u32>, Vec<bool>)> =
                tree.branches.into_iter().map(|branch| (branch.tokens, branch.is_context)).collect();
            (tree.prompt, branches)
        };
        assert_eq!(
            tree(&[1, 2], &[&[1, 2, 3], &[1, 2, 4, 5]]),
            (vec![1, 2], vec![(vec![3], vec![]), (vec![4, 5], vec![])])
        );
        // The second choice merges with the question's end. Only tokens past the question's number of tokens count.
        assert_eq!(
            tree(&[1, 2], &[&[1, 2, 3], &[1, 9, 5]]),
            (vec![1], vec![(vec![2, 3], vec![true, false]), (vec![9, 5], vec![true, false])])
        );
        // A choice that merges wholly still counts by its last token.
        assert_eq!(tree(&[1, 2], &[&[1, 9]]), (vec![1], vec![(vec![9], vec![])]));
        assert_eq!(tree(&[], &[&[5, 6]]), (vec![0], vec![(vec![5, 6], vec![])]));
    }

    #[test]
    fn a_text_is_one_message() {
        let plain = PromptFormat { chat: false, system: None };
        let messages = [Message::user("a"), Message::assistant("b")];
        assert_eq!(plain.question(&messages[..1]), Ok(Question::Text("a".into())));
        assert!(plain.question(&messages).is_err());
        let chat = PromptFormat { chat: true, system: Some("s".into()) };
        let Ok(Question::Chat(asked)) = chat.question(&messages[..1]) else { panic!("a conversation") };
        assert_eq!((asked.len(), asked[0].role), (2, Role::System));
    }
}
