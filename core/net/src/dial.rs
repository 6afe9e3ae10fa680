//! From a root's file to a connection with it. Runs *next door*.
//!
//! What a reader would get wrong: one address that refuses says nothing. Every node has addresses that others have too (a
//! bridge for containers), and it is the caller's own node that answers there. A root is gone when all of them refuse.

use crate::handshake::{self, Purpose};
use crate::roots::{Claimed, Root, Roots};
use crate::{NetError, Result};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long one address may take.
const EACH: Duration = Duration::from_secs(2);

/// Which start of which machine this is.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// The addresses of this node that others may reach, as text.
pub fn addresses() -> Vec<String> {
    let read = |p| std::fs::read_to_string(p).unwrap_or_default();
    let mut all = local_v4(&read("/proc/net/fib_trie"));
    all.extend(global_v6(&read("/proc/net/if_inet6")).into_iter().map(IpAddr::V6));
    all.iter().map(IpAddr::to_string).collect()
}

/// From the routing table: a line `|-- ADDRESS`, then `/32 host LOCAL` when the address is this node's.
fn local_v4(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last
            && !address.is_loopback()
            && !found.contains(&IpAddr::V4(address))
        {
            found.push(IpAddr::V4(address));
        }
    }
    found
}

/// Lines of 32 digits, interface number, prefix length, scope (00: global), flags, name.
fn global_v6(text: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bits = u128::from_str_radix(words.first()?, 16).ok()?;
        (words.get(3) == Some(&"00")).then(|| Ipv6Addr::from(bits))
    };
    text.lines().filter_map(address).collect()
}

/// Where a root may be reached, the likeliest first.
fn ways(root: &Root) -> Vec<SocketAddr> {
    let mut ways: Vec<SocketAddr> = Vec::new();
    let named = root.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
    ways.extend(named.map(|a| SocketAddr::new(a, root.port)));
    if root.boot == boot() {
        ways.push((Ipv4Addr::LOCALHOST, root.port).into());
    }
    if ways.is_empty() {
        ways.extend((root.host.as_str(), root.port).to_socket_addrs().into_iter().flatten());
    }
    ways
}

/// Connects to a root. [`NetError::Gone`]: it is certain that it does not listen any more.
pub fn connect(root: &Root, purpose: Purpose) -> Result<TcpStream> {
    connect_within(root, purpose, EACH)
}

/// The same, with so much time for each address.
pub fn connect_within(root: &Root, purpose: Purpose, each: Duration) -> Result<TcpStream> {
    let mut failed = NetError::Gone;
    for way in ways(root) {
        match TcpStream::connect_timeout(&way, each) {
            Ok(stream) => match handshake::call(&stream, &root.token, purpose) {
                Ok(()) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                // Another program has this port at this address.
                Err(NetError::Stranger) => {}
                Err(e) => failed = e,
            },
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) => failed = NetError::io("connect to the root agent")(e),
        }
    }
    Err(failed)
}

/// Connects to the newest root of a run, trying once.
pub fn newest(roots: &Roots, purpose: Purpose) -> Result<TcpStream> {
    match roots.newest()? {
        None => Err(NetError::NoRoot),
        Some(Claimed { ended: false, root: Some(root), .. }) => connect(&root, purpose),
        Some(_) => Err(NetError::Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_are_those_of_the_node() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /16 link UNICAST\n     |-- 10.1.0.7\n        \
                    /32 host LOCAL\n     |-- 10.1.255.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        \
                    /32 host LOCAL\n     |-- 10.1.0.7\n        /32 host LOCAL\n";
        assert_eq!(local_v4(trie), ["10.1.0.7".parse::<IpAddr>().unwrap()]);
        let six = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000001 02 40 20 80 eth0\n\
                   20010db8000000000000000000000005 02 40 00 80     eth0\n";
        assert_eq!(global_v6(six), ["2001:db8::5".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn a_root_is_gone_when_all_its_addresses_refuse() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut root = crate::roots::tests::root("x");
        root.port = listener.local_addr().unwrap().port();
        let there = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            handshake::answer(&stream, "x").unwrap()
        });
        assert!(connect(&root, Purpose::Command).is_ok());
        assert_eq!(there.join().unwrap(), Purpose::Command);
        assert!(matches!(connect(&root, Purpose::Command), Err(NetError::Gone)));
    }
}
