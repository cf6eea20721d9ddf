//! Reading and writing a descriptor that somebody else may never serve: every wait ends when the job is canceled.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Between two looks at whether it is canceled, milliseconds.
const LOOK: u16 = 200;
/// What a pipe takes without blocking when poll(2) says that it takes anything (PIPE_BUF, pipe(7)).
const PIPE: usize = 4096;

/// A descriptor of a caller.
pub(super) struct Flow<'a> {
    file: &'a File,
    /// Whether one write may block for long after poll(2).
    is_pipe: bool,
    canceled: &'a dyn Fn() -> bool,
}

impl<'a> Flow<'a> {
    pub fn new(file: &'a File, canceled: &'a dyn Fn() -> bool) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        Ok(Self { file, is_pipe: kind.is_fifo() || kind.is_socket() || kind.is_char_device(), canceled })
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        loop {
            if (self.canceled)() {
                return Err(io::Error::new(ErrorKind::TimedOut, "canceled"));
            }
            let mut set = [PollFd::new(self.file.as_fd(), what)];
            match poll(&mut set, PollTimeout::from(LOOK)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Read for Flow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::POLLIN)?;
            match (&mut &*self.file).read(buffer) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                done => return done,
            }
        }
    }
}

impl Write for Flow<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = if self.is_pipe { bytes.len().min(PIPE) } else { bytes.len() };
        loop {
            self.wait(PollFlags::POLLOUT)?;
            match (&mut &*self.file).write(&bytes[..some]) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
