//! The plugins of this rank in the rounds of the still point: what each says goes out as one, what comes in is handed to whom
//! it is for. *Lower half*: the control thread, and after a restart the main thread.
//!
//! ```text
//!   item and key on the way:   u8 length of the name │ name │ what the plugin said
//! ```
//!
//! What a reader would get wrong: a plugin is not called in every round. It hears of a round that it has spoken in, or in
//! which somebody has spoken to it, and keeps what it heard last until then. While others drain it is called all the same,
//! for its progress, and has no say.
#![allow(unsafe_code, reason = "reads texts of the upper half")]

use crate::sockets::{Sockets, Step};
use crate::still;
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering::Acquire;
use stillpoint_abi::half::still as command;
use stillpoint_abi::plugin::NAME_LEN;
use stillpoint_abi::records::{ASK, FOUND, PUBLISH, Records};
use stillpoint_capture::gather::Streams;
use stillpoint_coord::message::{Heard, Said};
use stillpoint_image::Meta;
use stillpoint_sys::upper;

/// One plugin within a checkpoint, or a rebuild.
#[derive(Debug)]
struct Part {
    at: usize,
    name: String,
    /// What it has heard last.
    input: Vec<u8>,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    /// To be called until it is not any more.
    Busy,
    Done,
    /// What it wants to say.
    Speaks(Vec<u8>),
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The lower half's own part, which has the name that no plugin has.
    own: Own,
    parts: Vec<Part>,
    round: u32,
    /// This rank has said its part of the round.
    answered: bool,
}

/// Sockets, as if they were a plugin.
#[derive(Debug)]
struct Own {
    sockets: Sockets,
    input: Vec<u8>,
    state: State,
}

/// Its name.
const OWN: &str = "";

impl State {
    fn after(step: Step) -> State {
        match step {
            Step::Done => State::Done,
            Step::Again => State::Busy,
            Step::Speaks(out) => State::Speaks(out),
        }
    }
}

/// What this rank says in a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Says(Said),
    Done,
}

/// Places and names of those that have something below.
fn live() -> Vec<Part> {
    let part = |(at, name)| Part { at, name, input: Vec::new(), state: State::Busy };
    let all = upper().plugins.all().filter(|(_, p)| p.is_live());
    all.map(|(at, p)| part((at, p.name(&mut [0; NAME_LEN]).to_owned()))).collect()
}

/// The place of a plugin, if it has anything below.
pub(crate) fn place(name: &str) -> Option<usize> {
    live().into_iter().find(|p| p.name == name).map(|p| p.at)
}

/// What plugins cannot save yet.
pub(crate) fn refusals() -> Vec<String> {
    let all = upper().plugins.all().flat_map(|(_, p)| &p.refusals);
    all.filter_map(|r| {
        let text = std::ptr::with_exposed_provenance::<c_char>(r.text.load(Acquire));
        let n = Some(r.count.load(Acquire)).filter(|n| *n > 0)?;
        if text.is_null() {
            return Some(format!("{n} things"));
        }
        // SAFETY: a terminated text of the plugin's, which is never unloaded.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        Some(format!("{n} {text}"))
    })
    .collect()
}

/// Threads run on next. What failed.
pub(crate) fn resume(
    outcome: u8,
    mut tell: impl FnMut(usize, u32, &[u8]) -> Result<i64, String>,
) -> Vec<String> {
    let all = live().into_iter();
    all.filter_map(|p| match tell(p.at, command::RESUME, &[outcome]) {
        Ok(0) => None,
        Ok(code) => Some(format!("plugin {} does not resume (code {code})", p.name)),
        Err(e) => Some(e),
    })
    .collect()
}

fn failed(name: &str, what: &str, code: i64, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    if text.is_empty() {
        format!("{name}: {what} (code {code})")
    } else {
        format!("{name}: {text} (code {code})")
    }
}

impl Parts {
    /// Asks all what others must know before the drain.
    pub(crate) fn count(streams: &Streams) -> Result<(Parts, Said), String> {
        let (sockets, out) = Sockets::count(streams)?;
        let own = Own { sockets, input: Vec::new(), state: State::Speaks(out) };
        let mut parts = live();
        for p in &mut parts {
            let (code, out) = still::command(p.at, command::COUNTS, &[], 0, still::soon(10_000))?;
            if code != command::DONE {
                return Err(failed(&p.name, "what is under way cannot be counted", code, &out));
            }
            p.state = State::Speaks(out);
        }
        let all = Parts { own, parts, round: 0, answered: true };
        let said = all.said();
        Ok((all, said))
    }

