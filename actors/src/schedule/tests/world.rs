//! Actors that do nothing but report, and an account of what became of every prompt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arriero_buffers::Address;
use arriero_experiment::{Mode, ReferenceWeights};
use arriero_results::{ArmSummary, Evaluation, Status};

use crate::record::Record;
use crate::report::{GroupFigures, News, Portion, Report};
use crate::role::ActorRole;
use crate::schedule::outline::{ArmOutline, Source, StageOutline, TrainingOutline, Work};
use crate::schedule::{Command, Cursor, Input, Outline, Schedule};

/// More inputs than any of the tests' runs needs. A run that takes more does not end.
const MOST_INPUTS: usize = 20_000;

/// Numbers that look random, and are the same each time.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides` (SplitMix64; Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014).
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// A stage that samples four prompts' groups and takes steps of two trees.
pub fn online(name: &str) -> StageOutline {
    training(name, Source::Samples { completions: 4, waits_for_reward_model: false })
}

/// A stage that learns from a dataset of seven rows in portions of four trees.
pub fn offline(name: &str) -> StageOutline {
    training(name, Source::Dataset { path: "pairs".to_string(), rows: 7, portion: 4, shuffle: true })
}

/// A stage that learns from what another one sampled.
pub fn again(name: &str) -> StageOutline {
    training(name, Source::SamplesOf { completions: 4 })
}

fn training(name: &str, source: Source) -> StageOutline {
    let training = TrainingOutline {
        source,
        batch_size: 2,
        epochs: 2,
        reference: Some(ReferenceWeights::Initial),
        accumulates: false,
        trains_reward_model: false,
    };
    StageOutline { name: name.into(), work: Work::Train(training) }
}

/// A stage that averages two models.
pub fn average(name: &str) -> StageOutline {
    StageOutline { name: name.into(), work: Work::Average { models: 2 } }
}

/// Two arms of two rounds, which have every phase that there is.
pub fn every_phase(mode: Mode) -> Outline {
    let first = vec![online("grpo"), again("dpo"), average("average")];
    let arms = vec![
        ArmOutline::new("one", 2, first).expect("it has stages"),
        ArmOutline::new("two", 2, vec![online("sft"), offline("kto")]).expect("it has stages"),
    ];
    let mut outline = Outline::new(7, arms).expect("it has arms");
    (outline.prompts_per_round, outline.prompts) = (4, 7);
    (outline.mode, outline.held_out, outline.measures) = (mode, 3, true);
    outline
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    pub status: Status,
    pub cause: Option<String>,
    pub arms: Vec<ArmSummary>,
}

/// A training that goes on.
#[derive(Debug, Clone)]
struct Training {
    /// Steps that were told.
    steps: u64,
    /// Trees of a step.
    batch: u64,
    /// Trees that are learned from.
    trees: u64,
    /// Those among them that are of this round.
    fresh: u64,
}

/// The schedule, and actors whose reports are on their way.
#[derive(Clone)]
pub struct World {
    pub schedule: Schedule,
    pub dice: Dice,
    pub ending: Option<Ending>,
    /// Actors that the schedule started again.
    pub restarted: Vec<ActorRole>,
    /// Groups and rows that were given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Trees that the learner was given, or took a part of before the run ended.
    pub trained: u64,
    /// Prompts of the sampling phases that began, and trees of the portions that were read.
    pub begun: u64,
    on_the_way: BTreeMap<ActorRole, VecDeque<Report>>,
    delivered: BTreeMap<Address, BTreeSet<u64>>,
    buffer: BTreeSet<u64>,
    version: u32,
    is_ending: bool,
    inputs: usize,
    /// Trees of the portion that is being read.
    reading: u64,
    /// The training that goes on, if one does.
    training: Option<Training>,
    /// Trees that a stage of an arm learns from.
    kept: BTreeMap<(Arc<str>, Arc<str>), u64>,
    time: f64,
}

impl World {
    pub fn new(outline: Outline, seed: u64) -> Self {
        World {
            schedule: Schedule::new(outline),
            dice: Dice(seed),
            ending: None,
            restarted: Vec::new(),
            dropped: BTreeMap::new(),
            trained: 0,
            begun: 0,
            on_the_way: BTreeMap::new(),
            delivered: BTreeMap::new(),
            buffer: BTreeSet::new(),
            version: 0,
            is_ending: false,
            inputs: 0,
            reading: 0,
            training: None,
            kept: BTreeMap::new(),
            time: 0.0,
        }
    }

    /// Tells the schedule, and answers what it commands.
    pub fn tell(&mut self, input: Input) {
        self.inputs += 1;
        assert!(self.inputs < MOST_INPUTS, "the run does not end: {:?}", self.schedule.phase());
        assert!(self.ending.is_none(), "the run is over, but goes on");
        self.time += 0.5;
        if let Input::Report(report) = &input {
            self.account(report);
        }
        for command in self.schedule.step(self.time, input) {
            self.answer(command);
        }
    }

