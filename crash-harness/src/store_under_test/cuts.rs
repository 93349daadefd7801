//! Power cuts: the processes of any store work on the recorder, and the record is cut at many
//! places. States that a cut there could have left are laid out, and a new process opens and checks
//! them.
//!
//! Processes never repeat exactly the same calls, so a record with a finding is saved, and the
//! replay line names it.

use super::judge::{self, AcknowledgedBatches};
use super::kills::{checked, replay, start};
use super::{About, StoreUnderTest};
use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::process::{Checked, Process};
use crate::recorder::choice::Choice;
use crate::recorder::disk::Disk;
use crate::recorder::{Event, NameChange, OfOneBoot, Record, Recorder};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Number of batches of all writers of a record together.
const BATCHES: u64 = 120;
/// Number of cuts of one record, after which the next record is made.
const CUTS: usize = 14;
/// Number of findings after which a store is not searched further.
pub(super) const ENOUGH: usize = 12;

/// The figure for states of a store in which no commit had returned yet.
pub const UNFINISHED: &str = "states before the first commit that the store refuses to open";

/// Counts a store that can't be opened because its creation was interrupted. Nothing had been
/// acknowledged yet, but the user must remove the store.
pub(super) fn unfinished(outcome: &mut Outcome, what: &str) {
    let count = outcome.figures.entry(UNFINISHED.into()).or_default();
    *count += 1.0;
    if *count == 1.0 {
        outcome.remarks.push(format!("before the first commit had returned: {what}"));
    }
}

/// Assumptions about the disk and its file system.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Bytes that are written atomically. If this is less than a page, new and old parts of a page
    /// may be mixed.
    pub sector: usize,
    /// Whether a new file's name becomes durable only by a sync of its directory, which is all that
    /// POSIX guarantees. Otherwise a sync of the file makes its name durable, too, as the journals
    /// of ext4, XFS and btrfs do.
    pub strict_names: bool,
}

/// Runs power cuts until the time is up.
pub fn run(context: &Context, tested: &dyn StoreUnderTest, model: Model, outcome: &mut Outcome) {
    let about = tested.about();
    if let Some(only) = context.only.as_ref().filter(|only| only.contains('@')) {
        return again(context, "cuts", tested, model, only, outcome);
    }
    for round in rounds(context, about.name) {
        if outcome.violations.len() >= ENOUGH || !context.may_continue(outcome.states, about.name) {
            return;
        }
        let record = match record(tested, outcome) {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(finding) => {
                let name = format!("{}:{round}", about.name);
                outcome.violated(finding, &name, replay(context, "cuts", tested, &name));
                continue;
            }
        };
        let mut search = Search { context, tested, run: "cuts", round, record: &record, from: 0, model, cuts: CUTS };
        search.run(&mut context.random(round), outcome);
    }
}

/// Returns all rounds, or the one that a replay line names as `store:round`.
pub(super) fn rounds(context: &Context, name: &str) -> Range<u64> {
    let Some(only) = &context.only else { return 0..u64::MAX };
    let round: Option<u64> = only.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')?.parse().ok());
    round.map_or(0..0, |round| round..round + 1)
}

/// Mounts a recorder for a store of this kind. If that is impossible, records why and returns
/// `None`.
pub(super) fn recorder(tested: &dyn StoreUnderTest, outcome: &mut Outcome) -> Option<Recorder> {
    let mounted = crate::recorder::own_mounts()
        .and_then(|()| Recorder::mount(OfOneBoot::names(tested.files_of_one_boot()), None));
    match mounted {
        Ok(recorder) => Some(recorder),
        Err(error) => {
            let why = format!("no recording file system can be mounted here (root and FUSE): {error}");
            if std::env::var_os("CI").is_some() {
                let finding = Finding::new(Kind::Misbehaved, format!("CI requires every run: {why}"));
                outcome.violated(finding, tested.about().name, "as root, where /dev/fuse is".into());
            }
            outcome.skip(tested.about().name, why);
            None
        }
    }
}

/// Makes the directory for a store and syncs its name. The store itself must sync everything in it.
pub(super) fn store_path(recorder: &Recorder) -> Result<PathBuf, Finding> {
    let path = recorder.store();
    let made = std::fs::create_dir(&path).and_then(|()| File::open(path.parent().expect("in the root"))?.sync_all());
    made.map(|()| path).map_err(|error| super::Failure::from(error).finding("making a directory for the store"))
}

/// Records work from the creation of the store to its end or to a kill.
fn record(tested: &dyn StoreUnderTest, outcome: &mut Outcome) -> Result<Option<Record>, Finding> {
    let Some(recorder) = recorder(tested, outcome) else { return Ok(None) };
    let path = store_path(&recorder)?;
    let done = all_write(tested, &path);
    tested.end(&path);
    done.map(|()| Some(recorder.finish()))
}

