//! The states that a power cut could have left, from what a recorder recorded up to the cut.
//!
//! Durable is what a completed sync covered. Of everything later, any part may be on the disk: of each sector of 512 bytes
//! any version written since, or the durable one; of each directory its durable names, or those after any number of
//! its later changes; of each file its durable length or a later one. Writes that a failed sync covered stay
//! in doubt for ever, until something newer that is written there becomes durable.

use super::{Event, NameChange, PAGE, Page};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The store's directory in the recorder's root.
pub(crate) const STORE: &str = "store";
const SECTOR: usize = 512;
const ROOT: u64 = 1;

/// Files of this name mean nothing after a power cut.
pub(crate) fn is_of_one_boot(name: &str) -> bool {
    name.starts_with("control") || name.starts_with("logger.sock") || name == super::MARK
}

/// Small repeatable random numbers.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A disk after the first so many events, with all that is in doubt.
#[derive(Default)]
pub(crate) struct Disk {
    files: BTreeMap<u64, DiskFile>,
    dirs: BTreeMap<u64, DiskDir>,
}

#[derive(Default)]
struct DiskFile {
    pages: BTreeMap<u64, DiskPage>,
    /// The pages of which something is in doubt.
    doubtful: BTreeSet<u64>,
    size: u64,
    later_sizes: Vec<(usize, u64)>,
}

#[derive(Default)]
struct DiskPage {
    durable: Option<Page>,
    later: Vec<Version>,
}

struct Version {
    /// The event that wrote it.
    event: usize,
    content: Page,
    /// A sync that covered it failed: no later one makes it durable.
    lost: bool,
}

#[derive(Default)]
struct DiskDir {
    names: BTreeMap<String, (u64, bool)>,
    later: Vec<(usize, NameChange)>,
}

/// What of all that is in doubt is on the disk.
#[derive(Clone, Debug)]
pub(crate) enum Choice {
    /// Nothing; and of the names nothing, or all.
    Nothing { names: bool },
    /// Everything; and of the names nothing, or all.
    Everything { names: bool },
    /// What one event wrote, alone.
    Only(usize),
    /// All but what one event wrote.
    Without(usize),
    /// Something, by these dice.
    Random(u64),
}

/// How one file's doubts are resolved under [`Choice::Random`].
enum Mode {
    Nothing,
    Everything,
    /// What was written before this event.
    Until(usize),
    /// Each page by itself; one in so many is the durable one, else any version.
    Pages(usize),
    /// Each sector by itself, likewise.
    Sectors(usize),
}

impl Disk {
    pub(crate) fn apply(&mut self, at: usize, event: &Event) {
        match event {
            Event::Write { file, first, pages, size } => {
                let file = self.files.entry(*file).or_default();
                for (index, content) in pages.iter().enumerate() {
                    let page = first + index as u64;
                    let version = Version { event: at, content: content.clone(), lost: false };
                    file.pages.entry(page).or_default().later.push(version);
                    file.doubtful.insert(page);
                }
                file.resize(at, *size);
            }
            Event::Resized { file, size } => self.files.entry(*file).or_default().resize(at, *size),
            Event::Synced { file, before } => self.files.entry(*file).or_default().sync(*before),
            Event::SyncFailed { file, before } => {
                let file = self.files.entry(*file).or_default();
                for page in &file.doubtful {
                    let page = file.pages.get_mut(page).expect("doubtful pages are known");
                    for version in page.later.iter_mut().filter(|version| version.event < *before) {
                        version.lost = true;
                    }
                }
            }
            Event::Name { dir, change } => {
                if let NameChange::Made { inode, is_dir, .. } = change {
                    if *is_dir {
                        self.dirs.entry(*inode).or_default();
                    } else {
                        self.files.entry(*inode).or_default();
                    }
                }
                self.dirs.entry(*dir).or_default().later.push((at, change.clone()));
            }
            Event::DirSynced { dir, before } => {
                let dir = self.dirs.entry(*dir).or_default();
                let count = dir.later.iter().filter(|(event, _)| event < before).count();
                for (_, change) in dir.later.drain(..count) {
                    change_names(&mut dir.names, &change);
                }
            }
            Event::Mark(_) => {}
        }
    }

