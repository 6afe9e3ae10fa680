//! Both ends of each lost TCP connection meet anew. *Lower half*, main thread, after a restart.
//!
//! ```text
//!   listens                       connects
//!   invitation: number, node, addresses ──▶ (published)
//!                       ◀────── the number
//!   ack ──────▶
//!                       ◀────── go            met, at this end
//!   met, at that one
//! ```
//!
//! What a reader would get wrong: all goes on at once, in steps that do not wait, since each rank has both roles, towards ranks that are
//! as far or not, and strangers may connect. Who knows no number is not answered. Until it has said "go" the end that connects may give an
//! address up and take the next one; the other end believes in no connection before it has heard that. If "go" is lost, that end fails by
//! time: a restart that fails, not one that goes on with half a connection.
#![allow(unsafe_code, reason = "connects without waiting, asks for addresses")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use stillpoint_capture::tcp;

/// The number that who connects must say.
pub(crate) type Nonce = [u8; 16];

const ACK: u8 = b'a';
const GO: u8 = b'g';
/// How long one address, or one guest, may take.
const EACH: Duration = Duration::from_secs(5);
/// Most connections that are under way at once, and most guests: a process has room for few descriptors.
const AT_ONCE: usize = 32;

/// A number that nobody guesses.
pub(crate) fn nonce() -> Nonce {
    let mut nonce = Nonce::default();
    // SAFETY: writes the bytes of `nonce`; getrandom(2) cannot fail for so few, and a number of zeros would fail nothing.
    unsafe { libc::getrandom(nonce.as_mut_ptr().cast(), nonce.len(), 0) };
    nonce
}

/// One end of a connection that is to be.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) nonce: Nonce,
    /// Its socket is of IPv6.
    pub(crate) v6: bool,
    /// The other end's; `None`: this one has invited.
    pub(crate) invitation: Option<Vec<u8>>,
}

/// Where this rank listens: for sockets of each family, as the former ones were.
#[derive(Debug)]
pub(crate) struct Post {
    v4: Option<TcpListener>,
    v6: Option<TcpListener>,
    node: Vec<u8>,
    addresses: Vec<IpAddr>,
}

