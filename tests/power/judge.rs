//! What must hold after a power cut, and the search through the states that one can leave.

use crate::recorder::Event;
use crate::recorder::states::{Choice, Dice, Disk, Image};
use crate::store_files::{in_process, read, read_changes, remove_all};
use crate::workload::victim::caught;
use crate::workload::{Writer, check, check_cells, unsealed};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use untorn::{Durability, Snapshot, Store};

/// Transactions of a writer before each of its large ones.
pub(crate) const PER_ROUND: u64 = 12;

/// What the processes had been told when the power went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Of each writer the last transaction that was acknowledged as durable, and the last large one.
    durable: BTreeMap<String, u64>,
    rounds: BTreeMap<String, u64>,
    /// Of each writer's cell the newest value that was acknowledged as durable, and the value of each version.
    cells: BTreeMap<String, u64>,
    versions: BTreeMap<(String, u64), u64>,
    /// What a recovery before found of writers that are gone since: exactly that stays.
    found: BTreeMap<String, u64>,
    found_all: bool,
}

impl Told {
    pub(crate) fn hear(&mut self, mark: &str) {
        let mut words = mark.split(' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_string());
        let number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match kind {
            "D" => drop(self.durable.insert(name, number)),
            "R" => drop(self.rounds.insert(name, number)),
            "C" => drop(self.cells.insert(name, number)),
            "S" => {
                let version = words.next().and_then(|word| word.parse().ok()).expect("a version");
                let before = self.versions.insert((name.clone(), version), number);
                assert!(before.is_none_or(|before| before == number), "version {version} of {name} names two values");
            }
            "F" => drop(self.found.insert(name, number)),
            "F." => self.found_all = true,
            _ => {}
        }
    }

    /// Forgets what an earlier life's recovery found: another recovery comes.
    pub(crate) fn next_life(mut self) -> Told {
        self.found.clear();
        self.found_all = false;
        self
    }
}

/// The large transactions of a writer: the last one whole, and in its place between the others.
fn check_rounds(store: &Store, snapshot: &Snapshot, name: &str, n: u64) -> u64 {
    let Some(extra) = store.find_keyspace(&format!("extra-{name}")).unwrap() else {
        assert!(n <= PER_ROUND, "{name}: transaction {n} without the large one before it");
        return 0;
    };
    let (mut keys, mut rounds) = (Vec::new(), BTreeSet::new());
    for entry in snapshot.range(&extra, ..).unwrap() {
        let (key, value) = entry.unwrap();
        keys.push(key.to_vec());
        rounds.insert(unsealed(&value));
    }
    let round = match rounds.into_iter().collect::<Vec<_>>()[..] {
        [] => 0,
        [round] => round,
        ref several => panic!("{name}: parts of the large transactions {several:?}"),
    };
    let expected = |count: u64| (0..count).map(|i| i.to_be_bytes().to_vec()).chain([b"large".to_vec()]);
    let is_whole = [60, 5].iter().any(|count| expected(*count).eq(keys.iter().cloned()));
    assert!(is_whole || (round == 0 && keys.is_empty()), "{name}: part of the large transaction {round}: {keys:?}");
    let range = PER_ROUND * round..=PER_ROUND * (round + 1);
    assert!(range.contains(&n), "{name}: the large transaction {round} beside {n}");
    if let Some(short) = store.find_keyspace(&format!("short-{name}")).unwrap() {
        for entry in snapshot.range(&short, ..).unwrap() {
            let of = unsealed(&entry.unwrap().1);
            // A writer that was killed may have left an earlier one.
            assert!(of <= round, "{name}: the short-lived keyspace is of round {of}, the large one of {round}");
        }
    }
    round
}

/// Everything that must hold of the store at `path` after a cut at which so much had been told.
fn examine(path: &Path, has_store: bool, told: &Told) {
    let store = if has_store {
        in_process().open(path).unwrap()
    } else {
        // The cut came before there was a store: nothing was promised, and one can be made.
        assert!(told.durable.is_empty(), "the store is gone");
        in_process().create(true).open(path).unwrap()
    };
    let snapshot = store.snapshot().unwrap();
    let found = check(&store, &snapshot);
    for (name, n) in &told.durable {
        let there = found.get(name).copied().unwrap_or(0);
        assert!(there >= *n, "{name}: {n} was acknowledged as durable, {there} is there");
    }
    for (name, n) in &found {
        let round = check_rounds(&store, &snapshot, name, *n);
        let told_round = told.rounds.get(name).copied().unwrap_or(0);
        assert!(round >= told_round, "{name}: the large transaction {told_round} was durable, {round} is there");
    }
    for (name, least) in &told.cells {
        let (n, _) = check_cells(&store, name);
        assert!(n >= *least, "{name}: {least} was durable in the cell, {n} is there");
    }
    for name in found.keys() {
        let Some(cell) = store.find_cell(&format!("cell of {name}")).unwrap() else { continue };
        let version = cell.version().unwrap().as_u64();
        let (n, _) = check_cells(&store, name);
        let of_version = told.versions.get(&(name.clone(), version)).copied().unwrap_or(n);
        assert_eq!(n, of_version, "{name}: another value under version {version}");
        let next = cell.store(&[1; 400]).unwrap().as_u64();
        assert!(!told.versions.contains_key(&(name.clone(), next)), "{name}: version {next} is given once more");
    }
    if told.found_all {
        // Those of the first life write no more.
        for (name, n) in told.found.iter().filter(|(name, _)| name.starts_with('w')) {
            assert_eq!(found.get(name), Some(n), "{name}: a recovery found {n}, the next one another");
        }
        let risen = found.keys().find(|name| name.starts_with('w') && !told.found.contains_key(*name));
        assert_eq!(risen, None, "a recovery did not find it, the next one did");
    }
    let mut problems = store.verify().unwrap().problems;
    // A torn older header is worth knowing until the next checkpoint overwrites it.
    problems.retain(|problem| problem.file != "checkpoint");
    assert!(problems.is_empty(), "{problems:#?}");
    // The log tells the same history as the pages, from the beginning on.
    let (mut told, mut there) = (read_changes(&store).unwrap(), read(&store).unwrap());
    for state in [&mut told, &mut there] {
        // Samples of cells come at any time.
        state.retain(|(keyspace, _), _| !keyspace.starts_with("untorn."));
    }
    assert_eq!(told, there);
    // And it goes on.
    let writer = Writer::open(store.clone(), "later").unwrap();
    for n in 1..4 {
        let _ticket = writer.commit(n, Durability::Durable).unwrap();
    }
    let found = check(&store, &store.durable_snapshot().unwrap());
    assert_eq!(found["later"], 3);
}

fn judge(image: &Image, scratch: &Path, number: usize, told: &Told) -> Result<(), String> {
    let path = scratch.join(format!("state-{number}"));
    image.lay_out(&path).unwrap();
    let judged = caught(|| examine(&path, image.has_store(), told));
    // The logger's thread leaves when it finds its directory gone.
    remove_all(&path);
    judged
}

/// How much was looked at.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) writes: usize,
    pub(crate) cuts: usize,
    pub(crate) states: usize,
    /// Cuts at which something of the arena, of the log, of the headers was in doubt.
    pub(crate) of_arena: usize,
    pub(crate) of_log: usize,
    pub(crate) of_header: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.writes += other.writes;
        self.cuts += other.cuts;
        self.states += other.states;
        self.of_arena += other.of_arena;
        self.of_log += other.of_log;
        self.of_header += other.of_header;
    }
}

