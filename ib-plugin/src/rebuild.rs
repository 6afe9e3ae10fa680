//! All objects again, on whatever devices there are now, and each queue pair connected with its other end. After a restart, on the
//! main thread, before any other runs.
//!
//! ```text
//!   round 0   contexts, domains, regions, windows, channels, queues, queue pairs up to INIT; publish: who I am now, under each of my former
//!             names
//!         1   who the other end is now: up to RTR, receives posted, windows bound; publish: my regions' and windows' keys, under the number
//!             of the rank; and what is in [`present`]
//!         2   up to RTS; the other end's keys; completion queues armed
//! ```
//!
//! What a reader would get wrong: a former name is what the *peer* was told by the application's own means: any of this port's GIDs, or its
//! LID, with the number of the queue pair. And all receives are posted before anybody can send.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_ah, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_mr, ibv_pd, ibv_qp, ibv_qp_attr,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_srq, ibv_srq_init_attr,
};
use stillpoint_abi::half::{StillArg, still};

use crate::address::{Address, Moved};
use crate::below::Function;
use crate::cm::again as cm;
use crate::drain::is_connected;
use crate::front::{Heard, Out, found};
use crate::objects::{Channel, Context, Cq, Device, Limits, Mr, Pd, Qp, Srq, Told, real, real_context};
use crate::pass::word;
use crate::queue::mask;
use crate::world::{self, Kind};
use crate::{
    address, card, descriptor, device, domain, event, group, handle, keys, known, log, lone, memory, names,
    patience, post, present, queue, rebind,
};

static ALLOC_PD: Function = Function::new(c"ibv_alloc_pd");
static CREATE_CHANNEL: Function = Function::new(c"ibv_create_comp_channel");
static CREATE_CQ: Function = Function::new(c"ibv_create_cq");
static CREATE_SRQ: Function = Function::new(c"ibv_create_srq");
static MODIFY_SRQ: Function = Function::new(c"ibv_modify_srq");
static CREATE_QP: Function = Function::new(c"ibv_create_qp");
static MODIFY_QP: Function = Function::new(c"ibv_modify_qp");

/// One step.
pub(crate) fn step(arg: &mut StillArg) -> i64 {
    let heard = found(arg);
    let mut out = Out::default();
    // SAFETY: all objects are ours, and no other thread runs.
    let done = unsafe {
        match arg.round {
            0 => make()
                .and_then(|()| announce(&mut out))
                .and_then(|()| cm::announce(&mut out))
                .map(|()| still::SPEAKS),
            1 if !learn(&heard) && crate::cm::channels().is_empty() => Ok(still::DONE),
            1 => connect(&heard, &mut out).and_then(|()| cm::begin(&heard)).map(|()| still::SPEAKS),
            _ => go(&heard).and_then(|()| cm::finish()).map(|()| still::DONE),
        }
    };
    match done {
        Ok(code) => out.say(arg, code),
        Err(why) => Out::why(&why).say(arg, -1),
    }
}

pub(crate) fn each<P>(kind: Kind) -> impl Iterator<Item = *mut P> {
    world::all(kind).into_iter().map(std::ptr::with_exposed_provenance_mut)
}

fn made(at: usize, what: &str) -> Result<usize, String> {
    if at == 0 { Err(format!("{what}: {}", std::io::Error::last_os_error())) } else { Ok(at) }
}

