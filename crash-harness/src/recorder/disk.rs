//! The states that a power cut could have left, given the record up to the cut.
//!
//! Data that a completed sync covered is durable. Any part of the later changes may be on the disk.
//! Each sector holds its durable version or any version written since. Each directory has its
//! durable names or the names after any number of its later changes. Each file has its durable
//! length or a later one. Writes that a failed sync covered stay in doubt until something newer at
//! the same place becomes durable.

use super::choice::Choice;
use super::event::{Event, NameChange, OfOneBoot, PAGE, Page, ROOT};
use super::image::{FileImage, Image};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk after the first events of a record, with all data that is in doubt.
pub struct Disk {
    files: BTreeMap<u64, DiskFile>,
    dirs: BTreeMap<u64, DiskDir>,
    of_one_boot: OfOneBoot,
    /// Bytes that are written atomically.
    sector: usize,
}

#[derive(Default)]
struct DiskFile {
    pages: BTreeMap<u64, DiskPage>,
    /// The pages that are in doubt.
    doubtful: BTreeSet<u64>,
    size: u64,
    later_sizes: Vec<(usize, u64)>,
}

#[derive(Default)]
struct DiskPage {
    durable: Option<Version>,
    later: Vec<Version>,
}

struct Version {
    /// The event that wrote it.
    event: usize,
    content: Page,
    /// Whether a sync that covered it failed. No later sync makes it durable.
    lost: bool,
}

#[derive(Default)]
struct DiskDir {
    names: BTreeMap<String, (u64, bool)>,
    later: Vec<(usize, NameChange)>,
}

/// How the doubts of one file are resolved under [`Choice::Random`].
enum Mode {
    Nothing,
    Everything,
    /// Everything that was written before this event.
    Until(usize),
    /// Each page independently: one page in so many has its durable version, the others have any
    /// later version.
    Pages(usize),
    /// Each sector independently, in the same way.
    Sectors(usize),
}

/// One combination of the [`Disk::combinations`]: the version of each item in doubt; 0 is the
/// durable one.
struct Combination {
    rest: u64,
    dirs: BTreeMap<u64, usize>,
    pages: BTreeMap<(u64, u64), usize>,
    sizes: BTreeMap<u64, usize>,
}

impl Combination {
    fn digit(&mut self, later: usize) -> usize {
        let versions = later as u64 + 1;
        let digit = self.rest % versions;
        self.rest /= versions;
        digit as usize
    }
}

/// A choice that is being applied.
struct Chooser<'a> {
    choice: &'a Choice,
    dice: StdRng,
    combination: Option<Combination>,
}

impl Chooser<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.dice.random_range(0..bound.max(1))
    }
}

impl Disk {
    /// Creates an empty disk that tears writes at multiples of `sector`, a divisor of [`PAGE`].
    pub fn new(of_one_boot: OfOneBoot, sector: usize) -> Disk {
        assert!(sector > 0 && PAGE.is_multiple_of(sector), "pages are whole sectors");
        Disk { files: BTreeMap::new(), dirs: BTreeMap::new(), of_one_boot, sector }
    }

