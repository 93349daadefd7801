//! Goal: whatever two processes do with cells and counters, one call after the other, each call
//! answers what a plain model answers: the newest value, its version, that very version or `Stale`,
//! and `NoCell` for a handle whose cell was dropped. This also holds after the peer, the logger, or
//! all processes were killed.
//!
//! Method: proptest makes histories of calls by this process and by a peer. Both keep their
//! handles, also stale ones. Versions are not predicted: they must grow, and name for ever the
//! value that they were given for. That holds also over losses (everything is killed and `control`
//! removed), of which several follow each other and clean stops at once. It holds over cells that
//! are dropped and created again, too: the versions that were given to a name are kept for the
//! whole history.

use crate::common::{
    Process, Role, TestStore, assert_clean, exists, kill_logger, limit, listen, say, send, spawn, wait_until,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;
use untorn::{Cell, Counter, Durability, Error, Store, Version};

const NAMES: u8 = 3;
const SIZES: [usize; 3] = [8, 61, 3000];

#[derive(Clone, Debug)]
enum Call {
    Open { name: u8, size: usize },
    Store { name: u8, durable: bool },
    Load { name: u8 },
    LoadVersion { name: u8, back: usize },
    Drop { name: u8 },
    OpenCounter,
    Add { number: u64 },
    Get,
    DropCounter,
    Sync,
}

#[derive(Clone, Debug)]
enum Turn {
    Call { by_peer: bool, call: Call },
    KillPeer,
    KillLogger,
    Ends(Vec<End>),
}

/// How all processes of the store end.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill,
    /// What the log does not hold is lost.
    Lose,
    Stop,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let name = || 0..NAMES;
    let call = prop_oneof![
        4 => (name(), 0..SIZES.len()).prop_map(|(name, size)| Call::Open { name, size }),
        10 => (name(), prop::bool::weighted(0.2)).prop_map(|(name, durable)| Call::Store { name, durable }),
        8 => name().prop_map(|name| Call::Load { name }),
        4 => (name(), 0..12_usize).prop_map(|(name, back)| Call::LoadVersion { name, back }),
        1 => name().prop_map(|name| Call::Drop { name }),
        1 => Just(Call::OpenCounter),
        5 => any::<u64>().prop_map(|number| Call::Add { number }),
        4 => Just(Call::Get),
        1 => prop::bool::weighted(0.3).prop_map(|drop| if drop { Call::DropCounter } else { Call::OpenCounter }),
        1 => Just(Call::Sync),
    ];
    let turn = prop_oneof![
        60 => (any::<bool>(), call).prop_map(|(by_peer, call)| Turn::Call { by_peer, call }),
        1 => Just(Turn::KillPeer),
        1 => Just(Turn::KillLogger),
        3 => prop::collection::vec(prop_oneof![Just(End::Kill), Just(End::Lose), Just(End::Stop)], 1..4)
            .prop_map(Turn::Ends),
    ];
    prop::collection::vec(turn, 1..150)
}

// ---- what a process does

/// A process with its handles.
struct Actor {
    store: Store,
    cells: BTreeMap<u8, Cell>,
    counter: Option<Counter>,
}

fn value(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number.wrapping_mul(0x9e37_79b9).rotate_left(at as u32 % 61) >> 3) as u8).collect()
}

impl Actor {
    fn new(store: Store) -> Actor {
        Actor { store, cells: BTreeMap::new(), counter: None }
    }

    /// Executes a line and answers in a line; the same for this process and the peer. A value is
    /// identified by its number. The caller chooses it when it stores, and a load searches it among
    /// `known`.
    fn act(&mut self, line: &str) -> String {
        self.try_act(line).unwrap_or_else(|error| match error {
            Error::NoCell { .. } => "gone".into(),
            Error::Stale => "stale".into(),
            Error::OtherCell { .. } => "other kind".into(),
            other => panic!("{line}: {other}"),
        })
    }

