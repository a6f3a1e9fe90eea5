//! The protocol with scorers outside of this process: requests, and how their answers are read.

use std::collections::BTreeMap;

use arriero_buffers::{Completion, Finish, Group, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Outcomes;
use crate::error::{RewardError, quoted};

/// What one request is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A prompt with one completion; the answer has its reward.
    #[default]
    Completion,
    /// A prompt with all of its completions; the answer has a list of rewards.
    Group,
}

/// One request, and what it asks about.
#[derive(Debug)]
pub(super) struct Item {
    /// Without an id, which is whoever sends it to give.
    pub request: Map<String, Value>,
    pub unit: Unit,
    /// Where its group stands, the prompt's id, and its completions' numbers.
    pub group: usize,
    pub prompt: u64,
    pub samples: Vec<u32>,
}

/// The requests for groups, in their order.
pub(super) fn items(groups: &[&Group], unit: Unit) -> Vec<Item> {
    let of_group = |(index, group): (usize, &&Group)| -> Vec<Item> {
        let item = |completions: &[Completion]| Item {
            request: request(group, completions, unit),
            unit,
            group: index,
            prompt: group.prompt.id,
            samples: completions.iter().map(|completion| completion.sample).collect(),
        };
        match unit {
            Unit::Completion => group.completions.chunks(1).map(item).collect(),
            Unit::Group => vec![item(&group.completions)],
        }
    };
    groups.iter().enumerate().flat_map(of_group).collect()
}

fn request(group: &Group, completions: &[Completion], unit: Unit) -> Map<String, Value> {
    let finish = |completion: &Completion| match completion.finish {
        Finish::Length => "length",
        Finish::EndOfTurn | Finish::Stop => "stop",
    };
    let texts = completions.iter().map(|completion| Value::from(completion.text.as_str()));
    let finishes = completions.iter().map(|completion| Value::from(finish(completion)));
    let (text, finish): (Value, Value) = match unit {
        Unit::Completion => {
            (texts.collect::<Vec<_>>().pop().into(), finishes.collect::<Vec<_>>().pop().into())
        }
        Unit::Group => (texts.collect(), finishes.collect()),
    };
    let (text_name, finish_name) = match unit {
        Unit::Completion => ("completion", "finish"),
        Unit::Group => ("completions", "finishes"),
    };
    Map::from_iter([
        ("prompt".to_string(), json!(group.prompt.messages)),
        ("prompt_id".to_string(), json!(group.prompt.id)),
        (text_name.to_string(), text),
        (finish_name.to_string(), finish),
        ("checks".to_string(), group.prompt.checks.clone()),
    ])
}

impl Item {
    /// The same cause for each of its completions.
    pub fn failed(&self, cause: &str) -> Outcomes {
        let error = |&sample: &u32| {
            Err(RewardError::Completion { prompt: self.prompt, sample, cause: cause.to_string() })
        };
        self.samples.iter().map(error).collect()
    }

    /// Nobody waits for the answer any more.
    pub fn interrupted(&self) -> Outcomes {
        self.samples.iter().map(|_| Err(RewardError::Interrupted)).collect()
    }

    /// Reads an answer, an object that may have an `id`. `who` answered.
    pub fn read(&self, who: &str, answer: &Value) -> Outcomes {
        let cannot = |error: &Value| {
            let text = error.as_str().map_or_else(|| error.to_string(), str::to_string);
            format!("{who} says that it cannot: {}", quoted(&text))
        };
        let odd =
            |answer: &Value, cause: &str| format!("{who} answered {}: {cause}", quoted(&answer.to_string()));
        let single = |answer: &Value| match answer.get("error") {
            Some(error) => Err(cannot(error)),
            None => score(answer).map_err(|cause| odd(answer, &cause)),
        };
        let cause = match (self.unit, answer.get("rewards").unwrap_or(answer)) {
            (Unit::Completion, _) => match single(answer) {
                Ok(score) => return vec![Ok(score)],
                Err(cause) => return self.failed(&cause),
            },
            (Unit::Group, Value::Array(rewards)) if rewards.len() == self.samples.len() => {
                let outcome = |(reward, &sample): (&Value, &u32)| {
                    let prompt = self.prompt;
                    single(reward).map_err(|cause| RewardError::Completion { prompt, sample, cause })
                };
                return rewards.iter().zip(&self.samples).map(outcome).collect();
            }
            (Unit::Group, Value::Array(rewards)) => {
                let (found, expected) = (rewards.len(), self.samples.len());
                odd(answer, &format!("it has {found} rewards for {expected} completions"))
            }
            (Unit::Group, _) => match answer.get("error") {
                Some(error) => cannot(error),
                None => odd(answer, "expected \"rewards\": a list with one for each completion"),
            },
        };
        self.failed(&cause)
    }
}

