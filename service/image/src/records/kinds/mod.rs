//! What each kind of open file description needs to be made again: one record a kind.

mod event;
mod inet;
mod pipe;
mod queue;
mod ring;
mod socket;
mod terminal;
mod unix;

pub use event::*;
pub use inet::*;
pub use pipe::*;
pub use queue::*;
pub use ring::*;
pub use socket::*;
pub use terminal::*;
pub use unix::*;
