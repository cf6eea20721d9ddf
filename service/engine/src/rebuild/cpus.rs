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

/// Runs on these CPUs from now on, if that can be.
pub fn allow(cpus: &[u64]) {
    let mut set = CpuSet::new();
    for (word, bits) in cpus.iter().enumerate() {
        for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
            let _ = set.set(word * 64 + bit);
        }
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}