    /// The events whose writes are in doubt.
    pub(crate) fn doubtful_writes(&self) -> Vec<usize> {
        let versions = |file: &DiskFile| {
            let pages = file.doubtful.iter().flat_map(|page| file.pages[page].later.iter());
            pages.map(|version| version.event).collect::<Vec<_>>()
        };
        self.files.values().flat_map(versions).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files in the store that have some, by the names they have now.
    pub(crate) fn doubtful_files(&self) -> Vec<String> {
        let everything = self.image(&Choice::Everything { names: true });
        let is_doubtful = |file: &&FileImage| file.inode.is_some_and(|inode| !self.files[&inode].doubtful.is_empty());
        let names = everything.files.iter().filter(is_doubtful).filter_map(|file| file.path.strip_prefix(STORE).ok());
        names.map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// The files as one choice leaves them.
    pub(crate) fn image(&self, choice: &Choice) -> Image {
        let mut dice = Dice(match choice {
            Choice::Random(seed) => *seed,
            _ => 0,
        });
        let mut image = Image { dirs: Vec::new(), files: Vec::new() };
        self.collect(ROOT, Path::new(""), choice, &mut dice, &mut image);
        image
    }

    fn collect(&self, number: u64, path: &Path, choice: &Choice, dice: &mut Dice, image: &mut Image) {
        let Some(dir) = self.dirs.get(&number) else { return };
        let count = match choice {
            Choice::Nothing { names } | Choice::Everything { names } if *names => dir.later.len(),
            Choice::Without(_) => dir.later.len(),
            Choice::Random(_) => dice.below(dir.later.len() + 1),
            _ => 0,
        };
        let mut names = dir.names.clone();
        for (_, change) in &dir.later[..count] {
            change_names(&mut names, change);
        }
        for (name, (inode, is_dir)) in names {
            if is_of_one_boot(&name) {
                continue;
            }
            let path = path.join(name);
            if is_dir {
                image.dirs.push(path.clone());
                self.collect(inode, &path, choice, dice, image);
            } else if let Some(file) = self.files.get(&inode) {
                image.files.push(FileImage { inode: Some(inode), ..file.image(path, choice, dice) });
            }
        }
    }
}

fn change_names(names: &mut BTreeMap<String, (u64, bool)>, change: &NameChange) {
    match change {
        NameChange::Made { name, inode, is_dir } => {
            names.insert(name.clone(), (*inode, *is_dir));
        }
        NameChange::Moved { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Removed { name } => {
            names.remove(name);
        }
    }
}

impl DiskFile {
    fn resize(&mut self, at: usize, size: u64) {
        if self.later_sizes.last().map_or(self.size, |(_, size)| *size) != size {
            self.later_sizes.push((at, size));
        }
    }

    fn sync(&mut self, before: usize) {
        let pages = &mut self.pages;
        self.doubtful.retain(|page| {
            let page = pages.get_mut(page).expect("doubtful pages are known");
            let is_covered = |version: &Version| version.event < before && !version.lost;
            if let Some(newest) = page.later.iter().rposition(is_covered) {
                page.durable = Some(page.later[newest].content.clone());
                page.later.drain(..=newest);
            }
            !page.later.is_empty()
        });
        let covered = self.later_sizes.iter().filter(|(at, _)| *at < before).count();
        if let Some((_, size)) = self.later_sizes.drain(..covered).next_back() {
            self.size = size;
        }
    }

    fn image(&self, path: PathBuf, choice: &Choice, dice: &mut Dice) -> FileImage {
        let mode = match choice {
            Choice::Random(_) => match dice.below(6) {
                0 => Mode::Nothing,
                1 => Mode::Everything,
                2 => {
                    let events: Vec<usize> =
                        self.doubtful.iter().flat_map(|page| self.pages[page].later.iter().map(|v| v.event)).collect();
                    let at = dice.below(events.len());
                    events.get(at).map_or(Mode::Nothing, |event| Mode::Until(*event))
                }
                3 => Mode::Pages(2 + dice.below(3)),
                4 => Mode::Pages(9),
                _ => Mode::Sectors(2 + dice.below(6)),
            },
            _ => Mode::Nothing,
        };
        let mut pages = BTreeMap::new();
        let mut has_any = false;
        for (number, page) in &self.pages {
            let durable = || page.durable.clone();
            let newest = |wanted: &dyn Fn(usize) -> bool| {
                page.later.iter().rfind(|version| wanted(version.event)).map(|version| version.content.clone())
            };
            let content = match (choice, &mode) {
                _ if page.later.is_empty() => durable(),
                (Choice::Nothing { .. }, _) | (Choice::Random(_), Mode::Nothing) => durable(),
                (Choice::Everything { .. }, _) | (Choice::Random(_), Mode::Everything) => newest(&|_| true),
                (Choice::Only(event), _) => newest(&|at| at == *event).or_else(durable),
                (Choice::Without(event), _) => newest(&|at| at != *event).or_else(durable),
                (Choice::Random(_), Mode::Until(event)) => newest(&|at| at < *event).or_else(durable),
                (Choice::Random(_), Mode::Pages(odds)) => {
                    if dice.below(*odds) == 0 {
                        durable()
                    } else {
                        Some(page.any_version(dice).clone())
                    }
                }
                (Choice::Random(_), Mode::Sectors(odds)) => {
                    let mut mixed = page.durable.as_ref().map_or([0; PAGE], |page| **page);
                    for sector in 0..PAGE / SECTOR {
                        if dice.below(*odds) != 0 {
                            let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                            mixed[bytes.clone()].copy_from_slice(&page.any_version(dice)[bytes]);
                        }
                    }
                    Some(Arc::new(mixed))
                }
            };
            if let Some(content) = content {
                has_any |= !page.later.is_empty();
                pages.insert(*number, content);
            }
        }
        let last = self.later_sizes.last().map_or(self.size, |(_, size)| *size);
        let size = match choice {
            Choice::Nothing { .. } => self.size,
            Choice::Everything { .. } | Choice::Without(_) => last,
            Choice::Only(_) if has_any => last,
            Choice::Only(_) => self.size,
            // A length may be there without the bytes before it. Bytes beyond the length are not.
            Choice::Random(_) => match dice.below(self.later_sizes.len() + 1) {
                0 => self.size,
                nth => self.later_sizes[nth - 1].1,
            },
        };
        pages.retain(|page, _| page * (PAGE as u64) < size);
        FileImage { inode: None, path, size, pages }
    }
}

impl DiskPage {
    fn any_version(&self, dice: &mut Dice) -> &Page {
        // The newest one as often as all older ones.
        let newest = self.later.len() - 1;
        let at = if dice.below(2) == 0 { newest } else { dice.below(self.later.len()) };
        &self.later[at].content
    }
}

/// Files as a cut left them.
pub(crate) struct Image {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) files: Vec<FileImage>,
}

pub(crate) struct FileImage {
    /// Its number on the disk that it was taken from.
    inode: Option<u64>,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// The pages that are not all zeros; perhaps some more.
    pub(crate) pages: BTreeMap<u64, Page>,
}

impl Image {
    /// Tells images apart. Equal contents in different events count as different.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.dirs.hash(&mut hasher);
        for file in &self.files {
            (&file.path, file.size).hash(&mut hasher);
            for (number, page) in &file.pages {
                (number, Arc::as_ptr(page).addr()).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Whether there is a store at all.
    pub(crate) fn has_store(&self) -> bool {
        self.files.iter().any(|file| file.path == Path::new(STORE).join("checkpoint"))
    }

    /// Writes the store's files into a fresh directory.
    pub(crate) fn lay_out(&self, store: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(store)?;
        for dir in &self.dirs {
            if let Ok(path) = dir.strip_prefix(STORE) {
                std::fs::create_dir_all(store.join(path))?;
            }
        }
        for file in &self.files {
            let Ok(path) = file.path.strip_prefix(STORE) else { continue };
            let made = std::fs::File::create_new(store.join(path))?;
            made.set_len(file.size)?;
            let mut run: (u64, Vec<u8>) = (0, Vec::new());
            for (number, page) in file.pages.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
                if run.0 + (run.1.len() / PAGE) as u64 != *number {
                    made.write_all_at(&run.1, run.0 * PAGE as u64)?;
                    run = (*number, Vec::new());
                }
                run.1.extend_from_slice(&**page);
            }
            made.write_all_at(&run.1, run.0 * PAGE as u64)?;
        }
        Ok(())
    }
}
