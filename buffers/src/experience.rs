//! What comes back from the policy and from the scorers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::prompt::{Prompt, Role};

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave an end-of-turn token, which is the last of the completion's tokens.
    EndOfTurn,
    /// A stop string came. The completion's tokens include it; its text ends before it.
    Stop,
    /// The token limit was reached.
    Length,
}

/// A stretch of a trajectory that one speaker is responsible for.
///
/// Where the policy drew the tokens, each vector of their provenance has one entry a token. [`Segment::drawn`],
/// [`Completion::push`] and deserialisation see to that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedSegment")]
pub struct Segment {
    /// Who speaks.
    pub role: Role,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Where the tokens came from, if the policy drew them. `None` where they were inserted (a tool's result, a
    /// user's turn), or came from a file.
    pub drawn: Option<Drawn>,
}

/// The provenance of tokens that the policy drew. Each vector has one entry a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// Log-probability (nats) under the untempered, untruncated model.
    pub logps: Vec<f32>,
    /// Log-probability (nats) under the distribution that was sampled from (after temperature,
    /// top-k, top-p and min-p). 0 for greedy decoding.
    pub sampled_logps: Vec<f32>,
    /// Version of the weights that gave the token.
    pub weight_versions: Vec<u32>,
}

/// A segment whose provenance does not have one entry a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a segment of {tokens} tokens has {found} {field}, expected one a token")]
pub struct UnevenSegment {
    /// The tokens of the segment.
    pub tokens: usize,
    /// The vector of [`Drawn`] that has another length.
    pub field: &'static str,
    /// Its length.
    pub found: usize,
}

/// A segment as it is read, before its lengths are checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedSegment {
    role: Role,
    tokens: Vec<u32>,
    drawn: Option<Drawn>,
}

impl TryFrom<UncheckedSegment> for Segment {
    type Error = UnevenSegment;

    fn try_from(unchecked: UncheckedSegment) -> Result<Self, UnevenSegment> {
        let UncheckedSegment { role, tokens, drawn } = unchecked;
        let Some(drawn) = drawn else { return Ok(Segment::inserted(role, tokens)) };
        Ok(Segment { role, ..Segment::drawn(tokens, drawn)? })
    }
}

impl Segment {
    /// A turn of the policy, or a part of one, that it drew.
    ///
    /// # Errors
    /// If the provenance does not have one entry a token.
    pub fn drawn(tokens: Vec<u32>, drawn: Drawn) -> Result<Self, UnevenSegment> {
        let lengths = [
            ("logps", drawn.logps.len()),
            ("sampled_logps", drawn.sampled_logps.len()),
            ("weight_versions", drawn.weight_versions.len()),
        ];
        match lengths.into_iter().find(|&(_, found)| found != tokens.len()) {
            Some((field, found)) => Err(UnevenSegment { tokens: tokens.len(), field, found }),
            None => Ok(Segment { role: Role::Assistant, tokens, drawn: Some(drawn) }),
        }
    }

    /// Tokens that the policy did not draw.
    pub fn inserted(role: Role, tokens: Vec<u32>) -> Self {
        Segment { role, tokens, drawn: None }
    }
}

/// One continuation of a prompt: the turns of the policy, and what was inserted between them.
///
/// A completion of a single turn is one segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Which of the prompt's samples this is, from 0; it keys the random numbers.
    pub sample: u32,
    /// Its tokens in their order, the end-of-turn tokens included where the model gave them.
    pub segments: Vec<Segment>,
    /// The text, without special tokens.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

impl Completion {
    /// A completion without tokens yet: see [`Completion::push`].
    pub fn empty(sample: u32) -> Self {
        Completion { sample, segments: Vec::new(), text: String::new(), finish: Finish::Length }
    }

    /// A single turn that the policy drew.
    ///
    /// # Errors
    /// If the provenance does not have one entry a token.
    pub fn drawn(
        sample: u32,
        tokens: Vec<u32>,
        drawn: Drawn,
        text: impl Into<String>,
        finish: Finish,
    ) -> Result<Self, UnevenSegment> {
        Ok(Completion { sample, segments: vec![Segment::drawn(tokens, drawn)?], text: text.into(), finish })
    }

    /// An answer of unknown provenance, such as a row of a file. It may have no tokens.
    pub fn given(sample: u32, tokens: Vec<u32>, text: impl Into<String>, finish: Finish) -> Self {
        let segments = match tokens.is_empty() {
            true => Vec::new(),
            false => vec![Segment::inserted(Role::Assistant, tokens)],
        };
        Completion { sample, segments, text: text.into(), finish }
    }

    /// Adds a token that the policy drew. It goes to the last segment, or to a new one if others spoke last. The
    /// arguments are those of [`Drawn`].
    pub fn push(&mut self, token: u32, logp: f32, sampled_logp: f32, weight_version: u32) {
        if self.segments.last().is_none_or(|last| last.drawn.is_none()) {
            self.segments.push(Segment {
                role: Role::Assistant,
                tokens: Vec::new(),
                drawn: Some(Drawn::default()),
            });
        }
        if let Some(Segment { tokens, drawn: Some(drawn), .. }) = self.segments.last_mut() {
            tokens.push(token);
            drawn.logps.push(logp);
            drawn.sampled_logps.push(sampled_logp);
            drawn.weight_versions.push(weight_version);
        }
    }

