//! The indexes of a chain as one: of every page, which image has it.
//!
//! ```text
//! newest   ── Parent ──►  its parent  ── Parent ──►  …  ──►  full
//!    Raw, Zero                Raw, Zero                      Raw, Zero, or not told: a hole
//! ```

use std::collections::BTreeMap;

use crate::{Container, Extent, PageIndex, Store};

/// Pages that one image of a chain stores in one way. Zero pages and pages of the parent of the whole chain are of no image: 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The image, 0 the newest.
    pub image: usize,
    /// The pages, and where they are in it.
    pub extent: Extent,
}

/// The pages of one container through a whole chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Merged {
    /// Where the chain does not begin with a full: what its oldest image inherits from.
    pub inherits: Option<Container>,
    /// Ascending, none overlapping, neighbours joined.
    pub spans: Vec<Span>,
}

/// Merges the indexes of images that rest on each other, newest first. The oldest may itself rest on one that is not given: then
/// [`Store::Parent`] is left for its pages. On failure gives the image that contradicts its parent, and how.
pub(crate) fn merge(
    indexes: &[PageIndex],
) -> std::result::Result<BTreeMap<Container, Merged>, (usize, String)> {
    let mut below: Option<BTreeMap<Container, Merged>> = None;
    for (image, index) in indexes.iter().enumerate().rev() {
        let mut merged = BTreeMap::new();
        for one in &index.containers {
            let outside = Merged {
                inherits: one.inherits,
                spans: vec![Span {
                    image: 0,
                    extent: Extent { first: 0, count: u64::MAX, store: Store::Parent },
                }],
            };
            let inherited = match (one.inherits, &below) {
                (None, _) => &Merged::default(),
                (Some(_), None) => &outside,
                (Some(from), Some(below)) => below.get(&from).ok_or_else(|| {
                    let of = one.container;
                    (
                        image,
                        format!("{of:?} inherits from {from:?}, which the image it rests on does not have"),
                    )
                })?,
            };
            let spans = resolve(image, &one.extents, &inherited.spans);
            merged.insert(one.container, Merged { inherits: inherited.inherits, spans });
        }
        below = Some(merged);
    }
    Ok(below.unwrap_or_default())
}

/// The extents of one container of an image over what it inherits.
fn resolve(image: usize, extents: &[Extent], inherited: &[Span]) -> Vec<Span> {
    let mut spans = Vec::with_capacity(extents.len());
    for extent in extents {
        match extent.store {
            Store::Parent => {
                range(inherited, extent.first, extent.end()).for_each(|span| push(&mut spans, span));
            }
            Store::Zero => push(&mut spans, Span { image: 0, extent: *extent }),
            Store::Raw { .. } | Store::Packed(_) => push(&mut spans, Span { image, extent: *extent }),
        }
    }
    spans
}

/// The parts of ascending spans that lie in `[first, end)`.
pub(crate) fn range(spans: &[Span], first: u64, end: u64) -> impl Iterator<Item = Span> + '_ {
    let from = spans.partition_point(|span| span.extent.end() <= first);
    spans[from..].iter().take_while(move |span| span.extent.first < end).filter_map(move |span| {
        let (first, end) = (span.extent.first.max(first), span.extent.end().min(end));
        (first < end).then(|| Span { image: span.image, extent: span.extent.slice(first, end) })
    })
}

