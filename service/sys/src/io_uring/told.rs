//! What /proc/PID/fdinfo/N tells of a ring.
//!
//! ```text
//! SqMask: 0x7 · SqHead: 5 · SqTail: 6 · CachedSqHead: 5    taken by the kernel: CachedSqHead
//! CqMask: 0xf · CqHead: 3 · CqTail: 5 · CachedCqTail: 5    posted by the kernel: CachedCqTail
//! SQEs: 1 …   CQEs: 2 …   SqThread: -1   UserFiles: 0   UserBufs: 0
//! PollList:
//!   op=6, task_works=0                                     a request that waits for its file
//! CqOverflowList:
//!   user_data=1, res=0, flags=0                            completions for which the ring had no room
//! ```

/// What fdinfo tells. Counters go round at 2³².
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Entries of the submission queue.
    pub sq_entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// Entries that the kernel has taken.
    pub submitted: u32,
    /// What the application has put there to be taken.
    pub sq_tail: u32,
    /// What the application has read.
    pub cq_head: u32,
    /// Completions that the application can see.
    pub cq_tail: u32,
    /// Completions that the kernel has posted.
    pub posted: u32,
    /// A thread of the kernel takes entries (IORING_SETUP_SQPOLL).
    pub has_thread: bool,
    /// Registered files.
    pub files: u32,
    /// Registered buffers.
    pub buffers: u32,
    /// Operations of the requests that wait for their files.
    pub polls: Vec<u32>,
    /// Completions beside the ring.
    pub overflown: usize,
}

impl Told {
    /// Requests that have not completed, if each has one completion.
    #[must_use]
    pub fn in_flight(&self) -> i32 {
        self.submitted.wrapping_sub(self.posted) as i32
    }

    /// Whether nothing is under way as far as it can be told here.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.in_flight() == 0 && self.polls.is_empty() && self.overflown == 0 && self.cq_tail == self.posted
    }
}

/// Parses it. `None`: the ring was busy, so that the kernel told nothing of it, or told in another form.
#[must_use]
pub fn parse(text: &str) -> Option<Told> {
    let mut told = Told::default();
    let mut counters = 0;
    let mut list = "";
    for line in text.lines() {
        if line.starts_with("  ") {
            match list {
                "PollList" => told.polls.push(field(line, "op=")?),
                "CqOverflowList" => told.overflown += 1,
                _ => {}
            }
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        list = key;
        let number = || value.parse().ok();
        match key {
            "SqMask" => told.sq_entries = entries(value)?,
            "CqMask" => told.cq_entries = entries(value)?,
            "CachedSqHead" => told.submitted = number()?,
            "SqTail" => told.sq_tail = number()?,
            "CqHead" => told.cq_head = number()?,
            "CqTail" => told.cq_tail = number()?,
            "CachedCqTail" => told.posted = number()?,
            "SqThread" => told.has_thread = value.parse::<i32>().ok()? >= 0,
            "UserFiles" => told.files = number()?,
            "UserBufs" => told.buffers = number()?,
            "PollList" | "CqOverflowList" => {}
            _ => continue,
        }
        counters += 1;
    }
    (counters == 12).then_some(told)
}

fn entries(mask: &str) -> Option<u32> {
    let mask = u32::from_str_radix(mask.strip_prefix("0x")?, 16).ok()?;
    mask.checked_add(1).filter(|entries| entries.is_power_of_two())
}

fn field(line: &str, key: &str) -> Option<u32> {
    let (_, rest) = line.split_once(key)?;
    rest.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t45097635\nSqMask:\t0x7\nSqHead:\t5\nSqTail:\t6\n\
        CachedSqHead:\t5\nCqMask:\t0xf\nCqHead:\t3\nCqTail:\t5\nCachedCqTail:\t5\nSQEs:\t1\n    5: opcode:NOP, fd:0, flags:0\n\
        CQEs:\t2\n    3: user_data:7, res:0, flags:0\nSqThread:\t-1\nSqThreadCpu:\t-1\nSqTotalTime:\t0\nSqWorkTime:\t0\n\
        UserFiles:\t0\nUserBufs:\t0\nPollList:\nCqOverflowList:\nNAPI:\tdisabled\n";

    #[test]
    fn counters_and_lists_are_read() {
        let told = parse(QUIET).unwrap();
        let expected = Told {
            sq_entries: 8,
            cq_entries: 16,
            submitted: 5,
            sq_tail: 6,
            cq_head: 3,
            cq_tail: 5,
            posted: 5,
            ..Told::default()
        };
        assert_eq!(told, expected);
        assert!(told.is_quiet());
        let busy = QUIET.replace("PollList:\n", "PollList:\n  op=6, task_works=0\n  op=27, task_works=1\n");
        let busy =
            busy.replace("CachedSqHead:\t5", "CachedSqHead:\t7").replace("SqThread:\t-1", "SqThread:\t88");
        let busy = parse(&busy).unwrap();
        assert_eq!((busy.in_flight(), busy.polls.as_slice(), busy.has_thread), (2, [6, 27].as_slice(), true));
        assert!(!busy.is_quiet());
        let over =
            parse(&QUIET.replace("CqOverflowList:\n", "CqOverflowList:\n  user_data=1, res=0, flags=0\n"));
        assert!(!over.unwrap().is_quiet());
    }

    #[test]
    fn what_was_not_told_is_not_taken_for_nothing() {
        assert_eq!(parse("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(parse(&QUIET.replace("PollList:\n", "")), None);
        assert_eq!(parse(&QUIET.replace("0x7", "0x6")), None);
    }
}