fn socket(v6: bool) -> std::io::Result<OwnedFd> {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: makes a descriptor, which the result owns.
    let own = unsafe {
        let num = libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if num < 0 {
            return Err(std::io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(num)
    };
    if v6 {
        tcp::both_families(own.as_raw_fd());
    }
    tcp::room(own.as_raw_fd());
    Ok(own)
}

fn listen(v6: bool) -> std::io::Result<TcpListener> {
    let own = socket(v6)?;
    let any = tcp::sockaddr(Ipv4Addr::UNSPECIFIED.into(), 0, v6);
    let len = libc::socklen_t::try_from(any.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes. Of the queue it takes less if it must.
    let r = unsafe {
        libc::bind(own.as_raw_fd(), any.as_ptr().cast(), len) | libc::listen(own.as_raw_fd(), 4096)
    };
    if r == 0 { Ok(own.into()) } else { Err(std::io::Error::last_os_error()) }
}

impl Post {
    pub(crate) fn new(v4: bool, v6: bool) -> std::io::Result<Post> {
        Ok(Post {
            v4: v4.then(|| listen(false)).transpose()?,
            v6: v6.then(|| listen(true)).transpose()?,
            node: tcp::node(),
            addresses: addresses(),
        })
    }

    /// Number, length of the node's name, name, addresses as text. The first address is for those on this node.
    pub(crate) fn invitation(&self, nonce: &Nonce, v6: bool) -> Vec<u8> {
        let listener = if v6 { &self.v6 } else { &self.v4 };
        let port = listener.as_ref().and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port());
        let all = std::iter::once(IpAddr::from(Ipv4Addr::LOCALHOST)).chain(self.addresses.iter().copied());
        let all = all.filter(|ip| v6 || ip.is_ipv4()).map(|ip| SocketAddr::new(ip, port).to_string());
        let node = self.node.get(..255).unwrap_or(&self.node);
        let text = all.collect::<Vec<_>>().join(" ");
        [&nonce[..], &[node.len() as u8], node, text.as_bytes()].concat()
    }
}

/// Number and addresses of an invitation, as they are good for a socket of this family on this node.
fn read(invitation: &[u8], node: &[u8], v6: bool) -> Option<(Nonce, Vec<SocketAddr>)> {
    let (nonce, rest) = invitation.split_first_chunk()?;
    let (n, rest) = rest.split_first()?;
    let (name, text) = rest.split_at_checked(usize::from(*n))?;
    let all = std::str::from_utf8(text).ok()?.split(' ').map(|a| a.parse::<SocketAddr>());
    let mut all = all.collect::<Result<Vec<_>, _>>().ok()?;
    let here = name == node.get(..255).unwrap_or(node);
    if here {
        all.truncate(1);
    } else if !all.is_empty() {
        all.remove(0);
    }
    all.retain(|a| v6 || a.is_ipv4());
    Some((*nonce, all))
}

/// An end that connects.
#[derive(Debug)]
struct Call {
    at: usize,
    nonce: Nonce,
    v6: bool,
    to: Vec<SocketAddr>,
    next: usize,
    line: Option<(TcpStream, Instant, bool)>,
    why: String,
}

/// Somebody who has connected.
#[derive(Debug)]
struct Guest {
    stream: TcpStream,
    since: Instant,
    said: Vec<u8>,
    whose: Option<usize>,
}

/// What came of one step.
#[derive(Debug, PartialEq, Eq)]
enum Now {
    Waits,
    Over(String),
    Met,
}

fn hangs_up(e: &std::io::Error) -> Option<Now> {
    let later = matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected);
    (!later).then(|| Now::Over(e.to_string()))
}

impl Call {
    /// The one whose turn it is.
    fn address(&self) -> Option<SocketAddr> {
        self.to.get(self.next % self.to.len().max(1)).copied()
    }

    fn step(&mut self) -> Option<TcpStream> {
        let Some((stream, since, said)) = &mut self.line else {
            let Some(address) = self.address() else {
                self.why = "the other end has no address that this one can reach".into();
                return None;
            };
            match dial(&address, self.v6) {
                Ok(stream) => self.line = Some((stream, Instant::now(), false)),
                Err(e) => self.failed(&e.to_string()),
            }
            return None;
        };
        let now = speak(stream, &self.nonce, said);
        match now {
            Now::Waits if since.elapsed() < EACH => None,
            Now::Waits => {
                self.failed("no answer");
                None
            }
            Now::Over(why) => {
                self.failed(&why);
                None
            }
            Now::Met => self.line.take().map(|(stream, ..)| stream),
        }
    }

    fn failed(&mut self, why: &str) {
        self.why = self.address().map_or_else(|| why.to_owned(), |a| format!("{a}: {why}"));
        self.line = None;
        self.next += 1;
    }
}

/// The end that connects: says the number, and "go" once it is acknowledged.
fn speak(stream: &mut TcpStream, nonce: &Nonce, said: &mut bool) -> Now {
    if !*said {
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(e)) | Err(e) => return Now::Over(e.to_string()),
        }
        match stream.write(nonce) {
            Ok(n) if n == nonce.len() => *said = true,
            Ok(_) => return Now::Over("the line takes no bytes".into()),
            Err(e) => return hangs_up(&e).unwrap_or(Now::Waits),
        }
    }
    let mut answer = [0];
    match stream.read(&mut answer) {
        Ok(1) if answer == [ACK] => match stream.write(&[GO]) {
            Ok(1) => Now::Met,
            _ => Now::Over("the line takes no bytes".into()),
        },
        Ok(_) => Now::Over("somebody else answers".into()),
        Err(e) => hangs_up(&e).unwrap_or(Now::Waits),
    }
}

impl Guest {
    /// The end that has listened.
    fn step(&mut self, ends: &[End]) -> Now {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Now::Over(String::new()),
                Ok(_) if self.whose.is_some() => {
                    return if byte == [GO] { Now::Met } else { Now::Over(String::new()) };
                }
                Ok(_) => self.said.extend(byte),
                Err(e) => return hangs_up(&e).unwrap_or(Now::Waits),
            }
            if self.said.len() == size_of::<Nonce>() {
                self.whose = ends.iter().position(|e| e.invitation.is_none() && e.nonce[..] == self.said[..]);
                if self.whose.is_none() || !matches!(self.stream.write(&[ACK]), Ok(1)) {
                    return Now::Over(String::new());
                }
            }
        }
    }
}

