//! Searches the states of one record: it selects cuts and which unsynced data is there, and checks
//! each state.

use super::device::{Devices, FileSystem};
use super::judge::AcknowledgedAtCut;
use super::operations;
use super::roles::PREFIX;
use crate::outcome::{Finding, Kind};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::process::{Checked, start_role};
use crate::recorder::choice::Choice;
use crate::recorder::disk::Disk;
use crate::recorder::image::Image;
use crate::recorder::{Event, Record};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Approximate number of states per cut, if there are too many to try all.
const PER_CUT: u64 = 6;

/// Makes stores from the states of a record and checks them.
pub trait Bench: Sync {
    /// Returns the granularity of torn writes in bytes.
    fn sector(&self) -> usize;

    /// Checks one state in a separate directory. The acknowledgements are in a file.
    ///
    /// # Errors
    /// The violation.
    fn judge(&self, image: &Image, directory: &Path, acknowledged: &Path) -> Result<(), Finding>;
}

/// Lays the store's files out in a directory.
pub struct Files;

impl Bench for Files {
    fn sector(&self) -> usize {
        crate::recorder::SECTOR
    }

    fn judge(&self, image: &Image, directory: &Path, acknowledged: &Path) -> Result<(), Finding> {
        image
            .lay_out(directory)
            .map_err(|error| Finding::new(Kind::Misbehaved, format!("laying a state out: {error}")))?;
        let judged = recovered(directory, image.file("checkpoint").is_some(), acknowledged);
        let _ = std::fs::remove_dir_all(directory);
        judged
    }
}

/// Returns the bench for a file system of the kernel, or for plain files.
pub fn bench(file_system: Option<FileSystem>) -> Box<dyn Bench> {
    match file_system {
        Some(file_system) => Box::new(Devices::new(file_system)),
        None => Box::new(Files),
    }
}

