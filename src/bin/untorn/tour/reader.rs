//! A reader process: takes snapshots, visible and durable ones, and checks each from end to end,
//! until it is killed.
//!
//! Within a snapshot, it checks the census, and that a later read of the snapshot gives the same.
//! Between snapshots, it checks that transactions never go backwards, and that the durable one is
//! never ahead of the visible one.

use super::census::{self, Census};
use super::event::TourEvent;
use super::open;
use super::record::{FILES, TOTALS};
use crate::outcome::{CommandFailure, Outcome};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use untorn::{Keyspace, Snapshot, Store};

const REPORT_INTERVAL: Duration = Duration::from_millis(20);
/// How long the old snapshot is kept pinned before it is read again.
const PIN_TIME: Duration = Duration::from_millis(400);
/// Leaves processor time of a small machine to the writers.
const READ_PAUSE: Duration = Duration::from_millis(1);

pub(crate) fn run(path: &Path) -> Outcome {
    let result = TourReader::open(path).and_then(|mut reader| {
        loop {
            reader.check_next()?;
        }
    });
    if let Err(failure) = &result {
        let _ = TourEvent::Failed(failure.to_string()).tell();
    }
    result
}

struct TourReader {
    store: Store,
    files: Keyspace,
    totals: Keyspace,
    snapshots: u64,
    records: u64,
    told: Instant,
    visible: Option<Census>,
    durable: Option<Census>,
    pinned: Option<(Instant, Snapshot, u32)>,
}

impl TourReader {
    fn open(path: &Path) -> Outcome<TourReader> {
        let store = open(path, false)?;
        let (files, totals) = (store.keyspace(FILES)?, store.keyspace(TOTALS)?);
        Ok(TourReader {
            store,
            files,
            totals,
            snapshots: 0,
            records: 0,
            told: Instant::now(),
            visible: None,
            durable: None,
            pinned: None,
        })
    }

    fn check_next(&mut self) -> Outcome {
        let durable_snapshot = self.store.durable_snapshot()?;
        let visible_snapshot = self.store.snapshot()?;
        if durable_snapshot.txn_id() > visible_snapshot.txn_id() {
            violation(&format!(
                "{} was durable when {} was visible",
                durable_snapshot.txn_id(),
                visible_snapshot.txn_id()
            ))?;
        }
        let durable = self.census(&durable_snapshot)?;
        let visible = self.census(&visible_snapshot)?;
        compare("durable", self.durable.as_ref(), &durable)?;
        compare("visible", self.visible.as_ref(), &visible)?;
        if self.pinned.is_none() {
            self.pinned = Some((Instant::now(), visible_snapshot, visible.fingerprint));
        }
        self.durable = Some(durable);
        self.visible = Some(visible);
        self.check_pinned()?;
        if self.told.elapsed() >= REPORT_INTERVAL {
            self.told = Instant::now();
            tell(TourEvent::Checked { snapshots: self.snapshots, records: self.records })?;
        }
        thread::sleep(READ_PAUSE);
        Ok(())
    }

    /// Checks that an old snapshot is unchanged, however much was overwritten since.
    fn check_pinned(&mut self) -> Outcome {
        if self.pinned.as_ref().is_none_or(|(since, ..)| since.elapsed() < PIN_TIME) {
            return Ok(());
        }
        if let Some((since, snapshot, fingerprint)) = self.pinned.take() {
            let again = self.census(&snapshot)?;
            if again.fingerprint != fingerprint {
                violation(&format!("snapshot {} reads differently after {:?}", again.txn, since.elapsed()))?;
            }
        }
        Ok(())
    }

    fn census(&mut self, snapshot: &Snapshot) -> Outcome<Census> {
        let census = census::take(snapshot, &self.files, &self.totals)?;
        for what in &census.torn {
            tell(TourEvent::Torn(what.clone()))?;
        }
        for what in &census.violations {
            violation(what)?;
        }
        self.snapshots += 1;
        self.records += census.records;
        Ok(census)
    }
}

fn compare(kind: &str, before: Option<&Census>, now: &Census) -> Outcome {
    let Some(before) = before else { return Ok(()) };
    if now.txn < before.txn {
        violation(&format!("{kind} snapshots went back from {} to {}", before.txn, now.txn))?;
    }
    for (slot, (before, now)) in before.totals.iter().zip(&now.totals).enumerate() {
        if now.commits < before.commits {
            violation(&format!("writer {slot} went back from commit {} to {}", before.commits, now.commits))?;
        }
    }
    Ok(())
}

fn violation(what: &str) -> Outcome {
    tell(TourEvent::Violation(what.to_owned()))
}

fn tell(event: TourEvent) -> Outcome {
    event.tell().map_err(|error: io::Error| CommandFailure::output(error))
}
