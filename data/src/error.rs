//! What can go wrong: with a row, and with a dataset.

use std::path::PathBuf;

/// Why a row cannot be used, as a figure counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is no JSON object.
    BrokenJson,
    /// It is no UTF-8.
    InvalidUtf8,
    /// It is longer than `max_row_bytes`.
    TooLong,
    /// A field is not there.
    MissingField,
    /// A field is not what it must be.
    WrongType,
    /// A text is empty.
    Empty,
    /// A prompt has no turn of the user.
    NoUserTurn,
    /// Turns do not follow each other as they must.
    RolesOutOfOrder,
    /// A pair's two answers are the same.
    EqualAnswers,
    /// It reads well, but whoever asked for it cannot use it.
    Unusable,
}

impl Reason {
    /// Its name in figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BrokenJson => "broken_json",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::TooLong => "too_long",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::Empty => "empty",
            Reason::NoUserTurn => "no_user_turn",
            Reason::RolesOutOfOrder => "roles_out_of_order",
            Reason::EqualAnswers => "equal_answers",
            Reason::Unusable => "unusable",
        }
    }
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RowError {
    /// As figures count it.
    pub reason: Reason,
    /// A sentence that names the field, what was expected and what was found.
    pub message: String,
}

impl RowError {
    /// With its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        RowError { reason, message: message.into() }
    }

    /// The same, with where it is in front.
    pub(crate) fn at(self, place: &str) -> Self {
        RowError { message: format!("{place}: {}", self.message), ..self }
    }
}

/// Why a dataset cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An option is out of its range. The sentence begins with the option's name.
    #[error("{0}")]
    Config(String),
    /// There is no such file, folder, or dataset.
    #[error(
        "there is no file or folder {path}; expected a file of JSON lines (.jsonl, .json) or Parquet (.parquet), \
         plain or gzipped (.gz), a folder of such files, or a Hugging Face dataset as owner/name"
    )]
    NoFile {
        /// What was asked for.
        path: String,
    },
    /// A dataset of the Hugging Face Hub cannot be had.
    #[error("{path} is no file or folder, and as a Hugging Face dataset it cannot be read: {cause}")]
    Hub {
        /// What was asked for.
        path: String,
        /// Why.
        cause: String,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A row cannot be used, and `on_error` is "stop".
    #[error("{place}: {error}; mend it, or leave such rows out with on_error = \"skip\"")]
    Row {
        /// `FILE:ROW`, the row's number from 1; for JSON lines it is the line.
        place: String,
        /// What is wrong with it.
        error: RowError,
    },
    /// More rows were skipped than may be.
    #[error(
        "{skipped} of {rows} rows were skipped, more than the share of {allowed} that max_skipped allows; \
         the first: {first}"
    )]
    TooManySkipped {
        /// How many.
        skipped: u64,
        /// Of how many.
        rows: u64,
        /// `max_skipped`.
        allowed: f64,
        /// Where the first of them is, and what is wrong with it.
        first: String,
    },
    /// A row was embedded or scored in vain.
    #[error("{cause}")]
    Annotator {
        /// Why.
        cause: String,
    },
    /// What was prepared cannot be written.
    #[error("the prepared rows cannot be written: {cause}")]
    Unwritable {
        /// Why.
        cause: std::io::Error,
    },
    /// There is nothing to read.
    #[error(
        "{path} holds no rows; expected one JSON object a line, such as {{\"prompt\": \"…\", \"completion\": \"…\"}}"
    )]
    NoRows {
        /// What was read.
        path: String,
    },
    /// Every row was skipped or is on another side of the split.
    #[error(
        "no row of {path} is left: of {read}, {} and {elsewhere} are outside of split",
        if causes.is_empty() { format!("{skipped} were skipped") } else { format!("{skipped} were skipped: {causes};") }
    )]
    NothingLeft {
        /// What was read.
        path: String,
        /// Rows looked at.
        read: u64,
        /// Rows that cannot be used.
        skipped: u64,
        /// Rows on another side.
        elsewhere: u64,
        /// The reasons with their counts, and where the first is and what is wrong with it; empty where none was skipped.
        causes: String,
    },
}