/// A state to live on from.
pub(crate) struct Sample {
    pub(crate) image: Image,
    pub(crate) told: Told,
    pub(crate) what: String,
}

/// A search through the states of one record.
pub(crate) struct Search<'a> {
    pub(crate) record: &'a [Event],
    /// Cuts come at this position at the earliest.
    pub(crate) from: usize,
    /// What had been told before the record began.
    pub(crate) told: Told,
    /// About so many states are tried.
    pub(crate) budget: usize,
    /// So many of them are returned at most, mostly such in which something of the log is in doubt.
    pub(crate) samples: usize,
    pub(crate) seed: u64,
    pub(crate) scratch: &'a Path,
}

/// States tried for each cut, more or less.
const PER_CUT: usize = 6;

impl Search<'_> {
    /// Tries the states; says in which one something did not hold.
    pub(crate) fn run(self) -> Result<(Counts, Vec<Sample>), String> {
        let mut dice = Dice(self.seed);
        let cuts = self.cuts(&mut dice);
        let is_write = |event: &&Event| matches!(event, Event::Write { .. });
        let writes = self.record.iter().filter(is_write).count();
        let mut counts = Counts { writes, cuts: cuts.len(), ..Counts::default() };
        let mut samples = Vec::new();
        let mut disk = Disk::default();
        let mut told = self.told.clone();
        let mut done = 0;
        let mut seen = BTreeSet::new();
        for cut in cuts {
            for (at, event) in self.record[done..cut].iter().enumerate() {
                disk.apply(done + at, event);
                if let Event::Mark(said) = event {
                    told.hear(said);
                }
            }
            done = cut;
            let doubtful = disk.doubtful_files();
            let is_any = |name: &str| usize::from(doubtful.iter().any(|path| path.starts_with(name)));
            counts.of_arena += is_any("arena");
            counts.of_log += is_any("wal/seg-");
            counts.of_header += is_any("checkpoint");
            // Most of the samples are to have something of the log in doubt.
            let is_wanted = is_any("wal/seg-") == 1 || dice.below(6) == 0;
            let is_sampled = is_wanted && samples.len() < self.samples;
            let choices = choices(&disk, &mut dice);
            for (index, choice) in choices.iter().enumerate() {
                let image = disk.image(choice);
                if !matches!(choice, Choice::Random(_)) && !seen.insert((image.fingerprint(), told.durable.clone())) {
                    continue;
                }
                let what = format!("cut {cut} of {}, {choice:?}", self.record.len());
                counts.states += 1;
                if let Err(violation) = judge(&image, self.scratch, counts.states, &told) {
                    let kept = Self::keep(&image);
                    return Err(format!(
                        "{violation}\nin the state of {what}, kept in {}; seed {}; told {told:?}\nthe record's end: {:#?}",
                        kept.display(),
                        self.seed,
                        self.record[cut.saturating_sub(12)..cut].iter().map(brief).collect::<Vec<_>>()
                    ));
                }
                if is_sampled && index + 1 == choices.len() && image.has_store() {
                    samples.push(Sample { image, told: told.clone(), what });
                }
            }
        }
        Ok((counts, samples))
    }

    /// Where to cut: mostly right before and after what changes a promise, and anywhere. What is rare, such as the sync of
    /// a header, gets as many cuts as what is frequent.
    fn cuts(&self, dice: &mut Dice) -> BTreeSet<usize> {
        let all: Vec<usize> = (self.from.max(1)..=self.record.len()).collect();
        let mut turns: BTreeMap<(u8, u64), Vec<usize>> = BTreeMap::new();
        for at in &all {
            for event in [self.record.get(*at), self.record.get(at - 1)].into_iter().flatten() {
                if let Some(kind) = turn(event) {
                    turns.entry(kind).or_default().push(*at);
                }
            }
        }
        let turns: Vec<Vec<usize>> = turns.into_values().collect();
        let count = (self.budget / PER_CUT).max(1);
        let mut cuts = BTreeSet::from([self.record.len()]);
        if count >= all.len() {
            cuts.extend(all);
            return cuts;
        }
        while cuts.len() < count {
            let from = if dice.below(5) == 0 || turns.is_empty() { &all } else { &turns[dice.below(turns.len())] };
            cuts.insert(from[dice.below(from.len())]);
        }
        cuts
    }

    /// Leaves a bad state where a person can look at it.
    fn keep(image: &Image) -> PathBuf {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power-cut");
        remove_all(&path);
        image.lay_out(&path).unwrap();
        path
    }
}