    /// Delivers one report of an actor that has one on its way; false if nobody has.
    pub fn deliver(&mut self) -> bool {
        let waiting: Vec<ActorRole> = ActorRole::ALL
            .into_iter()
            .filter(|role| self.on_the_way.get(role).is_some_and(|reports| !reports.is_empty()))
            .collect();
        if waiting.is_empty() {
            return false;
        }
        let role = waiting[self.dice.roll(waiting.len() as u64) as usize];
        let Some(report) = self.on_the_way.get_mut(&role).and_then(VecDeque::pop_front) else { return false };
        self.tell(Input::Report(report));
        true
    }

    /// Goes on until the run is over, or `is_there` says so.
    pub fn run_until(&mut self, mut is_there: impl FnMut(&World) -> bool) {
        if self.inputs == 0 {
            self.tell(Input::Start);
        }
        while self.ending.is_none() && !is_there(self) {
            assert!(self.deliver(), "everybody waits, and nothing comes: {:?}", self.schedule.phase());
        }
    }

    pub fn run(&mut self) -> Ending {
        self.run_until(|_| false);
        self.ending.clone().expect("it has ended")
    }

    /// An actor dies. What it had not told is lost, except what was already in a queue.
    pub fn die(&mut self, role: ActorRole) {
        self.forget(role);
        self.tell(Input::Died { role, cause: "a fault".to_string() });
    }

    /// An actor reports that it cannot do its work.
    pub fn fail(&mut self, address: &Address, role: ActorRole, cause: &str) {
        let news = News::Failed { role, cause: cause.to_string() };
        self.tell(Input::Report(Report { address: address.clone(), news }));
    }

    /// Every prompt whose sampling began, and every tree that was read, was trained on or given up with a reason.
    pub fn check_account(&self) {
        let dropped: u64 = self.dropped.values().sum();
        assert_eq!(self.begun, self.trained + dropped, "{:?}, trained on: {}", self.dropped, self.trained);
    }

    /// What an actor had under way is lost, but not what it had leased of a queue.
    fn forget(&mut self, role: ActorRole) {
        if !matches!(role, ActorRole::RewardWorker | ActorRole::RejectionSampler) {
            self.on_the_way.remove(&role);
        }
        if role == ActorRole::DataReader {
            self.reading = 0;
        }
    }

    fn account(&mut self, report: &Report) {
        match &report.news {
            News::Reading { trees } => self.reading = *trees,
            News::Read(portion) => {
                self.begun += portion.accepted;
                self.reading = 0;
            }
            News::Stepped { .. } => {
                if let Some(training) = &mut self.training {
                    training.steps += 1;
                }
            }
            News::Trained { .. } => {
                let Some(training) = self.training.take() else { return };
                self.trained += training.fresh;
            }
            // What is told again of a stage whose trees the learner has taken puts nothing into the buffer.
            News::Accepted { prompt_id, .. } if self.schedule.samples_for(&report.address) => {
                self.buffer.insert(*prompt_id);
            }
            _ => {}
        }
    }

    fn send(&mut self, role: ActorRole, address: &Address, news: impl IntoIterator<Item = News>) {
        let address = address.clone();
        let reports = news.into_iter().map(|news| Report { address: address.clone(), news });
        self.on_the_way.entry(role).or_default().extend(reports);
    }

    /// Trees of a step, and whether the stage learns from those of all rounds.
    fn training_at(&self, cursor: Cursor) -> (u64, bool) {
        match &self.schedule.outline().stage(cursor).work {
            Work::Train(training) => (training.batch_size, training.accumulates),
            Work::Average { .. } => panic!("a stage that averages trains nothing"),
        }
    }

