//! All objects again, on whatever devices there are now, and each queue pair connected with its other end. After a restart, on the
//! main thread, before any other runs.
//!
//! ```text
//!   round 0   contexts, domains, regions, channels, queues, queue pairs up to INIT; publish: who I am now, under each of my former names
//!         1   who the other end is now: up to RTR, receives posted; publish: my regions' keys, under the number of the rank
//!         2   up to RTS; the other end's keys; completion queues armed
//! ```
//!
//! What a reader would get wrong: a former name is what the *peer* was told by the application's own means: any of this port's GIDs, or its
//! LID, with the number of the queue pair. And all receives are posted before anybody can send.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_ah, ibv_comp_channel, ibv_context, ibv_cq, ibv_mr, ibv_pd, ibv_qp, ibv_qp_init_attr, ibv_qp_state,
    ibv_qp_type, ibv_srq, ibv_srq_init_attr,
};
use stillpoint_abi::half::{StillArg, still};

use crate::address::{Gid, Moved};
use crate::below::Function;
use crate::drain::is_connected;
use crate::front::{Heard, Out, found};
use crate::objects::{Ah, Channel, Context, Cq, Limits, Mr, Pd, Qp, Srq, Told, real, real_context};
use crate::pass::word;
use crate::queue::mask;
use crate::world::{self, Kind};
use crate::{address, device, event, keys, log, memory, names, post, queue};

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
            0 => make().and_then(|()| announce(&mut out)).map(|()| still::SPEAKS),
            1 => connect(&heard, &mut out).map(|()| still::SPEAKS),
            _ => go(&heard).map(|()| still::DONE),
        }
    };
    match done {
        Ok(code) => out.say(arg, code),
        Err(why) => Out::why(&why).say(arg, -1),
    }
}

