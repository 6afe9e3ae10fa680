//! TCP sockets of the application's: what they are, what waits in them, and making such sockets again. *Lower half*; looks while
//! upper threads run, copies while they stand still.
//!
//! What a reader would get wrong: nothing is taken out of a socket for a checkpoint. Once every rank has seen that all it has
//! sent is acknowledged, the bytes under way lie in receive queues, and are copied there (MSG_PEEK, tcp(7)); the job that runs on
//! finds them where they were.
#![allow(unsafe_code, reason = "socket calls by number")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::{Duration, Instant};
use stillpoint_image::{Phase, Tcp};
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// Most that may wait in one socket: a new one must take as much before its owner reads, and the kernel gives an ordinary user
/// no more (net.core.rmem_max).
pub const MOST_WAITING: usize = 160 << 10;

/// What is carried over, besides what `SO_BUF_LOCK` guards: level and name.
const OPTIONS: [(i32, i32); 17] = [
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    // Which sets the priority as well.
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
];
/// Set on every socket from the first checkpoint on: connections of a process that is killed are remembered for a minute
/// (TIME_WAIT), and nobody could listen on their port again unless they had it, as accepted ones have it from the one that listens.
const REUSE: (i32, i32) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
/// How long that lasts (net/tcp.h, TCP_TIMEWAIT_LEN), and a little longer.
const REMEMBERED: Duration = Duration::from_secs(65);
const V6ONLY: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
/// `SO_BUF_LOCK` of socket(7), since Linux 5.14: 1 the send buffer, 2 the receive buffer has a size of the user's.
const BUF_LOCK: i32 = 72;

/// The protocol on top of TCP, if there is one (linux/tcp.h, TCP_ULP): "tls", say.
const ULP: (i32, i32) = (libc::IPPROTO_TCP, 31);

/// States of net/tcp_states.h, as `TCP_INFO` tells them.
mod state {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const LISTEN: u8 = 10;
    pub(super) const CLOSING: u8 = 11;
}

fn option(num: i32, (level, name): (i32, i32), room: usize) -> Option<Vec<u8>> {
    let mut value = vec![0u8; room];
    let mut len = libc::socklen_t::try_from(room).ok()?;
    // SAFETY: the kernel writes at most `len` bytes.
    let r = unsafe { libc::getsockopt(num, level, name, value.as_mut_ptr().cast(), &raw mut len) };
    value.truncate(len as usize);
    (r == 0).then_some(value)
}

fn number(num: i32, level: i32, name: i32) -> Option<i32> {
    Some(i32::from_ne_bytes(option(num, (level, name), 4)?.try_into().ok()?))
}

/// Sets an option; what the kernel does not take stays as it is.
pub fn set_option(num: i32, (level, name): (i32, i32), value: &[u8]) {
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes.
    unsafe { libc::setsockopt(num, level, name, value.as_ptr().cast(), len) };
}

fn address(num: i32, peer: bool) -> Vec<u8> {
    let mut bytes = vec![0u8; size_of::<libc::sockaddr_in6>()];
    let mut len = libc::socklen_t::try_from(bytes.len()).unwrap_or(0);
    let f = if peer { libc::getpeername } else { libc::getsockname };
    // SAFETY: the kernel writes at most `len` bytes.
    let r = unsafe { f(num, bytes.as_mut_ptr().cast(), &raw mut len) };
    bytes.truncate(if r == 0 { len as usize } else { 0 });
    bytes
}

/// Address and port of a `sockaddr_in` or `sockaddr_in6`; IPv4 in IPv6 is IPv4.
pub fn parse(sockaddr: &[u8]) -> Option<(IpAddr, u16)> {
    let family = u16::from_ne_bytes(sockaddr.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(sockaddr.get(2..4)?.try_into().ok()?);
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(sockaddr.get(4..8)?).ok()?),
        libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(sockaddr.get(8..24)?).ok()?),
        _ => return None,
    };
    Some((ip.to_canonical(), port))
}

