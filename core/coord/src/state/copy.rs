//! Images on the disks of nodes: complete there, then copied to where a commit looks, by the agents of the nodes. *Next
//! door*, without IO.
//!
//! ```text
//!  image:  none ─Written▶ durable          none ─Kept▶ on its node ─Copied▶ durable
//!                                                          └── Copied(Err), NodeGone, no progress ─▶ the checkpoint is given up
//! ```
//!
//! What a reader would get wrong: an image belongs to a node, not to a connection. Its rank may be long gone when it becomes
//! durable; when the node's agent is gone, it never does, though the rank may live.

use super::{Coordinator, Image, Nanos, Node};
use crate::message::Presence;
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_abi::stage::Stage;

/// An image that is not durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copying {
    /// Where it is.
    node: Node,
    /// Bytes that are copied.
    done: u64,
}

impl Coordinator {
    fn is_written_now(&self, ckpt: CkptId) -> bool {
        !self.preparing
            && ckpt == self.ckpt
            && matches!(self.stage, Stage::Snapshot | Stage::Write | Stage::Copy)
    }

    pub(super) fn kept(&mut self, conn: u64, node: Node, ckpt: CkptId, image: Image) {
        let Some(&rank) = self.by_conn.get(&conn) else { return };
        if self.is_written_now(ckpt) && self.stage != Stage::Copy {
            let r = &mut self.ranks[rank as usize];
            r.image = Some(Image { rank: Rank(rank), ..image });
            r.copying = Some(Copying { node, done: 0 });
        }
    }

    /// What of this rank's image is being copied on that node.
    fn under_way(&mut self, node: Node, ckpt: CkptId, rank: Rank) -> Option<&mut Option<Copying>> {
        let current = self.is_written_now(ckpt);
        let there = &mut self.ranks.get_mut(rank.0 as usize)?.copying;
        (current && there.is_some_and(|c| c.node == node)).then_some(there)
    }

    pub(super) fn copying(&mut self, node: Node, ckpt: CkptId, rank: Rank, done: u64) {
        if let Some(Some(there)) = self.under_way(node, ckpt, rank) {
            there.done = done;
            self.note_progress();
        }
    }

    pub(super) fn copied(&mut self, node: Node, ckpt: CkptId, rank: Rank, result: Result<(), String>) {
        let Some(there) = self.under_way(node, ckpt, rank) else { return };
        match result {
            Ok(()) => {
                *there = None;
                self.note_progress();
            }
            Err(reason) => self.give_up(vec![format!("rank {rank}: {reason}")]),
        }
    }

    /// The limit of the stage counts from here.
    fn note_progress(&mut self) {
        if self.stage == Stage::Copy {
            self.entered = self.now;
        }
    }

    pub(super) fn node_gone(&mut self, node: Node) {
        if !self.is_written_now(self.ckpt) {
            return;
        }
        let lost = self.on_nodes(|c| c.node == node);
        if !lost.is_empty() {
            let ranks = lost.join(" ");
            self.give_up(vec![format!(
                "the node agent that was to copy the images of ranks {ranks} to the shared directory is gone"
            )]);
        }
    }

    /// The first ranks whose images are such.
    fn on_nodes(&self, such: impl Fn(&Copying) -> bool) -> Vec<String> {
        let all = (0u32..).zip(&self.ranks).filter(|(_, r)| r.copying.as_ref().is_some_and(&such));
        all.map(|(n, _)| n.to_string()).take(16).collect()
    }

    pub(super) fn all_written(&self) -> bool {
        self.ranks.iter().all(|r| r.image.is_some() || r.presence != Presence::Here)
    }

    /// Whether the checkpoint goes on when a rank becomes such. One that is away for a while when all are to end with it would
    /// come back to a job that has ended.
    pub(super) fn needs_no_rank(&self, presence: Presence) -> bool {
        self.stage == Stage::Copy && !(self.stop && presence == Presence::Absent)
    }

    pub(super) fn all_durable(&self) -> bool {
        self.ranks.iter().all(|r| r.copying.is_none())
    }

    /// Nothing is heard any more of those that are to be copied.
    pub(super) fn copy_is_stuck(&mut self, limit: Nanos) {
        let late = self.on_nodes(|_| true).join(" ");
        self.give_up(vec![format!(
            "no progress for {} s in copying the images of ranks {late} to the shared directory",
            limit / super::SEC
        )]);
    }

    /// Bytes copied, and bytes to be copied in all. None: the stage is another one; before it, ranks are still needed.
    pub(super) fn copy_measure(&self) -> Option<(u64, u64)> {
        if self.stage != Stage::Copy {
            return None;
        }
        let images = self.ranks.iter().filter_map(|r| Some((r.image.as_ref()?.file_len, r.copying)));
        Some(images.fold((0, 0), |(done, all), (len, copying)| {
            (done + copying.map_or(len, |c| c.done.min(len)), all + len)
        }))
    }
}
