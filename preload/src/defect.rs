//! The last words of this library: a defect of its own ends the program, and says so on standard error, where a service's journal is.
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use crate::protect;

/// A line without allocation; what is too long is cut.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let mut line = Line { bytes: [0; 256], length: 0 };
    let _ = writeln!(line, "libckpt_preload.so: a defect of its own: {info}");
    let args = [libc::STDERR_FILENO as usize, line.bytes.as_ptr() as usize, line.length, 0, 0, 0];
    // SAFETY: write(2) reads the bytes of the line; abort never returns and has no preconditions.
    unsafe {
        protect::raw(libc::SYS_write, args);
        libc::abort()
    }
}
