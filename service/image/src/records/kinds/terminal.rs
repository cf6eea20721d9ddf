use serde::{Deserialize, Serialize};

use crate::records::Pid;

/// One end of a pseudo-terminal (pty(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalRecord {
    /// Its number: /dev/pts/INDEX.
    pub index: u32,
    /// Which end.
    pub end: TerminalEnd,
}

/// The end that a descriptor is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalEnd {
    /// The master (/dev/ptmx), with what both ends share.
    Master(Box<TerminalState>),
    /// The terminal.
    Slave,
    /// The terminal, opened as /dev/tty: by members whose controlling terminal it is.
    Own,
    /// The terminal, hung up: its master is closed.
    HungUp,
}

/// A pseudo-terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalState {
    /// struct termios2 (ioctl_tty(2), TCGETS2).
    pub settings: Vec<u8>,
    /// struct winsize: rows, columns, pixels.
    pub size: [u16; 4],
    /// TIOCPKT.
    pub packet: bool,
    /// TIOCSPTLCK: the terminal cannot be opened yet.
    pub locked: bool,
    /// TIOCEXCL.
    pub exclusive: bool,
    /// Every terminal end was closed: the master reads EIO.
    pub slave_closed: bool,
    /// The session whose controlling terminal it is, 0 if it is none's.
    pub session: Pid,
    /// The process group in the foreground, 0 if there is none.
    pub foreground: Pid,
    /// Permission bits, owner and group of /dev/pts/INDEX.
    pub node: Option<(u32, u32, u32)>,
    /// Written by the terminal's users and not read from the master.
    pub output: Vec<u8>,
    /// Whole lines written to the master of a canonical terminal and not read from it, each as one read(2) gives it.
    pub lines: Vec<Vec<u8>>,
    /// Written to the master and not read from the terminal, behind them: of a canonical terminal a line that has no end yet.
    pub input: Vec<u8>,
}
