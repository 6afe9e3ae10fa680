//! Which completion events the application is owed by one queue. Pure.
//!
//! ```text
//!   ibv_req_notify_cq ──▶ wants ── a completion that it sees ──▶ seen ── an event from below ──▶ given; wants nothing
//!                           ▲  └── an event from below: for a completion that it has not asked for
//!                           └──────────┘ nothing is given; the real queue is asked once more
//! ```
//!
//! What a reader would get wrong: an event without a completion is allowed (ibv_get_cq_event(3): a completion may come between the
//! request and the last poll), but it ends the request. One for a completion that is swallowed would end it for nothing, so it is not given;
//! but to one who would wait long for another ([`Notice::comes_early`]).
//! Solicited completions are never those: all that is swallowed are successful sends.

/// What the application wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wants {
    #[default]
    Nothing,
    /// The next completion.
    Next,
    /// The next solicited one, or error.
    Solicited,
}

#[derive(Debug, Default)]
pub(crate) struct Notice {
    wants: Wants,
    /// A completion that the application sees has come since.
    seen: bool,
    /// Events of former requests that have not come yet.
    owed: u32,
    /// One of a former request for solicited ones may be on its way, or not.
    perhaps: bool,
    /// It has asked for solicited ones: nobody can tell any more which events are for nothing.
    loose: bool,
}

impl Notice {
    /// The application asks.
    pub(crate) fn ask(&mut self, solicited: bool) {
        match self.wants {
            Wants::Next if self.seen => self.owed += 1,
            Wants::Solicited if self.seen => self.perhaps = true,
            // That it asks for less changes nothing (InfiniBand specification, 11.4.2.2).
            Wants::Next => return,
            _ => {}
        }
        self.seen = false;
        self.wants = if solicited { Wants::Solicited } else { Wants::Next };
        self.loose |= solicited;
    }

    /// The application wants to be told of something.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.wants != Wants::Nothing
    }

    /// What it wants.
    pub(crate) fn wants(&self) -> Wants {
        self.wants
    }

    /// A completion has come that the application sees.
    pub(crate) fn saw(&mut self) {
        self.seen |= self.is_asked();
    }

    /// An event has come from below, and after it all completions that were there. Whether the application is to have it.
    pub(crate) fn comes(&mut self) -> bool {
        if self.owed > 0 {
            self.owed -= 1;
            return true;
        }
        match self.wants {
            Wants::Nothing => self.loose,
            Wants::Next => self.ends(),
            Wants::Solicited => {
                if !std::mem::take(&mut self.perhaps) {
                    (self.wants, self.seen) = (Wants::Nothing, false);
                }
                true
            }
        }
    }

    /// What the application asked for has come: an event is due, whether one comes from below or not.
    pub(crate) fn ends(&mut self) -> bool {
        let ends = self.wants == Wants::Next && self.seen;
        if ends {
            (self.wants, self.seen) = (Wants::Nothing, false);
        }
        ends
    }

    /// An event is given that nothing has come for: it ends the request all the same.
    pub(crate) fn comes_early(&mut self) {
        (self.wants, self.seen) = (Wants::Nothing, false);
    }

    /// It asks when there are completions already. Whether an event is due; of solicited ones nobody can tell, and it goes on to be asked for.
    pub(crate) fn meets(&mut self) -> bool {
        self.saw();
        self.wants == Wants::Solicited || self.ends()
    }

    /// After a restart: the events of the former queue were brought home. What is it to be asked for?
    pub(crate) fn again(&mut self) -> Wants {
        (self.seen, self.owed, self.perhaps) = (false, 0, false);
        self.wants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_for_nothing_does_not_end_the_request() {
        let mut n = Notice::default();
        n.ask(false);
        assert!(!n.comes() && n.wants() == Wants::Next);
        n.saw();
        assert!(n.comes() && n.wants() == Wants::Nothing);
        assert!(!n.comes(), "nobody has asked");
    }

    #[test]
    fn each_request_that_was_met_has_its_event() {
        let mut n = Notice::default();
        for _ in 0..3 {
            n.ask(false);
            n.saw();
        }
        n.ask(false);
        assert!(n.comes() && n.comes() && n.comes() && !n.comes());
        assert_eq!(n.again(), Wants::Next);
    }

    #[test]
    fn a_completion_before_the_request_is_none_of_it() {
        let mut n = Notice::default();
        n.saw();
        n.ask(false);
        assert!(!n.comes());
    }

    #[test]
    fn an_early_event_ends_the_request() {
        let mut n = Notice::default();
        n.ask(false);
        n.comes_early();
        assert!(n.wants() == Wants::Nothing);
        n.saw();
        assert!(!n.comes(), "the real queue was asked once more");
        n.ask(false);
        n.saw();
        assert!(n.comes());
    }

    #[test]
    fn what_is_there_meets_a_request() {
        let mut n = Notice::default();
        n.ask(false);
        assert!(n.meets() && n.wants() == Wants::Nothing && !n.comes());
        n.ask(true);
        assert!(n.meets() && n.wants() == Wants::Solicited);
    }

    #[test]
    fn of_solicited_ones_every_event_is_given() {
        let mut n = Notice::default();
        n.ask(true);
        n.saw();
        n.ask(true);
        assert!(n.comes() && n.wants() == Wants::Solicited, "it may be of the first");
        assert!(n.comes() && n.comes());
        n.ask(false);
        n.ask(true);
        assert_eq!(n.wants(), Wants::Next);
    }
}
