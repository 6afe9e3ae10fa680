//! What a user may say: the `--ckpt-*` options, the variables that stand for them, and what is refused. Plain values, no
//! Slurm. *In Slurm's processes.*
//!
//! What a reader would get wrong: Slurm calls back for one option several times (its environment, the lines of a script,
//! the command line; in srun more than once); the last value counts, and that is the order of precedence. The variables
//! STILLPOINT_CKPT_* are ours, not Slurm's, and come after all of these.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use thiserror::Error;

/// One of our options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Which {
    Interval,
    Dir,
    Keep,
    Restart,
    Redundancy,
    On,
    Run,
}

/// How an option is shown and found.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) which: Which,
    pub(crate) name: &'static str,
    pub(crate) argument: &'static str,
    pub(crate) usage: &'static str,
    /// The variable that stands for it.
    variable: Option<&'static str>,
    /// What `stillpoint slurm-step` calls it.
    pub(crate) flag: &'static str,
}

const COUNT: usize = 7;

/// All options, in the order of `Which` and of --help.
pub(crate) const ENTRIES: [Entry; COUNT] = [
    Entry {
        which: Which::Interval,
        name: "ckpt-interval",
        argument: "TIME|auto|off",
        usage: "checkpoint each step every TIME: 600 (seconds), 500ms, 10m, 1h; auto: as pays best; off: leave the step alone",
        variable: Some("STILLPOINT_CKPT_INTERVAL"),
        flag: "--interval",
    },
    Entry {
        which: Which::Dir,
        name: "ckpt-dir",
        argument: "PATH",
        usage: "where checkpoints go: a directory that all nodes share",
        variable: Some("STILLPOINT_CKPT_DIR"),
        flag: "--dir",
    },
    Entry {
        which: Which::Keep,
        name: "ckpt-keep",
        argument: "N",
        usage: "how many checkpoints to keep",
        variable: Some("STILLPOINT_CKPT_KEEP"),
        flag: "--keep",
    },
    Entry {
        which: Which::Restart,
        name: "ckpt-restart",
        argument: "RUN[@ID]|none",
        usage: "start from the last checkpoint of RUN, or from its checkpoint ID; none: from the beginning",
        variable: Some("STILLPOINT_CKPT_RESTART"),
        flag: "--restart",
    },
    Entry {
        which: Which::Redundancy,
        name: "ckpt-redundancy",
        argument: "none|shared",
        usage: "what a checkpoint survives: none, or shared (a copy in the shared directory)",
        variable: Some("STILLPOINT_CKPT_REDUNDANCY"),
        flag: "--redundancy",
    },
    Entry {
        which: Which::On,
        name: "ckpt-on",
        argument: "timelimit,preempt",
        usage: "also checkpoint before the time limit, or before a preemption",
        variable: Some("STILLPOINT_CKPT_ON"),
        flag: "--on",
    },
    Entry {
        which: Which::Run,
        name: "ckpt-run",
        argument: "RUN@INC",
        usage: "set by stillpoint itself; do not use",
        variable: None,
        flag: "",
    },
];

impl Which {
    pub(crate) fn from_number(n: i32) -> Option<Self> {
        ENTRIES.iter().map(|e| e.which).find(|w| *w as i32 == n)
    }

    fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }
}

/// What is refused. The text names the option or the variable, the value, and what is allowed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Refusal {
    #[error("{0}: allowed is {1}")]
    Value(String, &'static str),
    #[error("{0}: {1} is not there yet; allowed is none or shared")]
    NotYet(String, String),
    #[error(
        "{0}: this option is set by stillpoint itself; to start from a checkpoint use --ckpt-restart=RUN"
    )]
    Internal(String),
}

const TIME: &str =
    "a time above zero, in seconds or with ms, s, m or h, like 600, 500ms, 10m; or auto, or off";
const PATH: &str = "the absolute path of a directory";
const NUMBER: &str = "a whole number from 1 to 1000000";
const RESTART: &str = "none, the name of a run, or RUN@ID with the number of one of its checkpoints";
const REDUNDANCY: &str = "none or shared";
const ON: &str = "timelimit, preempt, or both with a comma between";
const RUN: &str = "RUN@INC, and it is set by stillpoint itself";
/// Words that belong to a later release.
const LATER: [&str; 4] = ["partner", "xor", "rs", "reed-solomon"];

