//! The device: queues, and a thread that executes what is posted.
//!
//! What a reader would get wrong: a queue pair has one request under way at a time, which is sent again until it is answered; so who
//! answers keeps the last answer, and executes nothing twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rdma_sys::{
    ibv_qp_state as state, ibv_qp_type as kind, ibv_wc, ibv_wc_opcode as done, ibv_wc_status as status,
    ibv_wr_opcode as op,
};

use crate::groups;
use crate::windows::{Bind, REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE, Window};
use crate::wire::{Kind, Packet, Place};
use crate::xrc;

/// An element of a request: address, length, key.
pub(crate) type Element = (u64, u32, u32);

#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) id: u64,
    pub(crate) elements: Vec<Element>,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) opcode: u32,
    pub(crate) signaled: bool,
    pub(crate) solicited: bool,
    pub(crate) imm: u32,
    pub(crate) key: u32,
    pub(crate) words: [u64; 3],
    pub(crate) elements: Vec<Element>,
    /// Inline: copied when it was posted.
    pub(crate) data: Option<Vec<u8>>,
    /// Of a datagram.
    pub(crate) to: Option<Place>,
    /// Of a memory window.
    pub(crate) bind: Option<Bind>,
    /// The shared queue that it is for (XRC).
    pub(crate) srq: u32,
}

/// A shared receive queue.
#[derive(Debug, Default)]
pub(crate) struct Srq {
    pub(crate) receives: VecDeque<Receive>,
    /// The number of receives below which an event comes (0: none).
    pub(crate) limit: usize,
    pub(crate) xrc: Option<xrc::Of>,
}

#[derive(Debug, Default)]
pub(crate) struct Cq {
    pub(crate) entries: VecDeque<Wc>,
    pub(crate) room: usize,
    /// 1: an event is wanted; 2: for solicited ones.
    pub(crate) armed: u32,
    pub(crate) channel: usize,
}

/// A completion.
pub(crate) struct Wc(pub(crate) ibv_wc);

impl std::fmt::Debug for Wc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wr {:#x}", self.0.wr_id)
    }
}

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) events: VecDeque<usize>,
    /// A byte for each event.
    pub(crate) write: i32,
}

#[derive(Debug)]
pub(crate) struct Qp {
    /// Address of its object.
    pub(crate) at: usize,
    pub(crate) kind: u32,
    pub(crate) pd: usize,
    pub(crate) state: u32,
    /// Addresses of queues; 0: none.
    pub(crate) send_cq: usize,
    pub(crate) recv_cq: usize,
    pub(crate) srq: usize,
    /// Of extended connections; 0: none.
    pub(crate) domain: u32,
    pub(crate) sends: VecDeque<Request>,
    pub(crate) receives: VecDeque<Receive>,
    pub(crate) own: Place,
    pub(crate) peer: Place,
    /// What it sends is of this partition, and what it takes.
    pub(crate) partition: u16,
    pub(crate) pkey_index: u16,
    /// Of the request under way, and of the one that is expected.
    pub(crate) psn: u32,
    pub(crate) expected: u32,
    pub(crate) rnr_retry: u32,
    /// What the other end is told when no receive is there.
    pub(crate) rnr_timer: u32,
    sent: Option<Instant>,
    tries: u32,
    rnr_tries: u32,
    not_before: Option<Instant>,
    /// It was executed: with this, from then on.
    answer: Option<(Instant, Vec<u8>)>,
    last: Option<Packet>,
}

impl Qp {
    pub(crate) fn new(
        at: usize,
        kind: u32,
        pd: usize,
        [send_cq, recv_cq, srq]: [usize; 3],
        own: Place,
    ) -> Qp {
        Qp {
            at,
            kind,
            pd,
            state: state::IBV_QPS_RESET,
            send_cq,
            recv_cq,
            srq,
            domain: 0,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            own,
            peer: Place::default(),
            partition: 0,
            pkey_index: 0,
            psn: 0,
            expected: 0,
            rnr_retry: 0,
            rnr_timer: 0,
            sent: None,
            tries: 0,
            rnr_tries: 0,
            not_before: None,
            answer: None,
            last: None,
        }
    }

    /// To its first state.
    pub(crate) fn reset(&mut self) {
        let queues = [self.send_cq, self.recv_cq, self.srq];
        *self = Qp { domain: self.domain, ..Qp::new(self.at, self.kind, self.pd, queues, self.own) };
    }

