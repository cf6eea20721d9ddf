//! Which descriptors exec(2) closes, where fdinfo cannot tell. It shows O_CLOEXEC for a descriptor that has FD_CLOEXEC, and for all of a description
//! that has kept the flag of the call that opened it (TIOCGPTPEER); of those the member itself is asked.

use ckpt_sys::thread::Deadline;
use nix::libc;

use super::members::{Captured, Members};
use super::questions::{Conversation, Question};
use crate::kinds;

/// Asks the members; what one may not be asked (seccomp) stays what fdinfo told.
pub fn ask(
    open: &mut kinds::Captured,
    people: &Captured,
    members: &mut Members,
    deadline: Deadline,
) -> Result<(), ckpt_sys::Error> {
    for (facts, table) in people.fd_tables.iter().zip(&mut open.tables) {
        let kept = &open.kept_cloexec;
        let mut unsure: Vec<_> =
            table.descriptors.iter_mut().filter(|d| d.cloexec && kept.contains(&d.description)).collect();
        let Some(live) = members.live(facts.pid).filter(|_| !unsure.is_empty()) else { continue };
        let question = |fd| Question::result(libc::SYS_fcntl, [fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]);
        let questions = unsure.iter().map(|descriptor| question(descriptor.fd)).collect();
        let mut conversation = Conversation::new(vec![questions]);
        conversation.hold(live, deadline)?;
        for (descriptor, answer) in unsure.iter_mut().zip(conversation.answers().into_iter().flatten()) {
            if let Ok(flags) = answer.result {
                descriptor.cloexec = flags & libc::FD_CLOEXEC as u64 != 0;
            }
        }
    }
    Ok(())
}
