//! What lies in a ring's memory, and whether its counters can be trusted: entries and completions stay where they are until others take their
//! place, so the memory shows the last of what was asked and answered.

use ckpt_sys::io_uring::{CQE, Layout, SQE, Shape, Told};

use super::super::Refusal;
use super::{WITHOUT, refuse};

/// Operations by their numbers (enum io_uring_op) that have one completion and end by themselves, or are told of while they wait. Those left
/// out post more (SEND_ZC, SENDMSG_ZC, RECV_ZC, READ_MULTISHOT, MSG_RING, URING_CMD), wait where nobody sees it (FUTEX_WAIT, FUTEX_WAITV,
/// WAITID) or need what is registered (PROVIDE_BUFFERS, REMOVE_BUFFERS, FILES_UPDATE, FIXED_FD_INSTALL).
const PLAIN: &[(u8, &str)] = &[
    (0, "NOP"),
    (1, "READV"),
    (2, "WRITEV"),
    (3, "FSYNC"),
    (4, "READ_FIXED"),
    (5, "WRITE_FIXED"),
    (6, "POLL_ADD"),
    (7, "POLL_REMOVE"),
    (8, "SYNC_FILE_RANGE"),
    (9, "SENDMSG"),
    (10, "RECVMSG"),
    (11, "TIMEOUT"),
    (12, "TIMEOUT_REMOVE"),
    (13, "ACCEPT"),
    (14, "ASYNC_CANCEL"),
    (15, "LINK_TIMEOUT"),
    (16, "CONNECT"),
    (17, "FALLOCATE"),
    (18, "OPENAT"),
    (19, "CLOSE"),
    (21, "STATX"),
    (22, "READ"),
    (23, "WRITE"),
    (24, "FADVISE"),
    (25, "MADVISE"),
    (26, "SEND"),
    (27, "RECV"),
    (28, "OPENAT2"),
    (29, "EPOLL_CTL"),
    (30, "SPLICE"),
    (33, "TEE"),
    (34, "SHUTDOWN"),
    (35, "RENAMEAT"),
    (36, "UNLINKAT"),
    (37, "MKDIRAT"),
    (38, "SYMLINKAT"),
    (39, "LINKAT"),
    (41, "FSETXATTR"),
    (42, "SETXATTR"),
    (43, "FGETXATTR"),
    (44, "GETXATTR"),
    (45, "SOCKET"),
    (55, "FTRUNCATE"),
    (56, "BIND"),
    (57, "LISTEN"),
];

const POLL_ADD: u8 = 6;
const SENDMSG: u8 = 9;
const RECVMSG: u8 = 10;
const TIMEOUT: u8 = 11;
const TIMEOUT_REMOVE: u8 = 12;
const ACCEPT: u8 = 13;
const SEND: u8 = 26;
const RECV: u8 = 27;

/// IOSQE_BUFFER_SELECT and IOSQE_CQE_SKIP_SUCCESS.
const NOT_ONE_ANSWER: u8 = 1 << 5 | 1 << 6;
/// IORING_RECVSEND_POLL_FIRST, the one flag of these that changes nothing.
const POLL_FIRST: u16 = 1;
/// IORING_ACCEPT_MULTISHOT.
const ACCEPT_MULTISHOT: u16 = 1;
/// IORING_POLL_ADD_MULTI and the two that change one.
const POLL_MULTI: u32 = 7;
/// IORING_TIMEOUT_MULTISHOT.
const TIMEOUT_MULTISHOT: u32 = 1 << 6;
/// IORING_CQE_F_SOCK_NONEMPTY, the one flag that an ordinary completion may have.
const ORDINARY: u32 = 1 << 2;

/// The name of an operation.
pub(super) fn name(operation: u32) -> String {
    let known = PLAIN.iter().find(|(op, _)| u32::from(*op) == operation);
    known.map_or_else(|| format!("operation {operation}"), |(_, name)| (*name).to_owned())
}

