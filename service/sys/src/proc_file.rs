//! Whole files of /proc, in as few calls as the kernel allows.
//!
//! Their size is told as 0, for which std reads 32 bytes first, then twice as many, and so on: ten calls for a status. Here it is two: all,
//! and the end. In a freeze window, where some twenty such files of each process are read, that counts.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than most of them hold.
const ROOM: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; ROOM]);
}

/// The content. Errors: those of open(2) and read(2).
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    BUFFER.with_borrow_mut(|buffer| {
        let mut text = Vec::new();
        loop {
            match file.read(buffer) {
                Ok(0) => return Ok(text),
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    })
}

/// The same as text. Bytes that are none are replaced: the name of a thread may hold anything.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_part_and_of_many_are_whole() {
        assert_eq!(read("/proc/self/auxv").unwrap(), std::fs::read("/proc/self/auxv").unwrap());
        let long = "/proc/kallsyms";
        assert_eq!(read(long).unwrap().len(), std::fs::read(long).unwrap().len());
        assert!(read_text("/proc/version").unwrap().ends_with('\n'));
        assert_eq!(read("/proc/self/none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