/// Checks a value; `from` is how the user gave it, for the message.
fn check(which: Which, value: &OsStr, from: &str) -> Result<(), Refusal> {
    let told = || format!("{from}={}", value.to_string_lossy());
    let text = value.to_str().unwrap_or_default();
    let (good, allowed) = match which {
        Which::Interval => (["auto", "off"].contains(&text) || time(text), TIME),
        Which::Dir => (value.as_bytes().starts_with(b"/") && !value.as_bytes().contains(&b'\n'), PATH),
        Which::Keep => (text.parse::<u32>().is_ok_and(|n| (1..=1_000_000).contains(&n)), NUMBER),
        Which::Restart => (restart(text), RESTART),
        Which::Redundancy if LATER.iter().any(|w| text.starts_with(w)) => {
            return Err(Refusal::NotYet(told(), text.to_owned()));
        }
        Which::Redundancy => (["none", "shared"].contains(&text), REDUNDANCY),
        Which::On => (text.split(',').all(|w| ["timelimit", "preempt"].contains(&w)), ON),
        Which::Run => (run(value).is_some(), RUN),
    };
    if good { Ok(()) } else { Err(Refusal::Value(told(), allowed)) }
}

/// As `stillpoint run --interval` reads it.
fn time(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = ["", "s", "ms", "m", "min", "h"].contains(&&text[digits.len()..]);
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    unit && plain && digits.parse::<f64>().is_ok_and(|v| v > 0.0 && v.is_finite())
}

fn restart(text: &str) -> bool {
    let clean = !text.is_empty() && !text.contains(char::is_control);
    let id = |id: &str| id.parse::<u64>().is_ok_and(|n| n > 0);
    clean && text.rsplit_once('@').is_none_or(|(run, i)| !run.is_empty() && id(i))
}

/// `RUN@INC`: the run's directory and the incarnation.
pub(crate) fn run(value: &OsStr) -> Option<(&OsStr, u64)> {
    let bytes = value.as_bytes();
    let at = bytes.iter().rposition(|b| *b == b'@')?;
    let incarnation = std::str::from_utf8(&bytes[at + 1..]).ok()?.parse().ok()?;
    (bytes[0] == b'/' && at > 1).then_some((OsStr::from_bytes(&bytes[..at]), incarnation))
}

/// What was given, by option.
#[derive(Debug, Default, Clone)]
pub(crate) struct Given([Option<OsString>; COUNT]);

impl Given {
    pub(crate) const fn new() -> Self {
        Self([const { None }; COUNT])
    }

    /// Takes the value of an option.
    pub(crate) fn take(&mut self, which: Which, value: OsString) -> Result<(), Refusal> {
        check(which, &value, &format!("--{}", which.entry().name))?;
        self.0[which as usize] = Some(value);
        Ok(())
    }

    pub(crate) fn get(&self, which: Which) -> Option<&OsStr> {
        self.0[which as usize].as_deref()
    }

