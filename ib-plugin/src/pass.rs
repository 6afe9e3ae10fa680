//! What is passed on as it is, or refused by name.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

use crate::below::{Function, fail, inside, text};
use crate::device::of_context;
use crate::objects::real_context;
use rdma_sys::{ibv_context, ibv_mr, ibv_pd};

/// An argument, as the C ABI passes an integer or a pointer.
pub(crate) trait Word {
    fn word(self) -> u64;
}

macro_rules! words {
    ($($t:ty),*) => {$(impl Word for $t {
        #[allow(clippy::cast_lossless, reason = "one rule for all: sign or zero extended")]
        fn word(self) -> u64 {
            self as u64
        }
    })*};
}
words!(u8, u16, u32, u64, usize, i32);

impl<T> Word for *mut T {
    fn word(self) -> u64 {
        self.expose_provenance() as u64
    }
}

impl<T> Word for *const T {
    fn word(self) -> u64 {
        self.expose_provenance() as u64
    }
}

pub(crate) fn word(of: impl Word) -> u64 {
    of.word()
}

static FORK_INIT: Function = Function::new(c"ibv_fork_init");
static IS_FORK: Function = Function::new(c"ibv_is_fork_initialized");
static DONTFORK: Function = Function::new(c"ibv_dontfork_range");
static DOFORK: Function = Function::new(c"ibv_dofork_range");
static RATE_MULT: Function = Function::new(c"ibv_rate_to_mult");
static MULT_RATE: Function = Function::new(c"mult_to_ibv_rate");
static RATE_MBPS: Function = Function::new(c"ibv_rate_to_mbps");
static MBPS_RATE: Function = Function::new(c"mbps_to_ibv_rate");
static READ_SYSFS: Function = Function::new(c"ibv_read_sysfs_file");
static ETH_L2: Function = Function::new(c"ibv_resolve_eth_l2_from_gid");

macro_rules! plain {
    ($($name:ident($($a:ident: $t:ty),*) by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($a: $t),*) -> c_int {
            $function.int(&[$(word($a)),*])
        }
    )*};
}

plain! {
    ibv_fork_init() by FORK_INIT;
    ibv_is_fork_initialized() by IS_FORK;
    ibv_dontfork_range(base: *mut c_void, size: usize) by DONTFORK;
    ibv_dofork_range(base: *mut c_void, size: usize) by DOFORK;
    ibv_rate_to_mult(rate: u32) by RATE_MULT;
    mult_to_ibv_rate(mult: c_int) by MULT_RATE;
    ibv_rate_to_mbps(rate: u32) by RATE_MBPS;
    mbps_to_ibv_rate(mbps: c_int) by MBPS_RATE;
    ibv_read_sysfs_file(dir: *const c_char, file: *const c_char, buf: *mut c_char, size: usize) by READ_SYSFS;
}

of_context! {
    ibv_resolve_eth_l2_from_gid(attr: *mut c_void, mac: *mut u8, vlan: *mut u16) by ETH_L2;
}

/// Texts of the real library, as ours: the application may keep the pointer, and theirs is another start's after a restart.
static TEXTS: Mutex<BTreeMap<String, CString>> = Mutex::new(BTreeMap::new());

fn keep(function: &Function, args: &[u64]) -> *const c_char {
    let _front = inside();
    let of = function.call(args);
    let at = std::ptr::with_exposed_provenance(of.unwrap_or(0) as usize);
    let Some(text) = text(at) else { return c"unknown".as_ptr() };
    let Ok(mut all) = TEXTS.lock() else { return c"unknown".as_ptr() };
    let copy = CString::new(text.clone()).unwrap_or_default();
    all.entry(text).or_insert(copy).as_ptr()
}

macro_rules! texts {
    ($($name:ident by $function:ident = $real:literal;)*) => {$(
        static $function: Function = Function::new($real);
        #[unsafe(no_mangle)]
        extern "C" fn $name(of: c_uint) -> *const c_char {
            keep(&$function, &[word(of)])
        }
    )*};
}

texts! {
    ibv_node_type_str by NODE_TYPE = c"ibv_node_type_str";
    ibv_port_state_str by PORT_STATE = c"ibv_port_state_str";
    ibv_event_type_str by EVENT_TYPE = c"ibv_event_type_str";
    ibv_wc_status_str by WC_STATUS = c"ibv_wc_status_str";
}

static COPY_AH: Function = Function::new(c"ibv_copy_ah_attr_from_kern");
static COPY_QP: Function = Function::new(c"ibv_copy_qp_attr_from_kern");
static COPY_PATH: Function = Function::new(c"ibv_copy_path_rec_from_kern");
static PATH_COPY: Function = Function::new(c"ibv_copy_path_rec_to_kern");

/// From one structure of librdmacm's into another.
macro_rules! copies {
    ($($name:ident by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(to: *mut c_void, from: *mut c_void) {
            $function.call(&[word(to), word(from)]);
        }
    )*};
}

copies! {
    ibv_copy_ah_attr_from_kern by COPY_AH;
    ibv_copy_qp_attr_from_kern by COPY_QP;
    ibv_copy_path_rec_from_kern by COPY_PATH;
    ibv_copy_path_rec_to_kern by PATH_COPY;
}

static SYSFS: Function = Function::new(c"ibv_get_sysfs_path");

#[unsafe(no_mangle)]
extern "C" fn ibv_get_sysfs_path() -> *const c_char {
    keep(&SYSFS, &[])
}

/// Objects of another process, and memory of another device: not here.
macro_rules! refused {
    ($($name:ident($($a:ident: $t:ty),*) -> $r:ty;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($a: $t),*) -> *mut $r {
            $(let _ = $a;)*
            fail(libc::EOPNOTSUPP)
        }
    )*};
}

refused! {
    ibv_import_pd(context: *mut ibv_context, handle: u32) -> ibv_pd;
    ibv_import_mr(pd: *mut ibv_pd, handle: u32) -> ibv_mr;
    ibv_import_dm(context: *mut ibv_context, handle: u32) -> c_void;
    ibv_reg_dmabuf_mr(pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, descriptor: c_int, access: c_int) -> ibv_mr;
}

#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_pd(_pd: *mut ibv_pd) {}
#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_mr(_mr: *mut ibv_mr) {}
#[unsafe(no_mangle)]
extern "C" fn ibv_unimport_dm(_dm: *mut c_void) {}
