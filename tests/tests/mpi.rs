//! Programs with MPI. What stands under `not_yet` is ignored and is listed in LEDGER.md.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

stillpoint_tests::cases! {
    now {
        native: ring many_kinds nbx jacobi openmp_mpi comm types f08 numpy_mpi;
        through: ring many_kinds nbx jacobi openmp_mpi comm types f08 numpy_mpi;
        chained: ring;
        checkpointed: ring many_kinds nbx jacobi openmp_mpi comm types f08 numpy_mpi;
        killed: ring many_kinds nbx jacobi openmp_mpi comm types f08 numpy_mpi;
        hammered: many_kinds nbx comm;
        generations: ring many_kinds jacobi;
    }
    not_yet {}
}