/// Whether each entry has one completion, as far as the memory shows. An array that was never used names the entries by their numbers from
/// here on.
pub(super) fn check(
    told: &Told,
    shape: Shape,
    layout: Layout,
    rings: &mut [u8],
    sqes: &[u8],
) -> Result<(), Refusal> {
    let unread = told.posted.wrapping_sub(told.cq_head);
    let waiting = told.sq_tail.wrapping_sub(told.submitted);
    if unread > shape.cq_entries || unread > told.posted || waiting > shape.sq_entries {
        return refuse("the ring's counters contradict each other", WITHOUT);
    }
    if word(rings, layout.sq_dropped) != 0 || word(rings, layout.cq_overflow) != 0 {
        return refuse("the ring has lost entries or completions, so its counters tell nothing", WITHOUT);
    }
    let (used, behind) = sqes.split_at((SQE * shape.sq_entries as usize).min(sqes.len()));
    if behind.iter().any(|byte| *byte != 0) {
        return refuse("the ring has entries of 128 bytes (IORING_SETUP_SQE128)", WITHOUT);
    }
    for entry in used.chunks_exact(SQE) {
        plain(entry)?;
    }
    let from = layout.cqes as usize;
    let completions = rings.get(from..from + CQE * shape.cq_entries as usize).unwrap_or_default();
    if completions.chunks_exact(CQE).any(|cqe| word(cqe, 12) & !ORDINARY != 0) {
        return refuse(
            "completions in the ring tell of requests with more than one, of chosen buffers, or of a larger form",
            WITHOUT,
        );
    }
    if shape.array { array(told, shape, layout, rings, used) } else { Ok(()) }
}

