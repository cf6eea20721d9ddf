//! Descriptors and memory, process by process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsRawFd;

use super::Rebuild;
use crate::rebuild::memory::Run;
use crate::rebuild::process::lookup;
use crate::rebuild::waves::Batches;
use crate::rebuild::{Failure, lazy, tables};

impl Rebuild<'_> {
    /// Descriptors and memory.
    pub(super) fn fill(&mut self) -> Result<(), Failure> {
        let firsts = self.firsts();
        let scripts = std::mem::take(&mut self.scripts);
        let mut on_the_way = BTreeMap::new();
        for (place, (_, body, first)) in firsts.iter().enumerate() {
            let script = lookup(&scripts, body.space.index(), "address space")?;
            on_the_way.insert(place, (VecDeque::new(), first.space.then(|| Run::new(script))));
        }
        let filled = self.all(|this, place, slot, before| {
            let (_, body, first) = firsts[place];
            let Some((tables, script)) = on_the_way.get_mut(&place) else { return Ok(None) };
            match &before {
                None if first.table => {
                    let table = lookup(&this.image.fd_tables, body.fd_table.index(), "descriptor table")?;
                    let mut batches = Batches::new(slot);
                    let number = |id| Some(this.descriptions.get(id)?.as_raw_fd());
                    tables::place(&mut batches, table, this.floor, number);
                    *tables = batches.all();
                }
                None => {}
                Some(outcome) => script.iter().try_for_each(|script| script.check(outcome))?,
            }
            if let Some(batch) = tables.pop_front() {
                return Ok(Some(("place descriptors", batch)));
            }
            let Some(script) = script else { return Ok(None) };
            let batch = script.batch(slot, &mut |wanted| this.opened.memory(wanted))?;
            Ok(batch.map(|batch| ("make the memory", batch)))
        });
        drop(on_the_way);
        self.scripts = scripts;
        filled?;
        let mut spaces_done = BTreeSet::new();
        self.each(|this, member, _, body| {
            let script = lookup(&this.scripts, body.space.index(), "address space")?;
            if !script.absent.is_empty() && spaces_done.insert(body.space) {
                let missing = lazy::watch(member, script)?;
                this.watched.push((missing, script.absent.clone(), member.tid().as_raw()));
            }
            Ok(())
        })?;
        let places = self.places;
        self.contents.finish(self.image, &mut |unit, deed| places.within(unit, deed)?)
    }
}
