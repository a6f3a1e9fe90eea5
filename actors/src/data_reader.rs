//! The data reader: fills the buffer from a dataset, a portion at a time.

use std::sync::Arc;
use std::time::Instant;

use arriero_data::{Entry, Rows};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use crate::context::Context;
use crate::job::ReadingJob;
use crate::report::{News, Portion};
use crate::role::ActorRole;
use arriero_experiment::DataPlan;
use arriero_experiment::examples::{Tokenisation, Unfit, example_of, rate};

/// Rows of one handler call.
const ROWS: usize = 64;

/// From one file of a dataset to the next, ids of trees are this far apart.
pub(crate) const FILE_IDS: u64 = 1_000_000_000;

/// A row that the algorithm has no use for, where `on_error` is "skip".
pub(crate) const OTHER_TYPE: &str = "row_of_another_type";

#[derive(Debug)]
pub(crate) enum DataReaderMessage {
    /// Put this portion into the buffer, which is empty.
    Read(Box<ReadingJob>),
    /// Go on.
    Continue,
}

#[derive(Default)]
pub(crate) struct DataReader;

pub(crate) struct DataReaderState {
    context: Context,
    stream: Option<Stream>,
    work: Option<Work>,
}

/// A pass that is under way.
struct Stream {
    data: Arc<DataPlan>,
    rows: Rows,
    position: u64,
    /// The file that is being read, and its number among those of the dataset.
    file: Option<(Arc<str>, u64)>,
}

impl Stream {
    /// The id of a row's tree, by which errors name the row: the row's number, and [`FILE_IDS`] more for each file
    /// before its own.
    fn id(&mut self, entry: &Entry) -> u64 {
        let number = match &self.file {
            Some((file, number)) if *file == entry.file => *number,
            Some((_, number)) => number + 1,
            None => 0,
        };
        self.file = Some((Arc::clone(&entry.file), number));
        number * FILE_IDS + entry.number
    }

    /// Whether the job goes on where it stands.
    fn is_before(&self, job: &ReadingJob) -> bool {
        Arc::ptr_eq(&self.data, &job.data) && self.position == job.from
    }
}

struct Work {
    job: ReadingJob,
    portion: Portion,
    began: Instant,
}

impl ThreadLocalActor for DataReader {
    type Msg = DataReaderMessage;
    type State = DataReaderState;
    type Arguments = Context;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: Context,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(DataReaderState { context, stream: None, work: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if state.context.shutdown.has_begun() {
            state.work = None;
            return Ok(());
        }
        if let DataReaderMessage::Read(job) = message {
            let job = *job;
            // What a reader that died had put there comes once more.
            state.context.buffer().clear();
            state.stream = state.stream.take().filter(|stream| stream.is_before(&job));
            state.work = Some(Work { job, portion: Portion::default(), began: Instant::now() });
        }
        let Some(mut work) = state.work.take() else { return Ok(()) };
        state.context.faults.begin(ActorRole::DataReader);
        match state.go_on(&mut work) {
            Err(cause) => state.context.tell_failure(&work.job.address, ActorRole::DataReader, cause),
            Ok(false) => {
                state.context.tell(&work.job.address, News::Reading { trees: work.portion.accepted });
                state.work = Some(work);
                myself.cast(DataReaderMessage::Continue)?;
            }
            Ok(true) => {
                work.portion.seconds = work.began.elapsed().as_secs_f64();
                state.context.tell(&work.job.address, News::Read(Box::new(work.portion)));
            }
        }
        Ok(())
    }
}

impl DataReaderState {
    /// Reads some rows; true when the portion is complete.
    fn go_on(&mut self, work: &mut Work) -> Result<bool, String> {
        let Work { job, portion, .. } = work;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open(job)?,
        };
        let mut is_over = stream.position >= job.rows;
        let tokenisation = Tokenisation {
            tokenizer: &self.context.tokenizer,
            data: &job.data,
            max_positions: self.context.model.max_positions,
            budget: job.budget,
        };
        let objective = job.algorithm.objective();
        for _ in 0..ROWS {
            if portion.accepted as usize == job.trees {
                break;
            }
            let Some(row) = stream.rows.next() else {
                is_over = true;
                break;
            };
            let entry = row.map_err(|error| error.to_string())?;
            stream.position += 1;
            let fitted = match example_of(job.rule, &entry.row) {
                None => Err(Unfit::from(OTHER_TYPE)),
                Some(example) => tokenisation
                    .tree(stream.id(&entry), &entry, &example)
                    .map_err(|error| format!("{}: {error}", entry.place()))?,
            };
            let fitted = fitted.and_then(|mut tree| {
                rate(&mut tree, &entry.row);
                objective.refuses(&tree).map_or(Ok(tree), |reason| Err(Unfit::from(reason)))
            });
            match fitted {
                Err(Unfit { reason, detail }) => {
                    let dropped = portion.dropped.entry(reason.to_string()).or_default();
                    dropped.count += 1;
                    let first =
                        || detail.map_or(entry.place(), |detail| format!("{}, {detail}", entry.place()));
                    dropped.first.get_or_insert_with(first);
                }
                Ok(mut tree) => {
                    tree.address = job.address.clone();
                    portion.accepted += 1;
                    portion.tokens += tree.len() as u64;
                    portion.loss_tokens += tree.loss_tokens() as u64;
                    portion.truncated +=
                        tree.branches.iter().filter(|branch| branch.truncated).count() as u64;
                    self.context.buffer().insert(tree).map_err(|error| error.to_string())?;
                }
            }
        }
        is_over |= stream.position >= job.rows;
        (portion.position, portion.is_last) = (stream.position, is_over);
        if is_over {
            for (reason, count) in &stream.rows.counts().skipped {
                portion.dropped.entry(reason.to_string()).or_default().count += count;
            }
        } else {
            self.stream = Some(stream);
        }
        Ok(is_over || portion.accepted as usize == job.trees)
    }

    /// The pass from the job's first row on.
    fn open(&self, job: &ReadingJob) -> Result<Stream, String> {
        let rows = job.data.rows.open(self.context.plan.seed).map_err(|error| error.to_string())?;
        let mut stream = Stream { data: Arc::clone(&job.data), rows, position: job.from, file: None };
        for _ in 0..job.from {
            if let Some(entry) = stream.rows.next().transpose().map_err(|error| error.to_string())? {
                stream.id(&entry);
            }
        }
        Ok(stream)
    }
}
