//! The seccomp filters of a group: the same program is kept once (seccomp(2)).

use std::collections::HashMap;

use ckpt_image::records::FilterId;
use ckpt_sys::inject::Live;

use super::text::Status;

/// The registry. One a capture.
#[derive(Debug, Default)]
pub struct Filters {
    programs: Vec<Vec<u8>>,
    known: HashMap<Vec<u8>, FilterId>,
}

impl Filters {
    /// The number of a program.
    fn record(&mut self, program: &[u8]) -> FilterId {
        if let Some(id) = self.known.get(program) {
            return *id;
        }
        let id = FilterId(self.programs.len() as u32);
        self.programs.push(program.to_vec());
        self.known.insert(program.to_vec(), id);
        id
    }

    /// The filters of a thread, oldest first. A thread with as many as the first thread has the same: they are read when the process
    /// is prepared; a thread with more or fewer is read by itself.
    pub fn of_thread(
        &mut self,
        live: &Live,
        place: usize,
        status: &Status,
    ) -> Result<Vec<FilterId>, ckpt_sys::Error> {
        if status.seccomp != 2 {
            return Ok(Vec::new());
        }
        if place == 0 || status.seccomp_filters == live.filters().len() {
            return Ok(live.filters().iter().map(|program| self.record(program)).collect());
        }
        let own = live.stopped(place)?.seccomp_filters()?;
        Ok(own.iter().map(|program| self.record(program)).collect())
    }

    /// All programs, by [`FilterId`].
    pub fn into_programs(self) -> Vec<Vec<u8>> {
        self.programs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_kept_once() {
        let mut filters = Filters::default();
        let a = filters.record(&[1; 8]);
        let b = filters.record(&[2; 8]);
        assert_eq!(filters.record(&[1; 8]), a);
        assert_ne!(a, b);
        assert_eq!(filters.into_programs(), [vec![1; 8], vec![2; 8]]);
    }
}