/// Puts answers into the order of the questions, whose ids run up from `first`. Answers need not have an `id`, and are
/// in that order then; if one of them has one, or `required` is true, each must have that of its own question.
///
/// # Errors
/// If there are more or fewer answers, or their ids are not those of the questions.
pub(super) fn matched(
    answers: &[Value],
    first: u64,
    questions: usize,
    required: bool,
) -> Result<Vec<&Value>, String> {
    if answers.len() != questions {
        return Err(format!("{} rewards for {questions} items; expected one for each", answers.len()));
    }
    if !required && answers.iter().all(|answer| answer.get("id").is_none()) {
        return Ok(answers.iter().collect());
    }
    let mut matched: Vec<Option<&Value>> = vec![None; questions];
    for answer in answers {
        let Some(id) = answer.get("id") else {
            return Err(format!(
                "{}, which has no \"id\"; expected each answer to have its item's",
                quoted(&answer.to_string())
            ));
        };
        let place = id.as_u64().and_then(|id| id.checked_sub(first)).map(|place| place as usize);
        match place.and_then(|place| matched.get_mut(place)) {
            Some(free @ None) => *free = Some(answer),
            Some(Some(_)) => return Err(format!("the item with \"id\": {id} twice")),
            None => {
                let last = first + questions as u64 - 1;
                return Err(format!("an item with \"id\": {id}, but was asked about {first} to {last}"));
            }
        }
    }
    Ok(matched.into_iter().flatten().collect())
}

/// Puts the answers of items, in their order, back into their groups.
pub(super) fn regroup(groups: usize, items: &[Item], answers: Vec<Outcomes>) -> Vec<Outcomes> {
    let mut outcomes: Vec<Outcomes> = (0..groups).map(|_| Vec::new()).collect();
    for (item, answer) in items.iter().zip(answers) {
        outcomes[item.group].extend(answer);
    }
    outcomes
}

/// A number, or `{"reward": …, "components": {…}}`.
fn score(answer: &Value) -> Result<Score, String> {
    const EXPECTED: &str = "expected a number, or {\"reward\": 0.5, \"components\": {\"name\": 1.0}}";
    let members = match answer {
        Value::Number(_) => {
            return Ok(Score { reward: number("reward", answer)?, components: BTreeMap::new() });
        }
        Value::Object(members) => members,
        _ => return Err(EXPECTED.to_string()),
    };
    let unknown = |name: &&String| !["id", "reward", "components"].contains(&name.as_str());
    if let Some(name) = members.keys().find(unknown) {
        return Err(format!("{name:?} is not known; {EXPECTED}"));
    }
    let reward = members.get("reward").ok_or(EXPECTED)?;
    let components = match members.get("components") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(components)) => {
            let component = |(name, value): (&String, &Value)| Ok((name.clone(), number(name, value)?));
            components.iter().map(component).collect::<Result<_, String>>()?
        }
        Some(_) => return Err("its components must be an object of numbers".to_string()),
    };
    Ok(Score { reward: number("reward", reward)?, components })
}