    fn is_reliable(&self) -> bool {
        matches!(self.kind, kind::IBV_QPT_RC | kind::IBV_QPT_XRC_SEND | kind::IBV_QPT_XRC_RECV)
    }
}

#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) at: u64,
    pub(crate) length: u64,
    pub(crate) access: u32,
    pub(crate) pd: usize,
}

/// All that there is.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) device: usize,
    pub(crate) qps: BTreeMap<u32, Qp>,
    pub(crate) cqs: BTreeMap<usize, Cq>,
    pub(crate) srqs: BTreeMap<usize, Srq>,
    pub(crate) domains: BTreeMap<u32, xrc::Domain>,
    pub(crate) channels: BTreeMap<usize, Channel>,
    pub(crate) regions: BTreeMap<u32, Region>,
    /// By the upper bits of their keys.
    pub(crate) windows: BTreeMap<u32, Window>,
    /// Multicast groups: queue pairs.
    pub(crate) groups: BTreeMap<[u8; 16], BTreeSet<u32>>,
    /// Asynchronous events that are unread: an object's address, and the kind. A byte for each goes into this.
    pub(crate) asynchronous: VecDeque<(usize, u32)>,
    pub(crate) asynchronous_fd: i32,
    random: u64,
}

/// Of this process.
#[derive(Debug)]
pub(crate) struct Hca {
    pub(crate) dir: PathBuf,
    pub(crate) gids: [[u8; 16]; 2],
    pub(crate) lid: u16,
    delay: u64,
    name: PathBuf,
    socket: UnixDatagram,
    world: Mutex<World>,
}

impl Hca {
    /// Takes a number of this host's for this process. False: another one has it, and lives.
    pub(crate) fn claim(&self, what: &str, number: u32) -> bool {
        let path = self.dir.join(format!("{what}.{}.{number:x}", self.gids[1][15]));
        let own = std::process::id().to_string();
        // One at a time looks whether who has it lives.
        let lock =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.join("lock"));
        if let Ok(lock) = &lock {
            // SAFETY: a descriptor by number, until it is closed below.
            unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
        }
        if let Ok(owner) = std::fs::read_to_string(&path)
            && owner != own
            && !std::path::Path::new("/proc").join(owner).exists()
        {
            let _ = std::fs::remove_file(&path);
        }
        let new = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        new.and_then(|mut f| std::io::Write::write_all(&mut f, own.as_bytes())).is_ok()
    }

    /// Gives it back.
    pub(crate) fn free(&self, what: &str, number: u32) {
        let _ = std::fs::remove_file(self.dir.join(format!("{what}.{}.{number:x}", self.gids[1][15])));
    }
}

impl Hca {
    /// A partition key by its index: the second one of odd hosts is the third one of the others.
    pub(crate) fn partition(&self, index: usize) -> u16 {
        let own = 2 - usize::from(self.gids[1][15] % 2);
        [0xffff, 0, 0].get(index).map_or(0, |key| if index == own { 0x8001 } else { *key })
    }

    /// An address by its index.
    pub(crate) fn gid(&self, index: u8) -> [u8; 16] {
        self.gids[usize::from(index) % self.gids.len()]
    }
}

/// Devices of one process.
pub(crate) const MOST: usize = 2;
static HCAS: [OnceLock<Hca>; MOST] = [const { OnceLock::new() }; MOST];
/// Their addresses differ by so much in the last byte.
const NEXT: u8 = 128;

const AGAIN: Duration = Duration::from_millis(100);
const TRIES: u32 = 100;
/// Where completions are late: one in so many is this late, and the acknowledgement of one in so many is lost.
const RARE: u64 = 300;
const LONG: Duration = Duration::from_millis(250);
pub(crate) const LONGEST: usize = 64 << 10;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many devices there are.
pub(crate) fn devices() -> usize {
    setting("MODEL_DEVICES").map_or(1, |n| n as usize).clamp(1, MOST)
}

