//! `stillpoint-rank`: what the launcher starts in the application's place. *Lower half*.
//!
//! ```text
//! stillpoint-rank [--argv0 NAME] [--mask HEX] -- PROGRAM ARGS…      start
//! stillpoint-rank --restart IMAGE                                   go on where the image was taken
//! ```
//! With `--mask`, the program that became this one has blocked all signals first; HEX is the mask that the application has (bit N-1 is
//! signal N). With STILLPOINT_RUN in the environment it talks to the node agent of that run directory. Without it,
//! STILLPOINT_ALONE=DIR,MILLISECONDS writes an image of this one process into DIR every so often ([`control`]).
//! It maps the upper half and jumps into it; its main thread becomes the application's. What stays below are the
//! functions that the upper half calls down to, and (once MPI is initialised) the site's libmpi.

mod agent;
mod back;
mod below;
mod callbacks;
mod clocks;
mod control;
mod ended;
mod exec;
mod fds;
mod launch;
mod line;
mod link;
mod mail;
mod meeting;
mod plugins;
mod restart;
mod segment;
mod sockets;
mod still;
mod tcb;
mod wait;
mod warn;

use std::process::ExitCode;

fn main() -> ExitCode {
    match launch::from_command_line() {
        Ok(never) => match never {},
        Err(e) => {
            let mut text = format!("stillpoint: {e}");
            let mut next = std::error::Error::source(&e);
            while let Some(s) = next {
                text.push_str(&format!(": {s}"));
                next = s.source();
            }
            text.push('\n');
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            ExitCode::from(127)
        }
    }
}
