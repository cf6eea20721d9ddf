//! A store of manifests without images: which checkpoint rests on which.

use std::path::PathBuf;

use ckpt_image::{Kind, MANIFEST_VERSION, Tracker};

use super::*;

/// A store in a directory of its own, removed in the end.
pub(crate) struct Scene {
    pub directory: PathBuf,
    pub store: Store,
}

impl Scene {
    pub fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("ckpt-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Self { store: Store::new(directory.clone()), directory }
    }

    /// Commits a manifest without files.
    pub fn add(&self, group: &str, id: Ulid, parent: Option<Ulid>) -> Manifest {
        let directory = self.store.directory(group, &id.to_string());
        fs::create_dir_all(&directory).unwrap();
        let manifest = manifest(group, id, parent);
        manifest.commit(&directory).unwrap();
        manifest
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What a checkpoint of nothing says.
pub(crate) fn manifest(group: &str, id: Ulid, parent: Option<Ulid>) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        id,
        group: group.into(),
        kind: if parent.is_some() { Kind::Incremental } else { Kind::Full },
        parent,
        created: jiff::Timestamp::now(),
        freeze_usec: 1,
        processes: 1,
        threads: 1,
        pages_written: 0,
        image_bytes: 0,
        snapshots: Vec::new(),
        state: CheckpointState::Durable,
        tracker: Tracker::WpAsync,
        description: String::new(),
        tags: Vec::new(),
        units: Vec::new(),
        files: Default::default(),
        kernel: "6.18".into(),
    }
}

/// Ids in ascending order.
pub(crate) fn id(n: u128) -> Ulid {
    Ulid(n + 1)
}

#[test]
fn a_chain_is_told_newest_first() {
    let scene = Scene::new("chain");
    scene.add("web", id(0), None);
    scene.add("web", id(1), Some(id(0)));
    scene.add("web", id(2), Some(id(1)));
    scene.add("web", id(3), Some(id(1)));
    let chain = |of: &str| -> Vec<Ulid> {
        let directories = scene.store.chain("web", of).unwrap();
        directories.iter().map(|d| d.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(chain(&id(2).to_string()), [id(2), id(1), id(0)]);
    assert_eq!(chain(""), [id(3), id(1), id(0)]);
    assert_eq!(chain(&id(0).to_string()), [id(0)]);
    let none = scene.store.chain("web", &id(9).to_string());
    assert!(matches!(none, Err(Error::NoSuchCheckpoint { .. })));
}

#[test]
fn a_chain_that_is_broken_is_corrupt() {
    let corrupt = |scene: &Scene| {
        let error = scene.store.chain("web", &id(5).to_string()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    };
    let scene = Scene::new("missing-parent");
    scene.add("web", id(5), Some(id(4)));
    corrupt(&scene);

    let scene = Scene::new("cycle");
    scene.add("web", id(3), Some(id(5)));
    scene.add("web", id(4), Some(id(3)));
    scene.add("web", id(5), Some(id(4)));
    corrupt(&scene);

    let scene = Scene::new("own-parent");
    scene.add("web", id(5), Some(id(5)));
    corrupt(&scene);

    let scene = Scene::new("other-group");
    scene.add("mail", id(4), None);
    scene.add("web", id(5), Some(id(4)));
    fs::rename(
        scene.store.directory("mail", &id(4).to_string()),
        scene.store.directory("web", &id(4).to_string()),
    )
    .unwrap();
    corrupt(&scene);

    let scene = Scene::new("other-name");
    scene.add("web", id(3), None);
    scene.add("web", id(5), Some(id(4)));
    fs::rename(
        scene.store.directory("web", &id(3).to_string()),
        scene.store.directory("web", &id(4).to_string()),
    )
    .unwrap();
    corrupt(&scene);

    let scene = Scene::new("wrong-kind");
    scene.add("web", id(4), None);
    let wrong = scene.add("web", id(5), Some(id(4)));
    let text = serde_json::to_string(&Manifest { kind: Kind::Full, ..wrong }).unwrap();
    fs::write(scene.store.directory("web", &id(5).to_string()).join(MANIFEST_FILE), text).unwrap();
    corrupt(&scene);
}