/// A device, begun at the first call.
pub(crate) fn hca(device: usize) -> &'static Hca {
    HCAS[device].get_or_init(|| {
        let dir = PathBuf::from(std::env::var_os("MODEL_DIR").unwrap_or_else(|| "/tmp/verbs-model".into()));
        let _ = std::fs::create_dir_all(&dir);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let random = now.subsec_nanos().into();
        let name = dir.join(format!("hca.{}.{device}.{random:x}", std::process::id()));
        let socket = UnixDatagram::bind(&name).unwrap_or_else(|e| panic!("{}: {e}", name.display()));
        socket.set_nonblocking(true).unwrap_or_default();
        let host = setting("MODEL_HOST").unwrap_or(1) as u8 + device as u8 * NEXT;
        let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, host];
        let v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, host];
        let lid = if std::env::var_os("MODEL_IB").is_some() { u16::from(host) } else { 0 };
        let delay = setting("MODEL_DELAY").unwrap_or(0);
        let world = Mutex::new(World { device, random, ..World::default() });
        std::thread::spawn(move || run(device));
        Hca { dir, gids: [local, v4], lid, delay, name, socket, world }
    })
}

/// The name of its socket.
pub(crate) fn name(device: usize) -> PathBuf {
    hca(device).name.clone()
}

/// Inline data.
///
/// # Safety
/// Memory of the process.
pub(crate) unsafe fn copy(elements: &[Element]) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { gather(elements) }
}

pub(crate) fn world(device: usize) -> MutexGuard<'static, World> {
    hca(device).world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run(device: usize) {
    while HCAS[device].get().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let hca = hca(device);
    let mut room = vec![0; LONGEST + 4096];
    loop {
        let mut poll = libc::pollfd { fd: hca.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut w = world(device);
        while let Ok(n) = hca.socket.recv(&mut room) {
            if let Some(packet) = Packet::of(&room[..n]) {
                w.hear(packet);
            }
        }
        let busy = w.progress();
        drop(w);
        if busy {
            std::thread::sleep(Duration::from_micros(50));
        } else {
            // SAFETY: one pollfd.
            unsafe { libc::poll(&raw mut poll, 1, 1) };
        }
    }
}

/// False: there was no room, or nobody is there.
fn send(hca: &Hca, to: &Place, packet: &Packet) -> bool {
    hca.socket.send_to(&packet.pack(), to.path(&hca.dir)).is_ok()
}

/// # Safety
/// For both: memory of the process, as the request says.
unsafe fn gather(elements: &[Element]) -> Vec<u8> {
    let mut all = Vec::new();
    for (at, n, _) in elements {
        let from = std::ptr::with_exposed_provenance::<u8>(*at as usize);
        // SAFETY: the caller's promise.
        all.extend_from_slice(unsafe { std::slice::from_raw_parts(from, *n as usize) });
    }
    all
}

unsafe fn scatter(mut data: &[u8], elements: &[Element]) -> bool {
    for (at, n, _) in elements {
        let k = data.len().min(*n as usize);
        let (now, rest) = data.split_at(k);
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(
                now.as_ptr(),
                std::ptr::with_exposed_provenance_mut(*at as usize),
                k,
            );
        }
        data = rest;
    }
    data.is_empty()
}

impl World {
    pub(crate) fn random(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }

    /// Stops the process if a local element is of no region.
    fn check(&self, elements: &[Element]) {
        for (at, n, key) in elements.iter().filter(|e| e.1 != 0) {
            let fits = |r: &Region| r.at <= *at && *at + u64::from(*n) <= r.at + r.length;
            if !self.regions.get(key).is_some_and(fits) {
                eprintln!("verbs model: {n} bytes at {at:#x} are of no region with key {key:#x}");
                std::process::abort();
            }
        }
    }

    fn complete(&mut self, cq: usize, wc: ibv_wc, solicited: bool) {
        let Some(q) = self.cqs.get_mut(&cq) else { return };
        if q.entries.len() >= q.room {
            eprintln!("verbs model: a completion queue of {} entries overruns", q.room);
            std::process::abort();
        }
        let wanted = solicited || wc.status != status::IBV_WC_SUCCESS;
        q.entries.push_back(Wc(wc));
        if q.armed == 1 || q.armed == 2 && wanted {
            q.armed = 0;
            if let Some(c) = self.channels.get_mut(&q.channel) {
                c.events.push_back(cq);
                // SAFETY: one byte into a pipe of ours.
                unsafe { libc::write(c.write, [1u8].as_ptr().cast(), 1) };
            }
        }
    }