    /// Applies the next event, which has the position `at` in the record.
    pub fn apply(&mut self, at: usize, event: &Event) {
        match event {
            Event::Write { file, first, pages, size, .. } => {
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
                let names: &[&String] = match change {
                    NameChange::Made { name, .. } | NameChange::Removed { name } => &[name],
                    NameChange::Moved { from, to } => &[from, to],
                };
                // Names of files that do not survive a cut are never in doubt.
                if names.iter().any(|name| !self.of_one_boot.has(name)) {
                    self.dirs.entry(*dir).or_default().later.push((at, change.clone()));
                }
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

    /// Returns the events whose writes are in doubt.
    pub fn doubtful_writes(&self) -> Vec<usize> {
        let versions = |file: &DiskFile| {
            let pages = file.doubtful.iter().flat_map(|page| file.pages[page].later.iter());
            pages.map(|version| version.event).collect::<Vec<_>>()
        };
        self.files.values().flat_map(versions).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Returns the numbers of the files of which something is in doubt.
    pub fn doubtful_files(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().filter(|(_, file)| !file.doubtful.is_empty()).map(|(number, _)| *number)
    }

    /// Returns the number of combinations of everything in doubt, if no page is torn: any version
    /// of each page, any number of changes of each directory, any length of each file. Returns
    /// `None` if the number overflows.
    pub fn combinations(&self) -> Option<u64> {
        let dirs = self.dirs.values().map(|dir| dir.later.len());
        let sizes = self.files.values().map(|file| file.later_sizes.len());
        let pages = self.files.values().flat_map(|file| file.doubtful.iter().map(|page| file.pages[page].later.len()));
        dirs.chain(sizes).chain(pages).try_fold(1u64, |all, later| all.checked_mul(later as u64 + 1))
    }

    fn combination(&self, nth: u64) -> Combination {
        let mut found =
            Combination { rest: nth, dirs: BTreeMap::new(), pages: BTreeMap::new(), sizes: BTreeMap::new() };
        for (number, dir) in &self.dirs {
            let digit = found.digit(dir.later.len());
            found.dirs.insert(*number, digit);
        }
        for (number, file) in &self.files {
            let digit = found.digit(file.later_sizes.len());
            found.sizes.insert(*number, digit);
            for page in &file.doubtful {
                let digit = found.digit(file.pages[page].later.len());
                found.pages.insert((*number, *page), digit);
            }
        }
        found
    }

    /// Returns the files that one choice leaves.
    pub fn image(&self, choice: &Choice) -> Image {
        let (seed, combination) = match choice {
            Choice::Random(seed) => (*seed, None),
            Choice::Combination(nth) => (0, Some(self.combination(*nth))),
            _ => (0, None),
        };
        let mut chooser = Chooser { choice, dice: StdRng::seed_from_u64(seed), combination };
        let mut image = Image::default();
        self.collect(ROOT, Path::new(""), &mut chooser, &mut image);
        image
    }

    fn collect(&self, number: u64, path: &Path, chooser: &mut Chooser<'_>, image: &mut Image) {
        let Some(dir) = self.dirs.get(&number) else { return };
        let count = match chooser.choice {
            Choice::Nothing { names } | Choice::Everything { names } if *names => dir.later.len(),
            Choice::Without(_) => dir.later.len(),
            Choice::Random(_) => chooser.below(dir.later.len() + 1),
            Choice::Combination(_) => chooser.combination.as_ref().map_or(0, |digits| digits.dirs[&number]),
            _ => 0,
        };
        let mut names = dir.names.clone();
        for (_, change) in &dir.later[..count] {
            change_names(&mut names, change);
        }
        for (name, (inode, is_dir)) in names {
            if self.of_one_boot.has(&name) {
                continue;
            }
            let path = path.join(name);
            if is_dir {
                image.dirs.push(path.clone());
                self.collect(inode, &path, chooser, image);
            } else if let Some(file) = self.files.get(&inode) {
                image.files.push(file.image(inode, path, chooser, self.sector));
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
                page.durable = page.later.drain(..=newest).next_back();
            }
            !page.later.is_empty()
        });
        let covered = self.later_sizes.iter().filter(|(at, _)| *at < before).count();
        let cuts = self.cuts(covered);
        if !cuts.is_empty() {
            for (number, page) in &mut self.pages {
                let versions = page.durable.iter_mut().chain(&mut page.later);
                versions.for_each(|version| version.content = version.cut(*number, &cuts));
            }
        }
        if let Some((_, size)) = self.later_sizes.drain(..covered).next_back() {
            self.size = size;
        }
    }

    /// Returns the truncations among the first `count` changes of the length: the event and the new
    /// length of each. Data that was written earlier beyond that length is gone, even if the file
    /// grows again.
    fn cuts(&self, count: usize) -> Vec<(usize, u64)> {
        let mut before = self.size;
        let is_cut = |(_, size): &&(usize, u64)| std::mem::replace(&mut before, *size) > *size;
        self.later_sizes[..count].iter().filter(is_cut).copied().collect()
    }

    /// Returns whether something that this event wrote is in doubt.
    fn has_written(&self, event: usize) -> bool {
        self.doubtful.iter().any(|page| self.pages[page].later.iter().any(|version| version.event == event))
    }

    fn mode(&self, chooser: &mut Chooser<'_>) -> Mode {
        match chooser.below(6) {
            0 => Mode::Nothing,
            1 => Mode::Everything,
            2 => {
                let versions = self.doubtful.iter().flat_map(|page| self.pages[page].later.iter());
                let events: Vec<usize> = versions.map(|version| version.event).collect();
                let at = chooser.below(events.len());
                events.get(at).map_or(Mode::Nothing, |event| Mode::Until(*event))
            }
            3 => Mode::Pages(2 + chooser.below(3)),
            4 => Mode::Pages(9),
            _ => Mode::Sectors(2 + chooser.below(6)),
        }
    }

    fn image(&self, inode: u64, path: PathBuf, chooser: &mut Chooser<'_>, sector: usize) -> FileImage {
        let is_random = matches!(chooser.choice, Choice::Random(_));
        let mode = if is_random { self.mode(chooser) } else { Mode::Nothing };
        // A length may be on the disk without the bytes before it. Bytes beyond the length are
        // never on the disk.
        let nth = match chooser.choice {
            Choice::Nothing { .. } => 0,
            Choice::Everything { .. } | Choice::Without(_) => self.later_sizes.len(),
            Choice::Only(event) if self.has_written(*event) => self.later_sizes.len(),
            Choice::Only(_) => 0,
            Choice::Random(_) => chooser.below(self.later_sizes.len() + 1),
            Choice::Combination(_) => chooser.combination.as_ref().expect("made for this choice").sizes[&inode],
        };
        let size = if nth == 0 { self.size } else { self.later_sizes[nth - 1].1 };
        let cuts = self.cuts(nth);
        let mut pages = BTreeMap::new();
        for (number, page) in &self.pages {
            let cut = |version: &Version| version.cut(*number, &cuts);
            let durable = || page.durable.as_ref().map(cut);
            let newest =
                |wanted: &dyn Fn(usize) -> bool| page.later.iter().rfind(|version| wanted(version.event)).map(cut);
            let content = match (chooser.choice, &mode) {
                _ if page.later.is_empty() => durable(),
                (Choice::Nothing { .. }, _) | (Choice::Random(_), Mode::Nothing) => durable(),
                (Choice::Everything { .. }, _) | (Choice::Random(_), Mode::Everything) => newest(&|_| true),
                (Choice::Only(event), _) => newest(&|at| at == *event).or_else(durable),
                (Choice::Without(event), _) => newest(&|at| at != *event).or_else(durable),
                (Choice::Combination(_), _) => {
                    let digits = chooser.combination.as_ref().expect("made for this choice");
                    match digits.pages[&(inode, *number)] {
                        0 => durable(),
                        nth => Some(cut(&page.later[nth - 1])),
                    }
                }
                (Choice::Random(_), Mode::Until(event)) => newest(&|at| at < *event).or_else(durable),
                (Choice::Random(_), Mode::Pages(odds)) => {
                    if chooser.below(*odds) == 0 {
                        durable()
                    } else {
                        Some(cut(page.any_version(chooser)))
                    }
                }
                (Choice::Random(_), Mode::Sectors(odds)) => {
                    let mut mixed = durable().map_or([0; PAGE], |page| *page);
                    for nth in 0..PAGE / sector {
                        if chooser.below(*odds) != 0 {
                            let bytes = nth * sector..(nth + 1) * sector;
                            mixed[bytes.clone()].copy_from_slice(&cut(page.any_version(chooser))[bytes]);
                        }
                    }
                    Some(Arc::new(mixed))
                }
            };
            if let Some(content) = content {
                pages.insert(*number, content);
            }
        }
        pages.retain(|page, _| page * (PAGE as u64) < size);
        FileImage { path, size, pages }
    }
}

impl Version {
    /// Returns the content that is left after later truncations to these lengths.
    fn cut(&self, page: u64, cuts: &[(usize, u64)]) -> Page {
        let shortest = cuts.iter().filter(|(at, _)| *at > self.event).map(|(_, size)| *size).min();
        let left = shortest.map_or(PAGE as u64, |size| size.saturating_sub(page * PAGE as u64)) as usize;
        if left >= PAGE {
            return self.content.clone();
        }
        let mut content = [0; PAGE];
        content[..left].copy_from_slice(&self.content[..left]);
        Arc::new(content)
    }
}

impl DiskPage {
    fn any_version(&self, chooser: &mut Chooser<'_>) -> &Version {
        // The newest version is at least as likely as all older ones together.
        let newest = self.later.len() - 1;
        let at = if chooser.below(2) == 0 { newest } else { chooser.below(self.later.len()) };
        &self.later[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: u64, first: u64, byte: u8) -> Event {
        let size = 2 * PAGE as u64;
        Event::Write { file, first, pages: vec![Arc::new([byte; PAGE])], size, is_write_back: false }
    }

    fn made(name: &str, inode: u64) -> Event {
        Event::Name { dir: ROOT, change: NameChange::Made { name: name.into(), inode, is_dir: false } }
    }

    /// Returns the first bytes of the file's pages in each combination.
    fn states(events: &[Event]) -> BTreeSet<Option<Vec<u8>>> {
        let mut disk = Disk::new(OfOneBoot::names(&["volatile"]), 512);
        for (at, event) in events.iter().enumerate() {
            disk.apply(at, event);
        }
        let all = disk.combinations().unwrap();
        let state = |nth| {
            let image = disk.image(&Choice::Combination(nth));
            let file = image.files.first()?;
            Some((0..file.size / PAGE as u64).map(|page| file.pages.get(&page).map_or(0, |page| page[0])).collect())
        };
        (0..all).map(state).collect()
    }

    #[test]
    fn each_combination_of_what_is_in_doubt_is_a_state() {
        let durable = [made("file", 3), Event::DirSynced { dir: ROOT, before: 1 }];
        let mut events = durable.to_vec();
        events.extend([write(3, 0, 1), write(3, 1, 2), Event::Synced { file: 3, before: 4 }]);
        assert_eq!(states(&events), BTreeSet::from([Some(vec![1, 2])]));
        // Any version of one page with any version of the other.
        events.extend([write(3, 0, 3), write(3, 0, 4), write(3, 1, 5)]);
        let expected = [1, 3, 4].into_iter().flat_map(|first| [2, 5].map(|second| Some(vec![first, second])));
        assert_eq!(states(&events), expected.collect());
        // A sync covers the writes before its call, not those before its answer.
        events.push(Event::Synced { file: 3, before: 6 });
        let expected = [3, 4].into_iter().flat_map(|first| [2, 5].map(|second| Some(vec![first, second])));
        assert_eq!(states(&events), expected.collect());
    }

    #[test]
    fn names_and_lengths_are_in_doubt_too_and_what_belongs_to_one_boot_is_not() {
        let events = [made("file", 3), made("volatile", 4), write(3, 0, 1)];
        assert_eq!(states(&events), BTreeSet::from([None, Some(vec![]), Some(vec![0, 0]), Some(vec![1, 0])]));
    }

    #[test]
    fn what_a_failed_sync_covered_stays_in_doubt() {
        let mut events = vec![made("file", 3), Event::DirSynced { dir: ROOT, before: 1 }];
        events.extend([write(3, 0, 1), Event::Synced { file: 3, before: 3 }, write(3, 0, 2)]);
        events.extend([Event::SyncFailed { file: 3, before: 5 }, Event::Synced { file: 3, before: 6 }]);
        assert_eq!(states(&events), BTreeSet::from([Some(vec![1, 0]), Some(vec![2, 0])]));
        // The lost version is in doubt until newer data is durable.
        events.extend([write(3, 0, 3), Event::Synced { file: 3, before: 8 }]);
        assert_eq!(states(&events), BTreeSet::from([Some(vec![3, 0])]));
    }
    #[test]
    fn what_was_cut_off_does_not_come_back_when_the_file_grows_again() {
        let mut events = vec![made("file", 3), Event::DirSynced { dir: ROOT, before: 1 }];
        events.extend([write(3, 0, 1), write(3, 1, 2), Event::Synced { file: 3, before: 4 }]);
        events.extend([Event::Resized { file: 3, size: 0 }, Event::Resized { file: 3, size: 2 * PAGE as u64 }]);
        assert_eq!(states(&events), BTreeSet::from([Some(vec![1, 2]), Some(vec![]), Some(vec![0, 0])]));
        events.extend([write(3, 1, 4), Event::Synced { file: 3, before: 8 }]);
        assert_eq!(states(&events), BTreeSet::from([Some(vec![0, 4])]));
    }
}
