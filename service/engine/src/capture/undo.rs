//! What processes have to undo at their end: the adjustments of semop(2) with SEM_UNDO. The kernel tells them to nobody, but it checks their
//! range before anything else happens, so a member is asked by operations that always fail, by how they fail:
//!
//! ```text
//!  value to 32767 · −(32767−t) with SEM_UNDO · −32767 · −32767      ERANGE: adjustment > t      EAGAIN: not
//!  value to 0     · +(t+32768) with SEM_UNDO · −32767 · −32767      ERANGE: adjustment < t      EAGAIN: not
//! ```
//! All operations of a call happen at once or none does (semop(2)), and the last always fails, without waiting (IPC_NOWAIT). So neither values
//! nor adjustments change.

use ckpt_image::records::SemaphoreSetRecord;
use ckpt_sys::Error as SysError;
use ckpt_sys::inject::Live;
use ckpt_sys::thread::Deadline;
use nix::errno::Errno;
use nix::libc;

/// SEMVMX and SEMAEM: the greatest value and the greatest adjustment.
const MOST: i32 = 32_767;

/// An operation: change, flags.
type Operation = (i32, i32);

/// The bytes of the operations on one semaphore (struct sembuf).
pub fn sembufs(number: u16, operations: &[Operation]) -> Vec<u8> {
    let bytes = |(change, flags): &Operation| {
        [number.to_ne_bytes(), (*change as i16).to_ne_bytes(), (*flags as i16).to_ne_bytes()].concat()
    };
    operations.iter().flat_map(bytes).collect()
}

/// Operations that fail, with ERANGE if the adjustment is above `t`, from 0 to 32,766.
fn above(value: i32, t: i32) -> Vec<Operation> {
    let ask = (-(MOST - t), libc::SEM_UNDO | libc::IPC_NOWAIT);
    failing(&[(MOST - value, 0), ask])
}

/// Operations that fail, with ERANGE if the adjustment is below `t`, from -32,767 to 0.
fn below(value: i32, t: i32) -> Vec<Operation> {
    let down = (-value, libc::IPC_NOWAIT);
    match t {
        0 => failing(&[down, (MOST, libc::SEM_UNDO), (-1, libc::IPC_NOWAIT), (1, libc::SEM_UNDO)]),
        t => failing(&[down, (t + MOST + 1, libc::SEM_UNDO)]),
    }
}

/// A change of 0 would wait for zero.
fn failing(operations: &[Operation]) -> Vec<Operation> {
    let last = [(-MOST, libc::IPC_NOWAIT); 2];
    operations.iter().filter(|(change, _)| *change != 0).chain(&last).copied().collect()
}

/// Operations that leave a semaphore of this value as it is, and give the caller an adjustment more.
pub fn adjusting(value: i32, adjustment: i32) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut left = adjustment;
    while left != 0 {
        // Of so few, either there is room above or enough below.
        let part = left.clamp(-MOST / 2, MOST / 2);
        let (undone, plain) = ((-part, libc::SEM_UNDO), (part, 0));
        let first_up = value + part.abs() <= MOST;
        operations.extend(if (part > 0) == first_up { [plain, undone] } else { [undone, plain] });
        left -= part;
    }
    operations
}

/// Set, number in it, adjustment.
pub type Adjustment = (i32, u16, i16);