    /// An asynchronous event.
    fn tell(&mut self, element: usize, kind: u32) {
        self.asynchronous.push_back((element, kind));
        // SAFETY: one byte into a pipe of ours.
        unsafe { libc::write(self.asynchronous_fd, [1u8].as_ptr().cast(), 1) };
    }

    /// Fails what is posted.
    pub(crate) fn flush(&mut self, number: u32) {
        let Some(q) = self.qps.get_mut(&number) else { return };
        // IBV_EVENT_QP_LAST_WQE_REACHED: no more receives of the shared queue are its own.
        let last = (q.srq != 0 && q.state != state::IBV_QPS_ERR).then_some((q.at, 16));
        q.state = state::IBV_QPS_ERR;
        let (sends, receives) = (std::mem::take(&mut q.sends), std::mem::take(&mut q.receives));
        let (send_cq, recv_cq) = (q.send_cq, q.recv_cq);
        let all = sends.iter().map(|s| (send_cq, s.id)).chain(receives.iter().map(|r| (recv_cq, r.id)));
        for (cq, id) in all.collect::<Vec<_>>() {
            self.complete(cq, wc(id, number, status::IBV_WC_WR_FLUSH_ERR), false);
        }
        if let Some((at, kind)) = last {
            self.tell(at, kind);
        }
    }

    fn fail(&mut self, number: u32, why: u32) {
        let Some(q) = self.qps.get_mut(&number) else { return };
        if let Some(head) = q.sends.pop_front() {
            let cq = q.send_cq;
            self.complete(cq, wc(head.id, number, why), false);
        }
        self.flush(number);
    }

    /// True: something is under way.
    fn progress(&mut self) -> bool {
        let now = Instant::now();
        let mut busy = false;
        let busy_ones = self.qps.iter().filter(|(_, q)| !q.sends.is_empty()).map(|(n, _)| *n);
        for number in busy_ones.collect::<Vec<_>>() {
            while self.step(number, now) {}
            busy |= self.qps.get(&number).is_some_and(|q| !q.sends.is_empty());
        }
        busy
    }

    /// True: once more.
    fn step(&mut self, number: u32, now: Instant) -> bool {
        let hca = hca(self.device);
        let Some(q) = self.qps.get_mut(&number) else { return false };
        if q.sends.is_empty() {
            return false;
        }
        if q.state == state::IBV_QPS_ERR {
            self.flush(number);
            return false;
        }
        if q.state != state::IBV_QPS_RTS {
            return false;
        }
        if let Some((when, _)) = &q.answer {
            if *when > now {
                return false;
            }
            let (_, data) = q.answer.take().unwrap_or((now, Vec::new()));
            self.succeed(number, &data);
            return true;
        }
        if q.not_before.is_some_and(|t| t > now) || q.sent.is_some_and(|t| t + AGAIN > now) {
            return false;
        }
        if let Some(done) = self.local(number) {
            let late = self.late();
            match (done, self.qps.get_mut(&number)) {
                (Ok(()), Some(q)) => q.answer = Some((now + late, Vec::new())),
                (Err(why), _) => self.fail(number, why),
                (Ok(()), None) => {}
            }
            return true;
        }
        let Some(q) = self.qps.get_mut(&number) else { return false };
        let Some(head) = q.sends.front() else { return false };
        q.tries += 1;
        if q.tries > TRIES && q.is_reliable() {
            self.fail(number, status::IBV_WC_RETRY_EXC_ERR);
            return false;
        }
        let to = head.to.unwrap_or(q.peer);
        let reads = matches!(
            head.opcode,
            op::IBV_WR_RDMA_READ | op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD
        );
        let mut words = head.words;
        if head.opcode == op::IBV_WR_RDMA_READ {
            words[1] = head.elements.iter().map(|e| u64::from(e.1)).sum();
        }
        let data = match &head.data {
            _ if reads => Vec::new(),
            Some(data) => data.clone(),
            // SAFETY: the memory of the request is the queue's until it completes.
            None => unsafe { gather(&head.elements) },
        };
        let packet = Packet {
            kind: Kind::Request,
            to: to.number,
            // Who is written to by an address is told ours.
            from: Place { gid: to.gid.map(|_| hca.gid(to.index)), ..q.own },
            to_gid: to.gid,
            psn: q.psn,
            opcode: head.opcode,
            imm: head.imm,
            key: head.key,
            srq: head.srq,
            partition: q.partition,
            solicited: head.solicited,
            words,
            data,
        };
        let elements = if head.data.is_some() { Vec::new() } else { head.elements.clone() };
        let reliable = q.is_reliable();
        (q.sent, q.not_before) = (Some(now), None);
        self.check(&elements);
        let went = if let Some(gid) = groups::of(&to) {
            groups::send(hca, &gid, packet, |device, packet| {
                let _ = hca.socket.send_to(&packet.pack(), device);
            });
            true
        } else {
            send(hca, &to, &packet)
        };
        let Some(q) = self.qps.get_mut(&number) else { return false };
        if reliable {
            if !went {
                q.sent = None;
                q.not_before = Some(now + Duration::from_millis(if q.tries > 10 { 50 } else { 1 }));
            }
            return false;
        }
        self.succeed(number, &[]);
        true
    }

