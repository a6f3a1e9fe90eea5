//! Preference rows: with a prompt of their own, with one that both answers begin with, and Anthropic's
//! transcripts.

use arriero_buffers::{Message, Role};
use serde_json::Value;

use super::{Object, Parsed, Result, answer, degree, follows, prompt};
use crate::error::{Reason, RowError};
use crate::messages::{check_answered, check_roles, described, messages};
use crate::row::Row;

/// A preference row with or without a `prompt`.
pub(super) fn preference(object: &Object<'_>) -> Result<Parsed> {
    let (chosen, rejected) = (object.need("chosen")?, object.need("rejected")?);
    match (object.get("prompt"), chosen, rejected) {
        // As in TRL: a prompt of text beside whole conversations is in these, too.
        (None | Some(Value::String(_)), Value::Array(chosen), Value::Array(rejected))
            if holds_prompt(chosen) =>
        {
            let chosen = messages(object.name("chosen"), chosen)?;
            let rejected = messages(object.name("rejected"), rejected)?;
            let edited = match object.get("edited") {
                Some(Value::Array(edited)) => Some(messages(object.name("edited"), edited)?),
                Some(other) => {
                    return Err(object.wrong("edited", "a list of messages, as `chosen` is", other));
                }
                None => None,
            };
            Ok((split(object, chosen, rejected, edited)?, false))
        }
        (None, Value::String(chosen), Value::String(rejected)) => plain(object, chosen, rejected),
        (None, chosen, rejected) => {
            let (chosen, rejected) = (described(chosen), described(rejected));
            let message = format!(
                "there is no `{}`, so that `{}` and `{}` must both be texts or both be lists of messages that \
                 begin with the prompt, but they are {chosen} and {rejected}",
                object.name("prompt"),
                object.name("chosen"),
                object.name("rejected"),
            );
            Err(RowError::new(Reason::WrongType, message))
        }
        (Some(_), ..) => {
            let (prompt, plain_prompt) = prompt(object, "prompt")?;
            let (chosen, plain_chosen) = answer(object, "chosen", &prompt)?;
            let (rejected, plain_rejected) = answer(object, "rejected", &prompt)?;
            let edited = match object.get("edited") {
                Some(_) => Some(answer(object, "edited", &prompt)?.0),
                None => None,
            };
            let is_plain = plain_prompt && plain_chosen && plain_rejected;
            Ok((pair(object, prompt, chosen, rejected, edited)?, is_plain))
        }
    }
}

/// Whether a list of messages begins with the prompt: answers begin with the assistant's turn.
fn holds_prompt(messages: &[Value]) -> bool {
    messages.first().is_some_and(|first| first.get("role").and_then(Value::as_str) != Some("assistant"))
}

/// Anthropic's HH: `"\n\nHuman: … \n\nAssistant: …"`, whole in `chosen` and `rejected`.
pub(super) fn transcripts(object: &Object<'_>) -> Result<Parsed> {
    let chosen = transcript(object.name("chosen"), object.text("chosen")?)?;
    let rejected = transcript(object.name("rejected"), object.text("rejected")?)?;
    let edited = match object.get("edited") {
        Some(_) => Some(transcript(object.name("edited"), object.text("edited")?)?),
        None => None,
    };
    Ok((split(object, chosen, rejected, edited)?, false))
}

/// The turns of a transcript. Space around a turn's words is dropped.
fn transcript(name: &str, text: &str) -> Result<Vec<Message>> {
    const SPEAKERS: [(&str, Role); 2] = [("\n\nHuman:", Role::User), ("\n\nAssistant:", Role::Assistant)];
    let next = |from: usize| {
        let find = |(mark, role): (&'static str, Role)| {
            text[from..].find(mark).map(|at| (from + at, from + at + mark.len(), role))
        };
        SPEAKERS.into_iter().filter_map(find).min_by_key(|(start, ..)| *start)
    };
    let mut turn = next(0).filter(|(start, ..)| text[..*start].trim().is_empty());
    if turn.is_none() {
        let message = format!("`{name}` is no transcript: expected \"\\n\\nHuman: …\\n\\nAssistant: …\"");
        return Err(RowError::new(Reason::WrongType, message));
    }
    let mut messages = Vec::new();
    while let Some((_, start, role)) = turn {
        turn = next(start);
        let end = turn.map_or(text.len(), |(end, ..)| end);
        messages.push(Message::new(role, text[start..end].trim()));
    }
    Ok(messages)
}