fn word(bytes: &[u8], at: u32) -> u32 {
    let at = at as usize;
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Whether an entry has one completion.
fn plain(entry: &[u8]) -> Result<(), Refusal> {
    let (operation, flags) = (entry[0], entry[1]);
    let half = |at: usize| u16::from_ne_bytes([entry[at], entry[at + 1]]);
    let (ioprio, len, op_flags, personality) = (half(2), word(entry, 24), word(entry, 28), half(42));
    let is_plain = PLAIN.iter().any(|(op, _)| *op == operation) && flags & NOT_ONE_ANSWER == 0;
    let shots = match operation {
        POLL_ADD => len & POLL_MULTI != 0,
        ACCEPT => ioprio & ACCEPT_MULTISHOT != 0,
        SEND | RECV | SENDMSG | RECVMSG => ioprio & !POLL_FIRST != 0,
        TIMEOUT | TIMEOUT_REMOVE => op_flags & TIMEOUT_MULTISHOT != 0,
        _ => false,
    };
    if personality != 0 {
        return refuse("requests were made with registered credentials", WITHOUT);
    }
    if !is_plain || shots {
        let text = format!(
            "{} was asked of the ring in a form that has not just one completion, so nobody can tell what is under way",
            name(u32::from(operation))
        );
        return refuse(text, WITHOUT);
    }
    Ok(())
}

/// The array must name entries that there are. One that is all zero was never used, or the ring has none: then entries are taken by their
/// numbers, which an array that says so does as well. Only who uses none but the first entry may mean the zeros.
fn array(told: &Told, shape: Shape, layout: Layout, rings: &mut [u8], used: &[u8]) -> Result<(), Refusal> {
    let from = layout.sq_array as usize;
    let Some(array) = rings.get_mut(from..from + 4 * shape.sq_entries as usize) else {
        return refuse("the ring's memory is too short", WITHOUT);
    };
    let mut numbers = array.chunks_exact(4).map(|n| word(n, 0));
    if numbers.clone().any(|number| number >= shape.sq_entries) {
        return refuse("the ring's completions are of 32 bytes (IORING_SETUP_CQE32)", WITHOUT);
    }
    let first_only = used.iter().skip(SQE).all(|byte| *byte == 0) && told.sq_tail >= 2;
    if numbers.all(|number| number == 0) && !first_only {
        for (number, place) in array.chunks_exact_mut(4).enumerate() {
            place.copy_from_slice(&(number as u32).to_ne_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { sq_entries: 4, cq_entries: 8, array: true };
    const LAYOUT: Layout = Layout {
        sq_head: 0,
        sq_tail: 4,
        sq_mask: 16,
        sq_entries: 24,
        sq_flags: 36,
        sq_dropped: 32,
        sq_array: 192,
        cq_head: 8,
        cq_tail: 12,
        cq_mask: 20,
        cq_entries: 28,
        cq_overflow: 44,
        cq_flags: 40,
        cqes: 64,
    };

    fn told() -> Told {
        Told {
            sq_entries: 4,
            cq_entries: 8,
            submitted: 9,
            sq_tail: 10,
            cq_head: 7,
            cq_tail: 9,
            posted: 9,
            ..Told::default()
        }
    }

    /// The text of the refusal, or the array.
    fn outcome(told: &Told, change: impl FnOnce(&mut [u8], &mut [u8])) -> Result<Vec<u32>, String> {
        let (mut rings, mut sqes) = (vec![0; 4096], vec![0; 4096]);
        (0..4).for_each(|n| sqes[SQE * n] = 23);
        change(&mut rings, &mut sqes);
        check(told, SHAPE, LAYOUT, &mut rings, &sqes).map_err(|refusal| refusal.text)?;
        Ok((0..4).map(|n| word(&rings, 192 + 4 * n)).collect())
    }

    #[test]
    fn what_has_one_completion_each_is_taken() {
        assert_eq!(outcome(&told(), |_, _| ()), Ok(vec![0, 1, 2, 3]));
        assert_eq!(outcome(&told(), |rings, _| rings[192] = 3), Ok(vec![3, 0, 0, 0]));
        assert_eq!(outcome(&told(), |_, sqes| sqes[SQE..].fill(0)), Ok(vec![0; 4]), "one entry is used");
        let young = Told { submitted: 1, sq_tail: 1, cq_head: 1, cq_tail: 1, posted: 1, ..told() };
        assert_eq!(outcome(&young, |_, sqes| sqes[SQE..].fill(0)), Ok(vec![0, 1, 2, 3]));
    }

    #[test]
    fn what_has_more_or_less_is_refused() {
        type Change = fn(&mut [u8], &mut [u8]);
        let changes: &[(&str, Change)] = &[
            ("SEND_ZC", |_, sqes| sqes[SQE] = 47),
            ("without a completion", |_, sqes| sqes[SQE + 1] = 1 << 6),
            ("a chosen buffer", |_, sqes| sqes[SQE + 1] = 1 << 5),
            ("credentials", |_, sqes| sqes[SQE + 42] = 1),
            ("multishot accept", |_, sqes| (sqes[SQE], sqes[SQE + 2]) = (13, 1)),
            ("multishot poll", |_, sqes| (sqes[SQE], sqes[SQE + 24]) = (6, 1)),
            ("multishot receive", |_, sqes| (sqes[SQE], sqes[SQE + 2]) = (27, 2)),
            ("multishot timeout", |_, sqes| (sqes[SQE], sqes[SQE + 28]) = (11, 64)),
            ("more to come", |rings, _| rings[64 + 12] = 2),
            ("large entries", |_, sqes| sqes[4 * SQE] = 1),
            ("large completions", |rings, _| rings[192] = 4),
            ("lost entries", |rings, _| rings[32] = 1),
            ("lost completions", |rings, _| rings[44] = 1),
        ];
        for (what, change) in changes {
            assert!(outcome(&told(), change).is_err(), "{what}");
        }
        assert!(
            outcome(&Told { cq_head: 0, ..told() }, |_, _| ()).is_err(),
            "more unread than there is room for"
        );
        assert!(
            outcome(&Told { sq_tail: 14, ..told() }, |_, _| ()).is_err(),
            "more waiting than there is room for"
        );
    }
}
