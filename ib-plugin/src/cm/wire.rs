//! Commands and answers of /dev/infiniband/rdma_cm, as bytes (rdma/rdma_user_cm.h, `RDMA_USER_CM_ABI_VERSION` 4). *Upper half*.
//!
//! ```text
//!   write(2):  u32 command │ u16 bytes that follow │ u16 room for the answer │ the command
//!   answer:    at the address that the command holds, where it has one
//! ```
//!
//! What a reader would get wrong: librdmacm waits for an event by a command too, which has the event for its answer.

pub(crate) const HEADER: usize = 8;

/// `RDMA_USER_CM_CMD_…`.
pub(crate) mod kind {
    pub(crate) const CREATE_ID: u32 = 0;
    pub(crate) const DESTROY_ID: u32 = 1;
    pub(crate) const BIND_IP: u32 = 2;
    pub(crate) const RESOLVE_IP: u32 = 3;
    pub(crate) const RESOLVE_ROUTE: u32 = 4;
    pub(crate) const QUERY_ROUTE: u32 = 5;
    pub(crate) const CONNECT: u32 = 6;
    pub(crate) const LISTEN: u32 = 7;
    pub(crate) const ACCEPT: u32 = 8;
    pub(crate) const REJECT: u32 = 9;
    pub(crate) const DISCONNECT: u32 = 10;
    pub(crate) const INIT_QP_ATTR: u32 = 11;
    pub(crate) const GET_EVENT: u32 = 12;
    pub(crate) const SET_OPTION: u32 = 14;
    pub(crate) const NOTIFY: u32 = 15;
    pub(crate) const JOIN_IP_MCAST: u32 = 16;
    pub(crate) const LEAVE_MCAST: u32 = 17;
    pub(crate) const MIGRATE_ID: u32 = 18;
    pub(crate) const QUERY: u32 = 19;
    pub(crate) const BIND: u32 = 20;
    pub(crate) const RESOLVE_ADDR: u32 = 21;
    pub(crate) const JOIN_MCAST: u32 = 22;
}

/// `RDMA_CM_EVENT_…` of rdma/rdma_cma.h.
pub(crate) mod event {
    pub(crate) const ADDR_RESOLVED: u32 = 0;
    pub(crate) const ADDR_ERROR: u32 = 1;
    pub(crate) const ROUTE_RESOLVED: u32 = 2;
    pub(crate) const ROUTE_ERROR: u32 = 3;
    pub(crate) const CONNECT_REQUEST: u32 = 4;
    pub(crate) const CONNECT_RESPONSE: u32 = 5;
    pub(crate) const CONNECT_ERROR: u32 = 6;
    pub(crate) const UNREACHABLE: u32 = 7;
    pub(crate) const REJECTED: u32 = 8;
    pub(crate) const ESTABLISHED: u32 = 9;
    pub(crate) const DISCONNECTED: u32 = 10;
    pub(crate) const MULTICAST_JOIN: u32 = 12;
    pub(crate) const MULTICAST_ERROR: u32 = 13;
    pub(crate) const TIMEWAIT_EXIT: u32 = 15;
}

/// `RDMA_USER_CM_QUERY_…`.
pub(crate) const QUERY_ADDR: u32 = 0;
pub(crate) const QUERY_PATH: u32 = 1;
pub(crate) const QUERY_GID: u32 = 2;

/// `RDMA_PS_TCP`.
pub(crate) const TCP: u16 = 0x0106;
/// `IBV_QPT_RC` and `IBV_QPT_UD` as the kernel counts them (`enum ib_uverbs_qp_type`).
pub(crate) const RC: u8 = 2;
pub(crate) const UD: u8 = 4;
/// `RDMA_OPTION_IB` and `RDMA_OPTION_IB_PATH`.
pub(crate) const IB_PATH: (u32, u32) = (1, 1);

/// Numbers at a place among bytes; beyond the end there are zeros, and nothing is written.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at + what.len()) {
        room.copy_from_slice(what);
    }
}

/// Where a command has what it names; all without the header.
pub(crate) struct Places {
    pub(crate) id: Option<usize>,
    pub(crate) answer: Option<usize>,
}

