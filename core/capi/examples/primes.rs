//! Counts primes, with checkpoints where the program wants them: `primes [ROUNDS]`.
//!
//! `stillpoint run -- target/release/examples/primes`; without Stillpoint it runs as well. It prints `result` and a number
//! that is the same however often it was restarted.
#![allow(clippy::print_stdout, reason = "an example prints")]
#![allow(unsafe_code, reason = "leaves memory out of the images")]

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use stillpoint::{Callbacks, Checkpointed, Error};

const EVERY: u64 = 100;
const SIEVE: usize = 1 << 20;

static RESTARTS: AtomicU32 = AtomicU32::new(0);

struct Count;

impl Callbacks for Count {
    fn restarted(&mut self) {
        RESTARTS.fetch_add(1, Relaxed);
    }
}

/// Primes in `[start, start + SIEVE)`. `sieve` is scratch: all of it is written before it is read.
fn primes(start: u64, sieve: &mut [u8]) -> usize {
    sieve.fill(1);
    let end = start + sieve.len() as u64;
    for d in (2..).take_while(|d| d * d < end) {
        let first = (start.div_ceil(d) * d).max(d * d);
        for multiple in (first..end).step_by(usize::try_from(d).unwrap_or(usize::MAX)) {
            sieve[usize::try_from(multiple - start).unwrap_or(0)] = 0;
        }
    }
    let at = |k: usize| start + k as u64;
    sieve.iter().enumerate().filter(|(k, is)| **is == 1 && at(*k) > 1).count()
}

fn main() -> Result<(), Error> {
    let rounds: u64 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1000);
    stillpoint::on_checkpoint(Count)?;
    let mut sieve = vec![0u8; SIEVE];
    // SAFETY: bytes that may be zero at any moment between two rounds, and given back before they are freed.
    unsafe { stillpoint::exclude(sieve.as_ptr(), sieve.len())? };

    let mut sum = 0u64;
    for round in 1..=rounds {
        {
            // The sieve is in use: no checkpoint may find it half done.
            let _busy = stillpoint::forbid();
            sum = sum.wrapping_mul(31).wrapping_add(primes(round << 20, &mut sieve) as u64);
        }
        if round % EVERY == 0 {
            match stillpoint::checkpoint() {
                Ok(Checkpointed::Durable) => println!("round {round}: checkpoint"),
                Ok(Checkpointed::Restarted) => println!("round {round}: restarted"),
                Ok(Checkpointed::Asked) => println!("round {round}: asked"), // with MPI only
                Err(why) => println!("round {round}: no checkpoint, {why}"),
            }
        }
    }

    stillpoint::include(sieve.as_ptr(), sieve.len())?;
    let (called, counted) = (RESTARTS.load(Relaxed), stillpoint::restarts());
    assert_eq!(called, counted, "a callback for each restart");
    println!("callbacks {} restarted {called}", stillpoint::checkpoints());
    println!("result {sum}\nEXIT-SUCCESS");
    Ok(())
}