/// # Safety
/// For all of these: no other thread runs, and the objects of the world live.
unsafe fn make() -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        log::forget_numbers();
        card::restore();
        let mut ours: Vec<c_int> = each::<ibv_context>(Kind::Context).map(|c| (*c).async_fd).collect();
        for channel in each::<ibv_comp_channel>(Kind::Channel) {
            ours.push((*channel).fd);
        }
        ours.extend(crate::cm::channels());
        descriptor::let_go(&ours);
        cm::open()?;
        for context in each::<ibv_context>(Kind::Context) {
            let name = crate::below::text((*(*context).device).name.as_ptr()).unwrap_or_default();
            let at = made(card::open_again((*context).device), &format!("open device {name}"))?;
            Context::of(Context::whole(context)).renew(at);
            let card = &Device::of((*context).device).own;
            Context::of(Context::whole(context)).own.now.with(|now| *now = card.now.with(|n| n.clone()));
            let there = &*std::ptr::with_exposed_provenance::<ibv_context>(at);
            (*context).cmd_fd = there.cmd_fd;
            let own = &Context::of(Context::whole(context)).own;
            own.silent.with(lone::Silent::forget);
            if !descriptor::stand_in_again(there.async_fd, (*context).async_fd)
                || !own.unread.begin((*context).async_fd)
            {
                return Err(format!("descriptor {} of device {name}", (*context).async_fd));
            }
            descriptor::put_back((*context).async_fd, &own.flags);
        }
        for pd in each::<ibv_pd>(Kind::Pd) {
            let pd = Pd::of(pd);
            pd.renew(made(ALLOC_PD.object(&[real_context(pd.public.context)]), "a protection domain")?);
        }
        domain::make_all()?;
        let (mut local, mut called) = (BTreeMap::new(), Vec::new());
        for mr in each::<ibv_mr>(Kind::Mr) {
            let mr = Mr::of(mr);
            let m = &mr.public;
            let at = memory::make_region_again(real(m.pd), m.addr, m.length, &mr.own);
            mr.renew(made(at, &format!("a memory region of {} bytes", m.length))?);
            let there = &*std::ptr::with_exposed_provenance::<rdma_sys::ibv_mr>(at);
            local.insert((device::number(m.context), m.lkey), there.lkey);
            called.extend([m.lkey, m.rkey]);
        }
        keys::renew(local, called.into_iter());
        keys::take_bases(rebind::bases().into_iter().map(|(_, base)| base));
        rebind::make_all()?;
        for channel in each::<ibv_comp_channel>(Kind::Channel) {
            let at =
                made(CREATE_CHANNEL.object(&[real_context((*channel).context)]), "a completion channel")?;
            Channel::of(channel).renew(at);
            let fd = (*std::ptr::with_exposed_provenance::<ibv_comp_channel>(at)).fd;
            let own = &Channel::of(channel).own;
            if !descriptor::stand_in_again(fd, (*channel).fd) || !own.unread.begin((*channel).fd) {
                return Err(format!("descriptor {} of a completion channel", (*channel).fd));
            }
            descriptor::put_back((*channel).fd, &own.flags);
        }
        for cq in each::<ibv_cq>(Kind::Cq) {
            let own = Cq::of(cq);
            // Of events of the former queue the new one knows nothing.
            own.own.given.fetch_add(own.own.open.swap(0, Relaxed), Relaxed);
            own.own.asynchronous.forget();
            let entries = (*cq).cqe as u64 + own.own.more.with(|more| *more as u64);
            let context = real_context((*cq).context);
            let vectors =
                (*std::ptr::with_exposed_provenance::<ibv_context>(context as usize)).num_comp_vectors;
            let vector = word(own.own.vector % vectors.max(1));
            let args = [real_context((*cq).context), entries, word(cq), real((*cq).channel), vector];
            own.renew(made(CREATE_CQ.object(&args), "a completion queue")?);
        }
        for srq in each::<ibv_srq>(Kind::Srq) {
            let own = Srq::of(srq);
            own.own.asynchronous.forget();
            let limits = || own.own.limits.with(|Limits(l)| std::ptr::read(l));
            if let Some(at) = domain::make_again(srq, &limits()) {
                own.renew(at?);
            } else {
                let mut attr = ibv_srq_init_attr { srq_context: srq.cast::<c_void>(), attr: limits() };
                own.renew(made(
                    CREATE_SRQ.object(&[real(own.public.pd), word(&raw mut attr)]),
                    "a shared receive queue",
                )?);
            }
        }
        for qp in each::<ibv_qp>(Kind::Qp) {
            make_pair(qp)?;
            group::attach_again(qp)?;
        }
        // Those that share a queue need no other end for it.
        for srq in each::<ibv_srq>(Kind::Srq) {
            post::receive_again(Srq::of(srq).own.logs, |f, r| post::shared(srq, f, r))
                .map_err(|e| format!("a shared receive: {e}"))?;
            // Not before: it would be reached at once.
            let mut limits = Srq::of(srq).own.limits.with(|Limits(l)| std::ptr::read(l));
            if limits.srq_limit != 0 {
                MODIFY_SRQ.int(&[real(srq), word(&raw mut limits), word(queue::SRQ_LIMIT)]);
            }
        }
    }
    Ok(())
}

