//! Which processes share what (clone(2)): equal numbers for equal resources, told by kcmp(2).

use std::cmp::Ordering;

use ckpt_sys::Error;
use ckpt_sys::task::{self, Shared};
use nix::unistd::Pid;

/// Numbers for tasks: the n-th task has resource `of[n]`; resource k was first met in the task at place `first[k]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partition {
    /// One number a task.
    pub of: Vec<u32>,
    /// One place a number, ascending.
    pub first: Vec<usize>,
}

/// Numbers equal things equally, in the order in which they come first. `compare` must be a total order.
pub fn partition<E>(
    len: usize,
    mut compare: impl FnMut(usize, usize) -> Result<Ordering, E>,
) -> Result<Partition, E> {
    // Insertion into a sorted list of representatives: len × log(len) comparisons.
    let mut sorted: Vec<u32> = Vec::new();
    let mut result = Partition::default();
    for task in 0..len {
        let (mut low, mut high, mut equal) = (0, sorted.len(), None);
        while low < high {
            let middle = low + (high - low) / 2;
            match compare(task, result.first[sorted[middle] as usize])? {
                Ordering::Equal => {
                    equal = Some(sorted[middle]);
                    break;
                }
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        let number = equal.unwrap_or_else(|| {
            let number = result.first.len() as u32;
            result.first.push(task);
            sorted.insert(low, number);
            number
        });
        result.of.push(number);
    }
    Ok(result)
}

/// The same for a resource of tasks.
pub fn shared(tasks: &[Pid], what: Shared) -> Result<Partition, Error> {
    partition(tasks.len(), |a, b| task::compare(tasks[a], tasks[b], what))
}

/// Whether two tasks of one process have the same descriptors and directories, as threads do unless they call unshare(2).
pub fn is_plain_thread(leader: Pid, tid: Pid) -> Result<bool, Error> {
    let files = task::compare(leader, tid, Shared::Files)?;
    Ok(files == Ordering::Equal && task::compare(leader, tid, Shared::Fs)? == Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_things_get_equal_numbers_in_order_of_appearance() {
        let things = [7, 3, 7, 9, 3, 1];
        let result = partition(things.len(), |a, b| Ok::<_, ()>(things[a].cmp(&things[b]))).unwrap();
        assert_eq!(result.of, [0, 1, 0, 2, 1, 3]);
        assert_eq!(result.first, [0, 1, 3, 5]);
    }

    #[test]
    fn a_failing_comparison_is_told() {
        assert_eq!(partition(2, |_, _| Err(5)), Err(5));
    }

    #[test]
    fn a_thread_shares_all_with_its_process() {
        let here = Pid::this();
        let same = std::thread::spawn(move || is_plain_thread(here, nix::unistd::gettid())).join();
        assert!(matches!(same, Ok(Ok(true))));
    }
}