    fn answer(&mut self, command: Command) {
        let outline = self.schedule.outline().clone();
        match command {
            Command::Record(Record::Drops { reason, count, .. }) => {
                *self.dropped.entry(reason).or_default() += count;
            }
            Command::Record(_) | Command::Show(_) => {}
            Command::Restart(role) => {
                self.restarted.push(role);
            }
            Command::Evaluate { address, version } => {
                let done = News::Evaluating { done: 1, total: 3, tokens: 5, seconds: 0.5 };
                let evaluation = Evaluation { version, tokens: 9, seconds: 1.5, ..Evaluation::default() };
                let news = [done, News::Evaluated(Box::new(evaluation))];
                self.send(ActorRole::Evaluator, &address, news);
            }
            Command::BeginArm { address, .. } => {
                self.version = 0;
                self.send(ActorRole::Learner, &address, [News::Begun]);
            }
            Command::Read { cursor, from, rows } => self.read(&outline.address(cursor), from, rows),
            Command::Sample { cursor, version, .. } => self.sample(cursor, version),
            Command::Discard { prompts } => {
                for prompt in prompts {
                    assert!(self.buffer.remove(&prompt), "prompt {prompt} is not there to be discarded");
                }
            }
            Command::ScoreReference { cursor, .. } => {
                let scored = self.buffer.len();
                let news = std::iter::repeat_n(News::ReferenceScored, scored).chain([News::Referenced]);
                self.send(ActorRole::Reference, &outline.address(cursor), news.collect::<Vec<_>>());
            }
            Command::Train { cursor, portion } => {
                let (batch, accumulates) = self.training_at(cursor);
                let fresh = std::mem::take(&mut self.buffer).len() as u64;
                assert!(fresh > 0, "there is nothing to train on");
                let place = outline.address(cursor);
                let kept = self.kept.entry((place.arm, place.stage)).or_default();
                *kept = if accumulates { *kept + fresh } else { fresh };
                let trees = *kept;
                let steps = trees.div_ceil(batch) * portion.epochs as u64;
                self.training = Some(Training { steps: 0, batch, trees, fresh });
                let address = outline.address(cursor);
                self.send(ActorRole::Learner, &address, [News::Taken]);
                for _ in 0..steps {
                    self.version += 1;
                    let (version, metrics) = (self.version, BTreeMap::new());
                    let step = News::Stepped { version, metrics, tokens: 10, seconds: 0.25 };
                    self.send(ActorRole::Learner, &address, [step]);
                }
                self.send(ActorRole::Learner, &address, [News::Trained { version: self.version }]);
            }
            Command::Average { cursor } => {
                self.version += 1;
                let news = News::Averaged { version: self.version, seconds: 0.5 };
                self.send(ActorRole::Learner, &outline.address(cursor), [news]);
            }
            Command::Checkpoint { address, state } => {
                let directory = format!("step-{}", self.version).into();
                let news = News::Checkpointed { directory, version: self.version, state };
                self.send(ActorRole::Learner, &address, [news]);
            }
            Command::Shutdown => {
                assert!(!self.is_ending, "it shuts down twice");
                self.is_ending = true;
                // Nobody begins anything; the learner may be in the middle of a step.
                let learner = self.on_the_way.remove(&ActorRole::Learner).unwrap_or_default();
                self.on_the_way.clear();
                let is_step = |report: &Report| matches!(report.news, News::Stepped { .. });
                let is_writing = |report: &Report| matches!(report.news, News::Checkpointed { .. });
                let in_hand =
                    learner.into_iter().next().filter(|report| is_step(report) || is_writing(report));
                self.on_the_way.entry(ActorRole::Learner).or_default().extend(in_hand);
                self.close_account();
            }
            Command::End { status, cause, arms } => {
                assert!(self.is_ending || status == Status::Completed);
                self.close_account();
                self.ending = Some(Ending { status, cause, arms });
            }
        }
    }

    /// The account of work that does not come to its end. Trees that were read by then count as begun. Of a training,
    /// the trees of the steps that were told count as trained on.
    fn close_account(&mut self) {
        self.begun += std::mem::take(&mut self.reading);
        if let Some(Training { steps, batch, trees, fresh }) = self.training.take() {
            // Which of all rounds' trees come first is not known: as many of this round's as can be are still to come.
            self.trained += fresh - trees.saturating_sub(steps * batch).min(fresh);
        }
    }

    fn read(&mut self, address: &Address, from: u64, rows: u64) {
        self.buffer.clear();
        let read = (rows - from).min(4);
        // The last row of a portion is of no use.
        let accepted = read - 1;
        self.buffer.extend((0..accepted).map(|tree| from + tree));
        let position = from + read;
        let portion =
            Portion { position, is_last: position == rows, accepted, seconds: 0.5, ..Portion::default() };
        let news = [News::Reading { trees: accepted }, News::Read(Box::new(portion))];
        self.send(ActorRole::DataReader, address, news);
    }

    fn sample(&mut self, cursor: Cursor, version: u32) {
        let address = self.schedule.outline().address(cursor);
        let total = self.schedule.outline().prompts_of(cursor.round());
        let first = cursor.round() * self.schedule.outline().prompts_per_round;
        if !self.delivered.contains_key(&address) {
            self.begun += total;
        }
        let mut tokens = 0;
        for prompt_id in first..first + total {
            if !self.delivered.entry(address.clone()).or_default().insert(prompt_id) {
                continue;
            }
            tokens += 6;
            self.send(ActorRole::Generator, &address, [News::Sampling { tokens, seconds: 0.25 }]);
            let figures = GroupFigures { rewards: vec![1.0], lengths: vec![6], ..GroupFigures::default() };
            let outcome = match self.dice.roll(4) {
                0 => News::Dropped { prompt_id, reason: "all_rewards_equal".to_string() },
                _ => News::Accepted { prompt_id, version: Some(version) },
            };
            // An actor that dies between its report and the end of its lease reports it again.
            let times = if self.dice.roll(8) == 0 { 2 } else { 1 };
            let news = std::iter::repeat_n([News::Scored(Box::new(figures)), outcome], times).flatten();
            self.send(ActorRole::RejectionSampler, &address, news.collect::<Vec<_>>());
        }
        let news = News::Sampled { tokens, reused: 0, seconds: 0.5 };
        self.send(ActorRole::Generator, &address, [news]);
    }
}
