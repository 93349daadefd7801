//! Goal: a process that observes a store gets the figures of what the store does, and changes
//! nothing: `observe`, `untorn top`, `untorn stat --prometheus`.
//!
//! Method: another process with a load of known size; what is printed is parsed by the format's
//! rules.

mod events;
mod latencies;

use crate::common::{HANGS, Role, TestStore, kill_logger, limit, listen, program, say, spawn, wait_until};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use untorn::reason::MismatchKind;
use untorn::{Durability, FlushPolicy, Observation, Stats, Store, observe};

#[test]
fn child() {
    let Some(role) = Role::of_this_process() else { return };
    let store = Store::open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let pinned = store.snapshot().unwrap();
    say("ready");
    while let Some(told) = listen() {
        match told.as_str() {
            "go on" => {
                let end = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !end.load(Ordering::Relaxed) {
                            keys.put(b"key", b"value").unwrap();
                        }
                    });
                    say("going");
                    listen();
                    end.store(true, Ordering::Relaxed);
                });
            }
            count => {
                for _ in 0..count.parse::<u64>().unwrap() {
                    keys.put(b"key", b"value").unwrap();
                }
            }
        }
        say("done");
    }
    drop(pinned);
}

fn live(path: &Path) -> Stats {
    match observe(path).unwrap() {
        Observation::Live(stats) => *stats,
        other => panic!("{other:?}"),
    }
}

fn run(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program::untorn()).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names, sizes and times of change of all files.
fn files(path: &Path) -> Vec<(String, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap().chain(std::fs::read_dir(path.join("wal")).unwrap()) {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push((entry.path().display().to_string(), metadata.len(), metadata.modified().unwrap()));
    }
    found.sort();
    found
}

#[test]
fn looking_changes_nothing() {
    let _limit = limit();
    let test = TestStore::new();
    assert!(matches!(observe(&test.path), Err(untorn::Error::NotFound { .. })));
    assert!(!test.path.exists());
    let store = test.open();
    store.keyspace("keys").unwrap().put(b"key", b"value").unwrap();
    drop(store);
    test.stop_logger();

    // No process has the store open, before and after.
    let before = files(&test.path);
    assert!(matches!(observe(&test.path).unwrap(), Observation::Unused));
    assert!(run(&test.path, &["top", "--once", "--interval", "100"]).contains("No process has the store open"));
    let scraped = parse(&run(&test.path, &["stat", "--prometheus"]));
    assert_eq!(scraped.values().collect::<Vec<_>>(), [&0.0], "{scraped:?}");
    assert!(matches!(observe(&test.path).unwrap(), Observation::Unused));
    assert_eq!(files(&test.path), before);

    // An observer beside another process is not one of the store's clients.
    let mut other = spawn("monitoring::load", &test.path, &[]);
    other.expect("ready");
    assert_eq!(other.ask("5"), "done");
    let stats = live(&test.path);
    let [client] = &stats.clients[..] else { panic!("{:#?}", stats.clients) };
    assert_eq!((client.pid, client.is_alive, client.holds_writer_lock), (other.pid(), true, false));
    assert_eq!((client.commits, client.pins, stats.lag_txns, stats.lag_ns), (5, 1, 0, 0));
    let joined = test.open();
    let counted = joined.stats().unwrap();
    assert_eq!((counted.clients.len(), counted.committed), (2, stats.committed));

    // It starts no logger.
    kill_logger(&joined);
    drop(joined);
    let starts = live(&test.path).logger_starts;
    assert_eq!(live(&test.path).logger_pid, None);
    assert!(run(&test.path, &["top", "--once", "--interval", "100"]).contains("NO LOGGER"));
    assert_eq!(live(&test.path).logger_starts, starts);
}

#[test]
fn the_lag_grows_until_a_flush_and_is_gone_after_it() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    store.sync().unwrap();
    let settled = live(&test.path);
    assert_eq!((settled.lag_txns, settled.lag_ns), (0, 0));
    for _ in 0..3 {
        keys.put(b"key", b"value").unwrap();
    }
    assert_eq!(live(&test.path).lag_txns, 3);
    wait_until(|| live(&test.path).lag_ns > 100_000_000);
    store.sync().unwrap();
    let flushed = live(&test.path);
    assert_eq!((flushed.lag_txns, flushed.lag_ns), (0, 0));
    assert_eq!(flushed.acknowledged - settled.acknowledged, 3);
}

#[test]
fn the_page_shows_a_load_that_comes_and_goes() {
    let _limit = limit();
    let test = TestStore::new();
    let mut other = spawn("monitoring::load", &test.path, &[]);
    other.expect("ready");
    let page = || run(&test.path, &["top", "--once", "--interval", "300"]);
    assert_eq!(other.ask("go on"), "going");
    let busy = page();
    assert_eq!(other.ask("enough"), "done");
    let idle = page();
    let rate = |page: &str, name: &str| -> f64 {
        let (_, rest) = page.split_once(name).unwrap_or_else(|| panic!("no {name}:\n{page}"));
        rest.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
    };
    assert!(rate(&busy, "commits/s") > 0.0 && rate(&busy, "fsyncs/s") > 0.0, "{busy}");
    assert!(rate(&busy, "commits/fsync") > 0.0, "{busy}");
    assert_eq!(rate(&idle, "commits/s"), 0.0, "{idle}");
    assert!(rate(&busy, "acknowledgement, urgent") > 0.0, "{busy}");
    assert!(busy.contains(&other.pid().to_string()) && busy.contains("readers: 1 "), "{busy}");
}