    /// The oldest request is done.
    fn succeed(&mut self, number: u32, data: &[u8]) {
        let Some(q) = self.qps.get_mut(&number) else { return };
        let Some(head) = q.sends.pop_front() else { return };
        (q.sent, q.tries, q.rnr_tries, q.not_before) = (None, 0, 0, None);
        let local = matches!(head.opcode, op::IBV_WR_BIND_MW | op::IBV_WR_LOCAL_INV);
        q.psn = (q.psn + u32::from(!local)) & 0x00ff_ffff;
        let cq = q.send_cq;
        // SAFETY: as above.
        unsafe { scatter(data, if data.is_empty() { &[] } else { &head.elements }) };
        if head.signaled {
            let mut wc = wc(head.id, number, status::IBV_WC_SUCCESS);
            wc.opcode = match head.opcode {
                op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM => done::IBV_WC_RDMA_WRITE,
                op::IBV_WR_RDMA_READ => done::IBV_WC_RDMA_READ,
                op::IBV_WR_ATOMIC_CMP_AND_SWP => done::IBV_WC_COMP_SWAP,
                op::IBV_WR_ATOMIC_FETCH_AND_ADD => done::IBV_WC_FETCH_ADD,
                op::IBV_WR_BIND_MW => done::IBV_WC_BIND_MW,
                op::IBV_WR_LOCAL_INV => done::IBV_WC_LOCAL_INV,
                _ => done::IBV_WC_SEND,
            };
            wc.byte_len = u32::try_from(data.len()).unwrap_or(0);
            self.complete(cq, wc, false);
        }
    }

    /// How much later than it has happened something is seen.
    fn late(&mut self) -> Duration {
        let delay = hca(self.device).delay;
        let long = if delay != 0 && self.random().is_multiple_of(RARE) { LONG } else { Duration::ZERO };
        long + Duration::from_micros(if delay == 0 { 0 } else { self.random() % delay })
    }

    fn hear(&mut self, p: Packet) {
        if p.to == groups::ALL {
            for number in self.attached(&p) {
                self.execute(number, p.clone());
            }
            return;
        }
        // Another host's.
        if p.to_gid.is_some_and(|gid| !hca(self.device).gids.contains(&gid)) {
            return;
        }
        let number = p.to;
        let late = self.late();
        let Some(q) = self.qps.get_mut(&number) else { return };
        if p.partition != q.partition || p.partition == 0 {
            return;
        }
        if p.kind == Kind::Request {
            self.execute(number, p);
            return;
        }
        if p.psn != q.psn || q.sends.is_empty() || q.answer.is_some() || p.from.number != q.peer.number {
            return;
        }
        let now = Instant::now();
        match p.kind {
            Kind::Ack => q.answer = Some((now + late, p.data)),
            Kind::NotReady if q.rnr_retry == 7 || q.rnr_tries < q.rnr_retry => {
                // It was answered.
                (q.tries, q.rnr_tries) = (0, q.rnr_tries + u32::from(q.rnr_retry != 7));
                (q.sent, q.not_before) = (None, Some(now + not_ready(p.imm)));
            }
            Kind::NotReady => self.fail(number, status::IBV_WC_RNR_RETRY_EXC_ERR),
            Kind::Access => self.fail(number, status::IBV_WC_REM_ACCESS_ERR),
            _ => self.fail(number, status::IBV_WC_REM_INV_REQ_ERR),
        }
    }