/// Of a command. `None`: one that nobody knows here.
pub(crate) fn places(kind: u32) -> Option<Places> {
    let (id, answer) = match kind {
        kind::CREATE_ID => (None, Some(8)),
        kind::GET_EVENT => (None, Some(0)),
        kind::DESTROY_ID | kind::QUERY_ROUTE | kind::INIT_QP_ATTR | kind::MIGRATE_ID | kind::QUERY => {
            (Some(8), Some(0))
        }
        kind::LEAVE_MCAST => (None, Some(0)),
        kind::BIND_IP => (Some(36), None),
        kind::RESOLVE_IP => (Some(56), None),
        kind::CONNECT => (Some(param::LEN), None),
        kind::ACCEPT => (Some(8 + param::LEN), None),
        kind::SET_OPTION => (Some(8), None),
        kind::JOIN_IP_MCAST => (Some(44), Some(0)),
        kind::JOIN_MCAST => (Some(16), Some(0)),
        kind::RESOLVE_ROUTE
        | kind::LISTEN
        | kind::REJECT
        | kind::DISCONNECT
        | kind::NOTIFY
        | kind::BIND
        | kind::RESOLVE_ADDR => (Some(0), None),
        _ => return None,
    };
    Some(Places { id, answer })
}

/// `struct rdma_ucm_conn_param`.
pub(crate) mod param {
    pub(crate) const LEN: usize = 272;
    pub(crate) const QP_NUM: usize = 0;
    pub(crate) const PRIVATE: usize = 8;
    pub(crate) const PRIVATE_LEN: usize = 264;
    pub(crate) const RETRIES: usize = 269;
    pub(crate) const RNR_RETRIES: usize = 270;
    pub(crate) const VALID: usize = 271;
}

/// Places in commands, without the header.
pub(crate) mod at {
    pub(crate) const CREATE_UID: usize = 0;
    pub(crate) const CREATE_PS: usize = 16;
    pub(crate) const CREATE_QP_TYPE: usize = 18;
    pub(crate) const BIND_IP: usize = 8;
    pub(crate) const BIND: usize = 8;
    pub(crate) const BIND_LEN: usize = 4;
    pub(crate) const ACCEPT_PARAM: usize = 8;
    pub(crate) const BACKLOG: usize = 4;
    pub(crate) const QUERY_WHAT: usize = 12;
    pub(crate) const ROUTE_TIMEOUT: usize = 4;
    pub(crate) const MIGRATE_FD: usize = 12;
    pub(crate) const LEAVE_ID: usize = 8;
    pub(crate) const JOIN_UID: usize = 8;
    pub(crate) const JOIN_IP: usize = 16;
    pub(crate) const JOIN_LEN: usize = 20;
    pub(crate) const JOIN_FLAGS: usize = 22;
    pub(crate) const JOIN: usize = 24;
    /// `struct rdma_ucm_resolve_addr`: timeout, lengths of the source and of the destination, and these.
    pub(crate) const TIMEOUT: usize = 4;
    pub(crate) const SRC_LEN: usize = 8;
    pub(crate) const DST_LEN: usize = 10;
    pub(crate) const SRC: usize = 16;
    pub(crate) const DST: usize = 144;
    /// `struct rdma_ucm_resolve_ip`.
    pub(crate) const IP_DST: usize = 28;
    #[cfg(test)]
    pub(crate) const IP_TIMEOUT: usize = 60;
    pub(crate) const OPTION_VALUE: usize = 0;
    pub(crate) const OPTION: usize = 12;
    pub(crate) const OPTION_LEN: usize = 20;
}

/// `struct sockaddr_in6` in commands, and `struct __kernel_sockaddr_storage`.
pub(crate) const IP_ROOM: usize = 28;
pub(crate) const ROOM: usize = 128;

/// `struct rdma_ucm_event_resp`.
pub(crate) mod came {
    pub(crate) const LEN: usize = 336;
    pub(crate) const UID: usize = 0;
    pub(crate) const ID: usize = 8;
    pub(crate) const EVENT: usize = 12;
    #[cfg(test)]
    pub(crate) const STATUS: usize = 16;
    pub(crate) const PARAM: usize = 20;
    /// Of `struct rdma_ucm_ud_param`: the address handle, and the number before it.
    pub(crate) const WAY: usize = 28;
}

/// `struct rdma_ucm_query_addr_resp`.
pub(crate) mod whose {
    pub(crate) const LEN: usize = 280;
    pub(crate) const GUID: usize = 0;
    pub(crate) const SRC_LEN: usize = 12;
    pub(crate) const DST_LEN: usize = 14;
    pub(crate) const SRC: usize = 16;
    pub(crate) const DST: usize = 144;
    pub(crate) const INDEX: usize = 272;
}