/// The adjustments that a process has, of the semaphores of these sets. `None` if it cannot be told. Sets that it may not
/// change are left out.
pub fn adjustments(
    live: &mut Live,
    sets: &[&SemaphoreSetRecord],
    deadline: Deadline,
) -> Result<Option<Vec<Adjustment>>, SysError> {
    if !live.allows(libc::SYS_semop, &[0; 6]) {
        return Ok(Some(Vec::new()));
    }
    let all = sets
        .iter()
        .flat_map(|set| (0..).zip(&set.values).map(|(n, value)| (set.semid, n, i32::from(*value))));
    let all: Vec<(i32, u16, i32)> = all.collect();
    let questions: Vec<_> = all
        .iter()
        .flat_map(|&(set, n, value)| [(set, n, above(value, 0)), (set, n, below(value, 0))])
        .collect();
    let Some(signs) = ask(live, &questions, deadline)? else { return Ok(None) };
    let mut found = Vec::new();
    for (&(set, n, value), sign) in all.iter().zip(signs.chunks(2)) {
        let (mut low, mut high) = match sign {
            [true, _] => (1, MOST),
            [_, true] => (-MOST - 1, -1),
            _ => continue,
        };
        // Most have one more or less.
        let mut middle = if low > 0 { low } else { high };
        while low < high {
            let question = if low > 0 { above(value, middle) } else { below(value, middle) };
            let Some(answer) = ask(live, &[(set, n, question)], deadline)? else { return Ok(None) };
            match (low > 0, answer == [true]) {
                (true, true) => low = middle + 1,
                (true, false) => high = middle,
                (false, true) => high = middle - 1,
                (false, false) => low = middle,
            }
            middle = if low > 0 { (low + high) / 2 } else { (low + high + 1).div_euclid(2) };
        }
        found.push((set, n, low as i16));
    }
    Ok(Some(found))
}

/// Asks a process; true for each question that failed by range. `None` where one failed otherwise than for want of the right to.
fn ask(
    live: &mut Live,
    questions: &[(i32, u16, Vec<Operation>)],
    deadline: Deadline,
) -> Result<Option<Vec<bool>>, SysError> {
    let mut answers = Vec::with_capacity(questions.len());
    while answers.len() < questions.len() {
        let mut batch = live.batch(0)?;
        let mut calls = Vec::new();
        for (set, number, operations) in &questions[answers.len()..] {
            let bytes = sembufs(*number, operations);
            if !batch.has_room(1, bytes.len() + 16) {
                break;
            }
            let at = batch.data(&bytes).get();
            calls.push(batch.push(libc::SYS_semop, [*set as u64, at, operations.len() as u64, 0, 0, 0]));
        }
        let outcomes = live.run(&[(0, &batch)], deadline)?;
        let Some(outcome) = outcomes.first() else { return Ok(None) };
        for call in &calls {
            match outcome.result(*call) {
                Err(Errno::ERANGE) => answers.push(true),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EIDRM | Errno::EINVAL) => answers.push(false),
                _ => return Ok(None),
            }
        }
        if calls.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// semop(2) on one semaphore: the value and the adjustment afterwards, or how it fails.
    fn semop(value: i32, adjustment: i32, operations: &[Operation]) -> Result<(i32, i32), Errno> {
        let (mut value, mut adjustment) = (value, adjustment);
        for (change, flags) in operations {
            assert!(*change != 0 && i16::try_from(*change).is_ok());
            value += change;
            if value < 0 {
                assert!(flags & libc::IPC_NOWAIT != 0, "it would wait");
                return Err(Errno::EAGAIN);
            }
            if value > MOST {
                return Err(Errno::ERANGE);
            }
            if flags & libc::SEM_UNDO != 0 {
                adjustment -= change;
                if !(-MOST - 1..=MOST).contains(&adjustment) {
                    return Err(Errno::ERANGE);
                }
            }
        }
        Ok((value, adjustment))
    }

    #[test]
    fn questions_fail_by_what_they_ask() {
        for value in [0, 1, 77, 16_384, MOST - 1, MOST] {
            for adjustment in [-MOST - 1, -MOST, -5, -1, 0, 1, 5, MOST - 1, MOST] {
                for t in [0, 1, 4, 5, 16_383, MOST - 1] {
                    let told = semop(value, adjustment, &above(value, t));
                    assert_eq!(told, Err(if adjustment > t { Errno::ERANGE } else { Errno::EAGAIN }));
                    let told = semop(value, adjustment, &below(value, -t));
                    assert_eq!(told, Err(if adjustment < -t { Errno::ERANGE } else { Errno::EAGAIN }));
                }
                if adjustment > -MOST {
                    assert_eq!(semop(value, 0, &adjusting(value, adjustment)), Ok((value, adjustment)));
                }
            }
        }
    }
}
