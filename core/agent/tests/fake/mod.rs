//! Ranks that are played: the same `Client` as real ones have, and what it asks for is done in a moment. Runs *next door*.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use stillpoint_coord::client::{Client, ClientAction, Local};
use stillpoint_coord::message::{self, Doing, Said, ToAgent, ToRank};

/// What a rank does that a good one does not.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Habit {
    Good,
    Refuses,
    NoSpace,
    DiesAtSnapshot,
    /// Its image is large enough for a copy to be seen at it.
    Large,
    /// It says another checksum than the image has.
    Lies,
}

/// Who a rank is.
#[derive(Clone, Copy)]
pub(crate) struct Rank {
    pub(crate) n: u32,
    pub(crate) size: u32,
    pub(crate) habit: Habit,
}

/// Sends what is to be sent; the rest.
pub(crate) fn send(s: &mut UnixStream, actions: Vec<ClientAction>) -> Vec<ClientAction> {
    let mut rest = Vec::new();
    for a in actions {
        match a {
            ClientAction::Send(m) => {
                let _ = message::write(s, &ToAgent::Rank(m));
            }
            other => rest.push(other),
        }
    }
    rest
}

/// Takes a message; what nobody plays is put down in `seen`. False: the rank dies.
pub(crate) fn take(me: Rank, s: &mut UnixStream, c: &mut Client, m: ToRank, seen: &mut Vec<String>) -> bool {
    let mut todo = send(s, c.on_message(m));
    while !todo.is_empty() {
        let action = todo.remove(0);
        if matches!(action, ClientAction::Snapshot { .. }) && me.habit == Habit::DiesAtSnapshot {
            s.shutdown(std::net::Shutdown::Both).unwrap();
            return false;
        }
        for l in play(me, action, seen) {
            let more = send(s, c.on_local(l));
            todo.extend(more);
        }
    }
    true
}

fn play(me: Rank, action: ClientAction, seen: &mut Vec<String>) -> Vec<Local> {
    let Rank { n, size, habit } = me;
    let from = (n + size - 1) % size;
    match action {
        ClientAction::ReportReasons { .. } if habit == Habit::Refuses => {
            vec![Local::Reasons(vec!["a socket to the outside".into()])]
        }
        ClientAction::ReportReasons { .. } => vec![Local::Reasons(vec![])],
        ClientAction::ReportClocks | ClientAction::SetTargets { .. } => {
            vec![Local::Clocks { clocks: vec![], doing: Doing::Running }]
        }
        ClientAction::StopThreads => {
            vec![
                Local::Stopped,
                Local::Contribute(Said { to: vec![((n + 1) % size, vec![n as u8])], ..Said::default() }),
            ]
        }
        ClientAction::Drain { heard, .. } => {
            assert_eq!(heard.from, vec![(from, vec![from as u8])]);
            vec![Local::Drained]
        }
        ClientAction::Snapshot { ckpt, .. } if habit == Habit::NoSpace => {
            vec![
                Local::Snapped { bytes: 1, direct: false },
                Local::WriteFailed { ckpt, reason: "no space left".into() },
            ]
        }
        ClientAction::Snapshot { ckpt, path, .. } => {
            let len = if habit == Habit::Large { 3 << 20 } else { 100_000 };
            let bytes = vec![n as u8; len];
            let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            // The checkpoint may have been given up meanwhile, and its directory removed.
            match open.and_then(|mut f| f.write_all(&bytes).and_then(|()| f.sync_all())) {
                Ok(()) => {
                    let mut digest = twox_hash::XxHash3_128::oneshot(&bytes[..4096]).to_le_bytes();
                    digest[0] ^= u8::from(habit == Habit::Lies);
                    let len = len as u64;
                    vec![
                        Local::Snapped { bytes: len, direct: false },
                        Local::Written { ckpt, bytes: len, digest, file_len: len },
                    ]
                }
                Err(e) => vec![Local::WriteFailed { ckpt, reason: e.to_string() }],
            }
        }
        other => {
            seen.push(format!("{other:?}"));
            vec![]
        }
    }
}
