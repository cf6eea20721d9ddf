//! Questions to members: system calls that only tell, made inside the threads that they are about.

use ckpt_sys::VirtAddr;
use ckpt_sys::batch::{Batch, Call};
use ckpt_sys::inject::Live;
use ckpt_sys::thread::Deadline;
use nix::errno::Errno;
use nix::libc::c_long;

/// A call that tells something by its result or into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// System call number.
    pub nr: c_long,
    /// Its arguments; that of `out` is filled in.
    pub args: [u64; 6],
    /// Which argument points to the answer, and how many bytes it has.
    pub out: Option<(usize, usize)>,
}

impl Question {
    /// A question answered by the result alone.
    pub fn result(nr: c_long, args: [u64; 6]) -> Self {
        Self { nr, args, out: None }
    }

    /// A question answered with `len` bytes where argument `at` points.
    pub fn bytes(nr: c_long, args: [u64; 6], at: usize, len: usize) -> Self {
        Self { nr, args, out: Some((at, len)) }
    }
}

/// What a call told. EACCES stands for a call that the member's own seccomp filter does not allow, so that it was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its result.
    pub result: Result<u64, Errno>,
    /// What it wrote; empty if it failed.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The number at a byte of the answer; 0 past its end.
    pub fn u64_at(&self, at: usize) -> u64 {
        self.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// The number at a byte of the answer; 0 past its end.
    pub fn u32_at(&self, at: usize) -> u32 {
        self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }
}

/// Where the answer to a question of a batch will be.
type Place = (usize, Call, Option<(VirtAddr, usize)>);

/// Questions to every thread of a process, all threads side by side, in as many rounds as it takes.
#[derive(Debug)]
pub struct Conversation {
    questions: Vec<Vec<Question>>,
    answers: Vec<Vec<Answer>>,
    asked: Vec<usize>,
    round: Vec<(usize, Batch, Vec<Place>)>,
}

impl Conversation {
    /// `questions[n]` are for the thread at place n.
    pub fn new(questions: Vec<Vec<Question>>) -> Self {
        let forbidden = Answer { result: Err(Errno::EACCES), bytes: Vec::new() };
        let answers = questions.iter().map(|q| vec![forbidden.clone(); q.len()]).collect();
        Self { answers, asked: vec![0; questions.len()], questions, round: Vec::new() }
    }

    /// Asks all of one member that is not asked side by side with others.
    ///
    /// Errors: those of running batches.
    pub fn hold(&mut self, live: &mut Live, deadline: Deadline) -> Result<(), ckpt_sys::Error> {
        while self.begin_round(live)? {
            self.end_round(live, deadline)?;
        }
        Ok(())
    }

    /// Sets a round of batches going, without waiting; false if all is asked.
    pub fn begin_round(&mut self, live: &mut Live) -> Result<bool, ckpt_sys::Error> {
        for (thread, list) in self.questions.iter().enumerate() {
            if self.asked[thread] == list.len() {
                continue;
            }
            let mut batch = live.batch(thread)?;
            let places = fill(live, &mut batch, list, &mut self.asked[thread]);
            if !batch.is_empty() {
                self.round.push((thread, batch, places));
            }
        }
        let batches: Vec<_> = self.round.iter().map(|(thread, batch, _)| (*thread, batch)).collect();
        live.begin_run(&batches)?;
        Ok(!batches.is_empty())
    }

    /// Waits for the round.
    pub fn end_round(&mut self, live: &mut Live, deadline: Deadline) -> Result<(), ckpt_sys::Error> {
        let round = std::mem::take(&mut self.round);
        let batches: Vec<_> = round.iter().map(|(thread, batch, _)| (*thread, batch)).collect();
        let outcomes = live.end_run(&batches, deadline)?;
        for ((thread, _, places), outcome) in round.iter().zip(outcomes) {
            for (question, call, out) in places {
                let result = outcome.result(*call);
                let bytes = match (result, out) {
                    (Ok(_), Some((addr, len))) => outcome.bytes(*addr, *len).to_vec(),
                    _ => Vec::new(),
                };
                self.answers[*thread][*question] = Answer { result, bytes };
            }
        }
        Ok(())
    }

    /// The answers, in the order of the questions.
    pub fn answers(self) -> Vec<Vec<Answer>> {
        self.answers
    }
}

/// Puts as many questions into a batch as fit, from `next` on.
fn fill(live: &Live, batch: &mut Batch, list: &[Question], next: &mut usize) -> Vec<Place> {
    let mut places = Vec::new();
    while let Some(question) = list.get(*next) {
        let len = question.out.map_or(0, |(_, len)| len);
        if !batch.has_room(1, len) {
            break;
        }
        if live.allows(question.nr, &question.args) {
            let mut args = question.args;
            let out = question.out.map(|(at, len)| {
                let addr = batch.space(len);
                args[at] = addr.get();
                (addr, len)
            });
            places.push((*next, batch.push(question.nr, args), out));
        }
        *next += 1;
    }
    places
}
