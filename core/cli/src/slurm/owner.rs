//! Whose a job is, and how root does something as its owner.
//!
//! What a reader would get wrong: root reads nothing of a user's, nor writes there; it becomes the user for all of it, with the
//! user's groups, as a directory of images may be a project's. Runs *next door*.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What of root's environment goes to the owner: where Slurm is, and how it speaks. The rest may be secret, and may make a program
/// of the owner's do what root wants of its own.
const KEPT: [&str; 6] = ["PATH", "SLURM_CONF", "LANG", "LC_ALL", "LC_MESSAGES", "TERM"];

/// A user, from the data base of users.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl Owner {
    pub(super) fn of(uid: u32) -> Option<Owner> {
        let out = Command::new("getent").args(["passwd", &uid.to_string()]).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        let f: Vec<&str> = text.trim().split(':').collect();
        let (name, home) = ((*f.first()?).to_owned(), f.get(5)?.into());
        Some(Owner { name, uid, gid: f.get(3)?.parse().ok()?, home })
    }

    /// Becomes `stillpoint COMMAND ARGS` of this user; comes back only to say why not.
    pub(super) fn does(&self, command: &str, args: &[OsString]) -> String {
        let e = match std::env::current_exe() {
            Ok(me) => {
                let who = [format!("--reuid={}", self.uid), format!("--regid={}", self.gid)];
                let mut c = Command::new("setpriv");
                c.args(who).args(["--init-groups", "--"]).arg(me).arg(command).args(args);
                c.env_clear().env("HOME", &self.home);
                c.envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|k| name == k)));
                c.exec()
            }
            Err(e) => e,
        };
        format!("become user {} with setpriv (of util-linux): {e}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_base_of_users() {
        assert_eq!(Owner::of(0).unwrap().name, "root");
        assert!(Owner::of(u32::MAX - 7).is_none());
    }
}
