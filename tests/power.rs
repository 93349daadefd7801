//! Goal: the power may go at any instant, with any part of what was not synced on the disk: the store opens, all that was
//! acknowledged as durable is there, every transaction is whole or absent, in order, and work goes on.
//!
//! Method: real processes work on a file system of this test that records what a disk would be told (see `recorder`), while
//! another one has the kernel write mapped pages back all the time. Then the record is cut at many places, states that the cut could
//! have left are laid out in memory, recovered and checked (see `judge`). Some of these live on, on a recorder of their
//! own, and the power goes again. Syncs that fail while their caller is killed, and planted bugs, have tests of their own.
//!
//! `UNTORN_SEED` chooses other states, `UNTORN_SWEEP=1` many more. It needs root and FUSE; without them it says that it was
//! skipped, and fails where the variable `CI` is set.

#[path = "power/judge.rs"]
mod judge;
#[path = "power/lives.rs"]
mod lives;
mod recorder;
#[path = "power/roles.rs"]
mod roles;
#[path = "common/store_files.rs"]
mod store_files;
mod workload;

use judge::{Counts, Search, Told};
use lives::{ARENA, Dies, Failures, HEADER, LOG, Life};
use recorder::states::{Choice, Dice, Disk, Image};
use recorder::{Event, Recorder};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use untorn::{Client, Durability};
use workload::my_role;
use workload::victim::kill_loggers;

#[test]
fn role() {
    let Some((name, path, arguments)) = my_role() else { return };
    // Nobody survives the test, however that ends.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    match name.as_str() {
        "busy" => roles::busy(&path, &arguments),
        "supervised" => roles::supervised(&path),
        "remote" => roles::remote(&path, &arguments),
        "presser" => roles::press(&path),
        "second" => roles::second(&path, &arguments),
        "bulk" => roles::bulk(&path, &arguments),
        // It may have left by itself.
        "leave" => drop(untorn::stop_logger(&path, lives::PATIENCE).unwrap()),
        other => panic!("no role {other}"),
    }
}

/// One test at a time: each keeps the machine busy by itself.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Mounts a recorder. None where that can't be done, which is said aloud, and is an error where nothing may be skipped.
fn recorder(test: &str) -> Option<Recorder> {
    match Recorder::mount(None) {
        Ok(recorder) => Some(recorder),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: no recorder: {error}");
            eprintln!(
                "SKIPPED: {test}: 1 test of power cuts, since nothing can be mounted here (root and FUSE): {error}"
            );
            None
        }
    }
}

fn seed() -> u64 {
    std::env::var("UNTORN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn is_sweep() -> bool {
    std::env::var_os("UNTORN_SWEEP").is_some()
}

/// How many states to try, of which `small` are enough for an ordinary run.
fn budget(small: usize) -> usize {
    if is_sweep() { small * 20 } else { small }
}

fn own() -> PathBuf {
    std::env::current_exe().expect("known")
}

fn victim() -> &'static Path {
    workload::victim::build("power")
}

/// Searches the record; prints how much that was, and how to have the same states again.
fn search(test: &str, record: &[Event], from: usize, told: Told, small: usize) -> Result<Counts, String> {
    search_for(test, record, from, told, small, 0).map(|(counts, _)| counts)
}

fn search_for(
    test: &str,
    record: &[Event],
    from: usize,
    told: Told,
    small: usize,
    samples: usize,
) -> Result<(Counts, Vec<judge::Sample>), String> {
    let scratch = store_files::scratch();
    let start = Instant::now();
    let budget = budget(small);
    let search = Search { record, from, told, budget, samples, seed: seed(), scratch: scratch.path() };
    let found = search.run();
    if let Ok((counts, _)) = &found {
        eprintln!(
            "{test}: {} writes recorded, {} cuts, {} states in {:?}; replay: UNTORN_SEED={} cargo test --test power {test}",
            counts.writes,
            counts.cuts,
            counts.states,
            start.elapsed(),
            seed()
        );
    }
    found
}

// ---- lives without errors