/// Runs a new process that recovers the store at `path` and checks it.
///
/// # Errors
/// The violation.
pub fn recovered(path: &Path, has_store: bool, acknowledged: &Path) -> Result<(), Finding> {
    let acknowledged = acknowledged.to_string_lossy();
    let arguments = [&*acknowledged, if has_store { "true" } else { "false" }];
    let mut process = start_role(&instrumented::own(), &format!("{PREFIX}judge"), path, &arguments, &[]);
    let start = Instant::now();
    while process.is_running() {
        if start.elapsed() > HANGS {
            return Err(Finding::new(Kind::BlockedReader, format!("recovery and checks took more than {HANGS:?}")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let ended_well = process.wait();
    process.refuse_finding()?;
    if ended_well { Ok(()) } else { Err(Finding::new(Kind::Misbehaved, "the recovering process was killed")) }
}

/// Counts of the cuts and states that were checked.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Cuts that were made.
    pub cuts: u64,
    /// Cuts of which every combination was tried.
    pub exhausted: u64,
    /// States that were recovered and checked.
    pub states: u64,
}

/// A state that violates a promise.
#[derive(Clone, Debug)]
pub struct Bad {
    /// The violation.
    pub finding: Finding,
    /// The position of the cut.
    pub cut: usize,
    /// The unsynced data that was there.
    pub choice: Choice,
}

/// A state to continue from.
pub struct CutSample {
    /// The files.
    pub image: Image,
    /// The acknowledgements before the cut.
    pub acknowledged: AcknowledgedAtCut,
    /// The position of the cut.
    pub cut: usize,
    /// The unsynced data that was there.
    pub choice: Choice,
}

/// The states of one record.
pub struct Search<'a> {
    record: &'a Record,
    bench: &'a dyn Bench,
    /// The acknowledgements before the record.
    acknowledged: AcknowledgedAtCut,
    /// All possible cuts.
    all: Vec<usize>,
    /// The same cuts, grouped by the operation before them and by the one after them. The groups
    /// take turns, so that a rare operation, such as the sync of a header, gets as many cuts as a
    /// frequent one.
    turns: Vec<Vec<usize>>,
    /// The group whose turn it is.
    turn: usize,
    operations: Vec<String>,
    /// States that were tried already.
    seen: BTreeSet<(u64, usize)>,
    directory: PathBuf,
    /// If a cut has at most this many combinations, all are tried.
    exhaust: u64,
    /// How much was checked.
    pub counts: Counts,
    /// Number of cuts right after each operation.
    pub hits: BTreeMap<String, u64>,
}

/// A file with the acknowledgements before a cut, removed when dropped.
struct AcknowledgedFile(PathBuf);

impl Drop for AcknowledgedFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl AcknowledgedFile {
    fn write(acknowledged: &AcknowledgedAtCut, path: PathBuf) -> Result<AcknowledgedFile, Finding> {
        let written = std::fs::write(&path, serde_json::to_vec(acknowledged).unwrap_or_default());
        let failed = |error| Finding::new(Kind::Misbehaved, format!("writing the acknowledgements: {error}"));
        written.map(|()| AcknowledgedFile(path)).map_err(failed)
    }
}

/// Checks one state in `directory`, an empty directory.
///
/// # Errors
/// The violation.
pub fn judge(
    bench: &dyn Bench,
    image: &Image,
    acknowledged: &AcknowledgedAtCut,
    directory: &Path,
) -> Result<(), Finding> {
    let file = AcknowledgedFile::write(acknowledged, directory.join("told"))?;
    bench.judge(image, &directory.join("state"), &file.0)
}

/// A state to be checked.
struct Job {
    image: Image,
    acknowledged: Arc<AcknowledgedFile>,
    cut: usize,
    choice: Choice,
}

impl<'a> Search<'a> {
    /// Creates a search of cuts within these spans of the record. States are laid out in
    /// `directory`, an empty directory.
    pub fn new(
        record: &'a Record,
        bench: &'a dyn Bench,
        acknowledged: AcknowledgedAtCut,
        spans: &[RangeInclusive<usize>],
        directory: PathBuf,
        exhaust: u64,
    ) -> Search<'a> {
        let operations = operations::of(record);
        let is_within = |at: &usize| spans.iter().any(|span| span.contains(at));
        let all: Vec<usize> = (1..=record.events.len()).filter(is_within).collect();
        let mut turns: BTreeMap<(bool, &str), Vec<usize>> = BTreeMap::new();
        for at in &all {
            for (is_after, operation) in [(false, operations.get(at - 1)), (true, operations.get(*at))] {
                if let Some(operation) = operation {
                    turns.entry((is_after, operation)).or_default().push(*at);
                }
            }
        }
        let turns = turns.into_values().collect();
        let (counts, hits) = (Counts::default(), BTreeMap::new());
        Search {
            record,
            bench,
            acknowledged,
            all,
            turns,
            turn: 0,
            operations,
            seen: BTreeSet::new(),
            directory,
            exhaust,
            counts,
            hits,
        }
    }

    /// Tries about `budget` more states, for as long as `may_continue` allows.
    ///
    /// # Errors
    /// The first state that violates a promise.
    pub fn pass(
        &mut self,
        budget: u64,
        random: &mut StdRng,
        may_continue: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Box<Bad>> {
        let cuts = self.cuts((budget / PER_CUT).max(1) as usize, random);
        let is_over = AtomicBool::new(false);
        let bad: Mutex<Option<Bad>> = Mutex::new(None);
        let judged = AtomicU64::new(0);
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let (give, take) = sync_channel::<Job>(workers);
        let take = Mutex::new(take);
        let (bench, directory) = (self.bench, self.directory.clone());
        let before = self.counts.states;
        std::thread::scope(|scope| {
            for worker in 0..workers {
                let (take, bad, judged, is_over) = (&take, &bad, &judged, &is_over);
                let directory = directory.join(format!("worker-{worker}"));
                scope.spawn(move || {
                    work(bench, take, &directory, judged, &|found| {
                        is_over.store(true, Ordering::Relaxed);
                        bad.lock().expect("not poisoned").get_or_insert(found);
                    })
                });
            }
            let mut may_continue =
                || !is_over.load(Ordering::Relaxed) && may_continue(before + judged.load(Ordering::Relaxed));
            let cut = self.walk(&cuts, random, &give, &mut may_continue);
            drop(give);
            if let Err((cut, finding)) = cut {
                let found = Bad { finding, cut, choice: Choice::Nothing { names: true } };
                bad.lock().expect("not poisoned").get_or_insert(found);
            }
        });
        self.counts.states += judged.load(Ordering::Relaxed);
        let found = bad.into_inner().expect("not poisoned");
        found.map_or(Ok(()), |found| Err(Box::new(found)))
    }

    /// Walks through the record and sends the states at each cut to the workers.
    fn walk(
        &mut self,
        cuts: &BTreeSet<usize>,
        random: &mut StdRng,
        give: &SyncSender<Job>,
        may_continue: &mut dyn FnMut() -> bool,
    ) -> Result<(), (usize, Finding)> {
        let mut disk = self.record.disk(self.bench.sector());
        let mut acknowledged = self.acknowledged.clone();
        let mut done = 0;
        for cut in cuts.iter().copied() {
            advance(&mut disk, &mut acknowledged, self.record, done, cut).map_err(|finding| (cut, finding))?;
            done = cut;
            self.counts.cuts += 1;
            *self.hits.entry(self.operations[cut - 1].clone()).or_default() += 1;
            let all = disk.combinations().filter(|all| *all <= self.exhaust);
            let choices = match all {
                Some(all) => (0..all).map(Choice::Combination).chain(torn(random)).collect(),
                None => choices(&disk, random),
            };
            let file =
                AcknowledgedFile::write(&acknowledged, self.directory.join(format!("told-{}", self.counts.cuts)));
            let file = Arc::new(file.map_err(|finding| (cut, finding))?);
            for choice in choices {
                if !may_continue() {
                    return Ok(());
                }
                let image = disk.image(&choice);
                // The acknowledgements differ between cuts, so equal images at two cuts are two
                // states.
                if self.seen.insert((image.fingerprint(), cut)) {
                    let _ = give.send(Job { image, acknowledged: file.clone(), cut, choice });
                }
            }
            self.counts.exhausted += u64::from(all.is_some());
        }
        Ok(())
    }

    /// Selects `count` cuts: mostly right before and after an operation of each kind, some
    /// anywhere.
    fn cuts(&mut self, count: usize, random: &mut StdRng) -> BTreeSet<usize> {
        if count >= self.all.len() {
            return self.all.iter().copied().collect();
        }
        let mut cuts = BTreeSet::new();
        while cuts.len() < count {
            let from = if random.random_range(0..5) == 0 {
                &self.all
            } else {
                self.turn += 1;
                &self.turns[(self.turn - 1) % self.turns.len()]
            };
            cuts.insert(from[random.random_range(0..from.len())]);
        }
        cuts
    }
}

/// Checks states until there are no more.
fn work(bench: &dyn Bench, take: &Mutex<Receiver<Job>>, directory: &Path, judged: &AtomicU64, found: &dyn Fn(Bad)) {
    for number in 0.. {
        let job = take.lock().expect("not poisoned").recv();
        let Ok(job) = job else { return };
        let directory = directory.with_extension(format!("{number}"));
        if let Err(finding) = bench.judge(&job.image, &directory, &job.acknowledged.0) {
            found(Bad { finding, cut: job.cut, choice: job.choice });
        }
        judged.fetch_add(1, Ordering::Relaxed);
    }
}

/// Applies the events between two positions and collects the acknowledgements.
fn advance(
    disk: &mut Disk,
    acknowledged: &mut AcknowledgedAtCut,
    record: &Record,
    from: usize,
    to: usize,
) -> Result<(), Finding> {
    for (at, event) in record.events.iter().enumerate().take(to).skip(from) {
        disk.apply(at, event);
        if let Event::Mark(said) = event {
            acknowledged.hear(said)?;
        }
    }
    Ok(())
}

/// Returns the state of one choice at one cut, and the acknowledgements before it.
///
/// # Errors
/// If the acknowledgements contradict each other.
pub fn state(
    record: &Record,
    sector: usize,
    mut acknowledged: AcknowledgedAtCut,
    cut: usize,
    choice: &Choice,
) -> Result<(Image, AcknowledgedAtCut), Finding> {
    let mut disk = record.disk(sector);
    advance(&mut disk, &mut acknowledged, record, 0, cut)?;
    Ok((disk.image(choice), acknowledged))
}

/// Returns states of a store to continue from, at random cuts after the first quarter. In most of
/// them some of the log is in doubt.
///
/// # Errors
/// If the acknowledgements contradict each other.
pub fn samples(
    record: &Record,
    acknowledged: &AcknowledgedAtCut,
    count: usize,
    random: &mut StdRng,
) -> Result<Vec<CutSample>, Finding> {
    let paths = record.paths();
    let is_log = |number: &u64| paths.get(number).is_some_and(|path| path.contains("/wal/"));
    let len = record.events.len();
    let mut found = Vec::new();
    // This is more tries than are ever needed.
    for _ in 0..200 * count {
        if found.len() == count {
            break;
        }
        let cut = random.random_range(len / 4..=len);
        let mut disk = record.disk(crate::recorder::SECTOR);
        let mut heard = acknowledged.clone();
        advance(&mut disk, &mut heard, record, 0, cut)?;
        let is_wanted = disk.doubtful_files().any(|file| is_log(&file)) || random.random_range(0..6) == 0;
        let choice = Choice::Random(random.random());
        let image = disk.image(&choice);
        if is_wanted && image.file("checkpoint").is_some() {
            found.push(CutSample { image, acknowledged: heard, cut, choice });
        }
    }
    Ok(found)
}

fn choices(disk: &Disk, random: &mut StdRng) -> Vec<Choice> {
    let mut choices = Vec::new();
    for names in [true, false] {
        choices.push(Choice::Nothing { names });
        choices.push(Choice::Everything { names });
    }
    let mut writes = disk.doubtful_writes();
    while writes.len() > 3 {
        writes.swap_remove(random.random_range(0..writes.len()));
    }
    for event in writes {
        choices.push(if random.random_bool(0.5) { Choice::Only(event) } else { Choice::Without(event) });
    }
    choices.extend(torn(random));
    choices
}

/// Returns two random choices, in which writes may be torn at sectors.
fn torn(random: &mut StdRng) -> [Choice; 2] {
    [Choice::Random(random.random()), Choice::Random(random.random())]
}
