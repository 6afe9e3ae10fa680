//! `checkpoint`: asks the agent for one, shows the stages while it is taken (on a terminal), and returns when it is
//! durable. When it was refused, the reasons are printed, a line each. Runs *next door*.

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::Error;
use crate::home::Home;
use crate::talk;

pub(crate) fn checkpoint(home: &Home, name: &str, stop: bool, json: bool) -> Result<u8, Error> {
    let job = home.job(name)?;
    let show = stderr().is_terminal() && !json;
    let (done, wait) = channel::<()>();
    let shown = job.clone();
    let progress = show.then(|| {
        std::thread::spawn(move || {
            let mut last = String::new();
            while wait.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                let Ok(s) = talk::status(&shown) else { break };
                if s.stage != last {
                    eprintln!("stillpoint: checkpoint {}: {}", s.ckpt, s.stage.escape_debug());
                    last = s.stage;
                }
            }
        })
    });
    let result = talk::checkpoint(&job, stop);
    drop(done);
    if let Some(p) = progress {
        let _ = p.join();
    }
    match result? {
        Ok(id) => {
            if json {
                println!("{}", serde_json::json!({ "job": job.name, "checkpoint": id, "stopped": stop }));
            } else {
                println!("{id}");
            }
            Ok(0)
        }
        Err(reasons) => {
            if json {
                println!("{}", serde_json::json!({ "job": job.name, "refused": reasons }));
            } else {
                eprintln!("stillpoint: no checkpoint was taken; the job runs on");
                for r in reasons {
                    eprintln!("  {}", r.escape_debug());
                }
            }
            Ok(1)
        }
    }
}