unsafe fn make_pair(qp: *mut ibv_qp) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        let own = Qp::of(qp);
        let q = &own.public.qp_base;
        let there = |p: u64| std::ptr::with_exposed_provenance_mut::<c_void>(p as usize);
        let mut attr = ibv_qp_init_attr {
            qp_context: qp.cast::<c_void>(),
            send_cq: there(real(q.send_cq)).cast(),
            recv_cq: there(real(q.recv_cq)).cast(),
            srq: there(real(q.srq)).cast(),
            cap: own.own.cap,
            qp_type: q.qp_type,
            sq_sig_all: c_int::from(own.own.logs.signals_all()),
        };
        let what = format!("queue pair {:#x}", q.qp_num);
        own.own.asynchronous.forget();
        let at = if q.qp_type == ibv_qp_type::IBV_QPT_XRC_RECV {
            let xrcd = std::ptr::with_exposed_provenance_mut(own.own.xrcd);
            domain::make_target(q.context, xrcd, word(qp))
        } else {
            CREATE_QP.object(&[real(q.pd), word(&raw mut attr)])
        };
        let at = made(at, &what)?;
        own.renew(at);
        let there = &*std::ptr::with_exposed_provenance::<ibv_qp>(at);
        own.own.post.renew(there);
        log::number(device::number(q.context), there.qp_num, own.own.place);
        own.own.told.with(|told| {
            if q.state == ibv_qp_state::IBV_QPS_RESET {
                return Ok(());
            }
            let datagram = q.qp_type == ibv_qp_type::IBV_QPT_UD;
            let which = if datagram { mask::QKEY } else { mask::ACCESS };
            tell(qp, told, ibv_qp_state::IBV_QPS_INIT, mask::PKEY | mask::PORT | which)
        })
    }
}

/// Brings a queue pair into a state, with what it was told last.
unsafe fn tell(qp: *mut ibv_qp, told: &Told, state: ibv_qp_state::Type, which: u32) -> Result<(), String> {
    let mut attr = told.copy().attr;
    (attr.qp_state, attr.rnr_retry) = (state, patience::FOR_EVER);
    if which & mask::PKEY != 0 {
        // SAFETY: a queue pair of ours.
        let (names, number) = unsafe { (&Context::of(Context::whole((*qp).context)).own, (*qp).qp_num) };
        let there = names.partition(attr.port_num, attr.pkey_index);
        // SAFETY: as above. One that has failed sends nothing any more.
        let there = there.or_else(|| unsafe { has_failed(qp) }.then_some(0));
        attr.pkey_index = there.ok_or_else(|| {
            format!(
                "queue pair {number:#x}: port {} is in no partition as that of its entry {} was; restart where it is",
                attr.port_num, attr.pkey_index
            )
        })?;
    }
    // SAFETY: a queue pair of ours.
    let e = MODIFY_QP.int(&[unsafe { real(qp) }, word(&raw mut attr), u64::from(which | mask::STATE)]);
    let e = if e == -1 { crate::below::errno() } else { e };
    if e == 0 {
        return Ok(());
    }
    let why = std::io::Error::from_raw_os_error(e);
    // SAFETY: as above.
    Err(format!("queue pair {:#x} to state {state}: {why}", unsafe { (*qp).qp_num }))
}

/// Not brought to RTR yet.
unsafe fn is_young(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    matches!(unsafe { (*qp).state }, ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_INIT)
}

/// In error: a request has failed, or the application has wanted it so.
unsafe fn has_failed(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let broken = Qp::of(qp).own.logs.broken.load(Relaxed);
        // Of unreliable ones a send that fails leaves the rest alone (SQE, in which nobody can put them).
        let reliable = !matches!((*qp).qp_type, ibv_qp_type::IBV_QPT_UD | ibv_qp_type::IBV_QPT_UC);
        (*qp).state == ibv_qp_state::IBV_QPS_ERR || broken && reliable
    }
}