    /// All token ids, in their order.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().flat_map(|segment| &segment.tokens).copied()
    }

    /// The last token, whoever gave it.
    pub fn last_token(&self) -> Option<u32> {
        self.segments.iter().rev().find_map(|segment| segment.tokens.last()).copied()
    }

    /// The segments that the policy drew: the tokens of each, and their provenance.
    pub fn drawn_segments(&self) -> impl Iterator<Item = (&[u32], &Drawn)> {
        self.segments.iter().filter_map(|segment| Some((&segment.tokens[..], segment.drawn.as_ref()?)))
    }

    /// How many tokens the policy drew: the completion's length, wherever a length is measured or bounded.
    pub fn drawn_len(&self) -> usize {
        self.drawn_segments().map(|(tokens, _)| tokens.len()).sum()
    }

    /// The tokens that the policy drew, in their order.
    pub fn drawn_tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.drawn_segments().flat_map(|(tokens, _)| tokens).copied()
    }

    /// [`Drawn::logps`] of the tokens that the policy drew.
    pub fn logps(&self) -> impl Iterator<Item = f32> + '_ {
        self.drawn_segments().flat_map(|(_, drawn)| &drawn.logps).copied()
    }

    /// [`Drawn::sampled_logps`] of the tokens that the policy drew.
    pub fn sampled_logps(&self) -> impl Iterator<Item = f32> + '_ {
        self.drawn_segments().flat_map(|(_, drawn)| &drawn.sampled_logps).copied()
    }

    /// [`Drawn::weight_versions`] of the tokens that the policy drew.
    pub fn weight_versions(&self) -> impl Iterator<Item = u32> + '_ {
        self.drawn_segments().flat_map(|(_, drawn)| &drawn.weight_versions).copied()
    }
}

/// All completions of one prompt in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What was asked.
    pub prompt: Arc<Prompt>,
    /// The rendered prompt, as the policy saw it.
    pub prompt_tokens: Vec<u32>,
    /// The samples, ordered by [`Completion::sample`].
    pub completions: Vec<Completion>,
}

impl Group {
    /// True if weights of this version drew all tokens that the policy drew.
    pub fn is_of_version(&self, version: u32) -> bool {
        self.completions.iter().flat_map(Completion::weight_versions).all(|own| own == version)
    }
}

/// What a scorer says of one completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The number that is optimised.
    pub reward: f32,
    /// The parts it is made of, by name; each becomes a metric of its own.
    pub components: BTreeMap<String, f32>,
}

/// A group with a score for each of its completions, in the same order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredGroup {
    /// The completions.
    pub group: Group,
    /// Their scores.
    pub scores: Vec<Score>,
}

impl ScoredGroup {
    /// The rewards, in the order of the completions.
    pub fn rewards(&self) -> impl Iterator<Item = f32> + '_ {
        self.scores.iter().map(|score| score.reward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: usize) -> Drawn {
        Drawn {
            logps: (0..count).map(|index| -1.0 - index as f32).collect(),
            sampled_logps: vec![-0.5; count],
            weight_versions: vec![3; count],
        }
    }

    #[test]
    fn tokens_that_are_pushed_make_a_segment_a_turn() {
        let mut completion = Completion::empty(1);
        completion.push(10, -1.0, -0.5, 3);
        completion.push(11, -2.0, -0.5, 3);
        let single = Completion::drawn(1, vec![10, 11], drawn(2), "", Finish::Length).expect("even");
        assert_eq!(completion, single);

        completion.segments.push(Segment::inserted(Role::Tool, vec![90, 91, 92]));
        assert_eq!(completion.last_token(), Some(92));
        completion.push(12, -4.0, -0.25, 4);
        assert_eq!(completion.segments.len(), 3);
        assert_eq!(completion.tokens().collect::<Vec<_>>(), [10, 11, 90, 91, 92, 12]);
        assert_eq!(completion.drawn_tokens().collect::<Vec<_>>(), [10, 11, 12]);
        assert_eq!(completion.drawn_len(), 3);
        assert_eq!(completion.logps().collect::<Vec<_>>(), [-1.0, -2.0, -4.0]);
        assert_eq!(completion.sampled_logps().collect::<Vec<_>>(), [-0.5, -0.5, -0.25]);
        assert_eq!(completion.weight_versions().collect::<Vec<_>>(), [3, 3, 4]);
    }

    #[test]
    fn a_given_answer_has_tokens_but_drew_none() {
        let given = Completion::given(0, vec![5, 6], "a b", Finish::EndOfTurn);
        assert_eq!((given.tokens().count(), given.drawn_len(), given.logps().count()), (2, 0, 0));
        assert_eq!(given.segments[0].role, Role::Assistant);
        let text = Completion::given(0, Vec::new(), "a b", Finish::EndOfTurn);
        assert_eq!((text.segments.len(), text.last_token()), (0, None));
    }

    #[test]
    fn provenance_has_one_entry_a_token_or_is_refused() {
        let uneven = Drawn { sampled_logps: vec![0.0], ..drawn(2) };
        let error = Segment::drawn(vec![1, 2], uneven).expect_err("uneven");
        assert_eq!(error, UnevenSegment { tokens: 2, field: "sampled_logps", found: 1 });

        let even = Segment::drawn(vec![1, 2], drawn(2)).expect("even");
        let mut json = serde_json::to_value(&even).expect("plain");
        assert_eq!(serde_json::from_value::<Segment>(json.clone()).expect("the same"), even);
        json["tokens"] = serde_json::json!([1, 2, 3]);
        let error = serde_json::from_value::<Segment>(json).expect_err("uneven");
        assert_eq!(error.to_string(), "a segment of 3 tokens has 2 logps, expected one a token");
    }
}
