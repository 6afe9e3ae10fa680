//! Root or relay: what this agent is, among those of the run's nodes. Runs *next door*.
//!
//! ```text
//!  newest claim:  none or ended ─▶ claim the next ─▶ ROOT
//!                 answers ─▶ RELAY         refuses for 1 s, is silent for 15 s ─▶ claim the next ─▶ ROOT
//!                                          has a file that nobody can read: as if it were silent
//!                                          claimed by another meanwhile ─▶ look again
//! ```
//!
//! What a reader would get wrong: connections of this node's ranks are accepted all the while, and wait. A root of an earlier
//! start of the job is asked once: after a power cut that start's root is silent for good, and nothing of it counts any more.

use crate::AgentError;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use stillpoint_net::NetError;
use stillpoint_net::dial;
use stillpoint_net::handshake::{Purpose, token};
use stillpoint_net::roots::{Claimed, Root, Roots};
use stillpoint_storage::run::{RunDir, host};

/// How long a root whose addresses all refuse is given.
const REFUSES: Duration = Duration::from_secs(1);
/// How long one is given that does not answer at all.
const SILENT: Duration = Duration::from_secs(15);
/// How long each address of a root of an earlier start may take to answer.
const FORMER: Duration = Duration::from_millis(500);

/// What an agent is.
#[derive(Debug)]
pub(crate) enum Role {
    /// It has the coordinator and the store; the others come to it.
    Root(Claim),
    /// It hands on what its node's ranks say.
    Relay(TcpStream),
}

/// A root's claim.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) number: u32,
    pub(crate) roots: Roots,
    pub(crate) token: String,
    pub(crate) listener: TcpListener,
}

/// Finds the root, or becomes it.
pub(crate) fn elect(run: &RunDir, roots: &Roots) -> Result<Role, AgentError> {
    let mut tried: Option<(u32, Instant)> = None;
    loop {
        let started = run.incarnation()?;
        let newest = roots.newest_now()?;
        let number = newest.as_ref().map_or(0, |claimed| claimed.number);
        let begun = match tried {
            Some((n, begun)) if n == number => begun,
            _ => tried.insert((number, Instant::now())).1,
        };
        let patience = match reach(newest, started) {
            Ok(stream) => {
                tracing::info!("relay; the root is agent {number}");
                return Ok(Role::Relay(stream));
            }
            Err(patience) => patience,
        };
        if begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(100));
        } else if let Some(claim) = claim(roots, number + 1, started)? {
            tracing::info!("root, agent {}", claim.number);
            return Ok(Role::Root(claim));
        }
    }
}

/// The way to the newest root, or how long such a one is given.
fn reach(newest: Option<Claimed>, started: u32) -> Result<TcpStream, Duration> {
    let root = match newest {
        None | Some(Claimed { ended: true, .. }) => return Err(Duration::ZERO),
        // A file system that is in trouble says nothing about who wrote it.
        Some(Claimed { root: None, .. }) => return Err(SILENT),
        Some(Claimed { root: Some(root), .. }) => root,
    };
    if root.incarnation < started {
        return dial::connect_within(&root, Purpose::Relay, FORMER).map_err(|_| Duration::ZERO);
    }
    dial::connect(&root, Purpose::Relay).map_err(|e| match e {
        NetError::Gone => REFUSES,
        e => {
            tracing::debug!("the root on {}: {e}", root.host);
            SILENT
        }
    })
}

fn claim(roots: &Roots, number: u32, incarnation: u32) -> Result<Option<Claim>, AgentError> {
    let io = |source| AgentError::Io { what: "listen on a port", source };
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let listener = listener.map_err(io)?;
    let token = token()?;
    let root = Root {
        host: host(),
        boot: dial::boot(),
        addresses: dial::addresses(),
        port: listener.local_addr().map_err(io)?.port(),
        token: token.clone(),
        pid: std::process::id(),
        incarnation,
    };
    let ours = roots.claim(number, &root)?;
    Ok(ours.then(|| Claim { number, roots: roots.clone(), token, listener }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_certainly_gone_is_followed_at_once() {
        let claimed = |ended, root| Some(Claimed { number: 3, ended, root });
        assert_eq!(reach(None, 0).unwrap_err(), Duration::ZERO);
        assert_eq!(reach(claimed(true, None), 0).unwrap_err(), Duration::ZERO);
        assert_eq!(reach(claimed(false, None), 0).unwrap_err(), SILENT, "its file cannot be read");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (boot, addresses) = (dial::boot(), vec!["127.0.0.1".to_owned()]);
        let root = Root { host: host(), boot, addresses, port, token: "x".into(), pid: 1, incarnation: 1 };
        assert_eq!(reach(claimed(false, Some(root.clone())), 1).unwrap_err(), REFUSES);
        assert_eq!(reach(claimed(false, Some(root)), 2).unwrap_err(), Duration::ZERO, "its start is over");
    }

    #[test]
    fn the_next_root_knows_its_start() {
        let path = std::env::temp_dir().join(format!("stillpoint-elect-{}", std::process::id()));
        let run = RunDir::create(&path).unwrap();
        let roots = Roots::of(&run);
        for number in 1..3 {
            // The former one listens no more: its claim is dropped with its port.
            let Role::Root(claim) = elect(&run, &roots).unwrap() else { panic!("nobody listens") };
            assert_eq!(claim.number, number);
            let newest = roots.newest_now().unwrap().unwrap().root.unwrap();
            assert_eq!(newest.incarnation, run.incarnation().unwrap());
            assert_eq!(run.claim_incarnation().unwrap(), number);
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
}