/// It is, or its connection is over.
unsafe fn is_done(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    unsafe { has_failed(qp) || crate::cm::event::is_over(qp) }
}

/// Queue pairs of a port: in which start each was made, its number then and now.
type Numbers = BTreeMap<(usize, usize), Vec<(u32, u32, u32)>>;

unsafe fn announce(out: &mut Out) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut numbers = Numbers::new();
        // Those that are connected are known to their other ends; others may want to know them all the same, if they are few.
        let few = each::<ibv_qp>(Kind::Qp).count() <= 4096;
        for qp in each::<ibv_qp>(Kind::Qp) {
            let own = Qp::of(qp);
            let names = &Context::of(Context::whole((*qp).context)).own;
            let number = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).qp_num;
            own.own.told.with(|told| {
                if few || !is_connected(qp) {
                    for port in names::on(told, names.ports.len()) {
                        let of = ((*(*qp).context).device.expose_provenance(), port);
                        numbers.entry(of).or_default().push((own.own.start, (*qp).qp_num, number));
                    }
                }
                names.now.with(|now| {
                    for ((port, at), name) in names::own(qp, told) {
                        let Some(now) = now.get(port) else { continue };
                        let gid = at.and_then(|at| now.gids.get(names.ports[port].place(at, now)?));
                        let gid = gid.copied().unwrap_or_default().raw;
                        let device = device::number((*qp).context).to_le_bytes();
                        let place =
                            [&number.to_le_bytes()[..], &now.lid.to_le_bytes(), &gid, &device].concat();
                        out.publish(&name, &place);
                    }
                });
                if is_connected(qp) {
                    out.ask(&names::peer(told));
                }
            });
        }
        let (mut moved, mut opened) = (Vec::new(), false);
        for device in device::all() {
            opened |= present::both(device).0.is_some();
            moves(device, &numbers, &mut moved);
        }
        if opened {
            out.publish(names::ADDRESSES, &moved);
        }
        out.ask(names::ADDRESSES);
    }
    Ok(())
}

/// Where the ports of a device are now, and their queue pairs.
unsafe fn moves(device: *mut ibv_device, numbers: &Numbers, out: &mut Vec<u8>) {
    // SAFETY: the caller's promise.
    unsafe {
        let (was, now) = present::both(device);
        let other = Device::of(device).own.besides.with(|all| all.clone());
        let number = Device::of(device).own.number;
        for (port, was) in was.iter().flatten().enumerate() {
            let now = now.get(port).cloned().unwrap_or_default();
            let pair = |(at, name): (Option<usize>, Address)| Some((name, was.stands_for(at, &now)?));
            let all = numbers.get(&(device.expose_provenance(), port)).map_or(&[][..], Vec::as_slice);
            let addresses: Vec<_> = was.addresses().filter_map(pair).collect();
            let pairs = all.iter().map(|(_, was, now)| (*was, *now)).collect();
            Moved { device: number, addresses, numbers: pairs, besides: false }.pack(out);
            // It is not there any more: its names lead nowhere.
            let lost = was.addresses().filter(|it| pair(*it).is_none()).map(|(_, name)| (name, name));
            Moved { device: number, addresses: lost.collect(), numbers: Vec::new(), besides: true }.pack(out);
            for start in other.iter().map(|b| b.start).collect::<BTreeSet<_>>() {
                let names = other.iter().filter(|b| (b.start, b.port) == (start, port));
                let addresses = names.filter_map(|b| pair((b.at, b.name))).collect();
                let made = all.iter().filter(|(s, ..)| *s == start).map(|(_, was, now)| (*was, *now));
                Moved { device: number, addresses, numbers: made.collect(), besides: true }.pack(out);
            }
        }
    }
}