fn all_write(tested: &dyn StoreUnderTest, path: &Path) -> Result<(), Finding> {
    let _presser = start(tested, "subject-presser", path, &[]);
    let count = if tested.about().many_processes { 3 } else { 1 };
    let batches = (BATCHES / count).to_string();
    let mut writers: Vec<Process> =
        (0..count).map(|i| start(tested, "subject-writer", path, &[&format!("w{i}"), &batches])).collect();
    writers.iter_mut().try_for_each(ended)
}

/// Waits until a process has finished.
pub(super) fn ended(process: &mut Process) -> Result<(), Finding> {
    let begun = Instant::now();
    while process.is_running() {
        if begun.elapsed() > HANGS {
            return Err(Finding::new(Kind::BlockedReader, format!("a writer did not finish within {HANGS:?}")));
        }
        std::thread::sleep(std::time::Duration::from_micros(300));
    }
    process.wait();
    process.refuse_finding()
}

/// A search through the states of a record.
pub(super) struct Search<'a> {
    pub(super) context: &'a Context,
    pub(super) tested: &'a dyn StoreUnderTest,
    /// The run, for the replay line.
    pub(super) run: &'static str,
    /// The round, for the replay line.
    pub(super) round: u64,
    pub(super) record: &'a Record,
    /// Position of the earliest cut.
    pub(super) from: usize,
    pub(super) model: Model,
    pub(super) cuts: usize,
}

impl Search<'_> {
    pub(super) fn run(&mut self, random: &mut StdRng, outcome: &mut Outcome) {
        let mut state = State::new(self.record, self.model);
        let mut seen = BTreeSet::new();
        let mut kept_at = None;
        for cut in self.cut_positions(random) {
            state.advance(cut);
            for choice in choices(&state.disk, random) {
                if outcome.violations.len() >= ENOUGH
                    || !self.context.may_continue(outcome.states, self.tested.about().name)
                {
                    return;
                }
                if !seen.insert((state.disk.image(&choice).fingerprint(), format!("{:?}", state.acknowledged))) {
                    continue;
                }
                if let Err(finding) = self.judge(&state, &choice, outcome) {
                    let kept = kept_at.get_or_insert_with(|| self.keep());
                    let position = format!("{}@{cut}@{choice}", kept.display());
                    let command = self.replay(&position);
                    let at =
                        format!("{}, cut {cut} of {}, {choice}", self.tested.about().name, self.record.events.len());
                    match finding.kind {
                        Kind::Misbehaved | Kind::Damaged if state.acknowledged.is_empty() => {
                            unfinished(outcome, &format!("{at}: {}; replay: {command}", finding.what));
                        }
                        _ => outcome.violated(finding, &at, command),
                    }
                }
            }
        }
    }

    /// Returns the command that checks a state again, under the same model.
    fn replay(&self, position: &str) -> String {
        let names = if self.model.strict_names { " --strict-names" } else { "" };
        let command = replay(self.context, self.run, self.tested, position);
        format!("{command} --sector {}{names}", self.model.sector)
    }

    fn judge(&self, state: &State, choice: &Choice, outcome: &mut Outcome) -> Result<(), Finding> {
        let About { name, after_cut, .. } = self.tested.about();
        let path = self.context.directory_in_memory(&format!("{name}-{}", outcome.states));
        let image = state.disk.image(choice);
        image.lay_out(&path).map_err(|error| super::Failure::from(error).finding("laying a state out"))?;
        let found = checked(self.tested, &path, "close");
        self.tested.end(&path);
        let _ = std::fs::remove_dir_all(&path);
        outcome.states += 1;
        let kept = judge::kept(&found?.there, &state.acknowledged, after_cut)?;
        let lost =
            outcome.figures.entry("batches that had returned and were missing, in all states".into()).or_default();
        *lost += kept.returned_lost as f64;
        Ok(())
    }

    /// Saves the record where the replay line finds it.
    fn keep(&self) -> PathBuf {
        let name = format!("{}-{}-{}-{}.record", self.run, self.tested.about().name, self.context.seed, self.round);
        let path = std::env::temp_dir().join("crash-peers").join(name);
        let _ = std::fs::create_dir_all(path.parent().expect("in a directory"));
        if let Err(error) = self.record.save(&path, &()) {
            eprintln!("keeping the record at {}: {error}", path.display());
        }
        path
    }

    /// Selects cuts: mostly right before and after an event that changes a promise, some anywhere.
    /// A rare event, such as the sync of a directory, gets as many cuts as a frequent one.
    fn cut_positions(&self, random: &mut StdRng) -> BTreeSet<usize> {
        let events = &self.record.events;
        let all: Vec<usize> = (self.from.max(1)..=events.len()).collect();
        let mut turns: BTreeMap<(u8, u64), Vec<usize>> = BTreeMap::new();
        for at in &all {
            for event in [events.get(*at), events.get(at - 1)].into_iter().flatten() {
                let kind = match event {
                    Event::Write { .. } => continue,
                    Event::Resized { file, .. } | Event::Synced { file, .. } | Event::SyncFailed { file, .. } => {
                        (0, *file)
                    }
                    Event::Name { dir, .. } | Event::DirSynced { dir, .. } => (1, *dir),
                    Event::Mark(_) => (2, 0),
                };
                turns.entry(kind).or_default().push(*at);
            }
        }
        let turns: Vec<Vec<usize>> = turns.into_values().collect();
        let mut positions = BTreeSet::from([events.len()]);
        while positions.len() < self.cuts.min(all.len()) {
            let is_anywhere = turns.is_empty() || random.random_range(0..4) == 0;
            let from = if is_anywhere { &all } else { &turns[random.random_range(0..turns.len())] };
            positions.insert(from[random.random_range(0..from.len())]);
        }
        positions
    }
}