    /// After a restart: nothing is made yet.
    pub(crate) fn rebuild(meta: &Meta) -> Parts {
        let own = Own { sockets: Sockets::of(meta), input: Vec::new(), state: State::Busy };
        Parts { own, parts: live(), round: 0, answered: false }
    }

    /// Another round was handed on.
    pub(crate) fn hear(&mut self, round: u32, heard: &Heard) {
        let own = for_plugin(OWN, heard);
        if !own.is_empty() || matches!(self.own.state, State::Speaks(_)) {
            (self.own.input, self.own.state) = (own, State::Busy);
        }
        for p in &mut self.parts {
            let input = for_plugin(&p.name, heard);
            if !input.is_empty() || matches!(p.state, State::Speaks(_)) {
                (p.input, p.state) = (input, State::Busy);
            }
        }
        (self.round, self.answered) = (round + 1, false);
    }

    /// One short piece of the drain. Goes on after this rank has answered, for the others.
    pub(crate) fn drain(&mut self) -> Result<Option<Word>, String> {
        let ms = if self.answered { 1 } else { 20 };
        if self.own.state == State::Busy {
            self.own.state = State::after(self.own.sockets.drain(&self.own.input)?);
        }
        for p in &mut self.parts {
            let (code, out) = still::command(p.at, command::DRAIN, &p.input, self.round, still::soon(ms))?;
            match (code, &p.state) {
                (command::DONE, State::Busy) => p.state = State::Done,
                (command::SPEAKS, State::Busy) => p.state = State::Speaks(out),
                // For its progress, until the round is handed on.
                (command::SPEAKS, State::Speaks(_)) | (command::DONE | command::AGAIN, _) => {}
                (command::SPEAKS, State::Done) => {
                    return Err(failed(&p.name, "it was done, and wants to speak", code, &[]));
                }
                _ => return Err(failed(&p.name, "what is under way cannot be brought home", code, &out)),
            }
        }
        Ok(self.word())
    }

    /// Compares what was drained with what an image is about to hold, and completes that.
    pub(crate) fn settle(&self, meta: &mut Meta) -> Result<(), String> {
        self.own.sockets.settle(meta)
    }

    /// One step of the rebuild, on the calling thread: [`still::alone`].
    pub(crate) fn make(&mut self) -> Result<Word, String> {
        if self.own.state == State::Busy {
            self.own.state = State::after(self.own.sockets.rebuild(self.round, &self.own.input)?);
        }
        for p in self.parts.iter_mut().filter(|p| p.state == State::Busy) {
            let (code, out) = still::alone(p.at, command::REBUILD, &p.input, self.round)?;
            p.state = match code {
                command::DONE => State::Done,
                command::SPEAKS => State::Speaks(out),
                _ => return Err(failed(&p.name, "what was below cannot be made again", code, &out)),
            };
        }
        Ok(self.word().unwrap_or(Word::Done))
    }

    /// What is to be said, once nobody is busy; once in a round.
    fn word(&mut self) -> Option<Word> {
        let states = || self.parts.iter().map(|p| &p.state).chain([&self.own.state]);
        if self.answered || states().any(|s| *s == State::Busy) {
            return None;
        }
        let speaks = states().any(|s| matches!(s, State::Speaks(_)));
        self.answered = true;
        Some(if speaks { Word::Says(self.said()) } else { Word::Done })
    }

    fn said(&self) -> Said {
        let mut said = Said::default();
        let all = self.parts.iter().map(|p| (p.name.as_str(), &p.state));
        for (name, state) in all.chain([(OWN, &self.own.state)]) {
            if let State::Speaks(out) = state {
                say(name, out, &mut said);
            }
        }
        said
    }
}

fn named(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![name.len() as u8];
    all.extend_from_slice(name.as_bytes());
    all.extend_from_slice(bytes);
    all
}

/// What follows the name, if it is this one.
fn of<'a>(name: &str, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (n, rest) = bytes.split_first()?;
    let (own, rest) = rest.split_at_checked(usize::from(*n))?;
    (own == name.as_bytes()).then_some(rest)
}