/// Where all addresses are now. False: no rank has opened a device.
fn learn(heard: &Heard) -> bool {
    let of = |(rank, value): &(u32, Vec<u8>)| {
        let rank = *rank;
        Moved::all(value).into_iter().map(move |m| (rank, m))
    };
    let moved: Vec<(u32, Moved)> = heard.all(names::ADDRESSES).iter().flat_map(of).collect();
    known::renew(&moved, stillpoint_sys::half().rank.load(Relaxed));
    !heard.all(names::ADDRESSES).is_empty()
}

/// Has a queue pair led to where its other end is now: its rank, and what it has said in [`announce`].
unsafe fn lead(qp: *mut ibv_qp, to: &mut ibv_qp_attr, other: Option<(u32, &[u8])>) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        let lost = || format!("queue pair {:#x}: its other end is no queue pair of this job", (*qp).qp_num);
        let (rank, value) = other.ok_or_else(lost)?;
        let bytes = |at: usize, n: usize| value.get(at..at + n).ok_or_else(lost);
        let (was, number) = (std::ptr::read(&raw const to.ah_attr), to.dest_qp_num);
        to.dest_qp_num = u32::from_le_bytes(bytes(0, 4)?.try_into().unwrap_or_default());
        to.ah_attr.dlid = u16::from_le_bytes(bytes(4, 2)?.try_into().unwrap_or_default());
        if to.ah_attr.is_global != 0 {
            let names = &Context::of(Context::whole((*qp).context)).own;
            let grh = &mut to.ah_attr.grh;
            grh.dgid.raw = bytes(6, 16)?.try_into().unwrap_or_default();
            grh.sgid_index = names.index(was.port_num, grh.sgid_index);
        }
        let device = u32::from_le_bytes(bytes(22, 4)?.try_into().unwrap_or_default());
        address::meet((&was, number), (&to.ah_attr, to.dest_qp_num), (rank, device));
    }
    Ok(())
}

unsafe fn connect(heard: &Heard, out: &mut Out) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        present::claim(out);
        for ah in each::<ibv_ah>(Kind::Ah) {
            made(usize::from(handle::again(ah)), "an address handle")?;
        }
        for qp in each::<ibv_qp>(Kind::Qp).filter(|qp| !is_young(*qp)) {
            let own = Qp::of(qp);
            own.own.told.with(|told| {
                if is_done(qp) {
                    return Ok(());
                }
                if !is_connected(qp) {
                    return tell(qp, told, ibv_qp_state::IBV_QPS_RTR, 0);
                }
                let mut now = told.copy();
                if lone::is(qp) {
                    lone::lead(qp, &mut now.attr)?;
                } else {
                    lead(qp, &mut now.attr, heard.one(&names::peer(told)))?;
                }
                let mut which = mask::AV | mask::MTU | mask::DEST | mask::RQ_PSN;
                if matches!((*qp).qp_type, ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_XRC_RECV) {
                    which |= mask::MAX_DEST_READS | mask::RNR_TIMER;
                }
                tell(qp, &now, ibv_qp_state::IBV_QPS_RTR, which)
            })?;
        }
        for qp in each::<ibv_qp>(Kind::Qp).filter(|qp| (**qp).state != ibv_qp_state::IBV_QPS_RESET) {
            if (*qp).srq.is_null() {
                post::receive_again(Qp::of(qp).own.logs, |f, r| post::own(qp, f, r))
                    .map_err(|e| format!("queue pair {:#x}: a receive: {e}", (*qp).qp_num))?;
            }
        }
        // Nobody sends yet, but binds are requests.
        for (mw, qp) in rebind::all_bound()? {
            Qp::of(qp).own.told.with(|told| may_send(qp, told))?;
            rebind::again(mw, qp)?;
        }
        let mut all = Vec::new();
        for mr in each::<ibv_mr>(Kind::Mr) {
            let there = &*std::ptr::with_exposed_provenance::<rdma_sys::ibv_mr>(real(mr) as usize);
            let own = &Mr::of(mr).public;
            all.extend([device::number(own.context), own.rkey, there.rkey].map(u32::to_le_bytes).concat());
        }
        let own = stillpoint_sys::half().rank.load(Relaxed);
        out.publish(&names::of_rank(own), &all);
        out.publish(&names::windows_of(own), &rebind::told());
        out.publish(&names::queues_of(own), &domain::told());
        for (rank, _) in heard.all(names::ADDRESSES) {
            out.ask(&names::of_rank(*rank));
            out.ask(&names::windows_of(*rank));
            out.ask(&names::queues_of(*rank));
        }
    }
    Ok(())
}