fn each<P>(kind: Kind) -> impl Iterator<Item = *mut P> {
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
        device::find_again();
        let mut ours: Vec<c_int> = each::<ibv_context>(Kind::Context).map(|c| (*c).async_fd).collect();
        for channel in each::<ibv_comp_channel>(Kind::Channel) {
            ours.push((*channel).fd);
            Channel::of(channel).own.fd.store(0, Relaxed);
        }
        event::let_go(&ours);
        for context in each::<ibv_context>(Kind::Context) {
            let name = crate::below::text((*(*context).device).name.as_ptr()).unwrap_or_default();
            let at = made(device::open_again((*context).device), &format!("open device {name}"))?;
            Context::of(Context::whole(context)).renew(at);
            Context::of(Context::whole(context)).own.now.with(|now| *now = device::ports(at as u64));
            let there = &*std::ptr::with_exposed_provenance::<ibv_context>(at);
            (*context).cmd_fd = there.cmd_fd;
            if !event::stand_in_again(there.async_fd, (*context).async_fd) {
                return Err(format!("descriptor {} of device {name}", (*context).async_fd));
            }
            event::put_back((*context).async_fd, &Context::of(Context::whole(context)).own.flags);
        }
        for pd in each::<ibv_pd>(Kind::Pd) {
            let pd = Pd::of(pd);
            pd.renew(made(ALLOC_PD.object(&[real_context(pd.public.context)]), "a protection domain")?);
        }
        let (mut local, mut called) = (BTreeMap::new(), Vec::new());
        for mr in each::<ibv_mr>(Kind::Mr) {
            let mr = Mr::of(mr);
            let m = &mr.public;
            let at = memory::make_region(real(m.pd), m.addr, m.length, &mr.own);
            mr.renew(made(at, &format!("a memory region of {} bytes", m.length))?);
            let there = &*std::ptr::with_exposed_provenance::<rdma_sys::ibv_mr>(at);
            local.insert(m.lkey, there.lkey);
            called.extend([m.lkey, m.rkey]);
        }
        keys::renew(local, called.into_iter());
        for channel in each::<ibv_comp_channel>(Kind::Channel) {
            let at =
                made(CREATE_CHANNEL.object(&[real_context((*channel).context)]), "a completion channel")?;
            Channel::of(channel).renew(at);
            let fd = (*std::ptr::with_exposed_provenance::<ibv_comp_channel>(at)).fd;
            if !event::stand_in_again(fd, (*channel).fd) {
                return Err(format!("descriptor {} of a completion channel", (*channel).fd));
            }
            event::put_back((*channel).fd, &Channel::of(channel).own.flags);
        }
        for cq in each::<ibv_cq>(Kind::Cq) {
            let own = Cq::of(cq);
            // Of events of the former queue the new one knows nothing.
            own.own.given.fetch_add(own.own.open.swap(0, Relaxed), Relaxed);
            own.own.asynchronous.forget();
            let entries = (*cq).cqe as u64 + own.own.more.load(Relaxed) as u64;
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
            let mut attr = ibv_srq_init_attr { srq_context: srq.cast::<c_void>(), attr: limits() };
            own.renew(made(
                CREATE_SRQ.object(&[real(own.public.pd), word(&raw mut attr)]),
                "a shared receive queue",
            )?);
            let mut limits = limits();
            if limits.srq_limit != 0 {
                MODIFY_SRQ.int(&[real(srq), word(&raw mut limits), word(queue::SRQ_LIMIT)]);
            }
        }
        for qp in each::<ibv_qp>(Kind::Qp) {
            make_pair(qp)?;
        }
        // Those that share a queue need no other end for it.
        for srq in each::<ibv_srq>(Kind::Srq) {
            post::receive_again(&Srq::of(srq).own.place, |f, r| post::shared(srq, f, r))
                .map_err(|e| format!("a shared receive: {e}"))?;
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
            sq_sig_all: 0,
        };
        let what = format!("queue pair {:#x}", q.qp_num);
        own.own.asynchronous.forget();
        let at = made(CREATE_QP.object(&[real(q.pd), word(&raw mut attr)]), &what)?;
        own.renew(at);
        let number = (*std::ptr::with_exposed_provenance::<ibv_qp>(at)).qp_num;
        log::number(real_context(q.context), number, own.own.place);
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
    attr.qp_state = state;
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
unsafe fn is_done(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let broken = log::queue(Qp::of(qp).own.place).is_some_and(|l| l.broken.load(Relaxed));
        // Datagrams that fail leave the rest alone, in SQE.
        (*qp).state == ibv_qp_state::IBV_QPS_ERR || broken && (*qp).qp_type != ibv_qp_type::IBV_QPT_UD
    }
}

