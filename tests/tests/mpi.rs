//! Programs with MPI. What stands under `not_yet` is ignored and is listed in LEDGER.md.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

stillpoint_tests::cases! {
    now {
        native: ring many_kinds nbx jacobi openmp_mpi comm types vectors objects late underway reduction queries fixed multiple beside sockets f77 f90 f08 cxx numpy_mpi lammps solver;
        through: ring many_kinds nbx jacobi openmp_mpi comm types vectors objects late underway reduction queries fixed multiple beside sockets f77 f90 f08 cxx numpy_mpi lammps solver;
        chained: ring;
        early: ring;
        checkpointed: ring many_kinds nbx jacobi openmp_mpi comm types vectors objects late underway reduction queries fixed multiple beside sockets f77 f90 f08 cxx numpy_mpi lammps solver;
        killed: ring many_kinds nbx jacobi openmp_mpi comm types vectors objects late underway reduction queries fixed multiple beside sockets f77 f90 f08 cxx numpy_mpi lammps solver;
        slower: ring openmp_mpi;
        direct: jacobi many_kinds;
        burst: jacobi many_kinds;
        warned: ring openmp_mpi;
        unheard: ring;
        stuck: ring;
        orphaned: late many_kinds nbx;
        scattered: many_kinds nbx sockets;
        hammered: many_kinds nbx comm late reduction queries sockets;
        generations: ring many_kinds jacobi sockets;
    }
    not_yet {}
}
