//! The little that must be known of srun's own command line: where the program begins, and what becomes of standard input.
//!
//! What a reader would get wrong: `srun -n4 ./lmp -i in.melt` has no `--input`. To see that, one must know which of srun's
//! options take a value. The tables are those of Slurm 22.05 to 24.05; an option that is not in them is taken for one without
//! a value of its own word. Runs *next door*.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Short options that take a value.
const SHORT: &[u8] = b"AbDMCScdmexBGiJLTFwNnopqrtWPEgy";
/// Long options that take none, or take it only behind `=`.
const ALONE: &[&str] = &[
    "bcast",
    "compress",
    "contiguous",
    "debugger-test",
    "disable-status",
    "exact",
    "exclusive",
    "external-launcher",
    "help",
    "hold",
    "immediate",
    "interactive",
    "kill-on-bad-exit",
    "label",
    "multi-prog",
    "nice",
    "no-allocate",
    "no-kill",
    "overcommit",
    "overlap",
    "oversubscribe",
    "preserve-env",
    "propagate",
    "pty",
    "quiet",
    "quit-on-interrupt",
    "reboot",
    "resv-ports",
    "send-libs",
    "share",
    "spread-job",
    "stepmgr",
    "test-only",
    "unbuffered",
    "usage",
    "use-min-nodes",
    "verbose",
    "version",
    "whole",
    "x11",
];
/// Long options that begin like `--input` or have to be told from it.
const INPUT: &str = "input";

/// What `--input` (or SLURM_STDINMODE) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Every task gets what srun reads.
    All,
    /// Only this task does.
    Task(u32),
    /// None does: nothing is asked of srun's standard input, which may be somebody else's.
    None,
}

impl Input {
    fn from(word: &OsStr) -> Input {
        match word.to_str() {
            Some("all") => Input::All,
            Some(text) => text.parse().map_or(Input::None, Input::Task),
            // A file that Slurm opens on the nodes.
            None => Input::None,
        }
    }
}

/// srun's command line, as far as it is understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Understood {
    /// How many words are srun's own.
    pub(crate) own: usize,
    pub(crate) input: Input,
}

/// Whether this long option takes the word behind it. An unambiguous beginning stands for the whole, as getopt_long(3) has it.
fn takes_next(name: &str) -> bool {
    !ALONE.iter().any(|a| *a == name || (name.len() >= 4 && a.starts_with(name)))
}

/// Reads srun's arguments; `mode`: SLURM_STDINMODE.
pub(crate) fn understand(args: &[OsString], mode: Option<&OsStr>) -> Understood {
    let mut input = mode.map_or(Input::All, Input::from);
    let mut n = 0;
    while let Some(word) = args.get(n) {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            n += 1;
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            break;
        }
        n += 1;
        if let Some(long) = bytes.strip_prefix(b"--") {
            let cut = long.iter().position(|b| *b == b'=');
            let name = String::from_utf8_lossy(&long[..cut.unwrap_or(long.len())]).into_owned();
            let value = match cut {
                Some(c) => Some(OsStr::from_bytes(&long[c + 1..])),
                None if takes_next(&name) => {
                    n += 1;
                    args.get(n - 1).map(OsString::as_os_str)
                }
                None => None,
            };
            if name.len() >= 3 && INPUT.starts_with(&name) {
                input = value.map_or(input, Input::from);
            }
        } else if let Some(at) = bytes[1..].iter().position(|b| SHORT.contains(b)) {
            let rest = &bytes[at + 2..];
            let value = if rest.is_empty() {
                n += 1;
                args.get(n - 1).map(OsString::as_os_str)
            } else {
                Some(OsStr::from_bytes(rest))
            };
            if bytes[at + 1] == b'i' {
                input = value.map_or(input, Input::from);
            }
        }
    }
    Understood { own: n.min(args.len()), input }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> (usize, Input) {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let u = understand(&words, None);
        (u.own, u.input)
    }

    #[test]
    fn the_program_begins_where_srun_says() {
        assert_eq!(of("-n4 ./lmp -i in.melt"), (1, Input::All));
        assert_eq!(of("-n 4 -N2 --mpi=pmix ./lmp"), (4, Input::All));
        assert_eq!(of("--nodes 2 --no-kill --exclusive ./lmp --input=x"), (4, Input::All));
        assert_eq!(of("-lun 4 ./a"), (2, Input::All));
        assert_eq!(of("--ckpt-interval 600 -- -odd"), (3, Input::All));
        assert_eq!(of("-n"), (1, Input::All));
        assert_eq!(of(""), (0, Input::All));
    }

    #[test]
    fn standard_input() {
        assert_eq!(of("-i none ./a").1, Input::None);
        assert_eq!(of("-i0 ./a").1, Input::Task(0));
        assert_eq!(of("-li3 ./a").1, Input::Task(3));
        assert_eq!(of("--input=in.%t ./a").1, Input::None);
        assert_eq!(of("--inp all ./a").1, Input::All);
        let none = understand(&["./a".into()], Some(OsStr::new("none")));
        assert_eq!(none.input, Input::None);
        let both = understand(&["--input=all".into(), "./a".into()], Some(OsStr::new("none")));
        assert_eq!(both.input, Input::All);
    }
}