    fn try_act(&mut self, line: &str) -> untorn::Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let name = |at: usize| number(at) as u8;
        let no_cell = || Error::NoCell { name: String::new() };
        Ok(match words[0] {
            "open" => {
                let cell = self.store.cell(&format!("cell {}", name(1)), number(2) as usize)?;
                self.cells.insert(name(1), cell);
                "ok".into()
            }
            "store" | "durable" => {
                let cell = self.cells.get(&name(1)).ok_or_else(no_cell)?;
                let value = value(number(2), cell.size());
                let version = if words[0] == "store" { cell.store(&value)? } else { cell.store_durable(&value)? };
                version.as_u64().to_string()
            }
            "load" => {
                let cell = self.cells.get(&name(1)).ok_or_else(no_cell)?;
                let mut found = vec![0; cell.size()];
                let version = cell.load(&mut found)?;
                format!("{} {}", version.as_u64(), hash(&found))
            }
            "version" => {
                let cell = self.cells.get(&name(1)).ok_or_else(no_cell)?;
                let mut found = vec![0; cell.size()];
                cell.load_version(Version::from_u64(number(2)), &mut found)?;
                hash(&found).to_string()
            }
            "drop" => self.store.drop_cell(&format!("cell {}", name(1)))?.to_string(),
            "counter" => {
                self.counter = Some(self.store.counter("counter")?);
                "ok".into()
            }
            "add" => {
                self.counter.as_ref().ok_or_else(no_cell)?.add(number(1))?;
                "ok".into()
            }
            "get" => self.counter.as_ref().ok_or_else(no_cell)?.get()?.to_string(),
            "drop-counter" => self.store.drop_cell("counter")?.to_string(),
            "sync" => {
                self.store.sync()?;
                "ok".into()
            }
            other => panic!("{other}"),
        })
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn peer(role: &Role) {
    let mut actor = Actor::new(open(&role.store));
    say("ready");
    while let Some(line) = listen() {
        say(actor.act(&line));
    }
}

fn open(path: &std::path::Path) -> Store {
    // Most values are overwritten or lost before they are sampled.
    let interval = Duration::from_secs(1);
    Store::options().durability(Durability::Visible).sample_interval(interval).open(path).unwrap()
}

// ---- the model

/// What must hold of a call's answer, and what it changes in the model.
type Check = Box<dyn FnOnce(&mut Model, &str)>;

struct ModelCell {
    made: u64,
    size: usize,
    /// Every value since it was made: version and hash; the version of the first one is not known
    /// before it is loaded.
    values: Vec<(Option<u64>, u64)>,
}

#[derive(Default)]
struct Model {
    cells: BTreeMap<u8, ModelCell>,
    /// Each version that was given to a name, in all cells that had it, and the hash of its value.
    given: BTreeMap<u8, Vec<(u64, u64)>>,
    /// When the counter was made, and its value.
    counter: Option<(u64, u64)>,
    /// Which cell each process's handle is of: when it was made.
    handles: [BTreeMap<u8, u64>; 2],
    counter_handles: [Option<u64>; 2],
    clock: u64,
}

impl Model {
    /// A value has this version, which names no other one.
    fn give(&mut self, name: u8, version: u64, hash: u64) {
        let given = self.given.entry(name).or_default();
        match given.iter().find(|(other, _)| *other == version) {
            Some((_, other)) => assert_eq!(*other, hash, "version {version} names two values"),
            None => given.push((version, hash)),
        }
    }

    /// Takes over what a loss has left.
    fn reload(&mut self, own: &mut Actor) {
        self.clock += 1;
        let made = self.clock;
        self.cells.clear();
        self.counter = None;
        for info in own.store.cells().unwrap() {
            let Some(size) = info.len else {
                let value = own.store.counter(&info.name).unwrap().get().unwrap();
                self.counter = Some((made, value));
                continue;
            };
            let name = info.name.strip_prefix("cell ").unwrap().parse().unwrap();
            let mut value = vec![0; size];
            let version = own.store.cell(&info.name, size).unwrap().load(&mut value).unwrap().as_u64();
            self.give(name, version, hash(&value));
            let values = vec![(Some(version), hash(&value))];
            self.cells.insert(name, ModelCell { made, size, values });
        }
    }

