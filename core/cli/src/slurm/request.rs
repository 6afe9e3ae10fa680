//! The arguments of `scontrol checkpoint`, as Slurm took them up to 19.05. Pure.
//!
//! What a reader would get wrong: words are abbreviated and of any case as scontrol has it: `scontrol checkp cr 5` creates one.
//! One letter is enough for able and disable, two for the others. Runs *next door*.

use std::path::PathBuf;
use std::time::Duration;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Able,
    Create,
    Disable,
    Enable,
    Error,
    Requeue,
    Restart,
    Vacate,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) what: Operation,
    /// N, or N_TASK.
    pub(crate) job: String,
    pub(crate) step: Option<String>,
    pub(crate) max_wait: Option<Duration>,
    pub(crate) stick: bool,
    /// Where images are copied to, or read from.
    pub(crate) image_dir: Option<PathBuf>,
}

/// Where a request stands in scontrol's command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// For the real scontrol.
    NotOurs,
    /// The words behind `checkpoint`, and options of scontrol's own that matter.
    Checkpoint { words: &'a [String], cluster: Option<String>, quiet: bool },
}

/// Whether a word is this one, abbreviated to no less than `least` letters.
fn is(word: &str, whole: &str, least: usize) -> bool {
    word.is_ascii()
        && word.len() >= least
        && word.len() <= whole.len()
        && whole[..word.len()].eq_ignore_ascii_case(word)
}

/// Looks for `checkpoint` behind scontrol's options.
pub(crate) fn line(args: &[String]) -> Line<'_> {
    let (mut cluster, mut quiet, mut n) = (None, false, 0);
    while let Some(word) = args.get(n) {
        n += 1;
        if let Some(long) = word.strip_prefix("--").filter(|l| !l.is_empty()) {
            let (name, value) = long.split_once('=').map_or((long, None), |(k, v)| (k, Some(v.to_owned())));
            if is(name, "clusters", 2) || is(name, "uid", 2) {
                let value = value.or_else(|| {
                    n += 1;
                    args.get(n - 1).cloned()
                });
                if is(name, "clusters", 2) {
                    cluster = value;
                }
            } else if is(name, "quiet", 1) {
                quiet = true;
            } else if is(name, "help", 2) || is(name, "usage", 2) || is(name, "version", 4) {
                return Line::NotOurs;
            }
        } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty() && *l != "-") {
            for (at, c) in letters.char_indices() {
                match c {
                    'Q' => quiet = true,
                    'h' | 'V' => return Line::NotOurs,
                    'M' | 'u' => {
                        let rest = &letters[at + 1..];
                        let value = if rest.is_empty() {
                            n += 1;
                            args.get(n - 1).cloned()
                        } else {
                            Some(rest.to_owned())
                        };
                        if c == 'M' {
                            cluster = value;
                        }
                        break;
                    }
                    _ => {}
                }
            }
        } else if is(word, "checkpoint", 2) {
            return Line::Checkpoint { words: &args[n..], cluster, quiet };
        } else {
            return Line::NotOurs;
        }
    }
    Line::NotOurs
}

fn operation(word: &str) -> Option<Operation> {
    use Operation::{Able, Create, Disable, Enable, Error, Requeue, Restart, Vacate};
    let all = [
        ("able", 1, Able),
        ("disable", 1, Disable),
        ("enable", 2, Enable),
        ("create", 2, Create),
        ("requeue", 2, Requeue),
        ("vacate", 2, Vacate),
        ("restart", 2, Restart),
        ("error", 2, Error),
    ];
    // The order is scontrol's: "re" is requeue.
    all.into_iter().find(|(name, least, _)| is(word, name, *least)).map(|(_, _, op)| op)
}

fn number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit())
}

/// N, N.S, N_T or N_T.S.
fn job_and_step(text: &str) -> Result<(String, Option<String>), String> {
    let (job, step) = text.split_once('.').map_or((text, None), |(j, s)| (j, Some(s)));
    if job.contains('+') {
        return Err(format!("{text}: a heterogeneous job cannot be checkpointed"));
    }
    let sound = match job.split_once('_') {
        Some((a, t)) => number(a) && number(t),
        None => number(job),
    };
    if !sound || step.is_some_and(|s| !number(s)) {
        return Err(format!("invalid job step name {text}: give JOB or JOB.STEP"));
    }
    Ok((job.to_owned(), step.map(str::to_owned)))
}

