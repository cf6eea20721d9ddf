//! Pages that are put into memory before the members run, however late the others come.
//!
//! What a thread touches first: its stack, what the C library keeps of it. And what the kernel touches for a thread that ends, when it
//! does not wait for memory any more (`mm_release` of Linux: clear_child_tid and the robust list of futexes); without these pages others
//! would wait for the thread for ever.

use std::collections::BTreeSet;

use ckpt_image::records::{GroupImage, SpaceId, ThreadRecord};
use ckpt_image::{Container, PageReader};

use crate::rebuild::process::living;

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// Where struct user_regs_struct has these.
const RSP: usize = 19;
const FS_BASE: usize = 21;
/// ROBUST_LIST_LIMIT of Linux: further it does not follow a list.
const LONGEST: usize = 2048;

/// The pages (address divided by 4096) of a space.
pub fn pages(image: &GroupImage, space: SpaceId, pages: &PageReader) -> BTreeSet<u64> {
    let mut hot = BTreeSet::new();
    for thread in living(image).filter(|(_, body)| body.space == space).flat_map(|(_, body)| &body.threads) {
        add_thread(thread, &mut hot);
        robust_list(thread.robust_list.0, space, pages, &mut hot);
    }
    hot
}

fn add_thread(thread: &ThreadRecord, hot: &mut BTreeSet<u64>) {
    let mut add = |address: u64, before: u64, after: u64| {
        let page = address / PAGE;
        hot.extend(page.saturating_sub(before)..=page.saturating_add(after));
    };
    let register = |at: usize| thread.registers.get(at).copied().unwrap_or(0);
    add(register(RSP), 2, 4);
    // struct pthread lies at it, thread-local variables below.
    add(register(FS_BASE), 1, 1);
    for address in [thread.tid_address, thread.robust_list.0, thread.rseq.address] {
        add(address, 0, 0);
        add(address.saturating_add(64), 0, 0);
    }
}

/// Every lock of the list: struct robust_list_head is { next, futex_offset, list_op_pending }, each entry begins with the address of the next.
fn robust_list(head: u64, space: SpaceId, pages: &PageReader, hot: &mut BTreeSet<u64>) {
    let word = |address: u64| -> Option<u64> {
        let bytes = pages.page(Container::Space(space), address / PAGE).ok()?;
        let at = (address % PAGE) as usize;
        bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
    };
    if head == 0 {
        return;
    }
    let offset = word(head + 8).unwrap_or(0);
    let pending = word(head + 16);
    let mut entry = word(head);
    for _ in 0..LONGEST {
        let Some(at) = entry.map(|e| e & !1).filter(|e| *e != 0 && *e != head) else { break };
        hot.extend([at / PAGE, at.wrapping_add(offset) / PAGE]);
        entry = word(at);
    }
    if let Some(at) = pending.map(|e| e & !1).filter(|e| *e != 0) {
        hot.extend([at / PAGE, at.wrapping_add(offset) / PAGE]);
    }
}
