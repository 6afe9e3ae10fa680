//! The real agent with ranks that are threads of this test: real sockets, real files, no real memory. Runs *next door*.
//!
//! What a reader would get wrong: the ranks use the same `Client` as real ones do; only what the client asks for is
//! played.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use crate::fake::{self, Habit, send, take};
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::process::Command as Process;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};
    use stillpoint_abi::ids::Rank;
    use stillpoint_coord::client::{Client, Local};
    use stillpoint_coord::message::{self, *};
    use stillpoint_storage::run::RunDir;

    struct Job {
        run: RunDir,
        path: PathBuf,
    }

    impl Job {
        fn start(name: &str, flags: &[&str]) -> Job {
            // A long path: longer than a socket's may be.
            let path = std::env::temp_dir().join(format!(
                "stillpoint-agent-{name}-{}-{}",
                std::process::id(),
                "x".repeat(100)
            ));
            let _ = fs::remove_dir_all(&path);
            let run = RunDir::create(&path).unwrap();
            let job = Job { run, path };
            job.agent(flags);
            job
        }

        fn agent(&self, flags: &[&str]) {
            let done = Process::new(env!("CARGO_BIN_EXE_stillpoint-agent"))
                .arg("--run")
                .arg(&self.path)
                .args(flags)
                .status()
                .unwrap();
            assert!(done.success());
        }

        fn ask(&self, command: Command) -> Reply {
            ask(&self.run, command)
        }

        /// Commits a checkpoint; after that the store's thread is busy, until the result is called.
        fn busy(&self) -> impl FnOnce() + use<> {
            let history = self.path.join("history.jsonl");
            // Who opens a pipe to write waits for one who reads.
            mknodat(CWD, &history, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            let run = self.run.clone();
            let asked = std::thread::spawn(move || ask(&run, Command::Checkpoint { stop: false }));
            let end = Instant::now() + Duration::from_secs(20);
            while self.run.newest().unwrap().0.is_none() {
                assert!(Instant::now() < end, "no checkpoint is committed");
                std::thread::sleep(Duration::from_millis(5));
            }
            move || {
                assert!(fs::read_to_string(history).unwrap().contains("ckpt"));
                // The agent may have been told to end meanwhile.
                drop(asked);
            }
        }

        fn wait(&self, what: &str, mut done: impl FnMut(&JobStatus) -> bool) {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                let Reply::Status(s) = self.ask(Command::Status) else { panic!() };
                if done(&s) {
                    return;
                }
                assert!(Instant::now() < end, "waiting for {what}: {s:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    impl Drop for Job {
        fn drop(&mut self) {
            // A test that has failed leaves the store waiting for a reader.
            let history = self.path.join("history.jsonl");
            let _reader = rustix::fs::open(history, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
            // It may be ending already.
            if let Ok(mut s) = self.run.connect() {
                let _ = message::write(&mut s, &ToAgent::Command(Command::Shutdown));
                let _ = message::read::<FromAgent>(&mut s);
            }
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    fn ask(run: &RunDir, command: Command) -> Reply {
        let mut s = run.connect().unwrap();
        message::write(&mut s, &ToAgent::Command(command)).unwrap();
        match message::read(&mut s).unwrap() {
            FromAgent::Reply(r) => r,
            FromAgent::Rank(m) => panic!("{m:?}"),
        }
    }

    /// Ends when the agent closes, and says whether it was told to go or leave last.
    fn rank(
        job: &Job,
        n: u32,
        size: u32,
        incarnation: u32,
        habit: Habit,
    ) -> (UnixStream, JoinHandle<Vec<String>>) {
        let mut s = job.run.connect().unwrap();
        let ours = s.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let me = fake::Rank { n, size, habit };
            let mut c = Client::new(Rank(n), 0);
            let mut seen = Vec::new();
            let hello = Local::Connected { size, pid: 1000 + n, incarnation, restored: incarnation > 0 };
            send(&mut s, c.on_local(hello));
            if incarnation > 0 {
                send(&mut s, c.on_local(Local::Rebuilt));
            }
            while let Ok(FromAgent::Rank(m)) = message::read(&mut s) {
                if !take(me, &mut s, &mut c, m, &mut seen) {
                    return seen;
                }
            }
            seen
        });
        (ours, thread)
    }

    fn all(job: &Job, n: u32, incarnation: u32, habit: Habit) -> Vec<(UnixStream, JoinHandle<Vec<String>>)> {
        let ranks =
            (0..n).map(|r| rank(job, r, n, incarnation, if r == 1 { habit } else { Habit::Good })).collect();
        job.wait("all ranks", |s| s.running && s.incarnation == incarnation);
        ranks
    }

    #[test]
    fn a_checkpoint_is_committed_and_verified() {
        for mode in ["direct", "forked"] {
            let job = Job::start(mode, &["--mode", mode]);
            let _ranks = all(&job, 4, 0, Habit::Good);
            for id in 1..=4 {
                assert_eq!(job.ask(Command::Checkpoint { stop: false }), Reply::Checkpoint(Ok(id)));
            }
            let (newest, passed) = job.run.newest().unwrap();
            let newest = newest.unwrap();
            assert_eq!((newest.ckpt, newest.images.len(), passed.len()), (4, 4, 0));
            assert_eq!(newest.mode, mode);
            job.agent(&[]); // finds the one that listens
        }
    }

    #[test]
    fn refusals_and_failures_leave_the_last_one_valid() {
        for (habit, text) in
            [(Habit::Refuses, "rank 1: a socket to the outside"), (Habit::NoSpace, "rank 1: no space left")]
        {
            let job = Job::start(&text[8..10], &[]);
            let _ranks = all(&job, 3, 0, habit);
            let reply = job.ask(Command::Checkpoint { stop: false });
            assert_eq!(reply, Reply::Checkpoint(Err(vec![text.into()])));
            job.wait("the next", |s| s.stage == "idle" && s.running);
            assert!(job.run.newest().unwrap().0.is_none());
        }
    }

    #[test]
    fn a_loss_is_recorded_and_the_next_start_goes_on() {
        let job = Job::start("loss", &[]);
        let ranks = all(&job, 3, 0, Habit::DiesAtSnapshot);
        let Reply::Checkpoint(Err(why)) = job.ask(Command::Checkpoint { stop: false }) else { panic!() };
        assert!(why[0].contains("rank 1 was lost"), "{why:?}");
        let Reply::Outcome(o) = job.ask(Command::Outcome) else { panic!() };
        assert!(o.restart && o.lost == vec![1] && !o.ended);
        let incarnation = job.run.claim_incarnation().unwrap();
        assert_eq!(incarnation, 1);
        // One of the old start comes back: it is denied, though none of the new has come yet.
        let (_, old) = rank(&job, 1, 3, 0, Habit::Good);
        assert!(old.join().unwrap()[0].contains("incarnation 0 is over"));
        let again = all(&job, 3, 1, Habit::Good);
        for (_, old) in ranks {
            old.join().unwrap(); // their connections are closed
        }
        let Reply::Checkpoint(Ok(id)) = job.ask(Command::Checkpoint { stop: true }) else { panic!() };
        assert_eq!(job.run.newest().unwrap().0.unwrap().incarnation, 1);
        let Reply::Outcome(o) = job.ask(Command::Outcome) else { panic!() };
        assert!(o.stopped_at == Some(id) && o.ended && !o.restart);
        job.ask(Command::Shutdown);
        for (_, r) in again {
            let seen = r.join().unwrap();
            assert!(seen.contains(&"Go".to_owned()) && seen.contains(&"Leave".to_owned()), "{seen:?}");
        }
        let kept: JobOutcome = job.run.read_json("outcome.json").unwrap();
        assert_eq!(kept, o);
    }

    /// Where images are kept on their way, and the names of what is there.
    fn burst(name: &str) -> (PathBuf, impl Fn() -> Vec<String>) {
        let dir = std::env::temp_dir().join(format!("stillpoint-burst-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let top = dir.clone();
        let names = move || {
            let below = |d: PathBuf| fs::read_dir(d).into_iter().flatten().flatten().map(|e| e.path());
            let images = below(top.clone()).flat_map(below).flat_map(below).flat_map(below);
            let mut names: Vec<String> = images.map(|p| p.display().to_string()).collect();
            names.sort();
            names
        };
        (dir, names)
    }

    /// Soon nothing is `there` any more; then the directory goes too.
    fn comes_empty(dir: &std::path::Path, there: &dyn Fn() -> Vec<String>) {
        let end = Instant::now() + Duration::from_secs(10);
        while !there().is_empty() {
            assert!(Instant::now() < end, "{:?}", there());
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_copied_outlives_its_rank_and_nothing_stays_on_the_node() {
        let (dir, there) = burst("copy");
        let text = dir.display().to_string();
        let job = Job::start("burst", &["--burst", &text, "--burst-rate", "1M", "--linger", "1s"]);
        let mut ranks = all(&job, 2, 0, Habit::Large);
        let mut asker = job.run.connect().unwrap();
        let wanted = ToAgent::Command(Command::Checkpoint { stop: false });
        message::write(&mut asker, &wanted).unwrap();
        job.wait("the copy", |s| {
            s.stage == "copy" && s.copying.is_some_and(|(_, all)| all == (3 << 20) + 100_000)
        });
        assert!(there().iter().any(|n| n.ends_with("/ckpt-000001.partial/rank-00001.img")), "{:?}", there());
        assert!(job.run.newest().unwrap().0.is_none(), "not yet: it is on one node");
        // All ranks are gone, and more time than the agent stays without any.
        for (stream, rank) in ranks.drain(..) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            rank.join().unwrap();
        }
        let FromAgent::Reply(Reply::Checkpoint(answer)) = message::read(&mut asker).unwrap() else {
            panic!()
        };
        assert_eq!(answer, Ok(1));
        let newest = job.run.newest().unwrap().0.unwrap();
        assert_eq!((newest.ckpt, newest.images.len()), (1, 2));
        let Reply::Outcome(o) = job.ask(Command::Outcome) else { panic!() };
        assert!(o.restart && o.ended && o.lost.len() == 2);
        comes_empty(&dir, &there);
    }

    #[test]
    fn a_copy_that_fails_gives_the_checkpoint_up_by_name() {
        let (dir, there) = burst("lies");
        let text = dir.display().to_string();
        let job = Job::start("lies", &["--burst", &text]);
        let _ranks = all(&job, 2, 0, Habit::Lies);
        let Reply::Checkpoint(Err(why)) = job.ask(Command::Checkpoint { stop: false }) else { panic!() };
        assert!(why[0].starts_with("rank 1: ") && why[0].contains("its first page"), "{why:?}");
        job.wait("the next", |s| s.stage == "idle" && s.running && s.copying.is_none());
        assert!(job.run.newest().unwrap().0.is_none());
        comes_empty(&dir, &there);
    }

    #[test]
    fn without_a_directory_of_the_node_images_go_straight_to_the_run() {
        let job = Job::start("no-burst", &["--burst", "/no/such/directory"]);
        let _ranks = all(&job, 2, 0, Habit::Good);
        assert_eq!(job.ask(Command::Checkpoint { stop: false }), Reply::Checkpoint(Ok(1)));
        let log = fs::read_to_string(job.path.join("agent.log")).unwrap();
        assert!(log.contains("/no/such/directory") && log.contains("straight to the run directory"), "{log}");
    }

    #[test]
    fn whoever_ends_the_agent_is_answered_when_nothing_is_written_any_more() {
        let job = Job::start("end", &[]);
        let _ranks = all(&job, 2, 0, Habit::Good);
        let go_on = job.busy();
        let goes_on = Arc::new(AtomicBool::new(false));
        let (run, seen) = (job.run.clone(), Arc::clone(&goes_on));
        let told = std::thread::spawn(move || (ask(&run, Command::Shutdown), seen.load(SeqCst)));
        // Time for an answer that comes too early.
        std::thread::sleep(Duration::from_millis(500));
        goes_on.store(true, SeqCst);
        go_on();
        assert_eq!(told.join().unwrap(), (Reply::Done, true));
    }

    #[test]
    fn an_exit_is_written_down_while_the_store_is_busy() {
        let job = Job::start("exit", &[]);
        let mut ranks = all(&job, 2, 0, Habit::Good);
        let go_on = job.busy();
        message::write(&mut ranks[0].0, &ToAgent::Rank(FromRank::Goodbye(Leaving::Exit(3)))).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !job.run.read_json::<JobOutcome>("outcome.json").is_ok_and(|o| o.exited == [(0, 3)]) {
            assert!(Instant::now() < end, "the exit is not written down");
            std::thread::sleep(Duration::from_millis(5));
        }
        go_on();
    }

    #[test]
    fn a_hello_is_taken_by_the_last_look_when_nobody_can_look_and_the_commit_is_refused() {
        let job = Job::start("unseen", &[]);
        // It has looked for itself by then.
        job.ask(Command::Status);
        fs::remove_dir(job.path.join("restarts")).unwrap();
        fs::write(job.path.join("restarts"), "").unwrap();
        let _ranks = all(&job, 2, 0, Habit::Good);
        job.wait("both ranks", |s| s.running && s.size == 2);
        let Reply::Checkpoint(Err(why)) = job.ask(Command::Checkpoint { stop: false }) else { panic!() };
        assert!(why[0].contains("restarts"), "{why:?}");
        assert!(job.run.newest().unwrap().0.is_none());
    }

    #[test]
    fn every_interval_one() {
        let job = Job::start("interval", &["--interval", "20ms", "--mode", "forked"]);
        let _ranks = all(&job, 8, 0, Habit::Good);
        job.wait("five checkpoints", |s| s.committed >= 5);
        assert!(job.run.scan().unwrap().iter().filter(|(_, partial)| !partial).count() <= 3);
    }
}
