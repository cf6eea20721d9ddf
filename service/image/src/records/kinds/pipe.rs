use serde::{Deserialize, Serialize};

use crate::records::{FileId, PipeId};

/// A pipe or FIFO (pipe(7)): what its ends share. The ends are descriptions of kind [`Pipe`](crate::records::DescriptionKind::Pipe).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipeRecord {
    /// Its own number.
    pub id: PipeId,
    /// F_GETPIPE_SZ, bytes.
    pub capacity: u32,
    /// The FIFO it is, `None` for pipe(2).
    pub fifo: Option<FileId>,
    /// What lies in it, oldest first: one entry, or one a packet where the ends are O_DIRECT.
    pub content: Vec<Vec<u8>>,
}