fn number(name: &str, value: &Value) -> Result<f32, String> {
    let number = match value {
        Value::Bool(holds) => Some(f64::from(u8::from(*holds))),
        other => other.as_f64(),
    };
    match number {
        Some(number) if (number as f32).is_finite() => Ok(number as f32),
        Some(number) if number.is_finite() => Err(format!(
            "{name:?} is {number:e}, but rewards are 32-bit floats, which end at ±{:e}; scale it down",
            f32::MAX
        )),
        _ => Err(format!("{name:?} must be a finite number")),
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;

    use super::super::group;
    use super::*;

    fn two() -> Group {
        group(json!({"answer": "4"}), &[("4", Finish::EndOfTurn), ("5 and", Finish::Length)])
    }

    #[test]
    fn requests_have_the_prompt_and_what_is_checked() {
        let group = two();
        let single = items(&[&group], Unit::Completion);
        assert_eq!(single.len(), 2);
        assert_eq!(
            Value::Object(single[1].request.clone()),
            json!({"prompt": [{"role": "user", "content": "hi"}], "prompt_id": 7, "completion": "5 and",
                   "finish": "length", "checks": {"answer": "4"}})
        );
        let whole = items(&[&group], Unit::Group);
        assert_eq!(
            Value::Object(whole[0].request.clone()),
            json!({"prompt": [{"role": "user", "content": "hi"}], "prompt_id": 7,
                   "completions": ["4", "5 and"], "finishes": ["stop", "length"], "checks": {"answer": "4"}})
        );
    }

    #[test]
    fn answers_of_a_completion_are_read_or_quoted() {
        let group = two();
        let item = &items(&[&group], Unit::Completion)[1];
        let read = |answer: Value| item.read("the program", &answer).remove(0);
        assert_eq!(read(json!(0.5)).expect("a number").reward, 0.5);
        assert_eq!(read(json!({"reward": true})).expect("1").reward, 1.0);
        let score = read(json!({"id": 3, "reward": -1, "components": {"a": 2}})).expect("an object");
        assert_eq!((score.reward, score.components["a"]), (-1.0, 2.0));
        for (answer, cause) in [
            (json!({"id": 1}), "expected a number, or"),
            (json!(null), "answered \"null\": expected a number, or"),
            (json!("good"), "answered \"\\\"good\\\"\": expected a number"),
            (json!({"reward": null}), "\"reward\" must be a finite number"),
            (
                json!({"reward": 1e308}),
                "\"reward\" is 1e308, but rewards are 32-bit floats, which end at ±3.40",
            ),
            (
                json!({"reward": 0, "components": {"a": -1e39}}),
                "\"a\" is -1e39, but rewards are 32-bit floats",
            ),
            (json!({"reward": 1, "component": {}}), "\"component\" is not known"),
            (json!({"reward": 1, "components": {"a": "x"}}), "\"a\" must be a finite number"),
            (json!({"error": "no key"}), "the program says that it cannot: \"no key\""),
        ] {
            let error = read(answer.clone()).expect_err("no answer").to_string();
            assert!(error.starts_with("prompt 7, sample 1: the program "), "{error}");
            assert!(error.contains(cause), "{answer}: {error}");
        }
    }

    #[test]
    fn answers_belong_to_their_questions() {
        let answer = |id: u64, reward: u64| json!({"id": id, "reward": reward});
        let plain = [json!(1), json!({"reward": 2})];
        assert_eq!(matched(&plain, 5, 2, false).expect("no ids"), [&plain[0], &plain[1]]);
        let swapped = [answer(6, 2), answer(5, 1)];
        assert_eq!(matched(&swapped, 5, 2, true).expect("all"), [&swapped[1], &swapped[0]]);
        for (answers, required, cause) in [
            (vec![json!(1)], false, "1 rewards for 2 items"),
            (vec![json!(1), json!(2)], true, "\"1\", which has no \"id\""),
            (vec![answer(5, 1), json!(2)], false, "\"2\", which has no \"id\""),
            (vec![answer(5, 1), answer(5, 1)], false, "the item with \"id\": 5 twice"),
            (vec![answer(4, 1), answer(5, 1)], false, "an item with \"id\": 4, but was asked about 5 to 6"),
            (vec![answer(5, 1), answer(7, 1)], false, "an item with \"id\": 7"),
            (vec![answer(5, 1), json!({"id": "6"})], false, "an item with \"id\": \"6\""),
        ] {
            let error = matched(&answers, 5, 2, required).expect_err("they are others");
            assert!(error.contains(cause), "{error}, not {cause}");
        }
    }

    #[test]
    fn answers_of_a_group_have_as_many_rewards() {
        let group = two();
        let item = &items(&[&group], Unit::Group)[0];
        let outcomes = item.read("it", &json!({"rewards": [1, {"error": "odd"}]}));
        assert_eq!(outcomes[0].as_ref().expect("a number").reward, 1.0);
        assert!(outcomes[1].as_ref().expect_err("an error").to_string().contains("odd"));
        for (answer, cause) in [
            (json!({"rewards": [1]}), "it has 1 rewards for 2 completions"),
            (json!({"reward": 1}), "expected \"rewards\""),
            (json!({"error": "no"}), "it says that it cannot: \"no\""),
        ] {
            for outcome in item.read("it", &answer) {
                let error = outcome.expect_err("no answer").to_string();
                assert!(error.contains(cause), "{answer}: {error}");
            }
        }
    }
}
