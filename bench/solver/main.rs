//! A solver in Rust on rsmpi: conjugate gradients for the five-point Laplacian on a square grid, rows shared out over the
//! ranks. An MPI program like any other; it knows nothing of Stillpoint.
//!
//! `bench-solver [ROUNDS [SEED [SIDE]]]` prints `result`, the rounds and a checksum over the bits of the solution and of
//! every residual on the way, then `seconds`. What a reader would get wrong: for one number of ranks the checksum does not
//! depend on the order in which messages come. Sums over ranks are gathered and added in rank order, so a restarted run
//! must end with the same bits. The right side is drawn anew after every [`LAP`] rounds, before the residual is all noise.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line program")]

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::time::Instant;

/// Rounds of one right side.
const LAP: u64 = 200;

fn main() {
    let word = |at: usize, other: u64| std::env::args().nth(at).and_then(|w| w.parse().ok()).unwrap_or(other);
    let (rounds, seed) = (word(1, 2000), word(2, 1));
    let Some(universe) = mpi::initialize() else { return };
    let world = universe.world();
    // Every rank has a row at least.
    let side = from(world.size()).max(usize::try_from(word(3, 512)).unwrap_or(512));
    let begun = Instant::now();
    let checksum = Solver::new(&world, side).run(rounds, seed);
    if world.rank() == 0 {
        println!(
            "result {rounds} {checksum:016x}\nseconds {:.6}\nEXIT-SUCCESS",
            begun.elapsed().as_secs_f64()
        );
    }
}

/// The rows of one rank; vectors that the operator is applied to have a halo row above and below.
struct Solver<'a> {
    world: &'a SimpleCommunicator,
    side: usize,
    first: usize,
    rows: usize,
    x: Vec<f64>,
    r: Vec<f64>,
    p: Vec<f64>,
    q: Vec<f64>,
}

impl<'a> Solver<'a> {
    fn new(world: &'a SimpleCommunicator, side: usize) -> Self {
        let (rank, size) = (from(world.rank()), from(world.size()));
        let (first, end) = (side * rank / size, side * (rank + 1) / size);
        let rows = end - first;
        let zeros = || vec![0.0; rows * side];
        Solver {
            world,
            side,
            first,
            rows,
            x: zeros(),
            r: zeros(),
            p: vec![0.0; (rows + 2) * side],
            q: zeros(),
        }
    }

    fn run(mut self, rounds: u64, seed: u64) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        let mut rr = 0.0;
        for round in 0..rounds {
            if round % LAP == 0 {
                rr = self.begin(seed.wrapping_add(round));
            }
            rr = self.step(rr);
            mix(&mut hash, rr.to_bits());
        }
        self.x.iter().for_each(|v| mix(&mut hash, v.to_bits()));
        let mut all = vec![0u64; from(self.world.size())];
        self.world.all_gather_into(&hash, &mut all[..]);
        all.into_iter().fold(0, |mut sum, one| {
            mix(&mut sum, one);
            sum
        })
    }

    /// Draws a right side; the solution begins at zero.
    fn begin(&mut self, seed: u64) -> f64 {
        let begin = (self.first * self.side) as u64;
        for (at, r) in (begin..).zip(&mut self.r) {
            *r = draw(seed, at);
        }
        self.x.fill(0.0);
        let own = self.rows * self.side;
        self.p[self.side..self.side + own].copy_from_slice(&self.r);
        self.sum(dot(&self.r, &self.r))
    }

    /// One round of conjugate gradients; the new squared residual.
    fn step(&mut self, rr: f64) -> f64 {
        self.halo();
        self.apply();
        let own = self.side..self.side + self.rows * self.side;
        let alpha = rr / self.sum(dot(&self.p[own.clone()], &self.q));
        for ((x, p), (r, q)) in
            self.x.iter_mut().zip(&self.p[own.clone()]).zip(self.r.iter_mut().zip(&self.q))
        {
            *x += alpha * p;
            *r -= alpha * q;
        }
        let new = self.sum(dot(&self.r, &self.r));
        let beta = new / rr;
        for (p, r) in self.p[own].iter_mut().zip(&self.r) {
            *p = r + beta * *p;
        }
        new
    }

    /// Exchanges the rows at the edges with both neighbours.
    fn halo(&mut self) {
        let (rank, size, side) = (self.world.rank(), self.world.size(), self.side);
        let end = self.p.len();
        let (up, down) = (
            self.world.process_at_rank((rank - 1).max(0)),
            self.world.process_at_rank((rank + 1).min(size - 1)),
        );
        let (top, rest) = self.p.split_at_mut(side);
        let (own, bottom) = rest.split_at_mut(end - 2 * side);
        let (first, last) = (&own[..side], &own[own.len() - side..]);
        mpi::request::scope(|scope| {
            let mut requests = Vec::with_capacity(4);
            if rank > 0 {
                requests.push(up.immediate_receive_into_with_tag(scope, top, 1));
            }
            if rank < size - 1 {
                requests.push(down.immediate_receive_into_with_tag(scope, bottom, 2));
            }
            let mut sends = Vec::with_capacity(2);
            if rank > 0 {
                sends.push(up.immediate_send_with_tag(scope, first, 2));
            }
            if rank < size - 1 {
                sends.push(down.immediate_send_with_tag(scope, last, 1));
            }
            for request in requests {
                request.wait();
            }
            for request in sends {
                request.wait();
            }
        });
    }

    /// `q` = A `p`, with zeros beyond the edge of the grid.
    fn apply(&mut self) {
        let side = self.side;
        for row in 0..self.rows {
            let at = (row + 1) * side;
            let (above, own, below) =
                (&self.p[at - side..at], &self.p[at..at + side], &self.p[at + side..at + 2 * side]);
            let q = &mut self.q[row * side..(row + 1) * side];
            for i in 0..side {
                let left = if i > 0 { own[i - 1] } else { 0.0 };
                let right = if i + 1 < side { own[i + 1] } else { 0.0 };
                q[i] = 4.0 * own[i] - left - right - above[i] - below[i];
            }
        }
    }

    /// Sum over the ranks, in their order.
    fn sum(&self, own: f64) -> f64 {
        let mut all = vec![0.0; from(self.world.size())];
        self.world.all_gather_into(&own, &mut all[..]);
        all.iter().sum()
    }
}

fn from(rank: i32) -> usize {
    usize::try_from(rank).unwrap_or(0)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// FNV-1a over words.
fn mix(hash: &mut u64, word: u64) {
    *hash = (*hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
}

/// A number in -1 .. 1 that depends on the place in the grid, not on the rank.
fn draw(seed: u64, at: u64) -> f64 {
    let mut z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_lie_around_zero() {
        let all: Vec<f64> = (0..1000).map(|at| draw(7, at)).collect();
        assert!(all.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(all.iter().sum::<f64>().abs() < 100.0);
    }
}
