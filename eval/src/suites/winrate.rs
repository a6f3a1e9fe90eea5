//! Which of two answers to the same prompt is better: the model's, or that of another model or of a file.
//!
//! The judge is a reward. One that looks at each answer alone gives both a score. One that compares answers, such as an
//! LLM, sees the pair twice, the second time with the answers' places swapped. Where the two verdicts differ, the pair
//! counts as a tie. How often the first place wins is reported.

use std::collections::HashMap;
use std::path::Path;

use arriero_buffers::{Completion, Group, Message};
use arriero_data::{DataConfig, Row};
use arriero_reward::scorer::judge::{Comparison, JudgeMode, Winner};
use arriero_reward::{Judge, RewardConfig, RewardError, Scorer};
use serde_json::{Map, Value, json};

use super::rewarded::{of_answers, outcome};
use super::{Fields, Reply, Suite, Task};
use crate::config::SuiteConfig;
use crate::parts::{fixed_completion, indicator, scores};
use crate::question::PromptFormat;
use arriero_results::{Figure, Form};
use arriero_results::{Outcome, Sample};

/// What says which of two answers is better.
enum Comparator {
    /// By their scores.
    Scores(Box<dyn Scorer>),
    /// An LLM that sees both.
    Judge(Box<Judge>),
}

/// The verdict on a pair, with the model's answer in the first place and in the second. Above 0 if the model's is
/// better.
type Verdicts = [f64; 2];

pub(crate) struct Winrate {
    format: PromptFormat,
    data: DataConfig,
    comparator: Comparator,
    compares: bool,
    reward: RewardConfig,
    /// Answers of a file, by the prompt that they answer; none where a model answers.
    written: Option<HashMap<String, String>>,
    /// The other's answers to the items.
    theirs: HashMap<u64, Completion>,
    /// What a judge said of the answers to an item that are to be judged next.
    said: HashMap<u64, Vec<Result<Verdicts, String>>>,
    against: String,
}

impl Winrate {
    pub fn new(config: &SuiteConfig, format: PromptFormat) -> Result<Self, RewardError> {
        let reward = config.judge.clone().unwrap_or_default();
        let comparator = match &reward {
            RewardConfig::Judge(judge) if judge.mode == JudgeMode::Pairwise => {
                Comparator::Judge(Box::new(Judge::new(judge)?))
            }
            reward => Comparator::Scores(reward.build()?),
        };
        let compares = matches!(comparator, Comparator::Judge(_)) || reward.compares_completions();
        Ok(Winrate {
            format,
            data: config.data(&config.path),
            comparator,
            compares,
            reward,
            written: None,
            theirs: HashMap::new(),
            said: HashMap::new(),
            against: config.against.clone().unwrap_or_default(),
        })
    }

    /// The verdicts on the model's answer.
    fn verdicts(
        &mut self,
        group: &Group,
        ours: &Completion,
        theirs: &Completion,
    ) -> Result<Verdicts, String> {
        if let Some(said) = self.said.get_mut(&group.prompt.id).filter(|said| !said.is_empty()) {
            return said.remove(0);
        }
        let first = self.compare(group, ours, theirs)?;
        let second = if self.compares { -self.compare(group, theirs, ours)? } else { first };
        Ok([first, second])
    }

    /// The scores of two answers, the first place's minus the second's.
    fn compare(&mut self, group: &Group, first: &Completion, second: &Completion) -> Result<f64, String> {
        let place = |sample, completion: &Completion| Completion { sample, ..completion.clone() };
        let pair = Group {
            prompt: group.prompt.clone(),
            prompt_tokens: group.prompt_tokens.clone(),
            completions: vec![place(0, first), place(1, second)],
        };
        let Comparator::Scores(scorer) = &mut self.comparator else {
            return Err("the judge was not asked".to_string());
        };
        let scored = scorer.score(&pair).map_err(|error| error.to_string())?;
        let [first, second] = &scored[..] else { return Err("the judge gave no two scores".to_string()) };
        let difference = f64::from(first.reward) - f64::from(second.reward);
        if difference.is_nan() {
            return Err(format!("the judge's scores are {} and {}", first.reward, second.reward));
        }
        Ok(difference)
    }
}

/// True if the path is a model, which has to answer itself.
pub(crate) fn is_model(against: &str) -> bool {
    let path = Path::new(against);
    path.is_dir() || path.extension().is_some_and(|extension| extension == "gguf")
}

/// What a prompt is found by.
fn key(messages: &[Message]) -> String {
    serde_json::to_string(messages).unwrap_or_default()
}

/// The answers of a file, by their prompts. A file that has several answers to a prompt gives the first.
///
/// # Errors
/// If a row cannot be read, whatever `on_error` says. That option is for the suite's own rows.
pub(crate) fn answers(against: &str) -> Result<HashMap<String, String>, String> {
    let config = DataConfig { path: against.to_string(), shuffle: false, ..DataConfig::default() };
    let mut answers = HashMap::new();
    for object in config.objects().map_err(|error| error.to_string())? {
        let object = object.map_err(|error| error.to_string())?;
        let place = object.place();
        let named = |cause: String| format!("{place}: {cause}");
        let fields = object.fields.map_err(|error| named(error.to_string()))?;
        let read = arriero_reward::rows::group(object.number, &fields, &Default::default(), &[]);
        let Group { prompt, completions, .. } = read.map_err(named)?;
        if let Some(completion) = completions.into_iter().next() {
            answers.entry(key(&prompt.messages)).or_insert(completion.text);
        }
    }
    Ok(answers)
}

