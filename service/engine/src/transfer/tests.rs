//! An export comes back as what it was; one that is damaged anywhere does not come back at all.

use std::fs::{self, File};
use std::io::Seek;

use ckpt_image::Manifest;

use super::*;
use crate::api::{Event, Job, Stage};
use crate::config::Settings;
use crate::error::Error;
use crate::storage::Place;
use crate::store::fold_tests::{SPACE, scene};
use crate::store::tests::Scene;

struct Quiet;

impl Job for Quiet {
    fn stage(&self, _: Stage) {}
    fn progress(&self, _: u64, _: u64) {}
    fn canceled(&self) -> bool {
        false
    }
    fn captured(&self, _: &str) {}
    fn event(&self, _: Event) {}
}

/// What an import into an empty store gives, and that store.
fn import_into(name: &str, file: &File) -> (Scene, Result<Manifest, Error>) {
    let scene = Scene::new(name);
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    let place = Place::new(&Settings::default()).unwrap();
    let imported = Incoming::open(file).and_then(|from| import(&scene.store, &place, &from, &Quiet));
    (scene, imported)
}

fn pages(scene: &Scene, id: &str) -> Vec<Vec<u8>> {
    let reader = ckpt_image::PageReader::open(&scene.store.chain("web", id).unwrap()).unwrap();
    (0..16).map(|page| reader.page(SPACE, page).unwrap()).collect()
}

fn exported(scene: &Scene, id: &str) -> File {
    let path = scene.directory.join("exported");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    export(&scene.store, "web", id, &file, &Quiet).unwrap();
    file
}

#[test]
fn a_chain_is_exported_as_the_full_that_it_is() {
    let from = scene("export");
    for manifest in from.store.list("web").unwrap() {
        let id = manifest.id.to_string();
        let file = exported(&from, &id);
        let (to, imported) = import_into("import", &file);
        let imported = imported.unwrap();
        assert_eq!((imported.id, imported.parent, imported.created), (manifest.id, None, manifest.created));
        assert_eq!(pages(&to, &id), pages(&from, &id));
        crate::local::verify_quietly(&to.store, &id).unwrap();
        let place = Place::new(&Settings::default()).unwrap();
        let mut again = file.try_clone().unwrap();
        again.rewind().unwrap();
        let again = import(&to.store, &place, &Incoming::open(again).unwrap(), &Quiet);
        assert!(matches!(again, Err(Error::Exists(_))));
        assert!(to.store.find("web", &id).is_ok());
    }
    assert!(from.store.remove_leftovers("web").unwrap().is_empty());
}

#[test]
fn an_export_that_is_damaged_anywhere_is_refused_and_leaves_nothing() {
    let from = scene("damage");
    let file = exported(&from, "");
    let bytes = fs::read(from.directory.join("exported")).unwrap();
    let copy = from.directory.join("damaged");
    let ends = bytes.len() - 1024;
    let refused = |content: &[u8], what: &str| {
        fs::write(&copy, content).unwrap();
        let (to, imported) = import_into("refused", &File::open(&copy).unwrap());
        assert!(imported.is_err(), "{what} was not seen");
        assert!(
            to.store.list("web").unwrap().is_empty() && to.store.ids("web").unwrap().is_empty(),
            "{what}"
        );
    };
    let (_, sound) = import_into("sound", &file);
    sound.unwrap();
    for at in (0..ends).step_by(if cfg!(debug_assertions) { 997 } else { 101 }) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        // Padding and the unused fields of a header are of no meaning.
        let block = &bytes[at / 512 * 512..at / 512 * 512 + 512];
        let is_padding = block[at % 512..].iter().all(|b| *b == 0) && !block.starts_with(b"ckpt-export");
        if !is_padding {
            refused(&damaged, &format!("damage of byte {at}"));
        }
        refused(&bytes[..at], &format!("an end after {at} bytes"));
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["../state", "/etc/x", "a/b/c", ".hidden", "ephemeral/..", "manifest.json", ""] {
        let from = scene("names");
        let directory = from.store.directory("web", &from.store.list("web").unwrap()[0].id.to_string());
        let mut manifest = from.store.ancestry("web", "").unwrap().remove(0);
        manifest.parent = None;
        manifest.kind = ckpt_image::Kind::Full;
        let digest = ckpt_image::Digest { bytes: 3, blake3: None };
        manifest.files = [(name.to_owned(), digest)].into();
        let path = directory.with_file_name("archive");
        let mut out = archive::Writer { out: File::create(&path).unwrap() };
        let text = serde_json::to_vec(&manifest).unwrap();
        out.entry(MANIFEST, text.len() as u64, &mut &text[..]).unwrap();
        out.entry(name, 3, &mut &b"abc"[..]).unwrap();
        let (to, imported) = import_into("refused-names", &File::open(&path).unwrap());
        assert!(matches!(imported, Err(Error::Corrupt { .. })), "{name}: {imported:?}");
        assert!(to.store.ids("web").unwrap().is_empty());
    }
}