/// Several writers from the creation of the store on. In between everybody leaves in good order, and comes back.
fn plain_life(recorder: Recorder, program: &Path, bug: &'static str) -> Vec<Event> {
    let mut life = Life::begin(recorder, program, bug);
    life.processes.start_writers(3, 2);
    life.processes.wait_for_writers();
    life.processes.stop_logger();
    life.processes.start_writers(2, 1);
    life.processes.wait_for_writers();
    life.end()
}

#[test]
fn cuts_while_writers_work() {
    let (test, _alone) = ("cuts_while_writers_work", alone());
    let Some(recorder) = recorder(test) else { return };
    let record = plain_life(recorder, &own(), "");
    let counts = search(test, &record, 0, Told::default(), 1000).unwrap();
    // A recorder to which no mapped page comes before its sync would show nothing.
    assert!(counts.of_arena > counts.cuts / 10 && counts.of_log > 0 && counts.of_header > 0, "{counts:?}");
}

/// Several writers that pass messages.
fn life_by_message(recorder: Recorder, program: &Path, bug: &'static str) -> Vec<Event> {
    let mut life = Life::begin(recorder, program, bug);
    for writer in 0..3 {
        let names: Vec<String> = (0..6).map(|name| format!("m{writer}{name}")).collect();
        let role = life.processes.start("remote", &names.join(" "));
        life.processes.writers.push(role);
    }
    life.processes.wait_for_writers();
    life.end()
}

#[test]
fn cuts_while_messages_are_acknowledged() {
    let (test, _alone) = ("cuts_while_messages_are_acknowledged", alone());
    let Some(recorder) = recorder(test) else { return };
    let record = life_by_message(recorder, &own(), "");
    search(test, &record, 0, Told::default(), 300).unwrap();
}

/// A sync of the log is held: whoever asked for durability waits, whoever did not, does not. It fails: the log goes on
/// elsewhere, and the answer is that it is durable.
#[test]
fn a_message_is_answered_after_the_sync() {
    let (test, _alone) = ("a_message_is_answered_after_the_sync", alone());
    let Some(recorder) = recorder(test) else { return };
    let mut life = Life::begin(recorder, &own(), "");
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers();
    let socket = life.processes.store.join("logger.sock");
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    client.put("k", b"before", b"").unwrap();
    life.recorder.hold_sync(LOG, 0);
    std::thread::scope(|scope| {
        let durable = scope.spawn(|| client.put("k", b"durable", b""));
        let held = life.recorder.held(lives::PATIENCE).expect("a sync of the log");
        other.put_with("k", b"visible", b"", Durability::Visible).unwrap();
        assert!(other.get("k", b"durable").unwrap().is_some());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!durable.is_finished(), "answered before the sync");
        held.fail();
        durable.join().unwrap().unwrap();
    });
    drop((client, other));
    life.end();
}

