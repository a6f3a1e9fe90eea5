//! Answers that a scorer judges: IFEval by its instructions, GSM8K by the final answer, HumanEval by its tests.

use std::collections::BTreeMap;

use arriero_buffers::{Finish, Group, Message, Prompt, Role};
use arriero_data::{DataConfig, Row};
use arriero_reward::scorer::ifeval::IfevalConfig;
use arriero_reward::scorer::math::MathConfig;
use arriero_reward::{RewardConfig, RewardError, Scorer};
use serde_json::{Map, Value, json};

use super::{Fields, Reply, Suite, Task};
use crate::config::{Kind, SuiteConfig};
use crate::parts::indicator;
use crate::question::{PromptFormat, Question};
use arriero_results::figure::pass_at;
use arriero_results::{Figure, Form};
use arriero_results::{Outcome, Sample};

pub(crate) struct Rewarded {
    kind: Kind,
    format: PromptFormat,
    data: DataConfig,
    reward: RewardConfig,
    scorer: Box<dyn Scorer>,
    /// Questions with their worked answers.
    examples: Vec<(String, String)>,
}

impl Rewarded {
    pub fn ifeval(config: &SuiteConfig, format: PromptFormat) -> Result<Self, RewardError> {
        Rewarded::new(config, format, RewardConfig::Ifeval(IfevalConfig::default()))
    }

    pub fn gsm8k(config: &SuiteConfig, format: PromptFormat) -> Result<Self, RewardError> {
        Rewarded::new(config, format, RewardConfig::Math(MathConfig::default()))
    }

    pub fn humaneval(config: &SuiteConfig, format: PromptFormat) -> Result<Self, RewardError> {
        let code = || serde_json::from_value(json!({"kind": "code"}));
        let reward = match &config.judge {
            Some(judge) => judge.clone(),
            None => code().map_err(|error| RewardError::Config(error.to_string()))?,
        };
        Rewarded::new(config, format, reward)
    }

    fn new(config: &SuiteConfig, format: PromptFormat, reward: RewardConfig) -> Result<Self, RewardError> {
        let (kind, data, scorer) = (config.kind, config.data(&config.path), reward.build()?);
        Ok(Rewarded { kind, format, data, reward, scorer, examples: Vec::new() })
    }

    /// A row of HumanEval: the function's beginning, its name, and the tests that it must pass.
    fn function(&self, fields: &Fields) -> Result<(Vec<Message>, Value), String> {
        let text = |name: &str| match fields.get(name).and_then(Value::as_str) {
            Some(text) if !text.trim().is_empty() => Ok(text),
            _ => Err(format!("expected a text in `{name}`")),
        };
        let beginning = text("prompt")?;
        let checks = json!({"test": text("test")?, "entry_point": text("entry_point")?, "prefix": beginning});
        let asked = match self.format.chat {
            true => format!(
                "Complete this function. Answer with the whole function in a block of code.\n\n```python\n{beginning}\n```"
            ),
            false => beginning.to_string(),
        };
        Ok((vec![Message::user(asked)], checks))
    }

    fn prompt(&self, fields: &Fields) -> Result<(Vec<Message>, Value), String> {
        if self.kind == Kind::Humaneval {
            return self.function(fields);
        }
        match self.data.row(fields).map_err(|error| error.to_string())?.0 {
            Row::Prompt { messages, checks } => Ok((messages, checks)),
            other => {
                Err(format!("expected a prompt with what is to be checked, found a row of {}", other.kind()))
            }
        }
    }

    fn question(&self, messages: &[Message]) -> Result<Question, String> {
        if self.kind != Kind::Gsm8k {
            return self.format.question(messages);
        }
        if self.format.chat {
            let turn = |role, text: &String| Message::new(role, text.as_str());
            let shown = self
                .examples
                .iter()
                .flat_map(|(question, answer)| [turn(Role::User, question), turn(Role::Assistant, answer)]);
            let all: Vec<Message> = shown.chain(messages.iter().cloned()).collect();
            return self.format.question(&all);
        }
        let Question::Text(question) = self.format.question(messages)? else {
            return Err("a text was expected".to_string());
        };
        let shown = self.examples.iter();
        let shown: String =
            shown.map(|(question, answer)| format!("Question: {question}\nAnswer: {answer}\n\n")).collect();
        Ok(Question::Text(format!("{shown}Question: {question}\nAnswer:")))
    }
}

