//! Both ends of a connection prove that they know the root's token. Runs *next door*.
//!
//! ```text
//!  who calls                                     the root
//!   MARK · nonce of 32 bytes · purpose ──────▶
//!                                      ◀──────   nonce · keyed hash of ("root", both nonces, purpose)
//!   keyed hash of ("caller", both nonces, purpose) ──────▶
//!                                      ◀──────   1
//! ```
//!
//! What a reader would get wrong: the token itself never travels; who calls learns first that the root is the root, so that a
//! stranger on its port learns nothing. All lengths are fixed and all of it has one deadline.

use crate::{NetError, Result};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MARK: [u8; 8] = *b"SPROOT01";
/// How long all of it may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The agent of another node.
    Relay,
    /// The command line.
    Command,
}

impl Purpose {
    fn byte(self) -> u8 {
        match self {
            Purpose::Relay => b'r',
            Purpose::Command => b'c',
        }
    }
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let n = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match n {
        Ok(32) => Ok(bytes),
        Ok(_) => Err(NetError::io("get random bytes")(std::io::ErrorKind::UnexpectedEof.into())),
        Err(e) => Err(NetError::io("get random bytes")(e.into())),
    }
}

/// A new token.
pub fn token() -> Result<String> {
    Ok(random()?.iter().map(|b| format!("{b:02x}")).collect())
}

fn proof(token: &str, who: &str, caller: &[u8; 32], root: &[u8; 32], purpose: Purpose) -> blake3::Hash {
    let key = blake3::derive_key("stillpoint 2026-11 root agent handshake", token.as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(who.as_bytes()).update(caller).update(root).update(&[purpose.byte()]);
    hasher.finalize()
}

/// The stream within the time that is left.
struct Timed<'a>(&'a TcpStream, Instant);

impl Timed<'_> {
    fn left(&self) -> Result<Option<Duration>> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(NetError::io("shake hands")(std::io::ErrorKind::TimedOut.into()))
        } else {
            Ok(Some(left))
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut got = 0;
        while got < N {
            let left = self.left()?;
            self.0.set_read_timeout(left).map_err(NetError::io("shake hands"))?;
            match (&mut &*self.0).read(&mut bytes[got..]) {
                Ok(0) => return Err(NetError::io("shake hands")(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => got += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NetError::io("shake hands")(e)),
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        let left = self.left()?;
        self.0.set_write_timeout(left).map_err(NetError::io("shake hands"))?;
        (&mut &*self.0).write_all(&parts.concat()).map_err(NetError::io("shake hands"))
    }

    fn done(self) -> Result<()> {
        let none = self.0.set_read_timeout(None).and_then(|()| self.0.set_write_timeout(None));
        none.map_err(NetError::io("shake hands"))
    }
}

/// The caller's end.
pub fn call(stream: &TcpStream, token: &str, purpose: Purpose) -> Result<()> {
    let mut t = Timed(stream, Instant::now() + LIMIT);
    let mine = random()?;
    t.write(&[&MARK, &mine, &[purpose.byte()]])?;
    let (theirs, proven) = (t.read::<32>()?, t.read::<32>()?);
    // Compared in constant time.
    if proof(token, "root", &mine, &theirs, purpose) != proven {
        return Err(NetError::Stranger);
    }
    t.write(&[proof(token, "caller", &mine, &theirs, purpose).as_bytes()])?;
    if t.read::<1>()? != [1] {
        return Err(NetError::Stranger);
    }
    t.done()
}

/// The root's end: what the caller wants, once it has proven that it may.
pub fn answer(stream: &TcpStream, token: &str) -> Result<Purpose> {
    let mut t = Timed(stream, Instant::now() + LIMIT);
    if t.read::<8>()? != MARK {
        return Err(NetError::Stranger);
    }
    let (theirs, purpose) = (t.read::<32>()?, t.read::<1>()?);
    let purpose = match purpose {
        [b'r'] => Purpose::Relay,
        [b'c'] => Purpose::Command,
        _ => return Err(NetError::Stranger),
    };
    let mine = random()?;
    t.write(&[&mine, proof(token, "root", &theirs, &mine, purpose).as_bytes()])?;
    if proof(token, "caller", &theirs, &mine, purpose) != t.read::<32>()? {
        return Err(NetError::Stranger);
    }
    t.write(&[&[1]])?;
    t.done()?;
    Ok(purpose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn both(caller: &str, root: &str) -> (Result<()>, Result<Purpose>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        let root = root.to_owned();
        let answered = std::thread::spawn(move || answer(&there, &root));
        let called = call(&stream, caller, Purpose::Relay);
        drop(stream);
        (called, answered.join().unwrap())
    }

    #[test]
    fn the_same_token_lets_in_another_does_not() {
        let (a, b) = (token().unwrap(), token().unwrap());
        assert!(a.len() == 64 && a != b);
        let (called, answered) = both(&a, &a);
        assert!(called.is_ok() && answered.unwrap() == Purpose::Relay);
        let (called, answered) = both(&a, &b);
        assert!(matches!(called, Err(NetError::Stranger)), "{called:?}");
        assert!(answered.is_err());
    }

    #[test]
    fn what_one_end_has_said_is_no_proof_of_the_other() {
        let (caller, root) = ([1; 32], [2; 32]);
        let of = |who| proof("t", who, &caller, &root, Purpose::Relay);
        assert_ne!(of("root"), of("caller"));
        assert_ne!(of("root"), proof("t", "root", &root, &caller, Purpose::Relay));
        assert_ne!(of("caller"), proof("t", "caller", &caller, &root, Purpose::Command));
    }
}
