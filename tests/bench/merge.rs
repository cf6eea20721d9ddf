//! Merging: 32 deltas into the full that they rest on, in a store on btrfs, where blocks are shared.

use std::path::Path;
use std::time::Instant;

use ckpt_engine::store::Store;
use ckpt_image::records::SpaceId;
use ckpt_image::{
    CheckpointState, Container, INDEX_FILE, Kind, MANIFEST_VERSION, Manifest, PAGES_FILE, PagesWriter,
    Tracker,
};
use ulid::Ulid;

use crate::pwrite::median;
use crate::report::{Report, Target};

const PAGES: u64 = 1 << 18;
const DELTAS: usize = 32;
/// Of the pages, in each delta.
const WRITTEN: u64 = 100;
const ROUNDS: usize = 3;
const SPACE: Container = Container::Space(SpaceId(0));

/// A full of 1 GiB and deltas of 1 % each, written pages scattered; how fast that becomes one full.
pub(crate) fn bench(report: &mut Report) {
    let root = Path::new("/srv/merge");
    let mut speeds = Vec::new();
    for _ in 0..ROUNDS {
        let store = Store::new(root.to_owned());
        make(&store);
        let chain = store.ancestry("bench", "").expect("just made");
        assert_eq!(chain.len(), DELTAS + 1);
        let start = Instant::now();
        store.fold(&chain, &mut |_, _| true).expect("the chain is whole");
        speeds.push(PAGES as f64 * 4096.0 / start.elapsed().as_secs_f64() / 1e9);
        assert!(store.find("bench", "").expect("still there").parent.is_none());
        std::fs::remove_dir_all(root).expect("ours");
    }
    let name = "merge of 32 deltas on btrfs, full image";
    report.promised(name, median(speeds), "GB/s", Target::AtLeast(2.0));
}

/// Writes the chain.
fn make(store: &Store) {
    let mut parent = None;
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for n in 0..=DELTAS {
        let id = Ulid::from_parts(1_700_000_000_000 + n as u64, 1);
        let directory = store.begin("bench", id).expect("room");
        let mut writer = PagesWriter::create(&directory).expect("room");
        let mut page = vec![0; 4096];
        let mut fill = |page: &mut [u8]| page[..8].copy_from_slice(&random().to_le_bytes());
        writer.container(SPACE, parent.map(|_| SPACE));
        if parent.is_none() {
            let mut some = vec![0; 4096 << 8];
            for first in (0..PAGES).step_by(1 << 8) {
                some.chunks_exact_mut(4096).for_each(&mut fill);
                writer.append(SPACE, first, &some).expect("room");
            }
        } else {
            writer.parent(SPACE, 0, PAGES);
            for written in 0..PAGES / WRITTEN {
                fill(&mut page);
                // Somewhere in its hundred.
                let within = u64::from(page[0]) % WRITTEN;
                writer.append(SPACE, written * WRITTEN + within, &page).expect("room");
            }
        }
        let summary = writer.finish().expect("room");
        let files = [(PAGES_FILE.to_owned(), summary.pages), (INDEX_FILE.to_owned(), summary.index)];
        manifest(id, parent, files.into()).commit(&directory).expect("room");
        parent = Some(id);
    }
}

fn manifest(
    id: Ulid,
    parent: Option<Ulid>,
    files: std::collections::BTreeMap<String, ckpt_image::Digest>,
) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        id,
        group: "bench".into(),
        kind: if parent.is_some() { Kind::Incremental } else { Kind::Full },
        parent,
        created: jiff::Timestamp::now(),
        freeze_usec: 0,
        processes: 1,
        threads: 1,
        pages_written: 0,
        image_bytes: 0,
        snapshots: Vec::new(),
        state: CheckpointState::Durable,
        tracker: Tracker::None,
        description: String::new(),
        tags: Vec::new(),
        units: Vec::new(),
        files,
        kernel: String::new(),
    }
}
