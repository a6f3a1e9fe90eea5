//! A program of the user's, in any language: it reads JSON lines and answers each with a reward.

#[cfg(target_os = "linux")]
pub mod keeper;
#[cfg(not(target_os = "linux"))]
#[path = "program/no_keeper.rs"]
pub mod keeper;
mod process;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arriero_buffers::{Group, Score};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::{Item, Unit, items, regroup};
use super::{Outcomes, Scorer, ScorerConfig};
use crate::cancellation::{CancellationToken, WaitError};
use crate::error::{RewardError, quoted};
use process::{Line, Process};

/// The options of the `program` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProgramConfig {
    /// The program and its arguments. No default: it must be given.
    pub command: Vec<String>,
    /// What one line is about. Default a completion.
    pub unit: Unit,
    /// Lines that are written before their answers are waited for, at least 1. Default 64.
    pub batch: usize,
    /// Seconds without an answer after which it counts as hung; its start is part of them. Default 60.
    pub timeout: f64,
    /// How often it is started again without any answer in between. Default 5.
    pub restarts: u32,
}

impl Default for ProgramConfig {
    fn default() -> Self {
        ProgramConfig { command: Vec::new(), unit: Unit::Completion, batch: 64, timeout: 60.0, restarts: 5 }
    }
}

impl ScorerConfig for ProgramConfig {
    fn validate(&self) -> Result<(), String> {
        let Some(program) = self.command.first().filter(|program| !program.is_empty()) else {
            return Err("command is empty, but must name a program, as in [\"python3\", \"my_reward.py\"]"
                .to_string());
        };
        if self.batch == 0 {
            return Err("batch is 0, but must be at least 1".to_string());
        }
        check_seconds("timeout", self.timeout)?;
        if !is_there(program) {
            return Err(format!(
                "command is wrong: there is no program {program:?}; give its path, or install it"
            ));
        }
        Ok(())
    }

    fn compares_completions(&self) -> bool {
        self.unit == Unit::Group
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        Ok(Box::new(ProgramScorer {
            config: self.clone(),
            process: None,
            next_id: 0,
            deaths: 0,
            given_up: None,
            cancellation: CancellationToken::default(),
        }))
    }
}

/// Seconds that a `Duration` can hold.
pub(super) fn check_seconds(name: &str, seconds: f64) -> Result<(), String> {
    match seconds {
        seconds if seconds > 0.0 && seconds <= 1e6 => Ok(()),
        seconds => Err(format!("{name} is {seconds}, but must be above 0 and at most 1000000 seconds")),
    }
}