    /// What a call is in words, and a check of its answer.
    fn call(&mut self, by: usize, call: &Call) -> (String, Check) {
        self.clock += 1;
        let now = self.clock;
        let is_current = |model: &Model, name: u8| {
            let handle = model.handles[by].get(&name);
            handle.is_some() && handle == model.cells.get(&name).map(|cell| &cell.made)
        };
        match *call {
            Call::Open { name, size } => {
                let size = SIZES[size];
                let zeros = hash(&vec![0; size]);
                let check = move |model: &mut Model, answer: &str| {
                    let cell =
                        model.cells.entry(name).or_insert(ModelCell { made: now, size, values: vec![(None, zeros)] });
                    assert_eq!(answer, if cell.size == size { "ok" } else { "other kind" });
                    if cell.size == size {
                        let made = cell.made;
                        model.handles[by].insert(name, made);
                    }
                };
                (format!("open {name} {size}"), Box::new(check))
            }
            Call::Store { name, durable } => {
                let current = is_current(self, name);
                let check = move |model: &mut Model, answer: &str| {
                    if !current {
                        assert_eq!(answer, "gone");
                        return;
                    }
                    let cell = model.cells.get_mut(&name).expect("current");
                    let version: u64 = answer.parse().unwrap();
                    let newest = cell.values.iter().rev().find_map(|(version, _)| *version).unwrap_or(0);
                    assert!(version > newest, "version {version} after {newest}");
                    let hash = hash(&value(now, cell.size));
                    cell.values.push((Some(version), hash));
                    let given = model.given.entry(name).or_default();
                    assert!(given.iter().all(|(other, _)| *other != version), "version {version} was given before");
                    given.push((version, hash));
                };
                (format!("{} {name} {now}", if durable { "durable" } else { "store" }), Box::new(check))
            }
            Call::Load { name } => {
                let current = is_current(self, name);
                let check = move |model: &mut Model, answer: &str| {
                    if !current {
                        assert_eq!(answer, "gone");
                        return;
                    }
                    let (version, found) = answer.split_once(' ').expect("a version and a value");
                    let version = version.parse().unwrap();
                    let cell = model.cells.get_mut(&name).expect("current");
                    let (known, expected) = cell.values.last_mut().expect("at least the first");
                    assert_eq!(found, expected.to_string());
                    assert_eq!(*known.get_or_insert(version), version);
                    let expected = *expected;
                    model.give(name, version, expected);
                };
                (format!("load {name}"), Box::new(check))
            }
            Call::LoadVersion { name, back } => {
                let current = is_current(self, name);
                let newest =
                    self.cells.get(&name).and_then(|cell| cell.values.last()).and_then(|(version, _)| *version);
                let given = self.given.get(&name).map(Vec::as_slice).unwrap_or_default();
                let asked = given.len().checked_sub(back + 1).map(|at| given[at]);
                let version = asked.map_or(u64::MAX, |(version, _)| version);
                let check = move |_: &mut Model, answer: &str| match asked {
                    _ if !current => assert_eq!(answer, "gone"),
                    None => assert_eq!(answer, "stale"),
                    Some((version, hash)) if newest == Some(version) => assert_eq!(answer, hash.to_string()),
                    Some((_, hash)) => assert!(answer == "stale" || answer == hash.to_string()),
                };
                (format!("version {name} {version}"), Box::new(check))
            }
            Call::Drop { name } => {
                let check = move |model: &mut Model, answer: &str| {
                    assert_eq!(answer, model.cells.remove(&name).is_some().to_string());
                };
                (format!("drop {name}"), Box::new(check))
            }
            Call::OpenCounter => {
                let check = move |model: &mut Model, answer: &str| {
                    assert_eq!(answer, "ok");
                    let (made, _) = *model.counter.get_or_insert((now, 0));
                    model.counter_handles[by] = Some(made);
                };
                ("counter".into(), Box::new(check))
            }
            Call::Add { .. } | Call::Get => {
                let add = if let Call::Add { number } = *call { Some(number) } else { None };
                let check = move |model: &mut Model, answer: &str| {
                    let handle = model.counter_handles[by];
                    match &mut model.counter {
                        Some((made, value)) if handle == Some(*made) => match add {
                            Some(number) => {
                                assert_eq!(answer, "ok");
                                *value = value.wrapping_add(number);
                            }
                            None => assert_eq!(answer, value.to_string()),
                        },
                        _ => assert_eq!(answer, "gone"),
                    }
                };
                (add.map_or("get".into(), |number| format!("add {number}")), Box::new(check))
            }
            Call::DropCounter => {
                let check = |model: &mut Model, answer: &str| {
                    assert_eq!(answer, model.counter.take().is_some().to_string());
                };
                ("drop-counter".into(), Box::new(check))
            }
            Call::Sync => ("sync".into(), Box::new(|_, answer| assert_eq!(answer, "ok"))),
        }
    }
}

fn run(turns: &[Turn]) {
    let test = TestStore::new();
    let mut model = Model::default();
    let mut own = Actor::new(open(&test.path));
    let start = || {
        let child = spawn("cells::model::peer", &test.path, &[]);
        child.expect("ready");
        child
    };
    let mut peer: Option<Process> = None;
    for turn in turns {
        match turn {
            Turn::Call { by_peer, call } => {
                let (line, check) = model.call(usize::from(*by_peer), call);
                let answer = if *by_peer {
                    let peer = peer.get_or_insert_with(start);
                    peer.tell(&line);
                    peer.hear()
                } else {
                    own.act(&line)
                };
                check(&mut model, &answer);
            }
            Turn::KillPeer => {
                peer = None;
                model.handles[1].clear();
                model.counter_handles[1] = None;
            }
            Turn::KillLogger => kill_logger(&own.store),
            Turn::Ends(ends) => {
                peer = None;
                for end in ends {
                    let logger = own.store.stats().unwrap().logger_pid;
                    drop(own);
                    match logger {
                        Some(logger) if !matches!(end, End::Stop) => {
                            send(logger, Signal::KILL);
                            wait_until(|| !exists(logger));
                        }
                        _ => test.stop_logger(),
                    }
                    let loses = matches!(end, End::Lose);
                    if loses {
                        std::fs::remove_file(test.path.join("control")).unwrap();
                    }
                    own = Actor::new(open(&test.path));
                    if loses {
                        model.reload(&mut own);
                    }
                }
                model.handles = Default::default();
                model.counter_handles = Default::default();
            }
        }
    }
    drop(peer);
    assert_clean(&own.store);
}

#[test]
fn histories_agree_with_a_model() {
    let _limit = limit();
    let cases = if std::env::var_os("UNTORN_SWEEP").is_some() { 400 } else { 24 };
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&turns(), |turns| {
            run(&turns);
            Ok(())
        })
        .unwrap();
}

/// The shortest history that found versions given twice: a loss, then a clean stop with nothing
/// stored in between.
#[test]
fn a_loss_and_an_idle_life() {
    let _limit = limit();
    let by_own = |call: Call| Turn::Call { by_peer: false, call };
    let stores = |count: usize| (0..count).map(|_| by_own(Call::Store { name: 0, durable: false })).collect::<Vec<_>>();
    let looks = (0..10).map(|back| by_own(Call::LoadVersion { name: 0, back })).collect::<Vec<_>>();
    let history = [
        vec![by_own(Call::Open { name: 0, size: 0 }), by_own(Call::Store { name: 0, durable: true })],
        stores(4),
        vec![Turn::Ends(vec![End::Lose, End::Stop]), by_own(Call::Open { name: 0, size: 0 })],
        stores(1),
        looks.clone(),
        stores(4),
        looks,
    ];
    run(&history.concat());
}

#[test]
fn child() {
    match Role::of_this_process() {
        None => {}
        Some(role) => peer(&role),
    }
}