unsafe fn announce(out: &mut Out) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut numbers: BTreeMap<(usize, u8), Vec<(u32, u32)>> = BTreeMap::new();
        let mut all: BTreeMap<Vec<u8>, BTreeSet<u32>> = BTreeMap::new();
        // Those that are connected are known to their other ends; others may want to know them all the same, if they are few.
        let few = each::<ibv_qp>(Kind::Qp).count() <= 4096;
        for qp in each::<ibv_qp>(Kind::Qp) {
            let own = Qp::of(qp);
            let names = &Context::of(Context::whole((*qp).context)).own;
            let number = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).qp_num;
            own.own.told.with(|told| {
                let was = names::port(qp, told);
                // One that was never told its port may have been told to others all the same.
                let of = names.ports.iter().zip(1u8..);
                let of = of.filter(|(_, port)| told.attr.port_num == 0 || told.attr.port_num == *port);
                for key in of.flat_map(|(port, _)| names::of_port(names::NUMBERS, port)) {
                    all.entry(key).or_default().insert((*qp).qp_num);
                }
                if few || !is_connected(qp) {
                    let at = ((*qp).context.expose_provenance(), told.attr.port_num.max(1));
                    numbers.entry(at).or_default().push(((*qp).qp_num, number));
                }
                let now = names.now.with(|now| {
                    now.get(usize::from(told.attr.port_num).wrapping_sub(1)).cloned().unwrap_or_default()
                });
                let value =
                    |gid: &[u8; 16]| [&number.to_le_bytes()[..], &now.lid.to_le_bytes(), gid].concat();
                for (at, name) in names::own(qp, told) {
                    let gid = at.and_then(|at| now.gids.get(was.place(at, &now)?));
                    out.publish(&name, &value(&gid.copied().unwrap_or_default().raw));
                }
                if is_connected(qp) {
                    out.ask(&names::peer(told));
                }
            });
        }
        for mr in each::<ibv_mr>(Kind::Mr) {
            let m = &Mr::of(mr).public;
            for port in &Context::of(Context::whole(m.context)).own.ports {
                for key in names::of_port(names::KEYS, port) {
                    all.entry(key).or_default().extend([m.lkey, m.rkey]);
                }
            }
        }
        let mut moved = Vec::new();
        for context in each::<ibv_context>(Kind::Context) {
            let names = &Context::of(Context::whole(context)).own;
            names.now.with(|now| {
                for ((was, is), port) in names.ports.iter().zip(now).zip(1u8..) {
                    let pair = |(at, gid): (usize, &Gid)| {
                        let there = is.gids.get(was.place(at, is)?)?;
                        gid.is_set().then_some((gid.raw, there.raw))
                    };
                    let gids = was.gids.iter().enumerate().filter_map(pair).collect();
                    let numbers = numbers.remove(&(context.expose_provenance(), port)).unwrap_or_default();
                    Moved { gids, lid: (was.lid, is.lid), numbers }.pack(&mut moved);
                    for what in [names::NUMBERS, names::KEYS] {
                        let both = names::of_port(what, was).into_iter().chain(names::of_port(what, is));
                        both.collect::<BTreeSet<_>>().iter().for_each(|key| out.ask(key));
                    }
                }
            });
        }
        for (key, value) in all {
            out.publish(&key, &value.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        }
        out.publish(names::ADDRESSES, &moved);
        out.ask(names::ADDRESSES);
    }
    Ok(())
}

/// Where all addresses are now, and which numbers are taken.
fn learn(heard: &Heard) {
    let of = |(rank, value): &(u32, Vec<u8>)| {
        let rank = *rank;
        Moved::all(value).into_iter().map(move |m| (rank, m))
    };
    let moved: Vec<(u32, Moved)> = heard.all(names::ADDRESSES).iter().flat_map(of).collect();
    let numbers = |(_, v): (u32, &[u8])| -> Vec<u32> {
        v.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect()
    };
    address::renew(&moved, heard.beginning(names::NUMBERS).flat_map(numbers).collect());
    keys::take(heard.beginning(names::KEYS).flat_map(numbers));
}

