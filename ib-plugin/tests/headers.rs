//! The bindings by hand of rdma-sys, which the front reads the application's memory by, are what the installed headers say. Runs
//! *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fmt::Write;
use std::io::Write as _;
use std::mem::{offset_of, size_of};
use std::process::{Command, Stdio};

use rdma_sys::*;

/// C that compiles if sizes and places are those of Rust. A member with another name in C has that behind it.
macro_rules! layout {
    ($($what:literal $t:ty { $($member:ident $(as $name:literal)?),* $(,)? })*) => {{
        let mut c = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n");
        $(
            let _ = writeln!(c, "_Static_assert(sizeof({0}) == {1}, \"size of {0}\");", $what, size_of::<$t>());
            $({
                let name: &[&str] = &[$($name,)? stringify!($member)];
                let name = name[0].trim_end_matches('_');
                let at = offset_of!($t, $member);
                let _ = writeln!(c, "_Static_assert(offsetof({0}, {name}) == {at}, \"{name} of {0}\");", $what);
            })*
        )*
        c
    }};
}

/// What the compiler says of it.
fn compile(source: &str) -> String {
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-std=gnu11", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cc can be started");
    cc.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("cc reads");
    String::from_utf8_lossy(&cc.wait_with_output().expect("cc ends").stderr).into_owned()
}

#[test]
fn structures_are_those_of_the_headers() {
    let source = layout! {
        "struct ibv_device" ibv_device { node_type, transport_type, name, dev_name, dev_path, ibdev_path }
        "struct ibv_context" ibv_context {
            device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat,
        }
        "struct verbs_context" verbs_context { query_port, sz, context }
        "struct ibv_context_ops" ibv_context_ops {
            alloc_mw, bind_mw, dealloc_mw, poll_cq, req_notify_cq, post_srq_recv, post_send, post_recv,
        }
        "struct ibv_pd" ibv_pd { context, handle }
        "struct ibv_mr" ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        "struct ibv_mw" ibv_mw { context, pd, rkey, handle, type_ }
        "struct ibv_mw_bind_info" ibv_mw_bind_info { mr, addr, length, mw_access_flags }
        "struct ibv_mw_bind" ibv_mw_bind { wr_id, send_flags, bind_info }
        "struct ibv_comp_channel" ibv_comp_channel { context, fd, refcnt }
        "struct ibv_cq" ibv_cq { context, channel, cq_context, handle, cqe }
        "struct ibv_srq" ibv_srq { context, srq_context, pd, handle }
        "struct ibv_qp" ibv_qp {
            context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type,
        }
        "struct ibv_qp_ex" ibv_qp_ex { qp_base, comp_mask, wr_id, wr_flags }
        "struct ibv_ah" ibv_ah { context, pd, handle }
        "struct ibv_sge" ibv_sge { addr, length, lkey }
        "union ibv_gid" ibv_gid { raw, global }
        "struct ibv_global_route" ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        "struct ibv_ah_attr" ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
        "struct ibv_wc" ibv_wc {
            wr_id, status, opcode, vendor_err, byte_len, imm_data_invalidated_rkey_union as "imm_data",
            imm_data_invalidated_rkey_union as "invalidated_rkey", qp_num, src_qp, wc_flags, pkey_index, slid, sl,
            dlid_path_bits,
        }
        "struct ibv_send_wr" ibv_send_wr {
            wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data_invalidated_rkey_union as "imm_data",
            imm_data_invalidated_rkey_union as "invalidate_rkey", wr, wr as "wr.rdma.remote_addr",
            wr as "wr.atomic.remote_addr", wr as "wr.ud.ah", qp_type as "qp_type.xrc.remote_srqn",
            bind_mw_tso_union as "bind_mw.mw", bind_mw_tso_union as "tso.hdr",
        }
        "((struct ibv_send_wr *)0)->wr.rdma" rdma_t {}
        "((struct ibv_send_wr *)0)->wr.atomic" atomic_t {}
        "((struct ibv_send_wr *)0)->wr.ud" ud_t {}
        "((struct ibv_send_wr *)0)->bind_mw" bind_mw_t {}
        "struct ibv_recv_wr" ibv_recv_wr { wr_id, next, sg_list, num_sge }
        "struct ibv_async_event" ibv_async_event { element, event_type }
        "struct ibv_qp_cap" ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        "struct ibv_qp_init_attr" ibv_qp_init_attr {
            qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all,
        }
        "struct ibv_qp_attr" ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags,
            cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining,
            max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry,
            alt_port_num, alt_timeout, rate_limit,
        }
        "struct ibv_srq_init_attr" ibv_srq_init_attr { srq_context, attr }
        "struct ibv_port_attr" ibv_port_attr { state, max_mtu, active_mtu, gid_tbl_len, lid, link_layer }
        "struct rdma_ib_addr" rdma_ib_addr { sgid, dgid, pkey }
        "struct rdma_addr" rdma_addr { addr as "addr.ibaddr" }
        "struct rdma_ud_param" rdma_ud_param { private_data, private_data_len, ah_attr, qp_num, qkey }
        "struct rdma_cm_event" rdma_cm_event { id, listen_id, event, status, param as "param.conn", param as "param.ud" }
    };
    assert_eq!(compile(&source), "");
    // And the compiler would say so.
    let other = source.replacen("== ", "== 1 + ", 1);
    assert!(compile(&other).contains("size of struct ibv_device"));
}