/// To RTS, if it is not there yet.
unsafe fn may_send(qp: *mut ibv_qp, told: &Told) -> Result<(), String> {
    // SAFETY: the caller's promise.
    let (state, kind) =
        unsafe { ((*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).state, (*qp).qp_type) };
    if state == ibv_qp_state::IBV_QPS_RTS {
        return Ok(());
    }
    let mut which = mask::SQ_PSN;
    match kind {
        ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_XRC_SEND => {
            which |= mask::TIMEOUT | mask::RETRY | mask::RNR_RETRY | mask::MAX_READS;
        }
        ibv_qp_type::IBV_QPT_XRC_RECV => which |= mask::TIMEOUT,
        _ => {}
    }
    // SAFETY: as above.
    unsafe { tell(qp, told, ibv_qp_state::IBV_QPS_RTS, which) }
}

/// What ranks have told under keys that begin so: as many numbers each time.
fn words<const N: usize>(heard: &Heard, beginning: &[u8]) -> Vec<(u32, [u32; N])> {
    let word = |at: &[u8]| u32::from_le_bytes(at.try_into().unwrap_or_default());
    let of = |(rank, value): (u32, &[u8])| -> Vec<(u32, [u32; N])> {
        let one = |bytes: &[u8]| (rank, std::array::from_fn(|k| word(&bytes[4 * k..4 * k + 4])));
        value.chunks_exact(4 * N).map(one).collect()
    };
    heard.beginning(beginning).flat_map(of).collect()
}

unsafe fn go(heard: &Heard) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        present::learn(heard);
        let mut owners: BTreeMap<keys::Owner, keys::Remote> = BTreeMap::new();
        for (rank, [device, was, now]) in words(heard, b"r") {
            owners.entry((rank, device)).or_default().keys.insert(was, now);
        }
        for (rank, [device, was, now]) in words(heard, b"q") {
            owners.entry((rank, device)).or_default().queues.insert(was, now);
        }
        for (rank, [device, was, now, more]) in words(heard, b"w") {
            owners.entry((rank, device)).or_default().windows.insert(was, (now, more as u8));
        }
        keys::learn(owners);
        for qp in each::<ibv_qp>(Kind::Qp) {
            let own = Qp::of(qp);
            own.own.told.with(|told| {
                if is_young(qp) {
                    return Ok(());
                }
                if is_done(qp) {
                    // Of one whose connection is over nothing was said yet.
                    if has_failed(qp) {
                        own.own.unwanted.store(event::LAST_RECEIVE, Relaxed);
                    }
                    return tell(qp, told, ibv_qp_state::IBV_QPS_ERR, 0);
                }
                if is_connected(qp) {
                    let owners = address::owners(&told.attr.ah_attr, told.attr.dest_qp_num);
                    own.own.remote.with(|r| *r = keys::of(&owners));
                }
                let receives_only = (*qp).state == ibv_qp_state::IBV_QPS_RTR;
                let received = own.own.logs.received.load(Relaxed) != 0;
                if !receives_only || received {
                    own.own.unwanted.store(event::ESTABLISHED, Relaxed);
                }
                if receives_only {
                    return Ok(());
                }
                may_send(qp, told)
            })?;
            if is_young(qp) || is_done(qp) || (*qp).state == ibv_qp_state::IBV_QPS_RTR {
                continue;
            }
            post::send_again(qp).map_err(|e| format!("queue pair {:#x}: a send: {e}", (*qp).qp_num))?;
            if (*qp).state == ibv_qp_state::IBV_QPS_SQD {
                own.own.told.with(|told| tell(qp, told, ibv_qp_state::IBV_QPS_SQD, 0))?;
            }
        }
        for cq in each::<ibv_cq>(Kind::Cq) {
            event::ask_again(cq);
        }
    }
    Ok(())
}