fn say(name: &str, out: &[u8], said: &mut Said) {
    for (rank, body) in Records::of(out) {
        match rank {
            PUBLISH => {
                let n = body.first_chunk().map_or(0, |n| u32::from_le_bytes(*n) as usize);
                if let Some((key, value)) = body.get(4..).and_then(|b| b.split_at_checked(n)) {
                    said.publish.push((named(name, key), value.to_vec()));
                }
            }
            ASK => said.ask.push(named(name, body)),
            FOUND => {}
            _ => said.to.push((rank, named(name, body))),
        }
    }
}

fn for_plugin(name: &str, heard: &Heard) -> Vec<u8> {
    let from = heard.from.iter().filter_map(|(rank, b)| Some((*rank, of(name, b)?.to_vec())));
    let found = heard.found.iter().filter_map(|(key, rank, value)| {
        let key = of(name, key)?;
        let mut body = rank.to_le_bytes().to_vec();
        body.extend_from_slice(&u32::try_from(key.len()).unwrap_or(0).to_le_bytes());
        body.extend_from_slice(key);
        body.extend_from_slice(value);
        Some((FOUND, body))
    });
    still::from_items(&from.chain(found).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &[u8], value: &[u8]) -> Vec<u8> {
        let n = u32::try_from(key.len()).unwrap();
        [&n.to_le_bytes(), key, value].concat()
    }

    #[test]
    fn what_a_plugin_says_reaches_its_namesakes_and_no_other() {
        let out = still::from_items(&[(3, vec![1, 2]), (PUBLISH, key(b"qp", b"17")), (ASK, b"lid".to_vec())]);
        let mut said = Said::default();
        say("verbs", &out, &mut said);
        say("mpi", &still::from_items(&[(3, vec![9])]), &mut said);
        assert_eq!((said.to.len(), said.publish.len(), said.ask.len()), (2, 1, 1));
        let found = vec![(said.ask[0].clone(), 5, b"33".to_vec())];
        let heard = Heard { from: said.to.iter().map(|(_, b)| (0, b.clone())).collect(), found };
        let verbs = for_plugin("verbs", &heard);
        let got: Vec<(u32, Vec<u8>)> = Records::of(&verbs).map(|(r, b)| (r, b.to_vec())).collect();
        let body = [&5u32.to_le_bytes()[..], &key(b"lid", b"33")].concat();
        assert_eq!(got, [(0, vec![1, 2]), (FOUND, body)]);
        assert_eq!(for_plugin("mpi", &heard), still::from_items(&[(0, vec![9])]));
        assert!(for_plugin("mp", &heard).is_empty() && for_plugin("verbs2", &heard).is_empty());
    }

    #[test]
    fn a_torn_key_is_not_said() {
        let mut said = Said::default();
        let torn = [9u32.to_le_bytes().to_vec(), b"short".to_vec()].concat();
        say("x", &still::from_items(&[(PUBLISH, torn), (PUBLISH, vec![1])]), &mut said);
        assert_eq!(said, Said::default());
        assert!(of("x", &[]).is_none() && of("x", &[5, b'x']).is_none());
    }

    fn part(name: &str, state: State) -> Part {
        Part { at: 0, name: name.into(), input: vec![7], state }
    }

    #[test]
    fn who_is_done_is_called_again_only_when_it_is_spoken_to() {
        let speaks = State::Speaks(still::from_items(&[(1, vec![5])]));
        let own = Own { sockets: Sockets::default(), input: Vec::new(), state: State::Done };
        let parts = vec![part("a", State::Done), part("b", speaks)];
        let mut all = Parts { own, parts, round: 1, answered: false };
        let Some(Word::Says(said)) = all.word() else { panic!() };
        assert_eq!(said.to, [(1, named("b", &[5]))]);
        assert_eq!(all.word(), None, "once in a round");
        all.hear(1, &Heard { from: vec![(2, named("b", &[6]))], ..Heard::default() });
        assert_eq!((&all.parts[0].state, &all.parts[0].input), (&State::Done, &vec![7]));
        assert_eq!((&all.parts[1].state, all.round), (&State::Busy, 2));
        assert_eq!(all.word(), None, "b is busy");
        all.parts[1].state = State::Done;
        assert_eq!(all.word(), Some(Word::Done));
        all.hear(2, &Heard { from: vec![(0, named("a", &[1]))], ..Heard::default() });
        assert_eq!((&all.parts[0].state, &all.parts[1].state), (&State::Busy, &State::Done));
    }
}