    /// A request of the other end's.
    fn execute(&mut self, number: u32, p: Packet) {
        let device = hca(self.device);
        let Some(q) = self.qps.get_mut(&number) else { return };
        // What it has refused, before it was in error, it goes on to refuse.
        let again = q.last.clone().filter(|l| q.is_reliable() && l.psn == p.psn);
        if let Some(last) = again.filter(|_| q.state == state::IBV_QPS_ERR) {
            send(device, &q.peer, &last);
        }
        if !matches!(q.state, state::IBV_QPS_RTR | state::IBV_QPS_RTS | state::IBV_QPS_SQD) {
            return;
        }
        let (connected, reliable) = (q.kind != kind::IBV_QPT_UD, q.is_reliable());
        if connected && p.from.number != q.peer.number {
            return;
        }
        if reliable && p.psn != q.expected {
            if let Some(last) = q.last.clone().filter(|l| l.psn == p.psn) {
                send(device, &q.peer, &last);
            }
            return;
        }
        let (own, peer) = (q.own, q.peer);
        let answer = |kind: Kind, data: Vec<u8>| Packet {
            kind,
            to: p.from.number,
            from: Place { gid: p.to_gid, ..own },
            to_gid: p.from.gid,
            data,
            words: [0; 3],
            ..p.clone()
        };
        let done = self.take(number, &p);
        let kind = if done.is_ok() { Kind::Ack } else { done.as_ref().err().copied().unwrap_or(Kind::Ack) };
        if !reliable {
            return;
        }
        let mut packet = answer(kind, done.unwrap_or_default());
        if let Some(q) = self.qps.get_mut(&number) {
            if kind == Kind::NotReady {
                packet.imm = q.rnr_timer;
            } else {
                q.expected = (q.expected + 1) & 0x00ff_ffff;
                q.last = Some(packet.clone());
            }
        }
        let lost = kind == Kind::Ack && device.delay != 0 && self.random().is_multiple_of(RARE);
        if !lost {
            send(device, &peer, &packet);
        }
        // Who has refused a request is in error as well (faults of class C, as rxe_resp.c names them).
        if matches!(kind, Kind::Access | Kind::Length) {
            self.flush(number);
        }
    }

    /// Executes it: what was read, or why not.
    fn take(&mut self, number: u32, p: &Packet) -> Result<Vec<u8>, Kind> {
        let [at, one, two] = p.words;
        let n = match p.opcode {
            op::IBV_WR_RDMA_READ => one as usize,
            op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => 8,
            _ => p.data.len(),
        };
        let sends = matches!(p.opcode, op::IBV_WR_SEND | op::IBV_WR_SEND_WITH_IMM | op::IBV_WR_SEND_WITH_INV);
        let need = match p.opcode {
            op::IBV_WR_RDMA_READ => REMOTE_READ,
            op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => REMOTE_ATOMIC,
            _ => REMOTE_WRITE,
        };
        let (kind_here, domain, own, pd) =
            self.qps.get(&number).map_or((0, 0, 0, 0), |q| (q.kind, q.domain, q.srq, q.pd));
        // Of extended connections keys and receives are those of the queue that the request names.
        let named = match kind_here {
            kind::IBV_QPT_XRC_RECV => Some(self.named(domain, p.srq).ok_or(Kind::Length)?),
            _ => None,
        };
        let shared = named.map_or(own, |(at, _)| at);
        let pair = (number, named.map_or(pd, |(_, of)| of.pd));
        let at =
            if sends || n == 0 { at } else { self.remote(pair, p.key, at, n, need).ok_or(Kind::Access)? };
        let there = std::ptr::with_exposed_provenance_mut::<u8>(at as usize);
        let invalidates = p.opcode == op::IBV_WR_SEND_WITH_INV;
        if invalidates && !self.can_invalidate(number, p.imm) {
            return Err(Kind::Access);
        }
        let receive = if sends || p.opcode == op::IBV_WR_RDMA_WRITE_WITH_IMM {
            let one = if shared == 0 {
                self.qps.get_mut(&number).and_then(|q| q.receives.pop_front())
            } else {
                self.receive_of(shared)
            };
            Some(one.ok_or(Kind::NotReady)?)
        } else {
            None
        };
        if !sends {
            // SAFETY: memory of a region of this process.
            unsafe {
                match p.opcode {
                    op::IBV_WR_RDMA_READ => return Ok(std::slice::from_raw_parts(there, n).to_vec()),
                    op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => {
                        let word = there.cast::<u64>();
                        let before = word.read_unaligned();
                        let add = p.opcode == op::IBV_WR_ATOMIC_FETCH_AND_ADD;
                        if add {
                            word.write_unaligned(before.wrapping_add(one));
                        } else if before == one {
                            word.write_unaligned(two);
                        }
                        return Ok(before.to_le_bytes().to_vec());
                    }
                    // From the first byte to the last, in whole words: programs look at the last one.
                    _ => {
                        for (k, word) in p.data.chunks(8).enumerate() {
                            match <[u8; 8]>::try_from(word) {
                                Ok(word) => there.add(8 * k).cast::<[u8; 8]>().write_volatile(word),
                                Err(_) => word
                                    .iter()
                                    .enumerate()
                                    .for_each(|(b, byte)| there.add(8 * k + b).write_volatile(*byte)),
                            }
                        }
                    }
                }
            }
        }
        if let Some(receive) = receive {
            self.received(number, p, &receive, named.map(|(_, of)| of.cq))?;
        }
        if invalidates {
            self.invalidate(number, p.imm);
        }
        Ok(Vec::new())
    }