    /// Adds what the environment says and no option does. Empty variables are none.
    pub(crate) fn with(mut self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Refusal> {
        for entry in &ENTRIES {
            let (Some(name), None) = (entry.variable, self.get(entry.which)) else { continue };
            if let Some(value) = variable(name).filter(|v| !v.is_empty()) {
                check(entry.which, &value, name)?;
                self.0[entry.which as usize] = Some(value);
            }
        }
        Ok(self)
    }

    /// Whether anything asks for us: an option, or one of those variables that say *that* and not only *how* (a module file
    /// may set the others for everybody). Asked before `with`: a bad value is nothing to those who want nothing of us.
    pub(crate) fn asked(&self, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        let of = |which: Which| {
            let from = || variable(which.entry().variable?).filter(|v| !v.is_empty());
            self.get(which).map(OsStr::to_owned).or_else(from)
        };
        let interval = of(Which::Interval);
        if interval.as_ref().is_some_and(|v| v == "off") {
            return false;
        }
        let option = self.0[..Which::Run as usize].iter().any(Option::is_some);
        option
            || interval.is_some()
            || of(Which::On).is_some()
            || of(Which::Restart).is_some_and(|v| v != "none")
    }

    /// As arguments of `stillpoint slurm-step`.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        for entry in ENTRIES.iter().filter(|e| !e.flag.is_empty()) {
            if let Some(value) = self.get(entry.which) {
                words.extend([OsString::from(entry.flag), value.to_owned()]);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(options: &[(Which, &str)]) -> Result<Given, Refusal> {
        let mut g = Given::new();
        for (w, v) in options {
            g.take(*w, (*v).into())?;
        }
        Ok(g)
    }

    #[test]
    fn entries_stand_in_the_order_of_their_numbers() {
        for (i, e) in ENTRIES.iter().enumerate() {
            assert_eq!(e.which as usize, i);
            assert_eq!(Which::from_number(i32::try_from(i).unwrap()), Some(e.which));
        }
        assert_eq!(Which::from_number(99), None);
    }

    #[test]
    fn good_values_are_taken() {
        for (w, values) in [
            (Which::Interval, &["600", "500ms", "10m", "1h", "0.5", "30s", "auto", "off"][..]),
            (Which::Dir, &["/scratch/me", "/"]),
            (Which::Keep, &["1", "1000000"]),
            (Which::Restart, &["none", "12", "12@3", "/a/run", "/a/r@2/run@7"]),
            (Which::Redundancy, &["none", "shared"]),
            (Which::On, &["timelimit", "preempt", "timelimit,preempt"]),
            (Which::Run, &["/a/run/12@1", "/a@b/12@0"]),
        ] {
            for v in values {
                assert!(given(&[(w, v)]).is_ok(), "{w:?} {v}");
            }
        }
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (w, values) in [
            (Which::Interval, &["", "0", "-1", "abc", "10x", "automatic", "1e3", "inf", "nan", "."][..]),
            (Which::Dir, &["", "relative", "/a\nb"]),
            (Which::Keep, &["", "0", "-1", "1.5", "x", "99999999999"]),
            (Which::Restart, &["", "12@", "12@x", "@3", "12@0", "a\nb"]),
            (Which::Redundancy, &["", "partner", "xor:8", "rs=8+2", "all"]),
            (Which::On, &["", "timelimit,", "timeout", "preempt timelimit"]),
            (Which::Run, &["", "12@1", "/a", "/a@x", "/@1"]),
        ] {
            for v in values {
                let refusal = given(&[(w, v)]).unwrap_err().to_string();
                assert!(refusal.starts_with(&format!("--{}={v}:", w.entry().name)), "{refusal}");
            }
        }
        let text = given(&[(Which::Redundancy, "xor:8")]).unwrap_err().to_string();
        assert!(text.contains("xor:8 is not there yet; allowed is none or shared"), "{text}");
    }

    #[test]
    fn an_option_wins_over_the_environment() {
        let env = |n: &str| (n == "STILLPOINT_CKPT_INTERVAL").then(|| "60".into());
        let all = given(&[(Which::Interval, "600")]).unwrap().with(env).unwrap();
        assert_eq!(all.get(Which::Interval).unwrap(), "600");
        let all = Given::new().with(env).unwrap();
        assert_eq!(all.get(Which::Interval).unwrap(), "60");
        let bad = Given::new().with(|_| Some("x".into())).unwrap_err().to_string();
        assert!(bad.starts_with("STILLPOINT_CKPT_INTERVAL=x:"), "{bad}");
        assert!(Given::new().with(|_| Some(OsString::new())).is_ok());
    }

    #[test]
    fn only_what_asks_for_us_makes_us_act() {
        let asked = |options: &[(Which, &str)], var: &'static str, value: &'static str| {
            given(options).unwrap().asked(|n| (n == var).then(|| value.into()))
        };
        assert!(!asked(&[], "", ""));
        assert!(asked(&[(Which::Keep, "3")], "", ""));
        assert!(!asked(&[], "STILLPOINT_CKPT_DIR", "not a path"));
        assert!(asked(&[], "STILLPOINT_CKPT_INTERVAL", "not a time"));
        assert!(asked(&[], "STILLPOINT_CKPT_INTERVAL", "60"));
        assert!(!asked(&[], "STILLPOINT_CKPT_RESTART", "none"));
        assert!(!asked(&[(Which::Interval, "off")], "STILLPOINT_CKPT_ON", "preempt"));
        assert!(!asked(&[(Which::Run, "/a/b@1")], "", ""));
    }

    #[test]
    fn the_command_line_gets_what_was_given() {
        let g = given(&[(Which::Keep, "3"), (Which::Interval, "10m"), (Which::Run, "/r@1")]).unwrap();
        assert_eq!(g.arguments(), ["--interval", "10m", "--keep", "3"]);
        assert_eq!(run(OsStr::new("/a@b/12@3")), Some((OsStr::new("/a@b/12"), 3)));
    }
}
