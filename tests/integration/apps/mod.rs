//! Real programs, unmodified, under load: taken, lost and brought back again and again.

mod client;
mod daemons;
mod drive;
mod mariadb;
mod php;
mod programs;
mod servers;
mod sessions;

use crate::runner::Test;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = servers::tests();
    tests.extend(daemons::tests());
    tests.extend(mariadb::tests());
    tests.extend(php::tests());
    tests.extend(programs::tests());
    tests.extend(sessions::tests());
    tests
}
