//! Goal: whatever several processes commit, drop, roll back and die of, every feed delivers exactly
//! that, in order, to consumers that are killed and resume.
//!
//! Method: random histories. Writers are processes that execute commands, and print the result and
//! the transaction id of each; that is the model. Consumers are processes as well, each with a feed
//! and filters of its own, and print what they get. Loggers, consumers, and now and then all
//! processes are killed. In the end each consumer must have got what the model predicts.

use crate::common::{Process, Role, TestStore, assert_clean, kill_logger, limit, listen, say, spawn};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use untorn::{Change, ChangeKind, Durability, Feed, Keyspace, Options, Store, TxnId};

const WRITERS: usize = 2;
const SPACES: [&str; 3] = ["a", "b", "c"];
/// Feed, keyspace, prefix of each consumer.
const CONSUMERS: [(Feed, &str, &str); 4] =
    [(Feed::Visible, "", ""), (Feed::Durable, "", ""), (Feed::Durable, "b", ""), (Feed::Visible, "a", "k1")];

fn small(options: &mut Options) {
    options.ring_size(64 << 10).segment_size(256 << 10).max_size(256 << 20);
}

#[derive(Clone, Debug)]
enum Op {
    /// Keyspace, key, length of the value.
    Put(usize, u8, usize),
    Delete(usize, u8),
    /// Keyspace, first key, key after the last one if there is one.
    Range(usize, u8, Option<u8>),
    Drop(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// By which writer, what, whether it commits, and how durable.
    Txn(usize, Vec<Op>, bool, bool),
    KillConsumer(usize),
    KillLogger,
    Checkpoint,
    KillAll,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![6 => 0..60_usize, 2 => 1000..3000_usize, 1 => 17_000..50_000_usize];
    prop_oneof![
        12 => (0..3_usize, 0..30_u8, len).prop_map(|(space, key, len)| Op::Put(space, key, len)),
        4 => (0..3_usize, 0..30_u8).prop_map(|(space, key)| Op::Delete(space, key)),
        2 => (0..3_usize, 0..30_u8, prop::option::weighted(0.8, 0..30_u8))
            .prop_map(|(space, start, end)| Op::Range(space, start, end)),
        1 => (0..3_usize).prop_map(Op::Drop),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let ops = prop_oneof![8 => prop::collection::vec(op(), 1..6), 1 => prop::collection::vec(op(), 20..80)];
    prop_oneof![
        40 => (0..WRITERS, ops, prop::bool::weighted(0.85), any::<bool>())
            .prop_map(|(writer, ops, commits, durable)| Step::Txn(writer, ops, commits, durable)),
        4 => (0..CONSUMERS.len()).prop_map(Step::KillConsumer),
        2 => Just(Step::KillLogger),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::KillAll),
    ]
}

fn encode(ops: &[Op]) -> String {
    let words: Vec<String> = ops
        .iter()
        .map(|op| match op {
            Op::Put(space, key, len) => format!("p:{space}:{key}:{len}"),
            Op::Delete(space, key) => format!("d:{space}:{key}"),
            Op::Range(space, start, None) => format!("r:{space}:{start}"),
            Op::Range(space, start, Some(end)) => format!("r:{space}:{start}:{end}"),
            Op::Drop(space) => format!("x:{space}"),
        })
        .collect();
    words.join(" ")
}

fn decode(word: &str) -> Op {
    let parts: Vec<&str> = word.split(':').collect();
    let number = |index: usize| parts[index].parse::<usize>().unwrap();
    match parts[0] {
        "p" => Op::Put(number(1), number(2) as u8, number(3)),
        "d" => Op::Delete(number(1), number(2) as u8),
        "r" => Op::Range(number(1), number(2) as u8, parts.get(3).map(|_| number(3) as u8)),
        _ => Op::Drop(number(1)),
    }
}

fn key(key: u8) -> String {
    format!("k{key}")
}

/// What a change looks like in the consumers' lines: enough to tell any two apart.
fn shown(space: &str, kind: ChangeKind, key: &str, value: Option<&[u8]>) -> String {
    let value = value.map_or("-".into(), |value| format!("{}#{:08x}", value.len(), sum(value)));
    format!("{space}/{kind:?}/{key}/{value}")
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(2_166_136_261, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

/// A value that no other operation wrote.
fn value(seed: u64, len: usize) -> Vec<u8> {
    let mut value = vec![seed as u8; len];
    value.iter_mut().zip(seed.to_le_bytes()).for_each(|(byte, seed)| *byte = seed);
    value
}

/// What is delivered of a transaction: of its operations, as they took effect, the last on each
/// key.
fn expected(said: &str, (_, space, prefix): (Feed, &str, &str)) -> Vec<String> {
    let mut generation: HashMap<&str, u32> = HashMap::new();
    // What an operation is on, unless that is a keyspace as a whole, and what it looks like.
    type On<'a> = Option<(&'a str, u32, &'a str)>;
    let mut all: Vec<(On<'_>, String)> = Vec::new();
    for shown in said.split(' ').filter(|shown| !shown.is_empty()) {
        let parts: Vec<&str> = shown.split('/').collect();
        let (name, kind, key) = (parts[0], parts[1], parts[2]);
        let generation = generation.entry(name).or_default();
        let is_drop = kind == "DropKeyspace";
        let part = (kind == "DeleteRange").then(|| part_of(key, prefix));
        let is_wanted = is_drop || part.as_ref().map_or(key.starts_with(prefix), Option::is_some);
        if (space.is_empty() || name == space) && is_wanted {
            let on = (!is_drop && part.is_none()).then_some((name, *generation, key));
            let shown = match part.flatten() {
                Some(part) => format!("{name}/{kind}/{part}/-"),
                None => shown.to_string(),
            };
            all.push((on, shown));
        }
        *generation += u32::from(is_drop);
    }
    let last = |index: usize| all[index].0.is_none() || all[index + 1..].iter().all(|(key, _)| *key != all[index].0);
    let mut lines: Vec<String> =
        (0..all.len()).filter(|index| last(*index)).map(|index| format!("{},", all[index].1)).collect();
    if let Some(line) = lines.last_mut() {
        line.pop();
        line.push('.');
    }
    lines
}

/// The part of a range `start..end` or `start..` whose keys begin with a prefix.
fn part_of(range: &str, prefix: &str) -> Option<String> {
    let (start, end) = range.split_once("..").unwrap();
    // No prefix here ends in the greatest byte, and all are ASCII.
    let after = prefix.bytes().last().map(|last| format!("{}{}", &prefix[..prefix.len() - 1], char::from(last + 1)));
    let start = start.max(prefix);
    let end = match (end, after) {
        ("", after) => after.unwrap_or_default(),
        (end, after) => after.map_or(end.to_string(), |after| after.min(end.to_string())),
    };
    (end.is_empty() || *start < *end).then(|| format!("{start}..{end}"))
}

/// A consumer and its output.
struct Consumer {
    child: Process,
    number: usize,
    got: Vec<(TxnId, String)>,
    pending: Vec<(TxnId, String)>,
    position: TxnId,
}

impl Consumer {
    fn start(number: usize, store: &TestStore, from: TxnId) -> Process {
        spawn("feed::model::consumer", &store.path, &[&number.to_string(), &from.as_u64().to_string()])
    }

    /// Records the consumer's output. A transaction counts as processed when its last change was
    /// printed.
    fn note(&mut self, lines: Vec<String>) {
        for line in lines {
            let (txn, rest) = line.split_once(' ').unwrap();
            let txn = TxnId::from_u64(txn.parse().unwrap());
            if rest == "position" {
                assert!(self.pending.is_empty(), "{}: waits in the middle of {txn}", self.number);
                self.position = self.position.max(txn);
                continue;
            }
            self.pending.push((txn, rest.into()));
            if rest.ends_with('.') {
                self.got.append(&mut self.pending);
                self.position = txn;
            }
        }
    }

    fn restart(&mut self, store: &TestStore) {
        let said = self.child.kill();
        self.note(said);
        self.pending.clear();
        self.child = Consumer::start(self.number, store, self.position);
    }
}

fn run(steps: &[Step]) {
    let dir = TestStore::new();
    drop(dir.open_with(small));
    let start = || (0..WRITERS).map(|_| spawn("feed::model::writer", &dir.path, &[])).collect::<Vec<_>>();
    let mut writers = start();
    let mut consumers: Vec<Consumer> = (0..CONSUMERS.len())
        .map(|number| Consumer {
            child: Consumer::start(number, &dir, TxnId::ZERO),
            number,
            got: Vec::new(),
            pending: Vec::new(),
            position: TxnId::ZERO,
        })
        .collect();
    let mut model: BTreeMap<TxnId, String> = BTreeMap::new();
    let mut asked = [0; WRITERS];
    // Waits until the writers have answered all their commands so far.
    let settle = |writers: &[Process], asked: &mut [usize; WRITERS], model: &mut BTreeMap<TxnId, String>| {
        for (writer, asked) in writers.iter().zip(asked) {
            for _ in 0..std::mem::take(asked) {
                let line = writer.hear();
                let (txn, said) = line.split_once(' ').unwrap();
                if txn != "-" {
                    let txn = TxnId::from_u64(txn.parse().unwrap());
                    assert_eq!(model.insert(txn, said.into()), None, "{txn} was given twice");
                }
            }
        }
    };
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Txn(writer, ops, commits, durable) => {
                let line = format!("{} {} {} {}", number as u64 * 1000, commits, durable, encode(ops));
                writers[*writer].tell(&line);
                asked[*writer] += 1;
            }
            Step::KillConsumer(which) => consumers[*which].restart(&dir),
            Step::KillLogger => kill_logger(&dir.open()),
            Step::Checkpoint => drop(dir.open().checkpoint().unwrap()),
            Step::KillAll => {
                settle(&writers, &mut asked, &mut model);
                for consumer in &mut consumers {
                    let said = consumer.child.kill();
                    consumer.note(said);
                    consumer.pending.clear();
                }
                let store = dir.open();
                writers.clear();
                kill_logger(&store);
                drop(store);
                writers = start();
                consumers.iter_mut().for_each(|consumer| consumer.restart(&dir));
            }
        }
    }
    settle(&writers, &mut asked, &mut model);
    drop(writers);
    let store = dir.open();
    store.sync().unwrap();
    let end = store.snapshot().unwrap().txn_id();
    for mut consumer in consumers {
        consumer.child.tell(&end.as_u64().to_string());
        let said = consumer.child.finish();
        consumer.child = spawn("feed::model::nothing", &dir.path, &[]);
        consumer.note(said);
        let filter = CONSUMERS[consumer.number];
        let expected: Vec<(TxnId, String)> =
            model.iter().flat_map(|(txn, said)| expected(said, filter).into_iter().map(|line| (*txn, line))).collect();
        assert_eq!(consumer.got, expected, "{filter:?}");
    }
    assert_clean(&store);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn feeds_tell_what_was_committed(steps in prop::collection::vec(step(), 60..160)) {
        let _limit = limit();
        run(&steps);
    }
}

// ---- the processes

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    match role.name.as_str() {
        "writer" => write(&Store::open(&role.store).unwrap()),
        "consumer" => {
            let store = Store::options().read_only(true).open(&role.store).unwrap();
            consume(&store, CONSUMERS[role.number(0) as usize], TxnId::from_u64(role.number(1)));
        }
        "nothing" => {}
        other => panic!("no role {other}"),
    }
}

/// Does transactions: `seed commits durable op op …`; answers `txn effect effect …`, or `-` if it
/// rolled back.
fn write(store: &Store) {
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split(' ').collect();
        let seed: u64 = words[0].parse().unwrap();
        let durability = if words[2] == "true" { Durability::Durable } else { Durability::Visible };
        let mut txn = store.begin_with(durability).unwrap();
        let mut effects = Vec::new();
        for (index, op) in words[3..].iter().map(|word| decode(word)).enumerate() {
            let of =
                |space: usize, txn: &mut untorn::WriteTxn<'_>| -> Keyspace { txn.keyspace(SPACES[space]).unwrap() };
            match op {
                Op::Put(space, number, len) => {
                    let keyspace = of(space, &mut txn);
                    let value = value(seed + index as u64, len);
                    txn.put(&keyspace, key(number).as_bytes(), &value).unwrap();
                    effects.push(shown(SPACES[space], ChangeKind::Put, &key(number), Some(&value)));
                }
                Op::Delete(space, number) => {
                    let keyspace = of(space, &mut txn);
                    if txn.delete(&keyspace, key(number).as_bytes()).unwrap() {
                        effects.push(shown(SPACES[space], ChangeKind::Delete, &key(number), None));
                    }
                }
                Op::Range(space, first, end) => {
                    let keyspace = of(space, &mut txn);
                    let (start, end) = (key(first), end.map(key));
                    let removed = match &end {
                        Some(end) => txn.delete_range(&keyspace, start.as_str()..end.as_str()),
                        None => txn.delete_range(&keyspace, start.as_str()..),
                    };
                    if removed.unwrap() > 0 {
                        let range = format!("{start}..{}", end.unwrap_or_default());
                        effects.push(shown(SPACES[space], ChangeKind::DeleteRange, &range, None));
                    }
                }
                Op::Drop(space) => {
                    if txn.drop_keyspace(SPACES[space]).unwrap() {
                        effects.push(shown(SPACES[space], ChangeKind::DropKeyspace, "", None));
                    }
                }
            }
        }
        if words[1] == "false" {
            txn.rollback();
            say("- ");
            continue;
        }
        let before = txn.base_txn_id();
        let ticket = txn.commit().unwrap();
        // One that changed nothing takes no id.
        let id = Some(ticket.txn_id()).filter(|id| *id != before);
        say(format_args!("{} {}", id.map_or("-".into(), |id| id.as_u64().to_string()), effects.join(" ")));
    }
}

