//! What the schedule wants done.

use arriero_buffers::Address;
use arriero_results::{ArmSummary, Status};

use super::outline::Cursor;
use crate::event::RunEvent;
use crate::job::PortionJob;
use crate::record::Record;
use crate::role::ActorRole;

/// Something for the executor to do. A command names the work by place and numbers. The executor adds what the plan
/// says of it.
#[derive(Debug, Clone)]
pub enum Command {
    /// Write this down.
    Record(Record),
    /// Show this to the spectator.
    Show(RunEvent),
    /// Answer the held-out prompts with weights of this version.
    Evaluate {
        /// The work.
        address: Address,
        /// Of the weights.
        version: u32,
    },
    /// Bring the learner back to the initial weights: an arm begins.
    BeginArm {
        /// The work.
        address: Address,
        /// The arm.
        cursor: Cursor,
    },
    /// Read the next portion of a stage's dataset.
    Read {
        /// The stage.
        cursor: Cursor,
        /// Rows of the pass that were read before.
        from: u64,
        /// Rows of the whole pass.
        rows: u64,
    },
    /// Sample, score and select for a stage.
    Sample {
        /// The stage.
        cursor: Cursor,
        /// Of the weights to sample from.
        version: u32,
        /// Whether the learner is at work meanwhile.
        is_ahead: bool,
    },
    /// Take the trees of these prompts out of the buffer.
    Discard {
        /// The prompts.
        prompts: Vec<u64>,
    },
    /// Score the buffer's trees with the reference.
    ScoreReference {
        /// The stage.
        cursor: Cursor,
        /// Of the reference's weights; 0 is the initial ones.
        version: u32,
        /// Whether the trees' responses were recorded as samples.
        recorded: bool,
    },
    /// Train on the buffer.
    Train {
        /// The stage.
        cursor: Cursor,
        /// What the buffer holds of the stage's experience.
        portion: PortionJob,
    },
    /// Average models.
    Average {
        /// The stage.
        cursor: Cursor,
    },
    /// Write the learner's weights.
    Checkpoint {
        /// The work.
        address: Address,
        /// What is to stand beside them.
        state: serde_json::Value,
    },
    /// Start an actor again that died.
    Restart(ActorRole),
    /// Let everybody stop after the unit of work in hand.
    Shutdown,
    /// Close the queues of experience: the run is over.
    End {
        /// How it ended.
        status: Status,
        /// Why, if not by coming to its end.
        cause: Option<String>,
        /// What came of the arms.
        arms: Vec<ArmSummary>,
    },
}
