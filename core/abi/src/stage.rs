//! The stages of a checkpoint, in their order. The coordinator, the rank's client and the logs use these names.

use core::fmt;

/// Where a checkpoint is. Every stage before [`Stage::Commit`] has an abort path that leaves the job running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Nothing is going on.
    Idle,
    /// The request is known; ranks report what they cannot save, and their collective clocks.
    Intend,
    /// Ranks run on until every communicator has reached its target.
    Settle,
    /// Every thread of every rank is brought to stand still upstairs.
    Stop,
    /// Messages in flight are brought home.
    Drain,
    /// The image is frozen (forked) or written (direct).
    Snapshot,
    /// Threads run again.
    Resume,
    /// Frozen children write their images.
    Write,
    /// Every image is complete on its node; those on node-local disks are copied to where a commit looks.
    Copy,
    /// All images are durable; the manifest is renamed into place.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Idle => "idle",
            Stage::Intend => "intend",
            Stage::Settle => "settle",
            Stage::Stop => "stop",
            Stage::Drain => "drain",
            Stage::Snapshot => "snapshot",
            Stage::Resume => "resume",
            Stage::Write => "write",
            Stage::Copy => "copy",
            Stage::Commit => "commit",
        })
    }
}
