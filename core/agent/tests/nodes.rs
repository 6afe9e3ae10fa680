//! Several agents of one run, as on several nodes: each "node" is a directory of its own, and they meet over TCP. The ranks
//! are played, come again when their line breaks, and start an agent if there is none. Runs *next door*.
//!
//! What a reader would get wrong: who is root is nobody's choice; the tests find out from the claimed file.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use crate::fake::{self, Habit, send, take};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, Signal, kill_process};
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::process::Command as Process;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};
    use stillpoint_abi::ids::Rank;
    use stillpoint_coord::client::{Client, Local};
    use stillpoint_coord::message::{self, *};
    use stillpoint_net::dial;
    use stillpoint_net::handshake::Purpose;
    use stillpoint_net::roots::{Root, Roots};
    use stillpoint_storage::run::RunDir;

    /// A run with two nodes, A and B, and two ranks on each.
    struct Job {
        run: RunDir,
        over: Arc<AtomicBool>,
        ranks: Vec<JoinHandle<Vec<String>>>,
    }

    /// With a base directory for images beside the local one, they are kept on the node first.
    fn start_agent(run: &RunDir, local: &RunDir) {
        let mut agent = Process::new(env!("CARGO_BIN_EXE_stillpoint-agent"));
        agent.arg("--run").arg(run.path()).arg("--local").arg(local.path()).args(["--linger", "1s"]);
        let burst = local.path().join("burst");
        if burst.is_dir() {
            agent.arg("--burst").arg(burst).args(["--burst-rate", "1M"]);
        }
        assert!(agent.status().unwrap().success());
    }

    /// Until the agent refuses, or the test is over. What it was told.
    fn rank(run: RunDir, local: RunDir, n: u32, habit: Habit, over: Arc<AtomicBool>) -> Vec<String> {
        let mut seen = Vec::new();
        let mut c = Client::new(Rank(n), 0);
        while !over.load(SeqCst) {
            let Ok(mut s) = local.connect() else {
                start_agent(&run, &local);
                continue;
            };
            let hello = Local::Connected { size: 4, pid: 1000 + n, incarnation: 0, restored: false };
            send(&mut s, c.on_local(hello));
            // Half a message is not given up: asked first, read then.
            let is_quiet = |s: &UnixStream| {
                let mut one = [PollFd::new(s, PollFlags::IN)];
                let tenth = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                poll(&mut one, Some(&tenth)).is_ok_and(|n| n == 0)
            };
            loop {
                if is_quiet(&s) {
                    if over.load(SeqCst) {
                        return seen;
                    }
                    continue;
                }
                match message::read(&mut s) {
                    Ok(FromAgent::Rank(m)) => {
                        if let ToRank::Denied { reason } = m {
                            seen.push(reason);
                            return seen;
                        }
                        take(fake::Rank { n, size: 4, habit }, &mut s, &mut c, m, &mut seen);
                    }
                    _ => break,
                }
            }
            send(&mut s, c.on_local(Local::Broken));
            std::thread::sleep(Duration::from_millis(20 * u64::from(n)));
        }
        seen
    }

    impl Job {
        fn start(name: &str) -> Job {
            let job = Job::with(name, 4, false);
            job.settled();
            job
        }

        /// All ranks have come, and who has found an agent on its node has ended: two ranks of it may have started one each.
        fn settled(&self) {
            self.wait("all ranks", |s| s.running && s.size == 4);
            soon("an agent for each node", || self.agents().len() == 2);
        }

        /// With the first `n` of the four ranks, and perhaps with a directory for images on each node.
        fn with(name: &str, n: u32, burst: bool) -> Job {
            let path = std::env::temp_dir().join(format!("stillpoint-nodes-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            let mut job =
                Job { run: RunDir::create(&path).unwrap(), over: Arc::default(), ranks: Vec::new() };
            for n in 0..2 {
                if burst {
                    fs::create_dir(job.node(n).path().join("burst")).unwrap();
                }
            }
            let habit = if burst { Habit::Large } else { Habit::Good };
            for n in 0..n {
                let (run, local) = (job.run.clone(), job.node(n / 2));
                let over = Arc::clone(&job.over);
                job.ranks.push(std::thread::spawn(move || rank(run, local, n, habit, over)));
            }
            job
        }

        fn node(&self, n: u32) -> RunDir {
            RunDir::create(&self.run.path().join(["node-a", "node-b"][n as usize])).unwrap()
        }

        fn roots(&self) -> Roots {
            Roots::of(&self.run)
        }

        fn root(&self) -> (u32, Root) {
            let claimed = self.roots().newest_now().unwrap().unwrap();
            (claimed.number, claimed.root.unwrap())
        }

        /// The agents' processes.
        fn agents(&self) -> Vec<u32> {
            let path = self.run.path().display().to_string();
            let is_ours = |pid: &u32| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words).into_owned();
                words.contains("--foreground") && words.contains(&path)
            };
            let all = fs::read_dir("/proc").unwrap().flatten();
            all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
        }

        fn try_ask(&self, command: Command) -> Option<Reply> {
            let mut s = dial::newest(&self.roots(), Purpose::Command).ok()?;
            message::write(&mut s, &ToAgent::Command(command)).ok()?;
            match message::read(&mut s).ok()? {
                FromAgent::Reply(r) => Some(r),
                FromAgent::Rank(m) => panic!("{m:?}"),
            }
        }

        fn wait(&self, what: &str, mut done: impl FnMut(&JobStatus) -> bool) {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let status = self.try_ask(Command::Status);
                if let Some(Reply::Status(s)) = &status
                    && done(s)
                {
                    return;
                }
                assert!(Instant::now() < end, "waiting for {what}: {status:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn checkpoint(&self) -> Outcome {
            match self.try_ask(Command::Checkpoint { stop: false }) {
                Some(Reply::Checkpoint(outcome)) => outcome,
                other => panic!("{other:?}"),
            }
        }

        /// All ranks have come to root `number`, the next checkpoint is committed, and nobody is to be restarted.
        fn goes_on(&self, number: u32) {
            self.wait("all ranks again", |s| s.running && s.size == 4);
            assert_eq!(self.root().0, number);
            // The root may not have noticed yet that the way to some has ended: they come again.
            let end = Instant::now() + Duration::from_secs(20);
            let id = loop {
                match self.checkpoint() {
                    Ok(id) => break id,
                    Err(why) => assert!(Instant::now() < end, "{why:?}"),
                }
                self.wait("all ranks again", |s| s.running && s.size == 4);
            };
            assert_eq!(self.run.newest().unwrap().0.unwrap().ckpt, id);
            let Some(Reply::Outcome(o)) = self.try_ask(Command::Outcome) else { panic!() };
            assert!(!o.restart && o.lost.is_empty(), "{o:?}");
        }
    }

    impl Drop for Job {
        fn drop(&mut self) {
            self.over.store(true, SeqCst);
            if !std::thread::panicking() {
                self.ranks.drain(..).for_each(|r| drop(r.join()));
                self.try_ask(Command::Shutdown);
                let _ = fs::remove_dir_all(self.run.path());
            }
        }
    }

    fn kill(pid: u32, signal: Signal) {
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    #[test]
    fn ranks_of_two_nodes_are_in_one_checkpoint_and_all_agents_end_together() {
        let mut job = Job::start("two");
        for id in 1..=3 {
            assert_eq!(job.checkpoint(), Ok(id));
        }
        // On each node, its own socket leads to the root as well.
        for n in 0..2 {
            let mut s = job.node(n).connect().unwrap();
            message::write(&mut s, &ToAgent::Command(Command::Status)).unwrap();
            let FromAgent::Reply(Reply::Status(s)) = message::read(&mut s).unwrap() else { panic!() };
            assert_eq!((s.size, s.committed), (4, 3));
        }
        assert_eq!(job.try_ask(Command::Shutdown), Some(Reply::Done));
        for r in job.ranks.drain(..) {
            let seen = r.join().unwrap();
            assert!(seen.last().is_some_and(|s| s.contains("told to end")), "{seen:?}");
        }
        let end = Instant::now() + Duration::from_secs(10);
        while !job.agents().is_empty() {
            assert!(Instant::now() < end, "an agent outlives the root's end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(job.roots().newest_now().unwrap().unwrap().ended);
    }

    #[test]
    fn a_lost_relay_is_replaced() {
        let job = Job::start("relay");
        let (number, root) = job.root();
        let relay = job.agents().into_iter().find(|pid| *pid != root.pid).unwrap();
        kill(relay, Signal::KILL);
        job.wait("the relay's ranks are missed", |s| {
            !s.running || s.given_up > 0 || !job.agents().contains(&relay)
        });
        job.goes_on(number);
    }

    #[test]
    fn a_lost_root_is_followed_by_another() {
        let job = Job::start("root");
        job.checkpoint().unwrap();
        for number in 1..3 {
            assert_eq!(job.root().0, number);
            kill(job.root().1.pid, Signal::KILL);
            job.goes_on(number + 1);
        }
    }

    #[test]
    fn when_both_are_lost_one_root_comes_of_it() {
        let job = Job::start("both");
        let (number, _) = job.root();
        job.agents().into_iter().for_each(|pid| kill(pid, Signal::KILL));
        job.goes_on(number + 1);
        job.settled();
    }

    fn soon(what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "waiting: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Names of the images that are on the nodes.
    fn kept(job: &Job) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders: Vec<_> = (0..2).map(|n| job.node(n).path().join("burst")).collect();
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()) {
                match path.extension() {
                    Some(e) if e == "img" => found.push(path.display().to_string()),
                    _ => folders.push(path),
                }
            }
        }
        found
    }

    #[test]
    fn each_node_copies_its_own_and_one_that_is_lost_meanwhile_is_not_waited_for() {
        let job = Job::with("burst", 4, true);
        job.settled();
        assert_eq!(job.checkpoint(), Ok(1));
        soon("the nodes forget what is committed", || kept(&job).is_empty());
        let (number, root) = job.root();
        for victim_is_root in [false, true] {
            let mut s = dial::connect(&job.root().1, Purpose::Command).unwrap();
            message::write(&mut s, &ToAgent::Command(Command::Checkpoint { stop: false })).unwrap();
            job.wait("the copy", |s| s.stage == "copy");
            assert!(["node-a", "node-b"].iter().all(|n| kept(&job).iter().any(|p| p.contains(n))));
            let victim = job.agents().into_iter().find(|pid| (*pid == root.pid) == victim_is_root).unwrap();
            kill(victim, Signal::KILL);
            let answer = message::read::<FromAgent>(&mut s);
            if victim_is_root {
                assert!(answer.is_err(), "{answer:?}");
            } else {
                let Ok(FromAgent::Reply(Reply::Checkpoint(Err(why)))) = answer else { panic!("{answer:?}") };
                assert!(why[0].contains("is gone"), "{why:?}");
            }
            job.goes_on(number + u32::from(victim_is_root));
            // Also what is forgotten behind the answer is such for a moment.
            soon("what was given up is removed", || {
                job.run.scan().unwrap().iter().all(|(_, partial)| !partial)
            });
        }
    }

    #[test]
    fn strangers_are_not_let_in_and_do_no_harm() {
        let job = Job::start("strangers");
        let (number, root) = job.root();
        let other = Root { token: "0".repeat(64), ..root.clone() };
        assert!(dial::connect(&other, Purpose::Command).is_err());
        let to = || TcpStream::connect(("127.0.0.1", root.port)).unwrap();
        // What a rank says on the node's own socket, and a length that nobody has.
        let hello = ToAgent::Command(Command::Shutdown);
        for bytes in [message::encode(&hello).unwrap(), vec![0xff; 100_000], b"SPROOT01".to_vec()] {
            let mut s = to();
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = s.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{answer:?}");
        }
        // Many that say nothing: the first ones are sent away for the later ones, the last ones after a while. They keep
        // nobody out.
        let silent: Vec<TcpStream> = (0..40).map(|_| to()).collect();
        let begun = Instant::now();
        assert!(dial::connect(&root, Purpose::Command).is_ok());
        for mut s in silent {
            s.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            assert!(!matches!(s.read(&mut [0; 1]), Ok(1)));
        }
        assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
        job.goes_on(number);
    }

    #[test]
    fn a_root_to_which_not_all_ranks_have_come_finds_out_that_it_was_followed() {
        let job = Job::with("shared", 2, false);
        job.wait("two of four ranks", |s| {
            s.size == 4 && s.ranks.iter().filter(|r| r.0 == Presence::Here).count() == 2
        });
        let (number, root) = job.root();
        // The others have come to this one, which does not answer.
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = Root { port: port.local_addr().unwrap().port(), ..root };
        drop(port);
        assert!(job.roots().claim(number + 1, &other).unwrap());
        job.wait("the first root to look", |s| s.size == 4);
        assert_eq!(job.root().0, number + 2);
    }

    #[test]
    fn a_root_that_was_followed_does_not_commit() {
        let job = Job::start("followed");
        job.checkpoint().unwrap();
        let (number, root) = job.root();
        // Somebody claims the next number and then never answers.
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = Root { port: port.local_addr().unwrap().port(), ..root.clone() };
        drop(port);
        assert!(job.roots().claim(number + 1, &other).unwrap());
        let mut s = dial::connect(&root, Purpose::Command).unwrap();
        message::write(&mut s, &ToAgent::Command(Command::Checkpoint { stop: false })).unwrap();
        let FromAgent::Reply(Reply::Checkpoint(Err(why))) = message::read(&mut s).unwrap() else { panic!() };
        assert!(why[0].contains("agent 2 is the root"), "{why:?}");
        assert_eq!(job.run.newest().unwrap().0.unwrap().ckpt, 1);
        job.goes_on(number + 2);
    }
}