/// `struct rdma_ucm_query_route_resp`.
pub(crate) mod route {
    #[cfg(test)]
    pub(crate) const LEN: usize = 208;
    pub(crate) const GUID: usize = 0;
    pub(crate) const PATHS: usize = 8;
    pub(crate) const PATH_LEN: usize = 64;
    pub(crate) const SRC: usize = 136;
    pub(crate) const DST: usize = 164;
    pub(crate) const INDEX: usize = 200;
}

/// `struct ib_uverbs_ah_attr`, and where it is in `struct ib_uverbs_qp_attr`.
pub(crate) mod way {
    #[cfg(test)]
    pub(crate) const LEN: usize = 32;
    pub(crate) const GID: usize = 0;
    pub(crate) const INDEX: usize = 20;
    pub(crate) const LID: usize = 24;
    pub(crate) const GLOBAL: usize = 29;
    pub(crate) const PORT: usize = 30;
    pub(crate) const OF_QP: usize = 40;
    pub(crate) const NUMBER_OF_QP: usize = 32;
    pub(crate) const PARTITION_OF_QP: usize = 124;
    pub(crate) const PORT_OF_QP: usize = 133;
    #[cfg(test)]
    pub(crate) const QP_LEN: usize = 144;
}

/// A command as the application, or the rebuild, gives it.
#[derive(Clone, Debug)]
pub(crate) struct Command(Vec<u8>);

