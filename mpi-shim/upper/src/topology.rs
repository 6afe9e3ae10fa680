//! Topologies: made below, recorded above, so that a restart can make them again. Upper half.
//!
//! What a reader would get wrong: questions about a topology go to the library, which answers them without talking to
//! anybody; it needs the topology anyway, for the neighbourhood collectives.
#![allow(unsafe_code, reason = "exports functions")]

use alloc::vec::Vec;
use core::ffi::c_int;

use crate::clock::Within;
use crate::comm::{UNDEFINED, check_comm, made, valid};
use crate::errhandler::raise;
use crate::handles::{Comm, Info, Topology, real};
use crate::{down, export, predefined};

/// MPI_ERR_TOPOLOGY.
const ERR_TOPOLOGY: c_int = 11;

export! {
    fn MPI_Topo_test(comm: *mut Comm, status: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Topo_test");
        *status = match (*comm).topology {
            Topology::None => UNDEFINED,
            Topology::Cart { .. } => 1,
            Topology::Graph { .. } => 2,
            Topology::Dist { .. } => 3,
        };
        0
    }
    fn MPI_Cart_create(comm: *mut Comm, n: c_int, dims: *const c_int, periods: *const c_int, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Cart_create");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let code = down!(MPI_Cart_create(
            c: usize = real(comm), n: c_int = n, d: *const c_int = dims, p: *const c_int = periods, r: c_int = reorder,
            new: *mut usize = &raw mut at) -> c_int);
        shaped(code, at, comm, new, "MPI_Cart_create", |_| {
            Topology::Cart { dims: copied(dims, n), periods: copied(periods, n) }
        })
    }
    fn MPI_Cartdim_get(comm: *mut Comm, n: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Cartdim_get");
        let Topology::Cart { dims, .. } = &(*comm).topology else {
            return raise(comm.cast(), ERR_TOPOLOGY, "MPI_Cartdim_get");
        };
        *n = c_int::try_from(dims.len()).unwrap_or(0);
        0
    }
    fn MPI_Cart_sub(comm: *mut Comm, remain: *const c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Cart_sub");
        let _clock = Within::enter(comm);
        let Topology::Cart { dims, periods } = (*comm).topology.clone() else {
            return raise(comm.cast(), ERR_TOPOLOGY, "MPI_Cart_sub");
        };
        let mut at = 0usize;
        let code = down!(MPI_Cart_sub(c: usize = real(comm), r: *const c_int = remain, n: *mut usize = &raw mut at) -> c_int);
        shaped(code, at, comm, new, "MPI_Cart_sub", |_| {
            let keep = copied(remain, c_int::try_from(dims.len()).unwrap_or(0));
            let pick = |v: &[c_int]| v.iter().zip(&keep).filter(|k| *k.1 != 0).map(|k| *k.0).collect::<Vec<_>>();
            Topology::Cart { dims: pick(&dims), periods: pick(&periods) }
        })
    }
    fn MPI_Graph_create(comm: *mut Comm, n: c_int, index: *const c_int, edges: *const c_int, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Graph_create");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let code = down!(MPI_Graph_create(
            c: usize = real(comm), n: c_int = n, i: *const c_int = index, e: *const c_int = edges, r: c_int = reorder,
            new: *mut usize = &raw mut at) -> c_int);
        shaped(code, at, comm, new, "MPI_Graph_create", |_| {
            let index = copied(index, n);
            let edges = copied(edges, index.last().copied().unwrap_or(0));
            Topology::Graph { index, edges }
        })
    }
    fn MPI_Dist_graph_create(comm: *mut Comm, n: c_int, nodes: *const c_int, degrees: *const c_int, targets: *const c_int, weights: *const c_int, _info: *mut Info, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Dist_graph_create");
        let _clock = Within::enter(comm);
        let (mut at, none) = (0usize, real(predefined!(ompi_mpi_info_null as Info)));
        let code = down!(MPI_Dist_graph_create(
            c: usize = real(comm), n: c_int = n, s: *const c_int = nodes, g: *const c_int = degrees, d: *const c_int = targets,
            w: *const c_int = weights, i: usize = none, r: c_int = reorder, o: *mut usize = &raw mut at) -> c_int);
        shaped(code, at, comm, new, "MPI_Dist_graph_create", neighbours)
    }
    fn MPI_Dist_graph_create_adjacent(comm: *mut Comm, indegree: c_int, sources: *const c_int, source_weights: *const c_int, outdegree: c_int, destinations: *const c_int, weights: *const c_int, _info: *mut Info, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Dist_graph_create_adjacent");
        let _clock = Within::enter(comm);
        let (mut at, none) = (0usize, real(predefined!(ompi_mpi_info_null as Info)));
        let code = down!(MPI_Dist_graph_create_adjacent(
            c: usize = real(comm), ni: c_int = indegree, s: *const c_int = sources, sw: *const c_int = source_weights,
            no: c_int = outdegree, d: *const c_int = destinations, dw: *const c_int = weights, i: usize = none,
            r: c_int = reorder, o: *mut usize = &raw mut at) -> c_int);
        shaped(code, at, comm, new, "MPI_Dist_graph_create_adjacent", neighbours)
    }
}