impl Suite for Rewarded {
    fn example(&mut self, fields: &Fields) -> Result<(), String> {
        let (messages, checks) = self.prompt(fields)?;
        let question = match &messages[..] {
            [only] => only.content.clone(),
            _ => return Err("an example's question must be one message".to_string()),
        };
        match checks.get("answer").and_then(Value::as_str) {
            Some(answer) => self.examples.push((question, answer.to_string())),
            None => return Err("an example needs its `answer`, worked out".to_string()),
        }
        Ok(())
    }

    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String> {
        let (messages, checks) = self.prompt(fields)?;
        let question = self.question(&messages)?;
        let prompt = Prompt { id, messages, checks };
        self.reward.check_prompt(&prompt).map_err(|error| error.to_string())?;
        Ok(Task::Answer { question, checks: prompt.checks })
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String> {
        let Reply::Answers(group) = reply else { return Err("it was not answered".to_string()) };
        let scored = self.scorer.score(group).map_err(|error| error.to_string())?;
        let details = self.scorer.details(group).map_err(|error| error.to_string())?;
        let mut samples = Vec::new();
        for ((completion, score), details) in group.completions.iter().zip(scored).zip(details) {
            if !score.reward.is_finite() {
                return Err(format!("the score is {}, no finite number", score.reward));
            }
            let mut scores: BTreeMap<String, f64> =
                score.components.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
            scores.extend(counted(&details));
            samples.push(Sample { completion: completion.clone(), scores, details });
        }
        Ok(outcome(id, group, samples))
    }

    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure> {
        let mean = |name: &str, score: &str| {
            Figure::mean(name, Form::Share, outcomes.iter().map(|outcome| outcome.score(score)))
        };
        let share = |name: &str, part: &str| {
            let pair = |outcome: &Outcome| (outcome.score(part), outcome.score("instructions"));
            Figure::ratio(name, Form::Share, outcomes.iter().map(pair))
        };
        let own = match self.kind {
            Kind::Ifeval => vec![
                mean("prompt_strict", "strict"),
                share("instruction_strict", "followed_strict"),
                mean("prompt_loose", "loose"),
                share("instruction_loose", "followed_loose"),
            ],
            Kind::Humaneval => {
                let mut figures = passes(outcomes);
                figures.push(mean("code_found", "code_found"));
                figures
            }
            _ => vec![mean("accuracy", "correct"), mean("answer_found", "answer_found")],
        };
        own.into_iter().flatten().chain(of_answers(outcomes)).collect()
    }
}

/// pass@k for as many k as there are samples: 1, 10, 100, and all of them.
fn passes(outcomes: &[Outcome]) -> Vec<Option<Figure>> {
    let samples = outcomes.iter().map(|outcome| outcome.samples.len()).min().unwrap_or(0);
    let mut sizes: Vec<usize> =
        [1, 10, 100, samples].into_iter().filter(|&k| k >= 1 && k <= samples).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let passed = |outcome: &Outcome, k: usize| {
        let right =
            outcome.samples.iter().filter(|sample| sample.scores.get("all_passed") == Some(&1.0)).count();
        pass_at(k, outcome.samples.len(), right)
    };
    let figure = |k: usize| {
        let all = outcomes.iter().filter_map(|outcome| passed(outcome, k));
        Figure::mean(&format!("pass@{k}"), Form::Share, all)
    };
    sizes.into_iter().map(figure).collect()
}

/// How many instructions there are, and how many are followed.
fn counted(details: &Map<String, Value>) -> Vec<(String, f64)> {
    let Some(verdicts) = details.get("instructions").and_then(Value::as_array) else { return Vec::new() };
    let followed = |mode: &str| verdicts.iter().filter(|verdict| verdict[mode] == true).count() as f64;
    let named = [
        ("instructions", verdicts.len() as f64),
        ("followed_strict", followed("strict")),
        ("followed_loose", followed("loose")),
    ];
    named.map(|(name, count)| (name.to_string(), count)).to_vec()
}

/// An outcome whose numbers are the means over the samples.
pub(crate) fn outcome(id: u64, group: &Group, samples: Vec<Sample>) -> Outcome {
    let mut scores: BTreeMap<String, f64> = BTreeMap::new();
    let count = samples.len().max(1) as f64;
    let mut add = |name: &str, value: f64| *scores.entry(name.to_string()).or_default() += value / count;
    for sample in &samples {
        sample.scores.iter().for_each(|(name, value)| add(name, *value));
        add("tokens", sample.completion.drawn_len() as f64);
        add("truncated", indicator(sample.completion.finish == Finish::Length));
    }
    let contents: Vec<&str> = group.prompt.messages.iter().map(|message| message.content.as_str()).collect();
    Outcome { place: String::new(), id, prompt: contents.join("\n"), scores, samples }
}

/// Figures of all answers: the share that the token limit cut short, and their length.
pub(crate) fn of_answers(outcomes: &[Outcome]) -> Vec<Figure> {
    let mean =
        |name: &str, form: Form| Figure::mean(name, form, outcomes.iter().map(|outcome| outcome.score(name)));
    [mean("truncated", Form::Share), mean("tokens", Form::Number)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arriero_buffers::Completion;

    use super::*;

    /// Two problems in HumanEval's format.
    fn problems() -> [Fields; 2] {
        let double = json!({
            "prompt": "def double(x):\n    \"\"\"Twice x.\"\"\"\n",
            "entry_point": "double",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        });
        let first = json!({
            "prompt": "from typing import List\n\n\ndef first(items: List[int]) -> int:\n",
            "entry_point": "first",
            "test": "def check(candidate):\n    assert candidate([3, 1]) == 3\n",
        });
        [double, first].map(|problem| problem.as_object().expect("an object").clone())
    }

    /// Answers that pass and that do not, whole in a block of code and as HumanEval's continuations. The verdicts and
    /// pass@k are by hand: 2 of 4 and 1 of 4 are right.
    #[test]
    fn functions_pass_their_tests_or_do_not() {
        let config = SuiteConfig { path: "rows.jsonl".to_string(), ..SuiteConfig::new(Kind::Humaneval) };
        let format = PromptFormat { chat: true, system: None };
        let mut suite = Rewarded::humaneval(&config, format).expect("this machine runs Python in a sandbox");
        let whole = |code: &str| format!("Here it is:\n```python\n{code}\n```\nIt works.");
        let answers = [
            [
                (whole("def double(x):\n    return 2 * x"), true),
                ("    return x + x\n".to_string(), true),
                (whole("def double(x):\n    return x ** 2"), false),
                ("I cannot do this.".to_string(), false),
            ],
            [
                (whole("def first(items):\n    return min(items)"), false),
                ("    return items[0]\n".to_string(), true),
                (whole("def first(items):\n    while True:\n        raise ValueError(items)"), false),
                (whole("def last(items):\n    return items[-1]"), false),
            ],
        ];
        let mut outcomes = Vec::new();
        for (id, (problem, answers)) in problems().iter().zip(&answers).enumerate() {
            let task = suite.task(id as u64, problem).expect("a problem");
            let Task::Answer { question, checks } = task else { panic!("it is to be answered") };
            assert!(question.shown().contains(problem["prompt"].as_str().expect("a text")));
            let prompt = Prompt { id: id as u64, messages: question.messages(), checks };
            let completions = answers.iter().enumerate().map(|(sample, (text, _))| {
                Completion::given(sample as u32, vec![1, 2], text.as_str(), Finish::EndOfTurn)
            });
            let group = Group {
                prompt: Arc::new(prompt),
                prompt_tokens: vec![1],
                completions: completions.collect(),
            };
            let outcome = suite.grade(id as u64, Reply::Answers(&group)).expect("it is judged");
            for (sample, (text, passes)) in outcome.samples.iter().zip(answers) {
                assert_eq!(sample.scores["all_passed"], f64::from(u8::from(*passes)), "{text}");
            }
            outcomes.push(outcome);
        }
        let figures = suite.figures(&outcomes);
        let figure = |name: &str| {
            let found = figures.iter().find(|figure| figure.name == name);
            found.unwrap_or_else(|| panic!("no {name}")).value
        };
        assert!((figure("pass@1") - (0.5 + 0.25) / 2.0).abs() < 1e-12);
        assert_eq!(figure("pass@4"), 1.0);
    }

    #[test]
    fn a_problem_without_tests_is_refused() {
        let config = SuiteConfig { path: "rows.jsonl".to_string(), ..SuiteConfig::new(Kind::Humaneval) };
        let mut suite =
            Rewarded::humaneval(&config, PromptFormat { chat: false, system: None }).expect("a sandbox");
        for missing in ["prompt", "test", "entry_point"] {
            let [mut problem, _] = problems();
            problem.remove(missing);
            let error = suite.task(0, &problem).map(|_| ()).expect_err("it lacks something");
            assert!(error.contains(&format!("`{missing}`")), "{error}");
        }
    }
}
