//! Where the rebuild runs (sched_setaffinity(2)).

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::Failure;

/// Stays on this CPU from now on, with all members that are made: a batch costs 20 µs there and 160 µs across CPUs. Gives the CPUs that
/// were allowed before, as a mask.
pub fn stay_here() -> Result<Vec<u64>, Failure> {
    let this = Pid::from_raw(0);
    let before = ckpt_sys::attributes::affinity(this)?;
    let mut here = CpuSet::new();
    // Not to be had is only slower.
    let _ = sched_getcpu().and_then(|cpu| here.set(cpu)).and_then(|()| sched_setaffinity(this, &here));
    Ok(before)
}

/// From so many members on, what they do by themselves outweighs what a batch costs across CPUs.
const WORTH: usize = 8;

/// Spreads members over the CPUs of a mask, as long as they work for themselves more than they wait for us: one CPU each, in turn. Each
/// thread's own set-up ends it.
pub fn spread(members: impl ExactSizeIterator<Item = Pid>, cpus: &[u64]) {
    if members.len() < WORTH {
        return;
    }
    let each = numbers(cpus).filter_map(|cpu| {
        let mut set = CpuSet::new();
        set.set(cpu).ok().map(|()| set)
    });
    let each: Vec<CpuSet> = each.collect();
    for (member, set) in members.zip(each.iter().cycle()) {
        // Not to be had is only slower.
        let _ = sched_setaffinity(member, set);
    }
}

/// Runs on these CPUs from now on, if that can be.
pub fn allow(cpus: &[u64]) {
    let mut set = CpuSet::new();
    for cpu in numbers(cpus) {
        let _ = set.set(cpu);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// The CPUs of a mask.
fn numbers(cpus: &[u64]) -> impl Iterator<Item = usize> {
    let of_word = |(word, bits): (usize, &u64)| {
        let bits = *bits;
        (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
    };
    cpus.iter().enumerate().flat_map(of_word)
}
