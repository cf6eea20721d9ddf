//! A fold that ends anywhere leaves a checkpoint that is whole and shows the same pages.

use ckpt_image::records::{GroupImage, SpaceId};
use ckpt_image::{
    Container, Digest, INDEX_FILE, Kind, PAGES_FILE, PageReader, PagesWriter, STATE_FILE, write_state,
};

use super::fold::{FAULT, Step};
use super::tests::{Scene, id, manifest};
use super::*;

const PAGE: usize = 4096;
pub(crate) const SPACE: Container = Container::Space(SpaceId(0));

/// Commits a checkpoint that stores `stored` and has all other pages below 16 of its parent.
fn add(scene: &Scene, n: u128, parent: Option<u128>, stored: &[u64]) {
    let directory = scene.store.directory("web", &id(n).to_string());
    fs::create_dir_all(directory.join("ephemeral")).unwrap();
    let mut writer = PagesWriter::create(&directory).unwrap();
    writer.container(SPACE, parent.map(|_| SPACE));
    if parent.is_some() {
        writer.parent(SPACE, 0, 16);
    }
    for page in stored {
        writer.append(SPACE, *page, &[n as u8 + 1; PAGE]).unwrap();
    }
    let summary = writer.finish().unwrap();
    fs::write(directory.join("ephemeral/0.tar"), [n as u8; 100]).unwrap();
    let digest = Digest { bytes: 100, blake3: Some(blake3::hash(&[n as u8; 100]).to_hex().to_string()) };
    let state = write_state(&directory, &GroupImage::default()).unwrap();
    let files = [
        (PAGES_FILE.to_string(), summary.pages),
        (INDEX_FILE.to_string(), summary.index),
        (STATE_FILE.to_string(), state),
        ("ephemeral/0.tar".to_string(), digest),
    ];
    let manifest = Manifest { files: files.into(), ..manifest("web", id(n), parent.map(id)) };
    manifest.commit(&directory).unwrap();
}

/// A full and three incrementals, and one that rests on the second.
pub(crate) fn scene(name: &str) -> Scene {
    let scene = Scene::new(name);
    add(&scene, 0, None, &[0, 1, 2, 3, 9]);
    add(&scene, 1, Some(0), &[1, 9]);
    add(&scene, 2, Some(1), &[2, 10]);
    add(&scene, 3, Some(2), &[3, 9]);
    add(&scene, 4, Some(1), &[4]);
    scene
}

/// What every checkpoint shows, verified.
fn shown(scene: &Scene) -> Vec<Vec<Vec<u8>>> {
    let manifests = scene.store.list("web").unwrap();
    assert_eq!(manifests.len(), 5);
    manifests
        .iter()
        .map(|m| {
            let chain = scene.store.chain("web", &m.id.to_string()).unwrap();
            crate::local::verify_quietly(&scene.store, &m.id.to_string()).unwrap();
            let reader = PageReader::open(&chain).unwrap();
            (0..16).map(|page| reader.page(SPACE, page).unwrap()).collect()
        })
        .collect()
}

fn fold(scene: &Scene, n: u128, images: usize) -> Result<(), Error> {
    let chain = scene.store.ancestry("web", &id(n).to_string()).unwrap();
    scene.store.fold(&chain[..images], &mut |_, _| true)
}

#[test]
fn a_folded_checkpoint_shows_the_same_and_so_do_those_that_rest_on_it() {
    let scene = scene("fold");
    let before = shown(&scene);
    let manifest = |n| scene.store.find("web", &id(n).to_string()).unwrap();
    fold(&scene, 2, 2).unwrap();
    assert_eq!(shown(&scene), before);
    assert_eq!((manifest(2).kind, manifest(2).parent), (Kind::Incremental, Some(id(0))));
    fold(&scene, 2, 2).unwrap();
    assert_eq!(shown(&scene), before);
    assert_eq!((manifest(2).kind, manifest(2).parent), (Kind::Full, None));
    assert_eq!(manifest(2).pages_written, 6);
    fold(&scene, 3, 2).unwrap();
    fold(&scene, 4, 3).unwrap();
    assert_eq!(shown(&scene), before);
    assert!(scene.store.list("web").unwrap().iter().filter(|m| m.parent.is_some()).count() == 1);
    fold(&scene, 0, 1).unwrap();
    assert_eq!(shown(&scene), before);
}

#[test]
fn a_fold_that_is_killed_at_any_step_leaves_the_chain_or_the_full() {
    let steps = [
        Step::Made,
        Step::Folded,
        Step::Linked,
        Step::Committed,
        Step::Exchanged,
        Step::Synced,
        Step::Removed,
    ];
    for step in steps {
        let scene = scene(&format!("killed-{step:?}"));
        let before = shown(&scene);
        FAULT.set(Some(step));
        assert!(fold(&scene, 3, 4).is_err(), "{step:?} is not a step");
        FAULT.set(None);
        // As the next daemon finds it, then after it has cleaned up, then after another try.
        assert_eq!(shown(&scene), before, "{step:?}");
        let folded = scene.store.find("web", &id(3).to_string()).unwrap().parent.is_none();
        let late = matches!(step, Step::Exchanged | Step::Synced | Step::Removed);
        assert_eq!(folded, late, "{step:?}");
        let removed = scene.store.remove_leftovers("web").unwrap();
        assert_eq!(removed.len(), usize::from(step != Step::Removed), "{step:?}");
        assert_eq!(shown(&scene), before, "{step:?}");
        if !folded {
            fold(&scene, 3, 4).unwrap();
        }
        assert_eq!(shown(&scene), before, "{step:?}");
        assert!(scene.store.remove_leftovers("web").unwrap().is_empty());
    }
}

#[test]
fn a_canceled_fold_leaves_nothing() {
    let scene = scene("canceled");
    let before = shown(&scene);
    let chain = scene.store.ancestry("web", &id(3).to_string()).unwrap();
    let error = scene.store.fold(&chain, &mut |_, _| false).unwrap_err();
    assert!(matches!(error, Error::Canceled));
    assert_eq!(shown(&scene), before);
    assert!(scene.store.remove_leftovers("web").unwrap().is_empty());
}