/// The sockaddr of an address; `v6`: for a socket of IPv6.
pub fn sockaddr(ip: IpAddr, port: u16, v6: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |b: &[u8]| bytes.extend_from_slice(b);
    match ip {
        IpAddr::V4(ip) if !v6 => {
            put(&(libc::AF_INET as u16).to_ne_bytes());
            put(&port.to_be_bytes());
            put(&ip.octets());
            put(&[0; 8]);
        }
        _ => {
            let ip = match ip {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv6Addr::UNSPECIFIED,
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            put(&(libc::AF_INET6 as u16).to_ne_bytes());
            put(&port.to_be_bytes());
            put(&[0; 4]);
            put(&ip.octets());
            put(&[0; 4]);
        }
    }
    bytes
}

/// For people.
pub fn text(sockaddr: &[u8]) -> String {
    parse(sockaddr)
        .map_or_else(|| "?".into(), |(ip, port)| std::net::SocketAddr::from((ip, port)).to_string())
}

/// This node, as no other one of the job is called: its name, its boot, its network.
pub fn node() -> Vec<u8> {
    let read = |path| std::fs::read(path).unwrap_or_default();
    let mut node = read("/proc/sys/kernel/hostname");
    node.extend(read("/proc/sys/kernel/random/boot_id"));
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    node.extend(network.as_os_str().as_encoded_bytes());
    node.retain(|b| !b.is_ascii_whitespace());
    node
}

/// One end's name, which no other socket of the job has: an address of the node's own is told apart by the node's name.
fn end(sockaddr: &[u8], node: &[u8]) -> Vec<u8> {
    let Some((ip, port)) = parse(sockaddr) else { return Vec::new() };
    let node = if ip.is_loopback() { node } else { &[] };
    [node, format!(" {ip} {port}").as_bytes()].concat()
}

/// What poll(2) says at once.
fn events(num: i32) -> i16 {
    let mut poll = libc::pollfd { fd: num, events: libc::POLLPRI | libc::POLLRDHUP, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents
}

/// What the TCP socket behind this number is, without the bytes in it. `None`: it is no TCP socket. `Err`: why it cannot be saved.
pub fn look(num: i32, node: &[u8]) -> Option<Result<Tcp, String>> {
    let domain = number(num, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let kind = number(num, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let protocol = number(num, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    let v6 = domain == libc::AF_INET6;
    if !(v6 || domain == libc::AF_INET) || kind != libc::SOCK_STREAM || protocol != libc::IPPROTO_TCP {
        return None;
    }
    let info = option(num, (libc::IPPROTO_TCP, libc::TCP_INFO), 144)?;
    Some(phase(num, &info).map(|(phase, gone, deaf)| {
        let local = address(num, false);
        let connected = matches!(phase, Phase::Connected { .. } | Phase::Left { .. });
        let peer = if connected { address(num, true) } else { Vec::new() };
        let ends = [end(&local, node), end(&peer, node)];
        Tcp { v6, local, peer, ends, phase, gone, deaf, options: options_of(num, v6), waiting: Vec::new() }
    }))
}

/// How far it is, whether the other end sends no more, and whether this end wants to hear no more.
fn phase(num: i32, info: &[u8]) -> Result<(Phase, bool, bool), String> {
    // struct tcp_info of linux/tcp.h. Of a listening socket tcpi_unacked is how many wait to be accepted, tcpi_sacked how many may.
    const UNACKED: usize = 24;
    const SACKED: usize = 28;
    const SEGMENTS_OUT: usize = 136;
    const SEGMENTS_IN: usize = 140;
    let word = |at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let state = info.first().copied().unwrap_or(0);
    let phase = match state {
        state::ESTABLISHED | state::CLOSE_WAIT => Phase::Connected { shut: false },
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING => {
            Phase::Connected { shut: true }
        }
        state::LISTEN if word(UNACKED) != 0 => {
            return Err(format!("a TCP socket at which {} connections wait to be accepted", word(UNACKED)));
        }
        state::LISTEN => Phase::Listening { backlog: i32::try_from(word(SACKED)).unwrap_or(i32::MAX) },
        // One that never was connected has sent and received nothing.
        state::CLOSE if word(SEGMENTS_OUT) | word(SEGMENTS_IN) == 0 => Phase::Fresh,
        state::CLOSE => Phase::Left { shut: true },
        _ => return Err("a TCP connection that is being opened at the moment".into()),
    };
    let events = events(num);
    if matches!(phase, Phase::Connected { .. } | Phase::Left { .. }) {
        if events & libc::POLLERR != 0 {
            return Err("a TCP connection that has failed, which the program has not been told yet".into());
        }
        if events & libc::POLLPRI != 0 {
            return Err("a TCP connection in which urgent data waits (MSG_OOB)".into());
        }
        if number(num, libc::SOL_SOCKET, libc::SO_ZEROCOPY).is_some_and(|on| on != 0) {
            return Err("a TCP connection that sends without copies (SO_ZEROCOPY)".into());
        }
        if option(num, (libc::SOL_SOCKET, libc::SO_BINDTODEVICE), 16).is_some_and(|name| !name.is_empty()) {
            return Err("a TCP connection bound to a device (SO_BINDTODEVICE)".into());
        }
        if let Some(name) = option(num, ULP, 16).filter(|name| !name.is_empty()) {
            let name = String::from_utf8_lossy(&name);
            let name = name.trim_end_matches('\0');
            return Err(format!("a TCP connection whose bytes the kernel treats itself (TCP_ULP {name})"));
        }
    }
    let gone = matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING);
    let hears = matches!(state, state::ESTABLISHED | state::FIN_WAIT1 | state::FIN_WAIT2);
    Ok((phase, gone, hears && events & libc::POLLRDHUP != 0))
}

fn options_of(num: i32, v6: bool) -> Vec<(i32, i32, Vec<u8>)> {
    let mut options: Vec<(i32, i32, Vec<u8>)> = OPTIONS
        .iter()
        .chain(v6.then_some(&V6ONLY))
        .filter_map(|o| Some((o.0, o.1, option(num, *o, 16)?)))
        .collect();
    let locked = number(num, libc::SOL_SOCKET, BUF_LOCK).unwrap_or(0);
    for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        if let (true, Some(size)) = (locked & bit != 0, number(num, libc::SOL_SOCKET, name)) {
            // The kernel doubles what it is told (socket(7)).
            options.push((libc::SOL_SOCKET, name, (size / 2).to_ne_bytes().to_vec()));
        }
    }
    options
}

/// Bytes that have come and were not read.
pub fn come(num: i32) -> usize {
    queued(num, libc::FIONREAD)
}

/// Bytes that were sent and are not acknowledged.
pub fn unsent(num: i32) -> usize {
    queued(num, libc::TIOCOUTQ)
}

fn queued(num: i32, request: libc::Ioctl) -> usize {
    let mut n = 0i32;
    // SAFETY: the kernel writes an int.
    unsafe { libc::ioctl(num, request, &raw mut n) };
    usize::try_from(n).unwrap_or(0)
}

/// A copy of what waits to be read; `Err`: it is too much, or cannot be had.
pub fn waiting(num: i32) -> Result<Vec<u8>, String> {
    let n = queued(num, libc::FIONREAD);
    if n > MOST_WAITING {
        return Err(format!(
            "a TCP connection in which {n} bytes wait to be read, more than the {MOST_WAITING} that can be put back"
        ));
    }
    // What lies behind an urgent byte that has been read is not counted, unless that would have been one of the others.
    let inline = (libc::SOL_SOCKET, libc::SO_OOBINLINE);
    if let Some(before) = option(num, inline, 4) {
        set_option(num, inline, &1i32.to_ne_bytes());
        let all = queued(num, libc::FIONREAD);
        set_option(num, inline, &before);
        if all != n {
            return Err("a TCP connection in which bytes wait behind urgent data (MSG_OOB)".into());
        }
    }
    let mut bytes = vec![0u8; n];
    if n == 0 {
        return Ok(bytes);
    }
    // SAFETY: the kernel writes at most `n` bytes.
    let got = unsafe { libc::recv(num, bytes.as_mut_ptr().cast(), n, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    if usize::try_from(got) == Ok(n) {
        Ok(bytes)
    } else {
        Err("a TCP connection whose bytes cannot be copied".into())
    }
}

fn done(r: i32) -> std::io::Result<()> {
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn bind(num: i32, sockaddr: &[u8]) -> std::io::Result<()> {
    let len = libc::socklen_t::try_from(sockaddr.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes.
    done(unsafe { libc::bind(num, sockaddr.as_ptr().cast(), len) })
}

/// A socket of that family, with these options.
///
/// # Errors
/// The kernel's.
pub fn fresh(t: &Tcp) -> Result<i32, String> {
    let domain = if t.v6 { libc::AF_INET6 } else { libc::AF_INET };
    // By number: what libc's function makes down here counts as the lower half's.
    // SAFETY: makes a descriptor.
    let num = unsafe { sys!(nr::SOCKET, domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let num = i32::try_from(num).unwrap_or(-1);
    if num < 0 {
        return Err(format!("socket: {}", std::io::Error::from_raw_os_error(-num)));
    }
    options(num, t);
    reuse(num);
    Ok(num)
}

/// Lets its port be taken again when its process is gone.
pub fn reuse(num: i32) {
    set_option(num, REUSE, &1i32.to_ne_bytes());
}

/// Sets the options of the former socket.
pub fn options(num: i32, t: &Tcp) {
    for (level, name, value) in &t.options {
        set_option(num, (*level, *name), value);
    }
}

/// Lets the kernel size the buffers of a socket that has these options, unless the former one's were the user's.
pub fn unlock(num: i32, t: &Tcp) {
    let fixed = |name| t.options.iter().any(|o| (o.0, o.1) == (libc::SOL_SOCKET, name));
    let locked = i32::from(fixed(libc::SO_SNDBUF)) | i32::from(fixed(libc::SO_RCVBUF)) << 1;
    set_option(num, (libc::SOL_SOCKET, BUF_LOCK), &locked.to_ne_bytes());
}

/// Room for what waited in the socket that was, and in the other one. To be set before the connection is made: its window is agreed
/// upon there. What does not fit into that waits in the sender.
pub fn room(num: i32) {
    let size = i32::try_from(MOST_WAITING).unwrap_or(i32::MAX).saturating_mul(2);
    for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        set_option(num, (libc::SOL_SOCKET, name), &size.to_ne_bytes());
    }
}

/// Lets a socket of IPv6 meet addresses of IPv4 as well; before it has an address.
pub fn both_families(num: i32) {
    set_option(num, V6ONLY, &0i32.to_ne_bytes());
}

/// The socket again, as far as that can be done before others are: one that is or was connected becomes a fresh one for the time being.
///
/// # Errors
/// Its port is taken here.
pub fn again(t: &Tcp) -> Result<i32, String> {
    let num = fresh(t)?;
    let made = match t.phase {
        Phase::Connected { .. } | Phase::Left { .. } => return Ok(num),
        Phase::Fresh => bound(num, t),
        Phase::Listening { backlog } => bound(num, t).and_then(|()| {
            // SAFETY: our own descriptor.
            done(unsafe { libc::listen(num, backlog) }).map_err(|e| format!("listen: {e}"))
        }),
    };
    if let Err(why) = made {
        // SAFETY: our own descriptor.
        unsafe { libc::close(num) };
        return Err(why);
    }
    options(num, t);
    Ok(num)
}

/// Gives it the former one's address. Peers know the port; the address may be another node's by now.
fn bound(num: i32, t: &Tcp) -> Result<(), String> {
    let Some((ip, port)) = parse(&t.local).filter(|(_, port)| *port != 0) else { return Ok(()) };
    let until = Instant::now() + REMEMBERED;
    loop {
        let bound = match bind(num, &t.local) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) && !ip.is_loopback() => {
                bind(num, &sockaddr(Ipv4Addr::UNSPECIFIED.into(), port, t.v6))
            }
            other => other,
        };
        match bound {
            // Connections that were made since the checkpoint.
            Err(e)
                if e.raw_os_error() == Some(libc::EADDRINUSE)
                    && !is_listened(port)
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other.map_err(|e| format!("port {port}: {e}")),
        }
    }
}

/// Whether somebody listens on this port, of any address.
fn is_listened(port: u16) -> bool {
    let is = |line: &str| {
        // proc_net_tcp in the kernel's documentation: number, local address, remote address, state, in hexadecimal; 0A is LISTEN.
        let mut words = line.split_whitespace().skip(1);
        let own = words.next().and_then(|a| u16::from_str_radix(a.rsplit(':').next()?, 16).ok());
        own == Some(port) && words.nth(1) == Some("0A")
    };
    let listed = |path| std::fs::read_to_string(path).is_ok_and(|all: String| all.lines().any(is));
    listed("/proc/net/tcp") || listed("/proc/net/tcp6")
}

/// A connection whose other end has sent what waits and is closed; `shut`: this one sends no more, either.
///
/// # Errors
/// Some step's.
pub fn left(t: &Tcp, shut: bool) -> Result<i32, String> {
    let num = fresh(t)?;
    match leave(num, t, shut) {
        Ok(()) => {
            options(num, t);
            unlock(num, t);
            Ok(num)
        }
        Err(e) => {
            // SAFETY: our own descriptor.
            unsafe { libc::close(num) };
            Err(e.to_string())
        }
    }
}

fn leave(num: i32, t: &Tcp, shut: bool) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = sockaddr(Ipv4Addr::LOCALHOST.into(), listener.local_addr()?.port(), t.v6);
    room(num);
    if t.v6 {
        both_families(num);
    }
    let len = libc::socklen_t::try_from(to.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes.
    done(unsafe { libc::connect(num, to.as_ptr().cast(), len) })?;
    let own = parse(&address(num, false));
    let mut other = loop {
        let (stream, from) = listener.accept()?;
        // Anybody may connect.
        if own == Some((from.ip(), from.port())) {
            break stream;
        }
    };
    other.set_write_timeout(Some(Duration::from_secs(10)))?;
    other.write_all(&t.waiting)?;
    drop(other);
    if shut {
        // SAFETY: our own descriptor.
        done(unsafe { libc::shutdown(num, libc::SHUT_WR) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd};

    fn seen(num: i32) -> Tcp {
        look(num, b"n1").unwrap().unwrap()
    }

    #[test]
    fn addresses_there_and_back() {
        let v4: IpAddr = "10.1.2.3".parse().unwrap();
        for (ip, v6) in [(v4, false), (v4, true), ("fe80::1".parse().unwrap(), true)] {
            assert_eq!(parse(&sockaddr(ip, 80, v6)), Some((ip, 80)));
        }
        assert_eq!(text(&sockaddr(v4, 80, true)), "10.1.2.3:80");
        assert!(parse(&[1, 0]).is_none() && parse(&[]).is_none());
        assert_eq!(end(&sockaddr("127.0.0.1".parse().unwrap(), 5, false), b"n1"), b"n1 127.0.0.1 5");
        assert_eq!(end(&sockaddr(v4, 5, true), b"n1"), b" 10.1.2.3 5");
    }

    /// A connection of this process with itself.
    fn pair(ip: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (a, listener.accept().unwrap().0)
    }

    fn until(mut f: impl FnMut() -> bool) {
        while !f() {
            std::thread::yield_now();
        }
    }

    fn made(t: &Tcp) -> Result<i32, String> {
        if let Phase::Left { shut } = t.phase { left(t, shut) } else { again(t) }
    }

    /// The socket made again by itself.
    fn new(t: &Tcp) -> TcpStream {
        // SAFETY: made for this.
        unsafe { TcpStream::from_raw_fd(made(t).unwrap()) }
    }

    #[test]
    fn a_connection_is_seen_from_both_ends_and_its_bytes_stay() {
        let (mut a, mut b) = pair("127.0.0.1");
        a.set_nodelay(true).unwrap();
        let (x, y) = (seen(a.as_raw_fd()), seen(b.as_raw_fd()));
        assert_eq!((&x.ends[0], &x.ends[1]), (&y.ends[1], &y.ends[0]));
        assert_eq!((x.phase, y.phase), (Phase::Connected { shut: false }, Phase::Connected { shut: false }));
        a.write_all(b"hello").unwrap();
        until(|| unsent(a.as_raw_fd()) == 0);
        assert_eq!(waiting(b.as_raw_fd()).unwrap(), b"hello");
        let mut got = [0; 5];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        let again = new(&x);
        assert!(again.nodelay().unwrap());
        assert_eq!(seen(again.as_raw_fd()).phase, Phase::Fresh);
        assert!(!seen(b.as_raw_fd()).deaf);
        b.shutdown(Shutdown::Read).unwrap();
        assert!(seen(b.as_raw_fd()).deaf && !seen(b.as_raw_fd()).gone);
        drop(a);
        until(|| seen(b.as_raw_fd()).gone);
    }

    #[test]
    fn one_that_has_ended_is_not_one_that_never_began() {
        for ip in ["127.0.0.1", "::1"].into_iter().filter(|ip| TcpListener::bind((*ip, 0)).is_ok()) {
            let (mut a, mut b) = pair(ip);
            a.write_all(b"last words").unwrap();
            b.write_all(b"first").unwrap();
            let mut got = String::new();
            a.shutdown(Shutdown::Write).unwrap();
            b.shutdown(Shutdown::Write).unwrap();
            a.read_to_string(&mut got).unwrap();
            until(|| seen(b.as_raw_fd()).phase == Phase::Left { shut: true });
            let t = Tcp { waiting: waiting(b.as_raw_fd()).unwrap(), ..seen(b.as_raw_fd()) };
            assert_eq!((got.as_str(), t.waiting.as_slice()), ("first", &b"last words"[..]));
            let mut again = new(&t);
            got.clear();
            again.read_to_string(&mut got).unwrap();
            assert_eq!(got, "last words");
            assert_eq!(again.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn one_whose_other_end_is_gone_is_told_so_when_it_writes() {
        let (a, b) = pair("127.0.0.1");
        drop(a);
        until(|| seen(b.as_raw_fd()).gone);
        let t = Tcp { phase: Phase::Left { shut: false }, waiting: b"w".to_vec(), ..seen(b.as_raw_fd()) };
        let mut again = new(&t);
        let mut got = String::new();
        again.read_to_string(&mut got).unwrap();
        assert_eq!(got, "w");
        until(|| again.write(b"x").is_err());
    }

    #[test]
    fn what_cannot_be_saved_is_named() {
        let why = |num| look(num, b"").unwrap().unwrap_err();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(seen(listener.as_raw_fd()).phase, Phase::Listening { backlog } if backlog > 0));
        let _waits = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(why(listener.as_raw_fd()).contains("1 connections wait to be accepted"));
        let (a, b) = pair("127.0.0.1");
        // SAFETY: sends one byte.
        unsafe { libc::send(a.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        until(|| look(b.as_raw_fd(), b"").unwrap().is_err());
        assert!(why(b.as_raw_fd()).contains("urgent data"));
        // What lies behind an urgent byte that was read out of turn.
        let (mut a, b) = pair("127.0.0.1");
        a.write_all(b"abc").unwrap();
        // SAFETY: sends one byte, and takes it.
        unsafe {
            libc::send(a.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB);
            a.write_all(b"def").unwrap();
            let mut got = [0u8; 1];
            until(|| libc::recv(b.as_raw_fd(), got.as_mut_ptr().cast(), 1, libc::MSG_OOB) == 1);
        }
        until(|| unsent(a.as_raw_fd()) == 0);
        assert!(waiting(b.as_raw_fd()).unwrap_err().contains("behind urgent data"));
        let (mut a, b) = pair("127.0.0.1");
        a.write_all(b"x").unwrap();
        until(|| waiting(b.as_raw_fd()).unwrap() == b"x");
        drop(b); // with a byte that was not read: a reset
        until(|| look(a.as_raw_fd(), b"").unwrap().is_err());
        assert!(why(a.as_raw_fd()).contains("has failed"));
        assert!(a.take_error().unwrap().is_some());
        assert_eq!(seen(a.as_raw_fd()).phase, Phase::Left { shut: true });
    }

    #[test]
    fn a_listener_comes_back_on_its_port_or_says_why_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let t = seen(listener.as_raw_fd());
        assert!(again(&t).unwrap_err().contains(&format!("port {port}")));
        assert!(is_listened(port));
        // A connection that this end has closed first is remembered; std's listener, and so this one, may be followed by another.
        let a = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (b, _) = listener.accept().unwrap();
        drop((b, a, listener));
        let num = again(&t).unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        // SAFETY: made above.
        unsafe { libc::close(num) };
    }

    #[test]
    fn what_is_no_tcp_socket_is_left_to_others() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(look(udp.as_raw_fd(), b"").is_none() && look(0, b"").is_none());
    }
}