impl Suite for Winrate {
    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String> {
        let (messages, checks) = match self.data.row(fields).map_err(|error| error.to_string())?.0 {
            Row::Prompt { messages, checks } => (messages, checks),
            row => match row.prompt() {
                Some(prompt) => (prompt.to_vec(), Value::Null),
                None => return Err(format!("expected a prompt, found a row of {}", row.kind())),
            },
        };
        if self.written.is_none() && !is_model(&self.against) {
            self.written = Some(answers(&self.against).map_err(|cause| format!("against: {cause}"))?);
        }
        if let Some(written) = &self.written {
            let answer = written.get(&key(&messages));
            let answer = answer.ok_or_else(|| format!("{} has no answer to this prompt", self.against))?;
            self.theirs.insert(id, fixed_completion(answer.clone()));
        }
        let question = self.format.question(&messages)?;
        let prompt = arriero_buffers::Prompt { id, messages, checks };
        self.reward.check_prompt(&prompt).map_err(|error| error.to_string())?;
        Ok(Task::Answer { question, checks: prompt.checks })
    }

    fn opponent_answer(&mut self, id: u64, completion: Completion) {
        self.theirs.insert(id, completion);
    }

    /// An LLM is asked about all pairs at once: its server works on several at a time.
    fn prefetch(&mut self, groups: &[Group]) {
        let Comparator::Judge(judge) = &self.comparator else { return };
        let pairs = || {
            groups
                .iter()
                .filter_map(|group| Some((group, self.theirs.get(&group.prompt.id)?)))
                .flat_map(|(group, theirs)| group.completions.iter().map(move |ours| (group, ours, theirs)))
        };
        let comparisons: Vec<Comparison<'_>> = pairs()
            .map(|(group, ours, theirs)| Comparison {
                prompt: &group.prompt.messages,
                answer: None,
                a: &ours.text,
                b: &theirs.text,
            })
            .collect();
        let points = |winner: Winner| match winner {
            Winner::A => 1.0,
            Winner::B => -1.0,
            Winner::Tie => 0.0,
        };
        let said = judge.compare_all(&comparisons);
        let mut by_item: HashMap<u64, Vec<Result<Verdicts, String>>> = HashMap::new();
        for ((group, ..), verdict) in pairs().zip(said) {
            let verdicts = verdict.map(|verdict| [points(verdict.a_first), points(verdict.b_first)]);
            by_item.entry(group.prompt.id).or_default().push(verdicts.map_err(|error| error.to_string()));
        }
        self.said = by_item;
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String> {
        let Reply::Answers(group) = reply else { return Err("it was not answered".to_string()) };
        let theirs = self.theirs.remove(&id).ok_or("there is no answer to compare with")?;
        let mut samples = Vec::new();
        for ours in &group.completions {
            let [first, second] = self.verdicts(group, ours, &theirs)?;
            let is_consistent = sign(first) == sign(second);
            let verdict = if is_consistent { sign(first) } else { 0.0 };
            let mut numbers = scores([
                ("win", indicator(verdict > 0.0)),
                ("tie", indicator(verdict == 0.0)),
                ("loss", indicator(verdict < 0.0)),
                ("win_rate", 0.5 + 0.5 * verdict),
            ]);
            if self.compares {
                let places = [first, -second];
                let decided = places.iter().filter(|place| **place != 0.0).count() as f64;
                let first_won = places.iter().filter(|place| **place > 0.0).count() as f64;
                numbers.extend(scores([
                    ("consistent", indicator(is_consistent)),
                    ("decided", decided),
                    ("first_won", first_won),
                ]));
            }
            let details = Map::from_iter([
                ("theirs".to_string(), json!(theirs.text)),
                ("verdict".to_string(), json!(first)),
                ("verdict_swapped".to_string(), json!(second)),
            ]);
            samples.push(Sample { completion: ours.clone(), scores: numbers, details });
        }
        Ok(outcome(id, group, samples))
    }

    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure> {
        let mean =
            |name: &str| Figure::mean(name, Form::Share, outcomes.iter().map(|outcome| outcome.score(name)));
        let mut figures = vec![mean("win_rate"), mean("win"), mean("tie"), mean("loss")];
        if self.compares {
            figures.push(mean("consistent"));
            let pair = |outcome: &Outcome| (outcome.score("first_won"), outcome.score("decided"));
            figures.push(Figure::ratio("first_place_wins", Form::Share, outcomes.iter().map(pair)));
        }
        figures.into_iter().flatten().chain(of_answers(outcomes)).collect()
    }
}

fn sign(difference: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference.signum() }
}
