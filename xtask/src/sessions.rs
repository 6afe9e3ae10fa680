//! Sessions as groups of the scheduler (`kernel.sched_autogroup_enabled`), switched off while tests run. `bench` leaves it
//! as the machine has it.
//!
//! Seen on Linux 6.18: where such a group keeps a CPU busy, its share is computed anew at each tick, and each time it is put so far
//! back that it goes on running. Another group on the same CPU, and the kernel's own threads (`workqueue lockup`), waited for more
//! than two minutes. An agent has a session of its own, so that no signal of the job's terminal reaches it, and stood while ranks ran.
//!
//! What a reader would get wrong: the setting is the machine's. It is put back by a process of its own, also when this one is
//! killed. Runs *next door*.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const SETTING: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// While it lives, all sessions share the CPUs as one.
#[derive(Debug)]
pub(crate) struct Ungrouped(Option<Child>);

/// Switches it off, where it is on and we may.
pub(crate) fn ungrouped() -> Ungrouped {
    switched_off(SETTING)
}

fn switched_off(setting: &str) -> Ungrouped {
    if !fs::read_to_string(setting).is_ok_and(|now| now.trim() != "0") {
        return Ungrouped(None);
    }
    let back = format!("read -r word; echo 1 > {setting}");
    let off = fs::write(setting, "0");
    let mut guard = Command::new("sh");
    let guard = guard.args(["-c", &back]).stdin(Stdio::piped()).process_group(0);
    match off.and_then(|()| guard.spawn()) {
        Ok(guard) => Ungrouped(Some(guard)),
        Err(e) => {
            let _ = fs::write(setting, "1");
            println!(
                "xtask: {setting} stays as it is ({e}); on Linux 6.18 tests were seen to stand for minutes with it; root can \
                 switch it off"
            );
            Ungrouped(None)
        }
    }
}

impl Drop for Ungrouped {
    fn drop(&mut self) {
        if let Some(mut guard) = self.0.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_put_back() {
        let path = std::env::temp_dir().join(format!("stillpoint-xtask-sessions-{}", std::process::id()));
        let setting = path.to_str().unwrap();
        let now = || fs::read_to_string(setting).unwrap().trim().to_owned();
        fs::write(setting, "1\n").unwrap();
        let off = switched_off(setting);
        assert_eq!(now(), "0");
        assert!(switched_off(setting).0.is_none(), "somebody else has, who puts it back");
        drop(off);
        assert_eq!(now(), "1");
        fs::remove_file(setting).unwrap();
        assert!(switched_off(setting).0.is_none(), "a kernel without it");
    }
}