/// A record up to a cut.
struct State<'a> {
    record: &'a Record,
    model: Model,
    disk: Disk,
    acknowledged: AcknowledgedBatches,
    done: usize,
    /// New files and directories whose names are not durable yet: the directory of each, and the
    /// position of its creation.
    unnamed: BTreeMap<u64, (u64, usize)>,
}

impl<'a> State<'a> {
    fn new(record: &'a Record, model: Model) -> State<'a> {
        let disk = record.disk(model.sector);
        State { record, model, disk, acknowledged: AcknowledgedBatches::default(), done: 0, unnamed: BTreeMap::new() }
    }

    /// Applies further events up to the cut and collects the acknowledgements.
    fn advance(&mut self, cut: usize) {
        for (at, event) in self.record.events.iter().enumerate().take(cut).skip(self.done) {
            self.disk.apply(at, event);
            match event {
                Event::Mark(said) => self.acknowledged.hear(said),
                Event::Name { dir, change: NameChange::Made { inode, .. } } if !self.model.strict_names => {
                    self.unnamed.insert(*inode, (*dir, at));
                }
                Event::Synced { file, .. } => self.name(*file, at),
                _ => {}
            }
        }
        self.done = cut;
    }

    /// Makes the name of a synced file durable, with all earlier changes in its directory. Then
    /// does the same for the directory and those above, if their names are not durable yet.
    fn name(&mut self, file: u64, at: usize) {
        let mut inode = file;
        while let Some((dir, made)) = self.unnamed.remove(&inode) {
            self.disk.apply(at, &Event::DirSynced { dir, before: made + 1 });
            inode = dir;
        }
    }
}

fn choices(disk: &Disk, random: &mut StdRng) -> Vec<Choice> {
    let mut choices = Vec::new();
    for names in [true, false] {
        choices.push(Choice::Nothing { names });
        choices.push(Choice::Everything { names });
    }
    let writes = disk.doubtful_writes();
    for _ in 0..writes.len().min(2) {
        let event = writes[random.random_range(0..writes.len())];
        choices.push(if random.random_bool(0.5) { Choice::Only(event) } else { Choice::Without(event) });
    }
    choices.extend((0..3).map(|_| Choice::Random(random.random())));
    choices
}

/// Checks one state of a saved record: `file@cut@choice`.
pub(super) fn again(
    context: &Context,
    run: &'static str,
    tested: &dyn StoreUnderTest,
    model: Model,
    only: &str,
    outcome: &mut Outcome,
) {
    let parts: Vec<&str> = only.split('@').collect();
    let wanted = || -> Result<(Record, usize, Choice), String> {
        let [file, cut, choice] = parts[..] else { return Err("expected the form file@cut@choice".into()) };
        let (record, ()) = Record::load(file.as_ref()).map_err(|error| format!("{file}: {error}"))?;
        Ok((record, cut.parse().map_err(|error| format!("{cut}: {error}"))?, choice.parse()?))
    };
    match wanted() {
        Err(why) => outcome.skip(only, why),
        Ok((record, cut, choice)) => {
            let search = Search { context, tested, run, round: 0, record: &record, from: 0, model, cuts: 1 };
            let mut state = State::new(&record, model);
            state.advance(cut);
            if let Err(finding) = search.judge(&state, &choice, outcome) {
                outcome.violated(finding, only, search.replay(only));
            }
        }
    }
}
