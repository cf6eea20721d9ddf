use serde::{Deserialize, Serialize};

/// A ring of io_uring(7) with no request under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoUringRecord {
    /// Entries of the submission queue.
    pub sq_entries: u32,
    /// Entries of the completion queue.
    pub cq_entries: u32,
    /// Entries are submitted through an array of numbers (without IORING_SETUP_NO_SQARRAY).
    pub array: bool,
    /// Where what lies in `rings`, as io_uring_setup(2) told: heads, tails, …
    pub layout: Vec<u32>,
    /// Requests that were made of it, and as many completions; goes round at 2³².
    pub requests: u32,
    /// Completions that the application has not read.
    pub unread: u32,
    /// The memory at IORING_OFF_SQ_RING.
    pub rings: Vec<u8>,
    /// The memory at IORING_OFF_SQES.
    pub sqes: Vec<u8>,
}
