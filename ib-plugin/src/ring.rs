//! Work that was posted and whose completion has not been seen: the log of one queue. Pure.
//!
//! ```text
//!      head              tail
//!   ┌───┬────┬────┬────┬───┐         a number counts up for ever; its slot is that modulo the size
//!   │   │ 17 │ 18 │ 19 │   │         completions come in order, so one of 18 is one of 17 as well
//!   └───┴────┴────┴────┴───┘
//! ```
//!
//! What a reader would get wrong: slots are made once and used again, since nothing may be allocated on the way of a message.

/// The log of a queue. `T` is a slot.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    slots: Vec<T>,
    head: u64,
    tail: u64,
}

impl<T> Ring<T> {
    /// With room for at least so many; the first has this number.
    pub(crate) fn new(room: usize, first: u64, mut make: impl FnMut() -> T) -> Ring<T> {
        let size = room.max(1).next_power_of_two();
        Ring { slots: (0..size).map(|_| make()).collect(), head: first, tail: first }
    }

    fn place(&self, number: u64) -> usize {
        // A power of two.
        (number as usize) & (self.slots.len() - 1)
    }

    /// The next slot, which has this number from now on. `None`: there is no room.
    #[inline(always)]
    pub(crate) fn push(&mut self) -> Option<(u64, &mut T)> {
        if self.tail - self.head == self.slots.len() as u64 {
            return None;
        }
        let (number, place) = (self.tail, self.place(self.tail));
        self.tail += 1;
        Some((number, self.slots.get_mut(place)?))
    }

    /// The slot of this number, if it is open.
    pub(crate) fn at(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number);
        if (self.head..self.tail).contains(&number) { self.slots.get_mut(place) } else { None }
    }

    /// The number that the next one will have.
    pub(crate) fn next(&self) -> u64 {
        self.tail
    }

    /// Nothing of what was pushed is open any more.
    pub(crate) fn clear(&mut self) {
        self.head = self.tail;
    }

    /// This one and what was pushed behind it was not posted.
    pub(crate) fn take_back(&mut self, number: u64) {
        self.tail = number.clamp(self.head, self.tail);
    }

    /// Its completion was seen: it and all before it are no longer open.
    pub(crate) fn complete(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number);
        if !(self.head..self.tail).contains(&number) {
            return None;
        }
        self.head = number + 1;
        self.slots.get_mut(place)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        (self.tail - self.head) as usize
    }

    /// Those that are open, the oldest first.
    pub(crate) fn each(&self) -> impl Iterator<Item = (u64, &T)> {
        (self.head..self.tail).filter_map(|n| Some((n, self.slots.get(self.place(n))?)))
    }

    /// The same, to be changed.
    pub(crate) fn each_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let (head, open, mask) = (self.head, self.tail - self.head, self.slots.len() as u64 - 1);
        let number = move |place: u64| head + (place.wrapping_sub(head) & mask);
        let all = self.slots.iter_mut().zip(0u64..).map(move |(slot, place)| (number(place), slot));
        let mut all: Vec<(u64, &mut T)> = all.filter(|(n, _)| *n < head + open).collect();
        all.sort_by_key(|(n, _)| *n);
        all.into_iter()
    }

    /// The whole of a number of which only the low bits are known: of one that is open, or was pushed shortly before.
    pub(crate) fn whole(&self, low: u64, bits: u32) -> u64 {
        let span = 1u64 << bits;
        let at = (self.tail & !(span - 1)) | low & (span - 1);
        if at >= self.tail { at.wrapping_sub(span) } else { at }
    }
}

/// What stands in the `wr_id` of a real work request: which queue, and which number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// Place of the queue in the table of queues.
    pub(crate) queue: u32,
    /// The low bits of the number in its ring.
    pub(crate) number: u64,
}

/// Of which ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Send,
    Receive,
    /// Of a shared receive queue: the number is a slot there, and how often that has been used.
    Shared,
}

/// Bits of a token's number, and of its queue.
pub(crate) const NUMBER_BITS: u32 = 38;
const QUEUE_BITS: u32 = 24;

impl Token {
    pub(crate) fn pack(self) -> u64 {
        let kind = match self.kind {
            Kind::Send => 0,
            Kind::Receive => 1,
            Kind::Shared => 2,
        };
        let queue = u64::from(self.queue) & ((1 << QUEUE_BITS) - 1);
        kind << (NUMBER_BITS + QUEUE_BITS) | queue << NUMBER_BITS | self.number & ((1 << NUMBER_BITS) - 1)
    }

    /// The token of another number, from that of 0.
    pub(crate) fn numbered(none: u64, number: u64) -> u64 {
        none | number & ((1 << NUMBER_BITS) - 1)
    }

    pub(crate) fn of(packed: u64) -> Token {
        let kind = match packed >> (NUMBER_BITS + QUEUE_BITS) {
            0 => Kind::Send,
            1 => Kind::Receive,
            _ => Kind::Shared,
        };
        let queue = (packed >> NUMBER_BITS) as u32 & ((1 << QUEUE_BITS) - 1);
        Token { kind, queue, number: packed & ((1 << NUMBER_BITS) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn behaves_like_a_queue_of_limited_length() {
        let mut ring: Ring<u64> = Ring::new(5, 3, || 0);
        let mut model: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut state, mut pushed) = (7u64, 3u64);
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match state >> 61 {
                0..=3 => match ring.push() {
                    Some((number, slot)) => {
                        *slot = state;
                        assert!(model.len() < 8);
                        model.push_back((number, state));
                        assert_eq!(number, pushed);
                        pushed += 1;
                    }
                    None => assert_eq!(model.len(), 8),
                },
                4..=5 => {
                    // One in the middle: those before it are done as well.
                    let Some(&(number, value)) = model.get((state as usize >> 8) % (model.len() + 1)) else {
                        continue;
                    };
                    assert_eq!(ring.complete(number).copied(), Some(value));
                    model.retain(|(n, _)| *n > number);
                    assert_eq!(ring.complete(number), None, "not twice");
                }
                6 => {
                    let Some(&(number, _)) = model.back() else { continue };
                    ring.take_back(number);
                    model.pop_back();
                    pushed -= 1;
                }
                _ => assert!(ring.complete(pushed).is_none()),
            }
            assert_eq!(ring.open(), model.len());
            assert_eq!(ring.next(), pushed);
            assert!(ring.each().map(|(n, v)| (n, *v)).eq(model.iter().copied()));
            for (number, value) in &model {
                assert_eq!(ring.whole(number & 15, 4), *number, "{value}");
            }
        }
    }

    #[test]
    fn tokens_there_and_back() {
        for kind in [Kind::Send, Kind::Receive, Kind::Shared] {
            for (queue, number) in [(0, 0), (1, 5), ((1 << 24) - 1, (1 << 38) - 1)] {
                let token = Token { kind, queue, number };
                assert_eq!(Token::of(token.pack()), token);
                assert_eq!(Token::numbered(Token { number: 0, ..token }.pack(), number), token.pack());
            }
        }
    }
}