/// Parts whole conversations. What they share is the prompt, which ends before a turn of the assistant.
fn split(
    object: &Object<'_>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    edited: Option<Vec<Message>>,
) -> Result<Row> {
    let all: Vec<(&str, &Vec<Message>)> = [("chosen", Some(&chosen)), ("rejected", Some(&rejected))]
        .into_iter()
        .chain([("edited", edited.as_ref())])
        .filter_map(|(field, turns)| Some((object.name(field), turns?)))
        .collect();
    for (name, turns) in &all {
        check_answered(name, turns)?;
        check_roles(turns).map_err(|error| error.at(&format!("`{name}`")))?;
        if let Some(last) = turns.last().filter(|last| last.role != Role::Assistant) {
            let message =
                format!("`{name}` ends with a message of role {}, not assistant", last.role.as_str());
            return Err(RowError::new(Reason::RolesOutOfOrder, message));
        }
    }
    let is_shared = |index: usize| {
        let turn = chosen.get(index);
        turn.is_some() && all.iter().all(|(_, turns)| turns.get(index) == turn)
    };
    let mut prompt = (0..).take_while(|&index| is_shared(index)).count();
    let answers = |index: usize| {
        all.iter().all(|(_, turns)| turns.get(index).is_some_and(|turn| turn.role == Role::Assistant))
    };
    while prompt > 0 && !answers(prompt) {
        prompt -= 1;
    }
    if prompt == 0 {
        let message = format!(
            "`{}` and `{}` do not begin with the same prompt",
            object.name("chosen"),
            object.name("rejected")
        );
        return Err(RowError::new(Reason::WrongType, message));
    }
    let shared = chosen[..prompt].to_vec();
    check_roles(&shared)?;
    let rest = |turns: Vec<Message>| turns[prompt..].to_vec();
    pair(object, shared, rest(chosen), rest(rejected), edited.map(rest))
}

/// Two texts that begin with the prompt. As in TRL, a space before the place where they part belongs to the answers.
fn plain(object: &Object<'_>, chosen: &str, rejected: &str) -> Result<Parsed> {
    let shared = chosen.chars().zip(rejected.chars()).take_while(|(one, other)| one == other);
    let mut end: usize = shared.map(|(character, _)| character.len_utf8()).sum();
    if chosen[..end].ends_with(' ') {
        end -= 1;
    }
    if chosen[..end].trim().is_empty() {
        let message = format!(
            "there is no `{}`, and `{}` and `{}` do not begin with the same words",
            object.name("prompt"),
            object.name("chosen"),
            object.name("rejected")
        );
        return Err(RowError::new(Reason::MissingField, message));
    }
    if let Some(edited) = object.get("edited") {
        return Err(object.wrong("edited", "left out where there is no `prompt`", edited));
    }
    let answer = |field: &'static str, text: &str| {
        let turn = vec![Message::assistant(&text[end..])];
        check_answered(object.name(field), &turn)?;
        Ok(turn)
    };
    let prompt = vec![Message::user(&chosen[..end])];
    let (chosen, rejected) = (answer("chosen", chosen)?, answer("rejected", rejected)?);
    Ok((pair(object, prompt, chosen, rejected, None)?, true))
}

fn pair(
    object: &Object<'_>,
    prompt: Vec<Message>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    edited: Option<Vec<Message>>,
) -> Result<Row> {
    follows(object.name("chosen"), &prompt, &chosen)?;
    follows(object.name("rejected"), &prompt, &rejected)?;
    if chosen == rejected {
        let message = format!(
            "`{}` and `{}` are the same, which prefers nothing",
            object.name("chosen"),
            object.name("rejected")
        );
        return Err(RowError::new(Reason::EqualAnswers, message));
    }
    let (strength, margin) = degree(object)?;
    Ok(Row::Preference { prompt, chosen, rejected, edited, strength, margin })
}