/// The end of a call over `parent` that makes a communicator with a topology, which `topology` tells for the library's
/// new one.
///
/// # Safety
/// `parent` is live; `new` is writable. All members of `at` call this.
unsafe fn shaped(
    code: c_int,
    at: usize,
    parent: *mut Comm,
    new: *mut *mut Comm,
    name: &str,
    topology: impl FnOnce(usize) -> Topology,
) -> c_int {
    // SAFETY: the caller's promise; what was just made is known to nobody else.
    unsafe {
        let code = made(code, at, parent, new, name);
        if code == 0 && valid(*new) {
            (**new).topology = topology(at);
            (**new).show();
        }
        code
    }
}

/// The neighbours that the library knows for the distributed graph `at`.
fn neighbours(at: usize) -> Topology {
    let (mut n_in, mut n_out, mut weighted): (c_int, c_int, c_int) = (0, 0, 0);
    down!(MPI_Dist_graph_neighbors_count(c: usize = at, i: *mut c_int = &raw mut n_in, o: *mut c_int = &raw mut n_out,
        w: *mut c_int = &raw mut weighted) -> c_int);
    let room = |n: c_int| alloc::vec![0 as c_int; usize::try_from(n).unwrap_or(0)];
    let (mut s, mut sw, mut d, mut dw) = (room(n_in), room(n_in), room(n_out), room(n_out));
    let place = |w: &mut Vec<c_int>| -> *mut c_int {
        // MPI_UNWEIGHTED
        if weighted == 0 { core::ptr::without_provenance_mut(2) } else { w.as_mut_ptr() }
    };
    let (sw_at, dw_at) = (place(&mut sw), place(&mut dw));
    down!(MPI_Dist_graph_neighbors(c: usize = at, i: c_int = n_in, s: *mut c_int = s.as_mut_ptr(), sw: *mut c_int = sw_at,
        o: c_int = n_out, d: *mut c_int = d.as_mut_ptr(), dw: *mut c_int = dw_at) -> c_int);
    if weighted == 0 {
        sw.clear();
        dw.clear();
    }
    Topology::Dist {
        sources: s,
        source_weights: sw,
        destinations: d,
        destination_weights: dw,
        weighted: weighted != 0,
    }
}

/// # Safety
/// `at` is readable for `n` integers, or `n` is not positive.
unsafe fn copied(at: *const c_int, n: c_int) -> Vec<c_int> {
    let n = usize::try_from(n).unwrap_or(0);
    if n == 0 || at.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(at, n) }.to_vec()
}

/// Queries on a communicator that the library answers without talking to anybody.
macro_rules! asked {
    ($($name:ident($($a:ident: $t:ty),*);)*) => {
        export! { $(
            fn $name(comm: *mut Comm, $($a: $t),*) -> c_int {
                check_comm!(comm, stringify!($name));
                let code = down!($name(c: usize = real(comm), $($a: $t = $a),*) -> c_int);
                raise(comm.cast(), code, stringify!($name))
            }
        )* }
    };
}
asked! {
    MPI_Cart_coords(rank: c_int, n: c_int, coords: *mut c_int);
    MPI_Cart_get(n: c_int, dims: *mut c_int, periods: *mut c_int, coords: *mut c_int);
    MPI_Cart_map(n: c_int, dims: *const c_int, periods: *const c_int, rank: *mut c_int);
    MPI_Cart_rank(coords: *const c_int, rank: *mut c_int);
    MPI_Cart_shift(direction: c_int, disp: c_int, source: *mut c_int, dest: *mut c_int);
    MPI_Graph_get(ni: c_int, ne: c_int, index: *mut c_int, edges: *mut c_int);
    MPI_Graph_map(n: c_int, index: *const c_int, edges: *const c_int, rank: *mut c_int);
    MPI_Graph_neighbors(rank: c_int, n: c_int, neighbors: *mut c_int);
    MPI_Graph_neighbors_count(rank: c_int, n: *mut c_int);
    MPI_Graphdims_get(ni: *mut c_int, ne: *mut c_int);
    MPI_Dist_graph_neighbors(ni: c_int, s: *mut c_int, sw: *mut c_int, no: c_int, d: *mut c_int, dw: *mut c_int);
    MPI_Dist_graph_neighbors_count(ni: *mut c_int, no: *mut c_int, weighted: *mut c_int);
}
export! {
    fn MPI_Dims_create(nodes: c_int, n: c_int, dims: *mut c_int) -> c_int {
        let code = down!(MPI_Dims_create(nodes: c_int = nodes, n: c_int = n, d: *mut c_int = dims) -> c_int);
        raise(core::ptr::null_mut(), code, "MPI_Dims_create")
    }
}
