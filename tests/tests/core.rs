//! Programs without MPI. What stands under `not_yet` is ignored and is listed in LEDGER.md.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

stillpoint_tests::cases! {
    now {
        native: count files signals threads fpu mmap sparse exec children descriptors pending ids transfers advice;
        through: count files signals threads fpu mmap sparse exec children descriptors pending ids transfers advice;
        chained: count;
        early: count;
        checkpointed: count files signals threads fpu mmap sparse exec children descriptors pending ids transfers advice;
        killed: count files signals threads fpu mmap sparse exec children descriptors pending ids transfers advice;
        slower: threads fpu;
        direct: sparse threads;
        burst: files;
        warned: count exec;
        stormed: exec;
        unheard: count;
        stuck: count;
        orphaned: threads;
        hammered: files signals threads mmap transfers;
        generations: files threads pending ids transfers;
    }
    not_yet {}
}