/// Prints what it gets, up to the end that a command gives.
fn consume(store: &Store, (feed, space, prefix): (Feed, &str, &str), from: TxnId) {
    let (sender, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Some(line) = listen() {
            let _ = sender.send(TxnId::from_u64(line.parse().unwrap()));
        }
    });
    let mut changes = store.changes(from, feed).unwrap().prefix(prefix.as_bytes());
    if !space.is_empty() {
        changes = changes.keyspace(space);
    }
    let mut end = TxnId::from_u64(u64::MAX);
    while changes.resume_from() < end {
        match changes.try_next(Duration::from_millis(20)).unwrap() {
            Some(change) => say(format_args!("{} {}", change.txn_id().as_u64(), line(&change))),
            None => say(format_args!("{} position", changes.resume_from().as_u64())),
        }
        if let Ok(told) = told.try_recv() {
            end = told;
        }
    }
}

fn line(change: &Change) -> String {
    let mut key = std::str::from_utf8(change.key()).unwrap().to_string();
    if change.kind() == ChangeKind::DeleteRange {
        key = format!("{key}..{}", std::str::from_utf8(change.end().unwrap_or_default()).unwrap());
    }
    let end = if change.last_in_txn() { "." } else { "," };
    format!("{}{end}", shown(change.keyspace(), change.kind(), &key, change.value()))
}