/// A sync of the arena fails, after which a store refuses writes until all have closed it. Where all clients pass messages, the
/// logger sees to that by itself, and the next one recovers.
#[test]
fn clients_that_pass_messages_need_not_close_the_store() {
    let (test, _alone) = ("clients_that_pass_messages_need_not_close_the_store", alone());
    let Some(recorder) = recorder(test) else { return };
    let mut life = Life::begin(recorder, &own(), "");
    life.processes.start_writers(1, 1);
    life.processes.wait_for_writers();
    life.processes.stop_logger();
    let serving = life.processes.start("supervised", "");
    let socket = life.processes.store.join("logger.sock");
    let start = Instant::now();
    let client = loop {
        match Client::options().reconnect_timeout(lives::PATIENCE).connect(&socket) {
            Ok(client) => break client,
            Err(_) => assert!(start.elapsed() < lives::PATIENCE, "no socket"),
        }
    };
    let before = client.put("k", b"before", b"1").unwrap();
    life.recorder.hold_sync(ARENA, 0);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| client.checkpoint());
        life.recorder.held(lives::PATIENCE).expect("a sync of the arena").fail();
        // Refused, or taken by the next logger: the request may be sent again.
        let _ = checkpoint.join().unwrap();
    });
    let start = Instant::now();
    // A logger that has recovered begins a new incarnation.
    loop {
        match client.put("k", b"after", b"2") {
            Ok(txn) if txn.incarnation() > before.incarnation() => break,
            ended => assert!(start.elapsed() < lives::PATIENCE, "{ended:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(client.get("k", b"before").unwrap().unwrap(), b"1");
    drop(client);
    drop(serving);
    life.end();
}

/// Loggers, and all writers now and then, are killed in the middle; others go on, and the power goes later.
fn life_with_kills(recorder: Recorder) -> Vec<Event> {
    let mut life = Life::begin(recorder, &own(), "");
    life.processes.start_writers(3, u64::MAX);
    let mut dice = Dice(seed());
    for kill in 0..6 {
        let so_far = life.recorder.marks(0, "D ");
        life.wait_for("acknowledgements", |recorder| recorder.marks(0, "D ") >= so_far + 12);
        std::thread::sleep(Duration::from_micros(dice.below(3000) as u64));
        if kill % 3 == 2 {
            life.processes.writers.clear();
            if kill == 5 {
                kill_loggers(&life.processes.store);
            }
            life.processes.start_writers(3, if kill == 5 { 2 } else { u64::MAX });
        } else {
            kill_loggers(&life.processes.store);
        }
    }
    life.processes.wait_for_writers();
    life.end()
}

#[test]
fn cuts_while_loggers_and_writers_are_killed() {
    let (test, _alone) = ("cuts_while_loggers_and_writers_are_killed", alone());
    let Some(recorder) = recorder(test) else { return };
    let record = life_with_kills(recorder);
    search(test, &record, 0, Told::default(), 600).unwrap();
}

// ---- lives after a cut

/// Lives on from a state, in the role `role`, and cuts the power again: what the recovery did not find stays lost, what
/// it found and what was acknowledged since is there. Before that, so many are killed while they recover, or soon after.
fn live_on(test: &str, image: &Image, told: Told, role: &str, kills: u64, small: usize) -> Result<Counts, String> {
    let recorder = Recorder::mount(Some(image)).unwrap();
    let from = recorder.len();
    let mut life = Life::begin(recorder, &own(), "");
    let mut dice = Dice(seed() ^ kills);
    for _ in 0..kills {
        let _short = life.processes.start(role, "x0");
        // Within the time of a recovery, more or less. Whoever opens gives up after a few dead loggers, so it dies too.
        std::thread::sleep(Duration::from_micros(dice.below(20_000) as u64));
        kill_loggers(&life.processes.store);
    }
    let writer = life.processes.start(role, "x0");
    life.processes.writers.push(writer);
    life.processes.wait_for_writers();
    search(test, &life.end(), from, told.next_life(), small)
}

#[test]
fn cuts_of_a_recovered_store() {
    let (test, _alone) = ("cuts_of_a_recovered_store", alone());
    let Some(recorder) = recorder(test) else { return };
    let record = plain_life(recorder, &own(), "");
    let lives = if is_sweep() { 60 } else { 10 };
    let (mut counts, samples) = search_for(test, &record, record.len() / 4, Told::default(), 250, lives).unwrap();
    for (nth, sample) in samples.into_iter().enumerate() {
        let kills = if nth % 2 == 0 { 0 } else { 3 };
        let more = live_on(test, &sample.image, sample.told, "second", kills, 80);
        counts += more.unwrap_or_else(|what| panic!("{what}\nafter {}", sample.what));
    }
    eprintln!("{test}: in all {counts:?}");
}

/// One sync is to make two batches of the log durable, and the power goes with the second one on the disk and without the
/// first. After the recovery, records of the same lengths take the place of the first, are acknowledged, and the power
/// goes again: the second must not rise from the dead.
#[test]
fn a_later_batch_without_the_earlier_one() {
    let (test, _alone) = ("a_later_batch_without_the_earlier_one", alone());
    let Some(recorder) = recorder(test) else { return };
    let mut life = Life::begin(recorder, &own(), "");
    let writer = life.processes.start("bulk", "w0");
    life.processes.writers.push(writer);
    life.processes.wait_for_writers();
    let record = life.end();
    let (mut disk, mut told, mut cut) = (Disk::default(), Told::default(), None);
    let mut writes: Vec<usize> = Vec::new();
    let mut begun = false;
    for (at, event) in record.iter().enumerate() {
        // The log's writes that the next sync covers: two of one file, the first a whole batch.
        match event {
            Event::Write { file, pages, .. } if begun => {
                let continues = |before: &usize| matches!(&record[*before], Event::Write { file: f, .. } if f == file);
                if pages.len() == 256 {
                    writes = vec![at];
                } else if writes.len() == 1 && writes.iter().all(continues) {
                    writes.push(at);
                }
            }
            Event::Synced { .. } if writes.len() == 2 => {
                cut = Some(at);
                break;
            }
            Event::Mark(said) => {
                begun |= said.starts_with("B ");
                told.hear(said);
            }
            _ => {}
        }
        disk.apply(at, event);
    }
    assert!(cut.is_some(), "the log never took two batches before one sync");
    let mut counts = Counts::default();
    for kills in [0, 2] {
        let image = disk.image(&Choice::Without(writes[0]));
        counts += live_on(test, &image, told.clone(), "bulk", kills, 40).unwrap();
    }
    eprintln!("{test}: in all {counts:?}");
}

// ---- syncs that fail

const fn failures(dies: Dies, syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies, syncs, sticky: false }
}

const fn sticky(syncs: &'static [(&'static str, usize)]) -> Failures {
    Failures { dies: Dies::Nobody, syncs, sticky: true }
}

