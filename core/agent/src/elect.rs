//! Root or relay: what this agent is, among those of the run's nodes. Runs *next door*.
//!
//! ```text
//!  newest claim:  none or ended ─▶ claim the next ─▶ ROOT
//!                 answers ─▶ RELAY         refuses for 1 s, is silent for 15 s ─▶ claim the next ─▶ ROOT
//!                                          claimed by another meanwhile ─▶ look again
//! ```
//!
//! What a reader would get wrong: connections of this node's ranks are accepted all the while, and wait.

use crate::AgentError;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use stillpoint_net::NetError;
use stillpoint_net::dial;
use stillpoint_net::handshake::{Purpose, token};
use stillpoint_net::roots::{Claimed, Root, Roots, host};

/// How long a root whose addresses all refuse is given.
const REFUSES: Duration = Duration::from_secs(1);
/// How long one is given that does not answer at all.
const SILENT: Duration = Duration::from_secs(15);

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
pub(crate) fn elect(roots: &Roots) -> Result<Role, AgentError> {
    let mut tried: Option<(u32, Instant)> = None;
    loop {
        let newest = roots.newest_now()?;
        let (number, root) = match newest {
            None => (0, None),
            Some(Claimed { number, ended: true, .. }) => (number, None),
            Some(Claimed { number, root, .. }) => (number, root),
        };
        let begun = match tried {
            Some((n, begun)) if n == number => begun,
            _ => tried.insert((number, Instant::now())).1,
        };
        let patience = match root.map(|root| dial::connect(&root, Purpose::Relay)) {
            None => Duration::ZERO,
            Some(Ok(stream)) => {
                tracing::info!("relay; the root is agent {number}");
                return Ok(Role::Relay(stream));
            }
            Some(Err(NetError::Gone)) => REFUSES,
            Some(Err(e)) => {
                tracing::debug!("agent {number}: {e}");
                SILENT
            }
        };
        if begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(100));
        } else if let Some(claim) = claim(roots, number + 1)? {
            tracing::info!("root, agent {}", claim.number);
            return Ok(Role::Root(claim));
        }
    }
}

fn claim(roots: &Roots, number: u32) -> Result<Option<Claim>, AgentError> {
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
    };
    let ours = roots.claim(number, &root)?;
    Ok(ours.then(|| Claim { number, roots: roots.clone(), token, listener }))
}