unsafe fn connect(heard: &Heard, out: &mut Out) -> Result<(), String> {
    learn(heard);
    // SAFETY: the caller's promise.
    unsafe {
        for ah in each::<ibv_ah>(Kind::Ah) {
            let own = Ah::of(ah);
            own.renew(made(memory::make_handle(own.public.pd, &own.own.attr), "an address handle")?);
        }
        for qp in each::<ibv_qp>(Kind::Qp).filter(|qp| !is_young(*qp)) {
            let own = Qp::of(qp);
            let number = (*qp).qp_num;
            own.own.told.with(|told| {
                if is_done(qp) {
                    return Ok(());
                }
                if !is_connected(qp) {
                    return tell(qp, told, ibv_qp_state::IBV_QPS_RTR, 0);
                }
                let lost = || format!("queue pair {number:#x}: its other end is no queue pair of this job");
                let (rank, value) = heard.one(&names::peer(told)).ok_or_else(lost)?;
                let bytes = |at: usize, n: usize| value.get(at..at + n).ok_or_else(lost);
                let mut now = told.copy();
                now.attr.dest_qp_num = u32::from_le_bytes(bytes(0, 4)?.try_into().unwrap_or_default());
                now.attr.ah_attr.dlid = u16::from_le_bytes(bytes(4, 2)?.try_into().unwrap_or_default());
                if now.attr.ah_attr.is_global != 0 {
                    let names = &Context::of(Context::whole((*qp).context)).own;
                    let grh = &mut now.attr.ah_attr.grh;
                    grh.dgid.raw = bytes(6, 16)?.try_into().unwrap_or_default();
                    grh.sgid_index = names.index(told.attr.ah_attr.port_num, grh.sgid_index);
                }
                let was = (&told.attr.ah_attr, told.attr.dest_qp_num);
                address::meet(was, (&now.attr.ah_attr, now.attr.dest_qp_num), rank);
                let mut which = mask::AV | mask::MTU | mask::DEST | mask::RQ_PSN;
                if (*qp).qp_type == ibv_qp_type::IBV_QPT_RC {
                    which |= mask::MAX_DEST_READS | mask::RNR_TIMER;
                }
                tell(qp, &now, ibv_qp_state::IBV_QPS_RTR, which)
            })?;
        }
        for qp in each::<ibv_qp>(Kind::Qp).filter(|qp| (**qp).state != ibv_qp_state::IBV_QPS_RESET) {
            if (*qp).srq.is_null() {
                post::receive_again(&Qp::of(qp).own.place, |f, r| post::own(qp, f, r))
                    .map_err(|e| format!("queue pair {:#x}: a receive: {e}", (*qp).qp_num))?;
            }
        }
        let mut all = Vec::new();
        for mr in each::<ibv_mr>(Kind::Mr) {
            let there = &*std::ptr::with_exposed_provenance::<rdma_sys::ibv_mr>(real(mr) as usize);
            all.extend(Mr::of(mr).public.rkey.to_le_bytes());
            all.extend(there.rkey.to_le_bytes());
        }
        let own = stillpoint_sys::half().rank.load(Relaxed);
        out.publish(&names::of_rank(own), &all);
        heard.all(names::ADDRESSES).iter().for_each(|(rank, _)| out.ask(&names::of_rank(*rank)));
    }
    Ok(())
}

unsafe fn go(heard: &Heard) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut ranks = BTreeMap::new();
        for (rank, value) in heard.beginning(b"r") {
            let word = |at: &[u8]| u32::from_le_bytes(at.try_into().unwrap_or_default());
            let pairs = value.chunks_exact(8).map(|pair| (word(&pair[..4]), word(&pair[4..])));
            ranks.insert(rank, pairs.collect::<keys::Remote>());
        }
        keys::learn(ranks);
        for qp in each::<ibv_qp>(Kind::Qp) {
            let own = Qp::of(qp);
            own.own.told.with(|told| {
                if is_young(qp) {
                    return Ok(());
                }
                if is_done(qp) {
                    return tell(qp, told, ibv_qp_state::IBV_QPS_ERR, 0);
                }
                if is_connected(qp) {
                    let owners = address::owners(&told.attr.ah_attr, told.attr.dest_qp_num);
                    own.own.remote.with(|r| *r = keys::of(&owners));
                }
                if (*qp).state == ibv_qp_state::IBV_QPS_RTR {
                    return Ok(());
                }
                let mut which = mask::SQ_PSN;
                if (*qp).qp_type == ibv_qp_type::IBV_QPT_RC {
                    which |= mask::TIMEOUT | mask::RETRY | mask::RNR_RETRY | mask::MAX_READS;
                }
                tell(qp, told, ibv_qp_state::IBV_QPS_RTS, which)
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
            let home = &Cq::of(cq).own;
            let armed = home.armed.load(Relaxed);
            if armed != 0 {
                post::arm(cq, c_int::from(armed == 2));
            }
            if armed != 0 && home.len.load(Relaxed) != 0 && !(*cq).channel.is_null() {
                home.due.store(1, Relaxed);
            }
        }
        for channel in each::<ibv_comp_channel>(Kind::Channel) {
            let mut all = each::<ibv_cq>(Kind::Cq).filter(|cq| (**cq).channel == channel);
            if all.any(|cq| Cq::of(cq).own.due.load(Relaxed) == 1) {
                event::wake(channel);
            }
        }
    }
    Ok(())
}
