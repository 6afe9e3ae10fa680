//! What a call costs, what a rank weighs and how long the solver takes, natively and under Stillpoint, without any
//! checkpoint. Runs *next door*.
//!
//! What a reader would get wrong: MPI_Get_count is the call that is held against the target of a crossing. It does next to
//! nothing below and has no state in the front, so that it shows the crossing alone; the front could answer it itself, and
//! then this figure must move to another call. "Two wrfsbase" is what the hardware takes of every crossing, measured by the
//! same program without any MPI call. MPI_Iprobe shows a crossing with the books of point-to-point around it.

use crate::bed::{Bed, Said, finish, log, run, start};
use crate::report::{Figure, Take, Target};

/// Adds one pair of runs to the figures of these names.
fn add(figures: &mut [Figure], native: Option<&Said>, ours: Option<&Said>, names: &[(&str, &str)]) {
    for (printed, name) in names {
        let Some(figure) = figures.iter_mut().find(|f| f.name == *name) else { continue };
        figure.native.extend(native.and_then(|said| said.get(*printed)).into_iter().flatten());
        figure.ours.extend(ours.and_then(|said| said.get(*printed)).into_iter().flatten());
    }
}

/// Calls of one process, and the ping-pong of two.
pub(crate) fn calls(bed: &Bed, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let least = |name, target| Figure::new(name, "ns", Take::Least, target);
    let mut figures = vec![
        // Half a cycle of room: the least of a loop is no exact number.
        least("MPI_Comm_rank", Target::Line(1.0, 0.2)),
        least("MPI_Get_count (crosses)", Target::Line(1.0, 15.0)),
        least("MPI_Iprobe on MPI_COMM_SELF (crosses)", Target::None),
        least("two wrfsbase, the hardware's share of a crossing", Target::None),
        least("clock_gettime", Target::Line(1.05, 0.0)),
        least("malloc and free, 100 B", Target::Line(1.05, 0.0)),
        least("malloc and free, 100 kB", Target::Line(1.05, 0.0)),
        least("ping-pong of 8 B, half the round trip", Target::Line(1.15, 0.0)),
    ];
    let names = [
        ("comm_rank", figures[0].name),
        ("get_count", figures[1].name),
        ("iprobe", figures[2].name),
        ("fsbase", figures[3].name),
        ("clock_gettime", figures[4].name),
        ("malloc", figures[5].name),
        ("malloc_large", figures[6].name),
        ("pingpong", figures[7].name),
    ];
    for _ in 0..pairs {
        for (ranks, what) in [(1, "calls"), (2, "pingpong")] {
            let (native, ours) = pair(bed, ranks, what, native_only)?;
            add(&mut figures, Some(&native), ours.as_ref(), &names);
        }
    }
    Ok(figures)
}

/// A post and an empty poll of the verbs, over a library that does nothing.
pub(crate) fn verbs(bed: &Bed, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let least = |name| Figure::new(name, "ns", Take::Least, Target::Line(1.0, 15.0));
    let mut figures = vec![
        least("ibv_post_send, over a library that does nothing"),
        least("ibv_poll_cq, empty"),
        least("ibv_post_send, each of 4 threads"),
        least("ibv_poll_cq, empty, each of 4 threads"),
    ];
    let names = [
        ("post", figures[0].name),
        ("poll", figures[1].name),
        ("post4", figures[2].name),
        ("poll4", figures[3].name),
    ];
    for _ in 0..pairs {
        let native = run(null(&mut bed.alone("verbs")))?;
        let ours = if native_only {
            None
        } else {
            let store = bed.folder("store")?;
            Some(run(null(&mut bed.ours_alone(&store, "verbs"))).map_err(|why| why + &log(&store))?)
        };
        add(&mut figures, Some(&native), ours.as_ref(), &names);
    }
    Ok(figures)
}

/// With the model of the verbs in its null form.
fn null(command: &mut std::process::Command) -> &mut std::process::Command {
    let own = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join("verbs-model")));
    command.env("LD_LIBRARY_PATH", own.unwrap_or_default()).env("MODEL_NULL", "1")
}

/// What Stillpoint adds to a rank of a small program: the differences of pairs.
pub(crate) fn weight(bed: &Bed, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let mut figures = vec![
        Figure::new("resident set of a small rank", "MiB", Take::Median, Target::Line(1.0, 24.0)),
        Figure::new("the same, shared pages counted in part", "MiB", Take::Median, Target::Line(1.0, 24.0)),
    ];
    let names = [("rss", figures[0].name), ("pss", figures[1].name)];
    for _ in 0..pairs {
        let (native, ours) = pair(bed, 2, "memory", native_only)?;
        add(&mut figures, Some(&native), ours.as_ref(), &names);
    }
    Ok(figures)
}

fn pair(bed: &Bed, ranks: u32, what: &str, native_only: bool) -> Result<(Said, Option<Said>), String> {
    let native = run(bed.native(ranks, "call").arg(what))?;
    if native_only {
        return Ok((native, None));
    }
    let store = bed.folder("store")?;
    let ours = run(bed.ours(&store, ranks, "call").arg(what)).map_err(|why| why + &log(&store))?;
    Ok((native, Some(ours)))
}

/// The solver on rsmpi: both sides must find the same checksum.
pub(crate) fn solver(bed: &Bed, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let mut figure =
        Figure::new("solver on rsmpi, 2 ranks, without a checkpoint", "s", Take::Median, Target::None);
    let mut saved = Figure::new("the same, a checkpoint every 500 ms", "s", Take::Median, Target::None);
    let mut first = None;
    let mut once = |command: &mut std::process::Command| -> Result<f64, String> {
        let text = finish(start(command.args(["2000", "1"]))?, "bench-solver")?;
        let result = text.lines().find(|line| line.starts_with("result ")).unwrap_or_default().to_owned();
        let expected = first.get_or_insert_with(|| result.clone());
        if result.is_empty() || *expected != result {
            return Err(format!("the solver found {result:?}, and {expected:?} before"));
        }
        let said = crate::bed::figures(&text);
        said.get("seconds")
            .and_then(|v| v.first())
            .copied()
            .ok_or_else(|| "the solver told no time".to_owned())
    };
    for _ in 0..pairs {
        let native = once(&mut bed.native(2, "solver"))?;
        figure.native.push(native);
        if native_only {
            continue;
        }
        figure.ours.push(once(&mut bed.ours(&bed.folder("store")?, 2, "solver"))?);
        saved.native.push(native);
        let store = bed.folder("store")?;
        saved.ours.push(once(&mut bed.saved(&store, 2, "solver", "500ms"))?);
    }
    Ok(vec![figure, saved])
}