/// Meets the other end of each; `met` is told of each connection as it is there. `Err`: which one is not, and why.
pub(crate) fn meet(
    post: &Post,
    ends: &[End],
    until: Instant,
    mut met: impl FnMut(usize, TcpStream),
) -> Result<(), (usize, String)> {
    let mut missing: Vec<bool> = vec![true; ends.len()];
    let mut calls = Vec::new();
    for (at, e) in ends.iter().enumerate() {
        let Some(invitation) = &e.invitation else { continue };
        let (nonce, to) = read(invitation, &post.node, e.v6).ok_or((at, "a torn invitation".to_owned()))?;
        calls.push(Call { at, nonce, v6: e.v6, to, next: 0, line: None, why: "no answer".into() });
    }
    let mut guests: Vec<Guest> = Vec::new();
    // Addresses by how they have done, the best first: most connections lead to the same few nodes.
    let mut known: BTreeMap<IpAddr, i8> = BTreeMap::new();
    while missing.iter().any(|m| *m) {
        let mut moved = false;
        let mut answered = Vec::new();
        for call in calls.iter_mut().take(AT_ONCE) {
            if call.line.is_none() && call.next == 0 {
                call.to.sort_by_key(|a| known.get(&a.ip()).copied().unwrap_or(0));
            }
            let (tried, before) = (call.address(), call.next);
            let came = call.step();
            if let Some(ip) = tried.filter(|_| came.is_some() || call.next != before) {
                known.insert(ip.ip(), if came.is_some() { -1 } else { 1 });
            }
            if let Some(stream) = came {
                missing[call.at] = false;
                answered.push(call.at);
                met(call.at, stream);
            }
        }
        calls.retain(|c| !answered.contains(&c.at));
        moved |= !answered.is_empty();
        while guests.len() < AT_ONCE
            && let Some(stream) = accept(post)
        {
            guests.push(Guest { stream, since: Instant::now(), said: Vec::new(), whose: None });
            moved = true;
        }
        for mut guest in std::mem::take(&mut guests) {
            match (guest.step(ends), guest.whose) {
                (Now::Waits, _) if guest.since.elapsed() < EACH => guests.push(guest),
                (Now::Met, Some(at)) => {
                    missing[at] = false;
                    met(at, guest.stream);
                    moved = true;
                }
                _ => {}
            }
        }
        if let Some(at) = missing.iter().position(|m| *m).filter(|_| Instant::now() >= until) {
            let why = calls.iter().find(|c| c.at == at).map(|c| c.why.clone());
            return Err((at, why.unwrap_or_else(|| "nobody has connected".into())));
        }
        if !moved {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn accept(post: &Post) -> Option<TcpStream> {
    let (stream, _) = [&post.v4, &post.v6].into_iter().flatten().find_map(|l| l.accept().ok())?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// Begins to connect a socket of this family, without waiting.
fn dial(address: &SocketAddr, v6: bool) -> std::io::Result<TcpStream> {
    let stream = TcpStream::from(socket(v6)?);
    let to = tcp::sockaddr(address.ip(), address.port(), v6);
    let len = libc::socklen_t::try_from(to.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes.
    if unsafe { libc::connect(stream.as_raw_fd(), to.as_ptr().cast(), len) } < 0 {
        let e = std::io::Error::last_os_error();
        if e.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(e);
        }
    }
    Ok(stream)
}

/// Addresses of this node that others may reach.
fn addresses() -> Vec<IpAddr> {
    let mut all = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs fills a list that lives until it is freed; its addresses have the length that their family says.
    unsafe {
        if libc::getifaddrs(&raw mut list) != 0 {
            return all;
        }
        let mut at = list;
        while let Some(i) = at.as_ref() {
            at = i.ifa_next;
            if i.ifa_addr.is_null() || i.ifa_flags & libc::IFF_UP as u32 == 0 {
                continue;
            }
            let len = match i32::from((*i.ifa_addr).sa_family) {
                libc::AF_INET => size_of::<libc::sockaddr_in>(),
                libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
                _ => continue,
            };
            let bytes = std::slice::from_raw_parts(i.ifa_addr.cast::<u8>(), len);
            // One that is valid on its link only would need the link's name.
            let reachable = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => !ip.is_loopback(),
                IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
            };
            all.extend(tcp::parse(bytes).map(|(ip, _)| ip).filter(reachable));
        }
        libc::freeifaddrs(list);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(list: &[(Nonce, bool, Option<Vec<u8>>)]) -> Vec<End> {
        list.iter().map(|(nonce, v6, i)| End { nonce: *nonce, v6: *v6, invitation: i.clone() }).collect()
    }

    /// Meets, and gives back the connections in order.
    fn all(post: &Post, ends: &[End], limit: Duration) -> Result<Vec<TcpStream>, (usize, String)> {
        let mut got: Vec<Option<TcpStream>> = ends.iter().map(|_| None).collect();
        meet(post, ends, Instant::now() + limit, |at, stream| got[at] = Some(stream))?;
        Ok(got.into_iter().map(Option::unwrap).collect())
    }

    fn talk(a: &mut TcpStream, b: &mut TcpStream, what: u8) {
        let mut got = [0];
        for s in [&a, &b] {
            s.set_nonblocking(false).unwrap();
        }
        a.write_all(&[what]).unwrap();
        b.read_exact(&mut got).unwrap();
        assert_eq!(got, [what], "nothing came before");
    }

    #[test]
    fn many_meet_each_in_its_place_among_strangers_and_in_one_process() {
        let v6 = TcpListener::bind("[::1]:0").is_ok();
        let post = Post::new(true, v6).unwrap();
        let port = post.v4.as_ref().unwrap().local_addr().unwrap().port();
        // More than wait at once, and who says nothing, the wrong, or hangs up.
        let _strangers: Vec<TcpStream> = (0..AT_ONCE / 2)
            .map(|k| {
                let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
                s.write_all(&[7; 16][..k]).unwrap();
                s
            })
            .collect();
        let n = 3 * AT_ONCE;
        let mut list = Vec::new();
        for k in 0..n {
            // Families of both ends: those of one connection may differ.
            let (mine, yours) = (v6 && k % 3 == 0, v6 && k % 2 == 0);
            let nonce = nonce();
            list.push((nonce, mine, None));
            list.push((self::nonce(), yours, Some(post.invitation(&nonce, mine))));
        }
        let ends = ends(&list);
        let mut got = all(&post, &ends, Duration::from_secs(60)).unwrap();
        for (k, pair) in got.chunks_mut(2).enumerate() {
            let [a, b] = pair else { unreachable!() };
            talk(a, b, k as u8);
            talk(b, a, k as u8);
            for (s, e) in [(a, &ends[2 * k]), (b, &ends[2 * k + 1])] {
                assert_eq!(s.local_addr().unwrap().is_ipv6(), e.v6);
            }
        }
    }

    #[test]
    fn the_next_address_is_taken_where_somebody_else_answers() {
        let post = Post::new(true, false).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = nonce();
        let (own, theirs) = (post.invitation(&number, false), other.local_addr().unwrap());
        let name = own[17..17 + usize::from(own[16])].to_vec();
        let (nonce, to) = read(&own, &name, false).unwrap();
        assert_eq!((nonce, to.len()), (number, 1), "on this node by its own address");
        let text = format!("127.0.0.1:1 {theirs} {}", to[0]);
        let elsewhere = [&number[..], &[1], b"x", text.as_bytes()].concat();
        let server = std::thread::spawn(move || drop(other.accept()));
        let ends = ends(&[(number, false, None), (self::nonce(), false, Some(elsewhere))]);
        let mut got = all(&post, &ends, Duration::from_secs(60)).unwrap();
        server.join().unwrap();
        let [a, b] = &mut got[..] else { unreachable!() };
        talk(a, b, 1);
    }

    #[test]
    fn who_is_not_there_is_named() {
        let post = Post::new(true, false).unwrap();
        let short = Duration::from_millis(50);
        let nobody = all(&post, &ends(&[(nonce(), false, None)]), short).unwrap_err();
        assert_eq!(nobody, (0, "nobody has connected".into()));
        let gone = [&nonce()[..], &[1], b"x", b"10.0.0.1:1 127.0.0.1:1"].concat();
        let (at, why) = all(&post, &ends(&[(nonce(), false, Some(gone))]), short).unwrap_err();
        assert!(at == 0 && why.contains("127.0.0.1:1: "), "{why}");
        let only_v6 = [&nonce()[..], &[1], b"x", b"10.0.0.1:1 [::1]:1"].concat();
        let (_, why) = all(&post, &ends(&[(nonce(), false, Some(only_v6))]), short).unwrap_err();
        assert!(why.contains("no address"), "{why}");
        let torn = all(&post, &ends(&[(nonce(), false, Some(vec![1, 2]))]), short).unwrap_err();
        assert_eq!(torn.1, "a torn invitation");
    }
}