fn failing_syncs(test: &str, schedules: &[Failures]) {
    let _alone = alone();
    let mut counts = Counts::default();
    for failures in schedules {
        let Some(recorder) = recorder(test) else { return };
        let (record, failed) = Life::begin(recorder, &own(), "").with_failures(failures);
        let found = search(test, &record, failed, Told::default(), 80);
        counts += found.unwrap_or_else(|what| panic!("{what}\n{failures:?}"));
    }
    eprintln!("{test}: in all {counts:?}");
}

/// A sync of the log fails: its bytes are written again elsewhere, by the same logger, by its successor beside living
/// clients, or by the recovery that reads them from the page cache although the disk never got them. The successor
/// may fail too, at each of the syncs of its new segment: the third one starts at the same position.
#[test]
fn a_failed_sync_of_the_log() {
    failing_syncs(
        "a_failed_sync_of_the_log",
        &[
            failures(Dies::Nobody, &[(LOG, 0)]),
            sticky(&[(LOG, 0), (LOG, 0)]),
            failures(Dies::Logger, &[(LOG, 0)]),
            failures(Dies::Logger, &[(LOG, 0), (LOG, 0)]),
            failures(Dies::Logger, &[(LOG, 0), (LOG, 1)]),
            failures(Dies::Logger, &[(LOG, 0), (LOG, 2), (LOG, 0)]),
            failures(Dies::Everyone, &[(LOG, 0)]),
            failures(Dies::Everyone, &[(LOG, 0), (LOG, 0)]),
            failures(Dies::Everyone, &[(LOG, 0), (LOG, 1)]),
            failures(Dies::Everyone, &[(LOG, 0), (LOG, 2), (LOG, 1)]),
            failures(Dies::Everyone, &[(LOG, 0), (HEADER, 0)]),
        ],
    );
}

/// A checkpoint's sync of the arena fails, and its logger dies before it can say so: its successor finds clean
/// pages that the disk never got, and must not build on them.
#[test]
fn a_failed_sync_of_the_arena() {
    failing_syncs(
        "a_failed_sync_of_the_arena",
        &[
            sticky(&[(ARENA, 0)]),
            failures(Dies::Logger, &[(ARENA, 0)]),
            failures(Dies::Logger, &[(ARENA, 0), (ARENA, 0)]),
            failures(Dies::Logger, &[(ARENA, 0), (HEADER, 0)]),
            failures(Dies::Everyone, &[(ARENA, 0)]),
            failures(Dies::Everyone, &[(ARENA, 0), (LOG, 1)]),
        ],
    );
}