fn is_there(program: &str) -> bool {
    if program.contains('/') {
        return PathBuf::from(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Scores with a process that lives as long as the scorer.
struct ProgramScorer {
    config: ProgramConfig,
    process: Option<Process>,
    next_id: u64,
    /// Processes that ended, one after the other, without any answer in between.
    deaths: u32,
    /// Why the program is not started again.
    given_up: Option<String>,
    cancellation: CancellationToken,
}

/// Why a window of lines was not answered to its end.
enum WindowError {
    /// The process is of no use any more.
    Process(String),
    Stopped,
}

impl ProgramScorer {
    /// Asks about all items; the answers are in their order.
    ///
    /// What was under way when a process failed is asked again one by one, so that what kills the program is found
    /// out and the rest is answered.
    fn ask(&mut self, items: &[Item]) -> Vec<Outcomes> {
        let mut answers: Vec<Option<Outcomes>> = items.iter().map(|_| None).collect();
        let mut open: VecDeque<usize> = (0..items.len()).collect();
        let mut suspects = 0_usize;
        while !open.is_empty() {
            if let Some(cause) = &self.given_up {
                for index in open.drain(..) {
                    answers[index] = Some(items[index].failed(cause));
                }
                break;
            }
            let window = if suspects > 0 { 1 } else { self.config.batch };
            let now: Vec<usize> = open.drain(..window.min(open.len())).collect();
            let error = self.window(items, &now, &mut answers).err();
            let left: Vec<usize> = now.into_iter().filter(|&index| answers[index].is_none()).collect();
            match error {
                None => suspects = suspects.saturating_sub(1),
                Some(WindowError::Stopped) => {
                    for index in left.into_iter().chain(open.drain(..)) {
                        answers[index] = Some(items[index].interrupted());
                    }
                }
                Some(WindowError::Process(cause)) => {
                    self.deaths += 1;
                    if self.deaths > self.config.restarts {
                        self.given_up = Some(format!(
                            "{cause}; it was started {} times without giving an answer, and is not started again",
                            self.deaths
                        ));
                    } else if suspects > 0 {
                        suspects -= 1;
                        for &index in &left {
                            answers[index] = Some(items[index].failed(&cause));
                        }
                    } else {
                        suspects = left.len();
                    }
                    for index in left.into_iter().rev().filter(|&index| answers[index].is_none()) {
                        open.push_front(index);
                    }
                }
            }
        }
        answers.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Writes the lines of `now`, and reads until each is answered.
    fn window(
        &mut self,
        items: &[Item],
        now: &[usize],
        answers: &mut [Option<Outcomes>],
    ) -> Result<(), WindowError> {
        let process = match self.process.take() {
            Some(process) => process,
            None => Process::start(&self.config.command).map_err(WindowError::Process)?,
        };
        let process = self.process.insert(process);
        let first_id = self.next_id;
        self.next_id += now.len() as u64;
        for (id, &index) in (first_id..).zip(now) {
            let mut request = serde_json::Map::from_iter([("id".to_string(), Value::from(id))]);
            request.extend(items[index].request.clone());
            process.write(Value::Object(request).to_string());
        }
        let timeout = Duration::from_secs_f64(self.config.timeout);
        let mut missing = now.len();
        let mut deadline = Instant::now() + timeout;
        while missing > 0 {
            let problem = match self.cancellation.wait(deadline, |slice| process.read(slice)) {
                Ok(Line::Text(text)) => {
                    let read = read_answer(&text, first_id, now.len());
                    match read.map(|(place, answer)| (now[place], answer)) {
                        Ok((index, answer)) if answers[index].is_none() => {
                            answers[index] = Some(items[index].read("the program", &answer));
                            missing -= 1;
                            self.deaths = 0;
                            self.cancellation.tick();
                            deadline = Instant::now() + timeout;
                            continue;
                        }
                        Ok(_) => format!("the program answered the same line twice: {}", quoted(&text)),
                        Err(cause) => {
                            format!("the program wrote {}, which is no answer: {cause}", quoted(&text))
                        }
                    }
                }
                Ok(Line::TooLong(bytes)) => {
                    format!("the program wrote {bytes} bytes without a line end, which is no answer")
                }
                Ok(Line::End) => {
                    format!("the program {} and left {missing} lines unanswered", process.ended())
                }
                Err(WaitError::TimedOut) => {
                    format!("the program gave no answer for {} s", self.config.timeout)
                }
                Err(WaitError::Cancelled) => {
                    self.process = None;
                    return Err(WindowError::Stopped);
                }
            };
            let problem = format!("{problem}; {}", process.complaints());
            self.process = None;
            return Err(WindowError::Process(problem));
        }
        Ok(())
    }
}

/// Which line of a window is answered, and the answer.
fn read_answer(text: &str, first_id: u64, count: usize) -> Result<(usize, Value), String> {
    const EXPECTED: &str = "expected a line such as {\"id\": 0, \"reward\": 1.0}; messages belong on stderr";
    let answer: Value = serde_json::from_str(text).map_err(|_| EXPECTED.to_string())?;
    let id = answer.get("id").ok_or(EXPECTED)?;
    let place = id.as_u64().and_then(|id| id.checked_sub(first_id)).map(|place| place as usize);
    match place.filter(|&place| place < count) {
        Some(place) => Ok((place, answer)),
        None => Err(format!("no line with \"id\": {id} waits for an answer")),
    }
}

impl Scorer for ProgramScorer {
    fn name(&self) -> &'static str {
        "program"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        self.score_groups(&[group]).remove(0).into_iter().collect()
    }

    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let items = items(groups, self.config.unit);
        let answers = self.ask(&items);
        regroup(groups.len(), &items, answers)
    }

    fn batch(&self) -> usize {
        self.config.batch
    }

    fn set_cancellation(&mut self, cancellation: &CancellationToken) {
        self.cancellation = cancellation.clone();
    }
}

#[cfg(test)]
mod tests;