fn choices(disk: &Disk, dice: &mut Dice) -> Vec<Choice> {
    let mut choices = Vec::new();
    for names in [true, false] {
        choices.push(Choice::Nothing { names });
        choices.push(Choice::Everything { names });
    }
    let mut writes = disk.doubtful_writes();
    while writes.len() > 3 {
        writes.swap_remove(dice.below(writes.len()));
    }
    for event in writes {
        choices.push(if dice.below(2) == 0 { Choice::Only(event) } else { Choice::Without(event) });
    }
    choices.extend([Choice::Random(dice.next()), Choice::Random(dice.next())]);
    choices
}

/// The kind of an event that changes what may be lost.
fn turn(event: &Event) -> Option<(u8, u64)> {
    match event {
        Event::Write { .. } => None,
        Event::Resized { file, .. } | Event::Synced { file, .. } | Event::SyncFailed { file, .. } => Some((0, *file)),
        Event::Name { dir, .. } | Event::DirSynced { dir, .. } => Some((1, *dir)),
        Event::Mark(_) => Some((2, 0)),
    }
}

/// An event without its bytes.
fn brief(event: &Event) -> String {
    match event {
        Event::Write { file, first, pages, .. } => format!("write of {file}, page {first}, {} pages", pages.len()),
        other => format!("{other:?}"),
    }
}