/// Adds a span behind the others, as one with the last where it follows that in the container and in the file.
fn push(spans: &mut Vec<Span>, span: Span) {
    if let Some(last) = spans.last_mut()
        && last.image == span.image
        && let Some(joined) = last.extent.joined(&span.extent)
    {
        last.extent = joined;
    } else {
        spans.push(span);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::PAGE_SIZE;
    use crate::records::SpaceId;
    use crate::{Codec, ImageError, PageReader, PagesWriter, Place, tests::temp_dir};
    use proptest::prelude::*;

    const PAGE: usize = PAGE_SIZE as usize;
    pub const SPAN: u64 = 48;

    /// What is told of pages `[first, first + count)` of container `space`.
    #[derive(Debug, Clone)]
    pub enum Deed {
        Store(u32, u64, Vec<u8>),
        Zero(u32, u64, u64),
        Parent(u32, u64, u64),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0..3u32, 0..40u64, proptest::collection::vec(0..4u8, 1..8))
                .prop_map(|(s, first, fills)| Deed::Store(s, first, fills)),
            (0..3u32, 0..40u64, 1..8u64).prop_map(|(s, first, count)| Deed::Zero(s, first, count)),
            (0..3u32, 0..30u64, 1..18u64).prop_map(|(s, first, count)| Deed::Parent(s, first, count)),
        ]
    }

    /// Which container each of three inherits from, if any, and what is told.
    pub type Image = (Vec<Option<u32>>, Vec<Deed>, Option<Codec>);

    pub fn images() -> impl Strategy<Value = Vec<Image>> {
        let inherits = proptest::collection::vec(proptest::option::weighted(0.8, 0..3u32), 3);
        let codec = proptest::option::of(prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd)]);
        proptest::collection::vec((inherits, proptest::collection::vec(deed(), 0..25), codec), 1..6)
    }

    /// Of each page of a container: its byte, or nothing.
    pub type Model = Vec<Vec<Option<u8>>>;

    pub fn space(n: u32) -> Container {
        Container::Space(SpaceId(n))
    }

    /// Writes an image over what `below` says of its parent; gives what it must show.
    pub fn write(dir: &Path, image: &Image, below: Option<&Model>) -> Model {
        let (inherits, deeds, codec) = image;
        let inherits = |n: u32| below.and(inherits[n as usize]);
        let mut writer = PagesWriter::create(dir).unwrap();
        writer.compress(*codec);
        let mut model: Model = vec![vec![None; SPAN as usize]; 3];
        (0..3).for_each(|n| writer.container(space(n), inherits(n).map(space)));
        for deed in deeds {
            match deed {
                Deed::Store(n, first, fills) => {
                    let data: Vec<u8> = fills.iter().flat_map(|fill| vec![*fill; PAGE]).collect();
                    writer.append(space(*n), *first, &data).unwrap();
                    for (at, fill) in fills.iter().enumerate() {
                        model[*n as usize][*first as usize + at] = Some(*fill);
                    }
                }
                Deed::Zero(n, first, count) => {
                    writer.zero(space(*n), *first, *count);
                    (*first..first + count).for_each(|at| model[*n as usize][at as usize] = Some(0));
                }
                Deed::Parent(n, first, count) => {
                    let (Some(below), Some(from)) = (below, inherits(*n)) else { continue };
                    writer.parent(space(*n), *first, *count);
                    for at in *first as usize..(first + count) as usize {
                        model[*n as usize][at] = below[from as usize][at];
                    }
                }
            }
        }
        writer.finish().unwrap();
        model
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// Every image of a chain shows what a model says that knows nothing of extents.
        #[test]
        fn a_chain_reads_as_the_model_does(images in images()) {
            let mut dirs: Vec<PathBuf> = Vec::new();
            let mut model: Option<Model> = None;
            for image in &images {
                let dir = temp_dir("chain");
                let now = write(&dir, image, model.as_ref());
                dirs.insert(0, dir);
                let reader = PageReader::open(&dirs).unwrap();
                prop_assert!(reader.verify(|_| true).unwrap());
                for n in 0..3u32 {
                    let mut told = [false; SPAN as usize];
                    let runs = reader.runs(space(n), 0, SPAN);
                    for run in &runs {
                        (run.first..run.end()).for_each(|page| told[page as usize] = true);
                    }
                    for pair in runs.windows(2) {
                        prop_assert!(pair[0].end() <= pair[1].first);
                        prop_assert!(pair[0].end() < pair[1].first || pair[0].place != Place::Zero || pair[1].place != Place::Zero);
                    }
                    for page in 0..SPAN {
                        let expected = now[n as usize][page as usize];
                        prop_assert_eq!(told[page as usize], expected.is_some());
                        prop_assert_eq!(reader.page(space(n), page).unwrap(), vec![expected.unwrap_or(0); PAGE]);
                        prop_assert_eq!(reader.runs(space(n), page, page + 1).len(), usize::from(expected.is_some()));
                    }
                }
                model = Some(now);
            }
            dirs.iter().for_each(|dir| std::fs::remove_dir_all(dir).unwrap());
        }
    }

    #[test]
    fn a_chain_that_contradicts_itself_is_corrupt() {
        let (full, incremental) = (temp_dir("contradiction"), temp_dir("contradiction"));
        let mut writer = PagesWriter::create(&full).unwrap();
        writer.append(space(0), 1, &[1; PAGE]).unwrap();
        writer.finish().unwrap();
        let mut writer = PagesWriter::create(&incremental).unwrap();
        writer.container(space(0), Some(space(7)));
        writer.parent(space(0), 1, 1);
        writer.finish().unwrap();
        let corrupt = |dirs: &[PathBuf]| {
            assert!(matches!(PageReader::open(dirs), Err(ImageError::Corrupt { .. })), "{dirs:?}");
        };
        corrupt(&[]);
        corrupt(std::slice::from_ref(&incremental)); // its parent is missing
        corrupt(&[incremental.clone(), full.clone()]); // the parent has no container 7
        corrupt(&[full, incremental]); // the wrong way round

        let mut writer = PagesWriter::create(&temp_dir("contradiction")).unwrap();
        writer.parent(space(0), 1, 1);
        assert!(matches!(writer.finish(), Err(ImageError::Encode { .. })));
    }
}
