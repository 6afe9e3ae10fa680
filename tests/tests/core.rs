//! Programs without MPI. What stands under `not_yet` is ignored and is listed in LEDGER.md.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

stillpoint_tests::cases! {
    now {
        native: count files signals threads fpu mmap sparse exec children descriptors pending ids;
        through: count files signals threads fpu mmap sparse exec children descriptors pending ids;
        chained: count;
        checkpointed: count files signals threads fpu mmap sparse exec children descriptors pending ids;
        killed: count files signals threads fpu mmap sparse exec children descriptors pending ids;
        slower: threads fpu;
        burst: files;
        warned: count exec;
        unheard: count;
        stuck: count;
        orphaned: threads;
        hammered: files signals threads mmap;
        generations: files threads pending ids;
    }
    not_yet {}
}