impl Command {
    /// `room`: for the answer. The command is zeros.
    pub(crate) fn new(kind: u32, len: usize, room: usize) -> Command {
        let mut bytes = vec![0; HEADER + len];
        put(&mut bytes, 0, &kind.to_ne_bytes());
        put(&mut bytes, 4, &u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
        put(&mut bytes, 6, &u16::try_from(room).unwrap_or(u16::MAX).to_ne_bytes());
        Command(bytes)
    }

    /// `None`: no command.
    pub(crate) fn of(bytes: &[u8]) -> Option<Command> {
        (bytes.len() >= HEADER).then(|| Command(bytes.to_vec()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn kind(&self) -> u32 {
        word(&self.0, 0)
    }

    /// For the answer.
    pub(crate) fn room(&self) -> usize {
        usize::from(half(&self.0, 6))
    }

    /// What follows the header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    pub(crate) fn body_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }

    pub(crate) fn with(mut self, at: usize, what: &[u8]) -> Command {
        put(self.body_mut(), at, what);
        self
    }

    /// The id that it is about, as the application calls it.
    pub(crate) fn id(&self) -> Option<u32> {
        Some(word(self.body(), places(self.kind())?.id?))
    }

    pub(crate) fn set_id(&mut self, id: u32) {
        if let Some(at) = places(self.kind()).and_then(|p| p.id) {
            put(self.body_mut(), at, &id.to_ne_bytes());
        }
    }

    /// Where the answer goes.
    pub(crate) fn answer(&self) -> Option<usize> {
        Some(long(self.body(), places(self.kind())?.answer?) as usize)
    }

    pub(crate) fn set_answer(&mut self, to: usize) {
        if let Some(at) = places(self.kind()).and_then(|p| p.answer) {
            put(self.body_mut(), at, &(to as u64).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_its_id_and_its_answer_where_the_header_says() {
        let mut c = Command::new(kind::QUERY, 16, whose::LEN).with(at::QUERY_WHAT, &QUERY_GID.to_ne_bytes());
        c.set_id(7);
        c.set_answer(0x1234_5678_9abc);
        assert_eq!((c.id(), c.answer(), c.room()), (Some(7), Some(0x1234_5678_9abc), 280));
        assert_eq!(c.bytes().len(), 24);
        assert_eq!(word(c.body(), 12), 2);
        assert_eq!(Command::of(&c.bytes()[..7]).map(|c| c.kind()), None);
        assert!(places(13).is_none() && places(99).is_none());
        // A command that is cut short has zeros.
        let short = Command::of(Command::new(kind::CONNECT, 4, 0).bytes());
        assert_eq!(short.and_then(|c| c.id()), Some(0));
    }

    /// The numbers above, against the header that is installed.
    #[test]
    fn the_kernels_header_says_the_same() {
        let mut text = String::from(
            "#include <stddef.h>\n#include <rdma/ib_user_verbs.h>\n#include <rdma/rdma_user_cm.h>\n",
        );
        let mut is = |what: &str, n: usize| text.push_str(&format!("_Static_assert({what} == {n}, \"\");\n"));
        is("sizeof(struct rdma_ucm_cmd_hdr)", HEADER);
        let kinds = [
            ("CREATE_ID", kind::CREATE_ID, "create_id", None, Some(8)),
            ("DESTROY_ID", kind::DESTROY_ID, "destroy_id", Some(8), Some(0)),
            ("BIND_IP", kind::BIND_IP, "bind_ip", Some(36), None),
            ("RESOLVE_IP", kind::RESOLVE_IP, "resolve_ip", Some(56), None),
            ("RESOLVE_ROUTE", kind::RESOLVE_ROUTE, "resolve_route", Some(0), None),
            ("QUERY_ROUTE", kind::QUERY_ROUTE, "query", Some(8), Some(0)),
            ("CONNECT", kind::CONNECT, "connect", Some(272), None),
            ("LISTEN", kind::LISTEN, "listen", Some(0), None),
            ("ACCEPT", kind::ACCEPT, "accept", Some(280), None),
            ("REJECT", kind::REJECT, "reject", Some(0), None),
            ("DISCONNECT", kind::DISCONNECT, "disconnect", Some(0), None),
            ("INIT_QP_ATTR", kind::INIT_QP_ATTR, "init_qp_attr", Some(8), Some(0)),
            ("GET_EVENT", kind::GET_EVENT, "get_event", None, Some(0)),
            ("SET_OPTION", kind::SET_OPTION, "set_option", Some(8), None),
            ("NOTIFY", kind::NOTIFY, "notify", Some(0), None),
            ("JOIN_IP_MCAST", kind::JOIN_IP_MCAST, "join_ip_mcast", Some(44), Some(0)),
            ("LEAVE_MCAST", kind::LEAVE_MCAST, "destroy_id", None, Some(0)),
            ("MIGRATE_ID", kind::MIGRATE_ID, "migrate_id", Some(8), Some(0)),
            ("QUERY", kind::QUERY, "query", Some(8), Some(0)),
            ("BIND", kind::BIND, "bind", Some(0), None),
            ("RESOLVE_ADDR", kind::RESOLVE_ADDR, "resolve_addr", Some(0), None),
            ("JOIN_MCAST", kind::JOIN_MCAST, "join_mcast", Some(16), Some(0)),
        ];
        for (name, number, of, id, answer) in kinds {
            let places = places(number).expect("it is known");
            assert_eq!((places.id, places.answer), (id, answer), "{name}");
            is(&format!("RDMA_USER_CM_CMD_{name}"), number as usize);
            for (member, at) in [("id", places.id), ("response", places.answer)] {
                if let Some(at) = at {
                    is(&format!("offsetof(struct rdma_ucm_{of}, {member})"), at);
                }
            }
        }
        let members = [
            ("rdma_ucm_create_id", "ps", at::CREATE_PS),
            ("rdma_ucm_create_id", "qp_type", at::CREATE_QP_TYPE),
            ("rdma_ucm_bind_ip", "addr", at::BIND_IP),
            ("rdma_ucm_bind", "addr", at::BIND),
            ("rdma_ucm_bind", "addr_size", at::BIND_LEN),
            ("rdma_ucm_accept", "conn_param", at::ACCEPT_PARAM),
            ("rdma_ucm_listen", "backlog", at::BACKLOG),
            ("rdma_ucm_query", "option", at::QUERY_WHAT),
            ("rdma_ucm_resolve_route", "timeout_ms", at::ROUTE_TIMEOUT),
            ("rdma_ucm_migrate_id", "fd", at::MIGRATE_FD),
            ("rdma_ucm_destroy_id", "id", at::LEAVE_ID),
            ("rdma_ucm_join_mcast", "uid", at::JOIN_UID),
            ("rdma_ucm_join_ip_mcast", "uid", at::JOIN_UID),
            ("rdma_ucm_join_ip_mcast", "addr", at::JOIN_IP),
            ("rdma_ucm_join_mcast", "addr_size", at::JOIN_LEN),
            ("rdma_ucm_join_mcast", "join_flags", at::JOIN_FLAGS),
            ("rdma_ucm_join_mcast", "addr", at::JOIN),
            ("rdma_ucm_resolve_addr", "timeout_ms", at::TIMEOUT),
            ("rdma_ucm_resolve_addr", "src_size", at::SRC_LEN),
            ("rdma_ucm_resolve_addr", "dst_size", at::DST_LEN),
            ("rdma_ucm_resolve_addr", "src_addr", at::SRC),
            ("rdma_ucm_resolve_addr", "dst_addr", at::DST),
            ("rdma_ucm_resolve_ip", "dst_addr", at::IP_DST),
            ("rdma_ucm_resolve_ip", "timeout_ms", at::IP_TIMEOUT),
            ("rdma_ucm_set_option", "optval", at::OPTION_VALUE),
            ("rdma_ucm_set_option", "level", at::OPTION),
            ("rdma_ucm_set_option", "optlen", at::OPTION_LEN),
            ("rdma_ucm_conn_param", "qp_num", param::QP_NUM),
            ("rdma_ucm_conn_param", "private_data", param::PRIVATE),
            ("rdma_ucm_conn_param", "private_data_len", param::PRIVATE_LEN),
            ("rdma_ucm_conn_param", "retry_count", param::RETRIES),
            ("rdma_ucm_conn_param", "rnr_retry_count", param::RNR_RETRIES),
            ("rdma_ucm_conn_param", "valid", param::VALID),
            ("rdma_ucm_event_resp", "uid", came::UID),
            ("rdma_ucm_event_resp", "id", came::ID),
            ("rdma_ucm_event_resp", "event", came::EVENT),
            ("rdma_ucm_event_resp", "status", came::STATUS),
            ("rdma_ucm_event_resp", "param", came::PARAM),
            ("rdma_ucm_event_resp", "param.ud.ah_attr", came::WAY),
            ("rdma_ucm_query_addr_resp", "node_guid", whose::GUID),
            ("rdma_ucm_query_addr_resp", "src_size", whose::SRC_LEN),
            ("rdma_ucm_query_addr_resp", "dst_size", whose::DST_LEN),
            ("rdma_ucm_query_addr_resp", "src_addr", whose::SRC),
            ("rdma_ucm_query_addr_resp", "dst_addr", whose::DST),
            ("rdma_ucm_query_addr_resp", "ibdev_index", whose::INDEX),
            ("rdma_ucm_query_route_resp", "node_guid", route::GUID),
            ("rdma_ucm_query_route_resp", "ib_route", route::PATHS),
            ("rdma_ucm_query_route_resp", "src_addr", route::SRC),
            ("rdma_ucm_query_route_resp", "dst_addr", route::DST),
            ("rdma_ucm_query_route_resp", "ibdev_index", route::INDEX),
            ("ib_uverbs_ah_attr", "grh.dgid", way::GID),
            ("ib_uverbs_ah_attr", "grh.sgid_index", way::INDEX),
            ("ib_uverbs_ah_attr", "dlid", way::LID),
            ("ib_uverbs_ah_attr", "is_global", way::GLOBAL),
            ("ib_uverbs_ah_attr", "port_num", way::PORT),
            ("ib_uverbs_qp_attr", "ah_attr", way::OF_QP),
            ("ib_uverbs_qp_attr", "dest_qp_num", way::NUMBER_OF_QP),
            ("ib_uverbs_qp_attr", "pkey_index", way::PARTITION_OF_QP),
            ("ib_uverbs_qp_attr", "port_num", way::PORT_OF_QP),
        ];
        for (of, member, at) in members {
            is(&format!("offsetof(struct {of}, {member})"), at);
        }
        let sizes = [
            ("rdma_ucm_conn_param", param::LEN),
            ("rdma_ucm_event_resp", came::LEN),
            ("rdma_ucm_query_addr_resp", whose::LEN),
            ("rdma_ucm_query_route_resp", route::LEN),
            ("ib_user_path_rec", route::PATH_LEN),
            ("ib_uverbs_ah_attr", way::LEN),
            ("ib_uverbs_qp_attr", way::QP_LEN),
            ("sockaddr_in6", IP_ROOM),
            ("__kernel_sockaddr_storage", ROOM),
        ];
        for (of, n) in sizes {
            is(&format!("sizeof(struct {of})"), n);
        }
        let file = std::env::temp_dir().join(format!("wire-{}.c", std::process::id()));
        std::fs::write(&file, text).expect("a file in the temporary folder");
        let out = std::process::Command::new("cc").arg("-fsyntax-only").arg(&file).output();
        let out = out.expect("cc runs");
        let _ = std::fs::remove_file(&file);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
