//! From memory to the disk, side by side: one thread reads pages, the other finds zero pages, makes checksums and writes.
//!
//! ```text
//!  reader ─► channel, 4 chunks ─► zero pages, checksums, `pages`
//!     ▲        this thread │ a thread of its own │
//!     └──── buffers ◄──────┴─────────────────────┘
//! ```

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use ckpt_image::{Container, ImageError, PagesWriter};

use crate::error::Error;

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// Bytes copied at a time.
pub const CHUNK: u64 = 4 << 20;
/// Chunks on their way to the disk.
const QUEUE: usize = 4;

/// Pages of one container, on their way.
#[derive(Debug)]
pub struct Chunk {
    /// Whose they are.
    pub container: Container,
    /// First page, number of pages.
    pub pieces: Vec<(u64, u64)>,
    /// Their bytes, one behind the other.
    pub bytes: Vec<u8>,
}

/// The reader's end.
#[derive(Debug)]
pub struct Pipe {
    to_disk: SyncSender<Chunk>,
    used: Receiver<Vec<u8>>,
}

impl Pipe {
    /// A buffer of this length with anything in it.
    pub fn buffer(&self, len: u64) -> Vec<u8> {
        let mut bytes = self.used.try_recv().unwrap_or_default();
        bytes.resize(len as usize, 0);
        bytes
    }

    /// Sends a chunk on its way; false if the writer has failed.
    pub fn send(&self, chunk: Chunk) -> bool {
        self.to_disk.send(chunk).is_ok()
    }
}

/// Lets `read` send chunks, and writes them; returns when all is written (not synced).
///
/// Errors: the writer's (NoSpace, Io), before those that `read` gives.
pub fn piped<T>(pages: &mut PagesWriter, read: impl FnOnce(&Pipe) -> Result<T, Error>) -> Result<T, Error> {
    let (to_disk, chunks) = sync_channel(QUEUE);
    let (back, used) = channel();
    std::thread::scope(|scope| {
        let writer = std::thread::Builder::new()
            .name("ckpt-write".into())
            .spawn_scoped(scope, move || write(pages, &chunks, &back))
            .map_err(|e| Error::io("start a thread that writes", e))?;
        let pipe = Pipe { to_disk, used };
        let done = read(&pipe);
        drop(pipe); // the end of the channel
        writer.join().map_err(|_| ended())??;
        done
    })
}

/// What `read` gives when [`Pipe::send`] says that the writer has failed; the writer's own error comes first.
pub fn ended() -> Error {
    Error::Failed("the thread that writes ended".into())
}

/// The other end: until the channel ends or the disk refuses.
fn write(
    pages: &mut PagesWriter,
    chunks: &Receiver<Chunk>,
    back: &Sender<Vec<u8>>,
) -> Result<(), ImageError> {
    for chunk in chunks {
        let mut rest = &chunk.bytes[..];
        pages.append_all(chunk.pieces.iter().map(|(first, count)| {
            let (data, behind) = rest.split_at((count * PAGE) as usize);
            rest = behind;
            (chunk.container, *first, data)
        }))?;
        let _ = back.send(chunk.bytes);
    }
    Ok(())
}