    /// The next receive of a shared queue.
    fn receive_of(&mut self, shared: usize) -> Option<Receive> {
        let q = self.srqs.get_mut(&shared)?;
        let one = q.receives.pop_front();
        if q.receives.len() < q.limit {
            q.limit = 0;
            // IBV_EVENT_SRQ_LIMIT_REACHED.
            self.tell(shared, 15);
        }
        one
    }

    fn received(
        &mut self,
        number: u32,
        p: &Packet,
        receive: &Receive,
        to: Option<usize>,
    ) -> Result<(), Kind> {
        self.check(&receive.elements);
        let (cq, datagram) =
            self.qps.get(&number).map_or((0, false), |q| (q.recv_cq, q.kind == kind::IBV_QPT_UD));
        let cq = to.unwrap_or(cq);
        let mut wc = wc(receive.id, number, status::IBV_WC_SUCCESS);
        let write = p.opcode == op::IBV_WR_RDMA_WRITE_WITH_IMM;
        wc.opcode = if write { done::IBV_WC_RECV_RDMA_WITH_IMM } else { done::IBV_WC_RECV };
        wc.byte_len = u32::try_from(p.data.len()).unwrap_or(0);
        wc.imm_data_invalidated_rkey_union.imm_data = p.imm;
        // IBV_WC_WITH_IMM, IBV_WC_WITH_INV, IBV_WC_GRH.
        wc.wc_flags = match p.opcode {
            op::IBV_WR_SEND_WITH_IMM | op::IBV_WR_RDMA_WRITE_WITH_IMM => 2,
            op::IBV_WR_SEND_WITH_INV => 8,
            _ => 0,
        };
        let mut data = p.data.clone();
        if datagram {
            let both = p.from.gid.zip(p.to_gid);
            wc.wc_flags |= u32::from(both.is_some());
            data.splice(0..0, both.map_or([0x5a; 40], |(from, to)| crate::wire::header(&from, &to)));
            (wc.src_qp, wc.slid) = (p.from.number, p.from.lid);
            wc.byte_len += 40;
        }
        // SAFETY: memory of a receive is the queue's until it completes.
        let fits = write || unsafe { scatter(&data, &receive.elements) };
        if !fits {
            wc.status = status::IBV_WC_LOC_LEN_ERR;
        }
        self.complete(cq, wc, p.solicited);
        if fits { Ok(()) } else { Err(Kind::Length) }
    }
}

/// How long a sender waits for a receive before it tries again: the timer that its other end names (InfiniBand specification, table 45),
/// and a millisecond at least.
fn not_ready(timer: u32) -> Duration {
    let micros = match timer & 31 {
        0 => 655_360,
        n @ 1..=4 => 10 * n,
        // Every second one is twice as long: 0.06, 0.08, 0.12 ms ...
        n if n % 2 == 1 => 60 << ((n - 5) / 2),
        n => 80 << ((n - 6) / 2),
    };
    Duration::from_micros(u64::from(micros)).max(Duration::from_millis(1))
}

fn wc(id: u64, number: u32, status: u32) -> ibv_wc {
    // SAFETY: numbers.
    let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
    (wc.wr_id, wc.qp_num, wc.status) = (id, number, status);
    wc
}
