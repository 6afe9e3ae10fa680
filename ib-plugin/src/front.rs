//! The commands of the still point, and what is said and heard there. On the still stack, while every thread of the rank stands still.

use std::collections::BTreeMap;

use stillpoint_abi::half::{StillArg, still};
use stillpoint_abi::records::{ASK, FOUND, PUBLISH, Records};

use crate::lock::Lock;
use crate::{drain, rebuild};

/// What is to be said.
#[derive(Default)]
pub(crate) struct Out {
    bytes: Vec<u8>,
}

/// What was said for which there was no room: the call is made again, and nothing may be made twice.
static SAID: Lock<Option<(i64, Vec<u8>)>> = Lock::new(None);

/// What a former call has left to be said, if that is asked for again.
fn left(arg: &mut StillArg) -> Option<i64> {
    let (code, bytes) = SAID.with(Option::take)?;
    Some(Out { bytes }.say(arg, code))
}

impl Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Hands it over, with the code of the command.
    pub(crate) fn say(self, arg: &mut StillArg, code: i64) -> i64 {
        arg.out_len = self.bytes.len();
        if arg.out_len <= arg.out_cap {
            // SAFETY: room of the lower half's.
            unsafe { std::ptr::copy_nonoverlapping(self.bytes.as_ptr(), arg.out, arg.out_len) };
        } else {
            SAID.with(|said| *said = Some((code, self.bytes)));
        }
        code
    }

    /// A record ([`stillpoint_abi::records`]).
    fn record(&mut self, to: u32, body: &[u8]) {
        let len = u32::try_from(body.len()).unwrap_or(0);
        self.bytes(&to.to_le_bytes());
        self.bytes(&len.to_le_bytes());
        self.bytes(body);
        self.bytes(&[0; 3][..body.len().next_multiple_of(4) - body.len()]);
    }

    /// A value for whoever asks for this key.
    pub(crate) fn publish(&mut self, key: &[u8], value: &[u8]) {
        let len = u32::try_from(key.len()).unwrap_or(0).to_le_bytes();
        self.record(PUBLISH, &[&len, key, value].concat());
    }

    /// What stands behind this key?
    pub(crate) fn ask(&mut self, key: &[u8]) {
        self.record(ASK, key);
    }

    /// Why it cannot be done.
    pub(crate) fn why(text: &str) -> Out {
        Out { bytes: text.as_bytes().to_vec() }
    }
}

/// What stands behind keys that were asked for, and at which ranks.
#[derive(Debug, Default)]
pub(crate) struct Heard(BTreeMap<Vec<u8>, Vec<(u32, Vec<u8>)>>);

impl Heard {
    /// Of all that have this key.
    pub(crate) fn all(&self, key: &[u8]) -> &[(u32, Vec<u8>)] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Of the only one that may have it.
    pub(crate) fn one(&self, key: &[u8]) -> Option<(u32, &[u8])> {
        let (first, rest) = self.all(key).split_first()?;
        rest.iter().all(|other| other == first).then_some((first.0, first.1.as_slice()))
    }

    /// Everything behind keys that begin so.
    pub(crate) fn beginning<'a>(&'a self, with: &'a [u8]) -> impl Iterator<Item = (u32, &'a [u8])> {
        let all = self.0.iter().filter(move |(key, _)| key.starts_with(with));
        all.flat_map(|(_, values)| values).map(|(rank, value)| (*rank, value.as_slice()))
    }
}

/// What was heard.
pub(crate) fn found(arg: &StillArg) -> Heard {
    let input = if arg.input_len == 0 {
        &[][..]
    } else {
        // SAFETY: the lower half's.
        unsafe { std::slice::from_raw_parts(arg.input, arg.input_len) }
    };
    let mut heard = Heard::default();
    for body in Records::of(input).filter(|(kind, _)| *kind == FOUND).map(|(_, body)| body) {
        let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let (Some(rank), Some(n)) = (word(0), word(4)) else { continue };
        if let Some((key, value)) = body[8..].split_at_checked(n as usize) {
            heard.0.entry(key.to_vec()).or_default().push((rank, value.to_vec()));
        }
    }
    heard
}

/// One command.
pub(crate) unsafe extern "C" fn still(cmd: u32, arg: *mut StillArg) -> i64 {
    // SAFETY: the lower half passes an argument.
    let Some(arg) = (unsafe { arg.as_mut() }) else { return -1 };
    arg.out_len = 0;
    match cmd {
        still::COUNTS => {
            drain::begin();
            still::DONE
        }
        // SAFETY: every thread stands still.
        still::DRAIN => left(arg).unwrap_or_else(|| unsafe { drain::step(arg) }),
        still::REBUILD => left(arg).unwrap_or_else(|| rebuild::step(arg)),
        _ => still::DONE,
    }
}