/// Reads the words behind `checkpoint`.
pub(crate) fn parse(words: &[String]) -> Result<Request, String> {
    let (op, id) = match words {
        [] | [_] => return Err("too few arguments for keyword:checkpoint".into()),
        [op, id, ..] => (op, id),
    };
    let what = operation(op).ok_or_else(|| {
        format!("invalid checkpoint operation {op}: able, create, disable, enable, error, requeue, restart or vacate")
    })?;
    let (job, step) = job_and_step(id)?;
    let mut r = Request { what, job, step, max_wait: None, stick: false, image_dir: None };
    let takes = matches!(what, Operation::Create | Operation::Vacate | Operation::Requeue);
    for word in &words[2..] {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
        match value {
            Some(v) if takes && name.eq_ignore_ascii_case("MaxWait") => {
                let seconds = v.parse().map_err(|_| format!("{word}: give MaxWait in seconds"))?;
                r.max_wait = Some(Duration::from_secs(seconds));
            }
            Some(v) if (takes || what == Operation::Restart) && name.eq_ignore_ascii_case("ImageDir") => {
                let dir = std::path::absolute(v).map_err(|_| format!("{word}: give ImageDir a directory"))?;
                r.image_dir = Some(dir);
            }
            None if what == Operation::Restart && name.eq_ignore_ascii_case("StickToNodes") => r.stick = true,
            _ => return Err(format!("invalid input: {word}; request aborted")),
        }
    }
    if r.what == Operation::Requeue && r.step.is_some() {
        return Err(format!("{id}: only a whole job can be requeued"));
    }
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }
    fn ours(text: &str) -> Option<(Vec<String>, Option<String>, bool)> {
        match line(&words(text)) {
            Line::Checkpoint { words, cluster, quiet } => Some((words.to_vec(), cluster, quiet)),
            Line::NotOurs => None,
        }
    }

    #[test]
    fn checkpoint_is_found_behind_options_and_nothing_else_is_ours() {
        assert_eq!(ours("checkpoint able 5").unwrap().0, ["able", "5"]);
        assert_eq!(ours("CHECKP cr 5").unwrap().0, ["cr", "5"]);
        assert_eq!(ours("ch").unwrap().0.len(), 0);
        assert_eq!(ours("-oQ -M other checkpoint able 5").unwrap().1, Some("other".into()));
        assert_eq!(
            ours("--cluster=x --quiet -o checkpoint able 5").unwrap(),
            (words("able 5"), Some("x".into()), true)
        );
        assert_eq!(ours("-Mx -d checkpoint able 5").unwrap().1, Some("x".into()));
        for not in [
            "",
            "show job 5",
            "c",
            "checkpoints able 5",
            "-h",
            "--version",
            "show checkpoint 5",
            "-u checkpoint",
            "setdebugflags -checkpoint",
            "requeue 5",
        ] {
            assert_eq!(ours(not), None, "{not}");
        }
    }

    #[test]
    fn operations_and_their_abbreviations() {
        let op = |w: &str| operation(w);
        assert_eq!(op("a"), Some(Operation::Able));
        assert_eq!(op("D"), Some(Operation::Disable));
        assert_eq!((op("en"), op("er")), (Some(Operation::Enable), Some(Operation::Error)));
        assert_eq!((op("e"), op("x"), op("")), (None, None, None));
        assert_eq!((op("re"), op("Res")), (Some(Operation::Requeue), Some(Operation::Restart)));
        assert_eq!((op("cr"), op("VACATE")), (Some(Operation::Create), Some(Operation::Vacate)));
    }

    #[test]
    fn jobs_steps_and_options() {
        let of = |t: &str| parse(&words(t));
        let r = of("create 5.2 MaxWait=30").unwrap();
        assert_eq!((r.job.as_str(), r.step.as_deref()), ("5", Some("2")));
        assert_eq!(r.max_wait, Some(Duration::from_secs(30)));
        assert!(of("restart 5 StickToNodes").unwrap().stick);
        let dir = |t: &str| of(t).unwrap().image_dir.unwrap();
        assert_eq!(dir("restart 5 ImageDir=/x"), PathBuf::from("/x"));
        assert_eq!(dir("create 5 imagedir=x"), std::env::current_dir().unwrap().join("x"));
        assert_eq!(of("able 100_3").unwrap().job, "100_3");
        for bad in [
            "create",
            "create x",
            "create 5.",
            "create 5.batch",
            "create 5+1",
            "create 5_[1-3]",
            "create ../5",
            "able 5 MaxWait=3",
            "error 5 ImageDir=/x",
            "create 5 ImageDir=",
            "create 5 StickToNodes",
            "create 5 MaxWait=x",
            "requeue 5.0",
            "grow 5",
            "create 5 y",
            "restart 5 MaxWait=1",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(of("create 5+1").unwrap_err().contains("heterogeneous"));
    }
}
