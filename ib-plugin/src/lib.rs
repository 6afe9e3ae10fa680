//! Will be the verbs plugin of Stillpoint. It is empty: a program that uses verbs itself cannot be checkpointed yet, and
//! DESIGN.md beside it says how it is meant to. It will run in the *upper half*.
#![no_std]
#![forbid(unsafe_code)]