#[test]
fn what_is_scraped_is_well_formed_and_counts() {
    let _limit = limit();
    let dir = tempfile::tempdir().unwrap();
    // Its name needs each kind of escape.
    let path = dir.path().join("a \"quoted\" \\ and \n broken name");
    let mut other = spawn("monitoring::load", &path, &[]);
    other.expect("ready");
    let before = parse(&run(&path, &["stat", "--prometheus"]));
    assert_eq!(other.ask("11"), "done");
    let after = parse(&run(&path, &["stat", "--prometheus"]));
    let grown = |name: &str| after[name] - before[name];
    assert_eq!(grown("untorn_commits_total"), 11.0);
    assert_eq!(grown("untorn_acknowledged_commits_total"), 11.0);
    assert_eq!(grown("untorn_lock_hold_seconds_count{class=urgent}"), 11.0);
    assert_eq!(grown("untorn_region_start_time_seconds"), 0.0);
    assert!(grown("untorn_fsyncs_total") >= 1.0 && grown("untorn_flush_seconds_sum{}") > 0.0);
    assert_eq!((after["untorn_up"], after["untorn_processes"], after["untorn_readers"]), (1.0, 1.0, 1.0));
    assert!(after.iter().all(|(name, value)| !name.ends_with("_total") || *value >= before[name]));
    drop(other);
    untorn::logger::stop_logger(&path, HANGS).unwrap();
}

/// Reads the text exposition format 0.0.4, and refuses whatever is not in it. Samples by name, with
/// their labels but `store`; a family without labels by its bare name.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let (mut families, mut samples) = (HashSet::new(), BTreeMap::new());
    let (mut family, mut kind) = (String::new(), String::new());
    let mut lines = text.lines();
    // What stood last in a histogram: its labels, and how many there were up to there.
    let mut bucket: (String, f64, f64) = Default::default();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().unwrap();
            assert!(families.insert(name.to_string()), "{name} stands twice");
            let typed = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
            let (of, is) = typed.split_once(' ').unwrap();
            assert_eq!(of, name);
            assert!(["counter", "gauge", "histogram"].contains(&is), "{line}");
            (family, kind) = (name.to_string(), is.to_string());
            assert_eq!(kind == "counter", name.ends_with("_total"));
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = parse_labels(rest);
        let value: f64 = value.strip_prefix(' ').unwrap().parse().unwrap();
        assert!(labels.iter().any(|(name, value)| name == "store" && value.contains('/')));
        let label = |wanted: &str| labels.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let others: Vec<String> = labels
            .iter()
            .filter(|(name, _)| name != "store" && name != "le")
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let others = others.join(",");
        if kind == "histogram" {
            let part = name.strip_prefix(family.as_str()).unwrap();
            let bound = label("le").map(|le| if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() });
            match (part, bound) {
                ("_bucket", Some(bound)) => {
                    let is_next = bucket.0 == others && bucket.1 < bound && bucket.2 <= value;
                    let is_first = bucket.1.is_infinite() || bucket.1 == 0.0;
                    assert!(is_next || is_first, "{line} after {bucket:?}");
                    bucket = (others.clone(), bound, value);
                }
                ("_sum", None) => assert!(bucket.1.is_infinite() && bucket.0 == others, "{line}"),
                ("_count", None) => {
                    assert_eq!((&bucket.0, bucket.1, bucket.2), (&others, f64::INFINITY, value), "{line}");
                    bucket = Default::default();
                }
                _ => panic!("{line} in {family}"),
            }
        } else {
            assert_eq!(name, family, "{line}");
        }
        let is_plain = others.is_empty() && kind != "histogram";
        let key = if is_plain { name.to_string() } else { format!("{name}{{{others}}}") };
        if label("le").is_none() {
            assert!(samples.insert(key, value).is_none(), "{line} stands twice");
        }
    }
    samples
}

/// Labels up to the closing brace, unescaped, and what follows it.
fn parse_labels(text: &str) -> (Vec<(String, String)>, String) {
    let mut characters = text.chars();
    let mut labels = Vec::new();
    loop {
        let name: String = characters.by_ref().take_while(|c| *c != '=').collect();
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
        assert_eq!(characters.next(), Some('"'), "{text}");
        let mut value = String::new();
        loop {
            match characters.next().unwrap() {
                '"' => break,
                '\\' => value.push(match characters.next().unwrap() {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} in {text}"),
                }),
                c => value.push(c),
            }
        }
        labels.push((name, value));
        match characters.next() {
            Some(',') => {}
            Some('}') => return (labels, characters.collect()),
            other => panic!("{other:?} in {text}"),
        }
    }
}

/// A logger that serves by another layout, with no client, was taken for one that recovers the
/// store.
#[test]
fn a_region_of_another_layout_is_named_as_such() {
    let _limit = limit();
    let test = TestStore::new();
    drop(test.open_with(|options| {
        options.logger_idle(Duration::from_secs(600));
    }));
    assert!(matches!(observe(&test.path).unwrap(), Observation::Live(_)));
    let control = std::fs::File::options().read(true).write(true).open(test.path.join("control")).unwrap();
    // The last byte of the magic.
    let mut layout = [0];
    control.read_exact_at(&mut layout, 7).unwrap();
    control.write_all_at(&[layout[0] - 1], 7).unwrap();
    let found = observe(&test.path);
    control.write_all_at(&layout, 7).unwrap();
    match found {
        Err(untorn::Error::Mismatch { file, what }) => {
            assert_eq!(file, "control");
            let MismatchKind::OtherLayout { found, known } = what else { panic!("{what}") };
            assert_eq!(found + 1, known);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(observe(&test.path).unwrap(), Observation::Live(_)));
    test.stop_logger();
}