/// The same for the checkpoint's header, which recovery then reads from the page cache.
#[test]
fn a_failed_sync_of_the_header() {
    failing_syncs(
        "a_failed_sync_of_the_header",
        &[
            sticky(&[(HEADER, 0)]),
            failures(Dies::Logger, &[(HEADER, 0)]),
            failures(Dies::Logger, &[(HEADER, 0), (HEADER, 0)]),
            failures(Dies::Logger, &[(HEADER, 0), (ARENA, 0)]),
            failures(Dies::Everyone, &[(HEADER, 0)]),
            failures(Dies::Everyone, &[(HEADER, 0), (HEADER, 0)]),
            failures(Dies::Everyone, &[(HEADER, 0), (LOG, 2)]),
        ],
    );
}

// ---- planted bugs

/// The bug is caught within some lives, and without it the same life is clean.
fn planted(test: &str, bug: &'static str, life: impl Fn(Recorder, &'static str) -> (Vec<Event>, usize)) {
    let _alone = alone();
    for (bug, tries) in [("", 1), (bug, 8)] {
        let mut caught = None;
        for _ in 0..tries {
            let Some(recorder) = recorder(test) else { return };
            let (record, from) = life(recorder, bug);
            caught = caught.or(search(test, &record, from, Told::default(), 120).err());
            if caught.is_some() {
                break;
            }
        }
        match (bug, caught) {
            ("", None) => {}
            ("", Some(what)) => panic!("without the bug: {what}"),
            (_, Some(what)) => eprintln!("{bug}, caught: {}", what.lines().next().unwrap_or_default()),
            (_, None) => panic!("{bug} was not caught"),
        }
    }
}

#[test]
fn planted_an_acknowledgement_before_the_sync_is_caught() {
    let test = "planted_an_acknowledgement_before_the_sync_is_caught";
    planted(test, "acknowledge-before-fsync", |recorder, bug| (plain_life(recorder, victim(), bug), 0));
}

#[test]
fn planted_an_answer_before_the_sync_is_caught() {
    let test = "planted_an_answer_before_the_sync_is_caught";
    planted(test, "message-answered-before-sync", |recorder, bug| (life_by_message(recorder, victim(), bug), 0));
}

#[test]
fn planted_a_header_before_its_pages_is_caught() {
    let test = "planted_a_header_before_its_pages_is_caught";
    planted(test, "header-before-pages", |recorder, bug| (plain_life(recorder, victim(), bug), 0));
}

#[test]
fn planted_trust_in_pages_after_a_failed_sync_is_caught() {
    let test = "planted_trust_in_pages_after_a_failed_sync_is_caught";
    planted(test, "sum-once", |recorder, bug| {
        Life::begin(recorder, victim(), bug).with_failures(&failures(Dies::Logger, &[(ARENA, 0)]))
    });
}

#[test]
fn planted_trust_in_a_header_after_a_failed_sync_is_caught() {
    let test = "planted_trust_in_a_header_after_a_failed_sync_is_caught";
    planted(test, "trust-read-header", |recorder, bug| {
        Life::begin(recorder, victim(), bug).with_failures(&failures(Dies::Everyone, &[(HEADER, 0)]))
    });
}

/// A file system of this kind answers to nobody's locks but its own process's, as far as can be known: it is refused by name,
/// unless the options insist.
#[test]
fn such_a_file_system_is_refused_unless_insisted_on() {
    let _alone = alone();
    let Some(recorder) = recorder("such_a_file_system_is_refused_unless_insisted_on") else { return };
    let path = recorder.store();
    let error = untorn::Store::open(&path).unwrap_err();
    assert!(
        matches!(&error, untorn::Error::UnsupportedFileSystem { file_system, path: named } if file_system == "FUSE" && *named == path),
        "{error}"
    );
    let store = untorn::Store::options().any_file_system(true).logger_thread(true).open(&path).unwrap();
    store.keyspace("a").unwrap().put(b"k", b"v").unwrap();
    drop(store);
    untorn::stop_logger(&path, lives::PATIENCE).unwrap();
}
