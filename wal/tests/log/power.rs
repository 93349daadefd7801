//! Goal: after any history of commits, flushes, rotations, checkpoints, failed calls, dead loggers
//! and power cuts, the log holds everything that was acknowledged, in order, and never other bytes.
//! Method: random histories on a disk in memory, checked against the stream as it was written;
//! whenever the power is cut, any subset of the unsynced sectors survives, and recovery may itself
//! fail and lose power.
//!
//! A failure prints its seed; `UNTORN_WAL_SEED=n` replays that history alone.

use crate::common::*;
use untorn_wal::{
    Log, LogError, LogState, Lsn, RecordKind, Result, Retention,
    limits::RECORD_HEADER_BYTES,
    record,
    testing::{Call, Fault, Rng, SimDisk},
};

struct Model {
    rng: Rng,
    disk: SimDisk,
    log: Log<SimDisk>,
    stream: Stream,
    /// The state that the logger records; `log_state.durable` is what was acknowledged.
    log_state: LogState,
    /// Counts of events, to check that the histories reach the important cases.
    seen: Seen,
}

#[derive(Default, Debug)]
struct Seen {
    power_cuts: u32,
    faults: u32,
    voided: u32,
    recycled: usize,
    dead_loggers: u32,
    lost_tails: u32,
}

impl Model {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let log = new_log(&disk, 3);
        let (stream, log_state, seen) = (Stream::default(), LogState::default(), Seen::default());
        Model { rng: Rng(seed), disk, log, stream, log_state, seen }
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..9 => {
                let len_max = if self.rng.one_in(8) { shape().record_bytes_max() - 40 } else { 900 };
                for _ in 0..=self.rng.below(4) {
                    self.stream.push_random(&mut self.rng, len_max);
                }
                self.maybe_plan_fault(6);
                self.flush_or_fail();
            }
            9 | 10 => self.write_without_sync(),
            11..14 => self.checkpoint(),
            14 => {
                self.maybe_plan_fault(2);
                let _ = self.log.pool().add_spare();
                self.disk.clear_faults();
            }
            15 | 16 => self.logger_dies(),
            _ => self.power_cut(),
        }
    }

    fn maybe_plan_fault(&mut self, one_in: u64) {
        if self.rng.one_in(one_in) {
            let call = [Call::Write, Call::Sync, Call::Name, Call::SyncDir][self.rng.below(4) as usize];
            let fault = [Fault::Io, Fault::NoSpace, Fault::Short][self.rng.below(3) as usize];
            self.disk.fail(Some(call), self.rng.below(5), fault);
        }
    }

    fn flush_or_fail(&mut self) {
        let flushed = flush(&mut self.log, &self.stream, &mut self.log_state);
        if let Err(error) = flushed {
            self.seen.faults += 1;
            // The logger may die, or the power fail, before the error is handled.
            match self.rng.below(4) {
                0 => self.logger_dies(),
                1 => self.power_cut(),
                _ => self.carry_on(error),
            }
        }
        self.disk.clear_faults();
    }

    /// Starts a new segment at the durable position until a start succeeds, as the flush thread
    /// does after an error.
    fn carry_on(&mut self, _: LogError) {
        while self.log_state.durable < self.stream.end() || self.log.written().is_none() {
            let left = self.stream.left_after(self.log_state.durable);
            let started = self.log.start_segment(&self.log_state, left, &mut self.stream.fill());
            match started {
                Ok(durable) => self.log_state.durable = durable,
                Err(LogError::NoRoom) => {
                    self.disk.clear_faults();
                    self.log.pool().add_spare().unwrap();
                }
                Err(_) if self.rng.one_in(3) => return self.power_cut(),
                Err(_) => self.disk.clear_faults(),
            }
        }
    }

    fn write_without_sync(&mut self) {
        let Some(from) = self.log.written() else {
            return;
        };
        let len_max = if self.rng.one_in(2) { shape().record_bytes_max() - 40 } else { 5000 };
        self.stream.push_random(&mut self.rng, len_max);
        let len = self.stream.left_after(from);
        let Ok(appended) = self.log.append(from, len, &self.log_state, &mut self.stream.fill()) else {
            return;
        };
        match self.rng.below(3) {
            // Synced, and the logger dies before it can record that.
            0 => {
                self.log.sync().unwrap();
                self.logger_dies();
            }
            // A segment's end cuts the record, its first half is stated to be durable, and the rest
            // is lost.
            1 if appended.full => {
                self.log_state.durable = self.log.sync().unwrap();
                if self.log.start_segment(&self.log_state, 0, &mut |_, _| unreachable!()).is_ok() {
                    self.power_cut();
                }
            }
            _ => {}
        }
    }

    fn checkpoint(&mut self) {
        let ends: Vec<Lsn> = self
            .stream
            .ends
            .iter()
            .copied()
            .filter(|e| (self.log_state.checkpoint_lsn..=self.log_state.durable).contains(e))
            .collect();
        let Some(from) = self.log.written().filter(|_| !ends.is_empty()) else {
            return;
        };
        self.log_state.checkpoint_lsn = ends[self.rng.below(ends.len() as u64) as usize];
        self.log_state.checkpoint_txn += 1;
        let said = self.log.append(from, 0, &self.log_state, &mut |_, _| unreachable!()).and_then(|appended| {
            self.log_state.durable = self.log.sync()?;
            if appended.full {
                let left = self.stream.left_after(self.log_state.durable);
                self.log_state.durable = self.log.start_segment(&self.log_state, left, &mut self.stream.fill())?;
            }
            Ok(())
        });
        match said {
            Ok(()) => {
                self.seen.recycled +=
                    self.log.pool().recycle(self.log_state.checkpoint_lsn, Retention::NOTHING).unwrap()
            }
            Err(error) => self.carry_on(error),
        }
    }

    /// The logger dies. Its clients survive, and so do the ring and the durable position.
    fn logger_dies(&mut self) {
        self.seen.dead_loggers += 1;
        self.disk.clear_faults();
        let pool = open_pool(&self.disk, self.log_state.checkpoint_lsn).unwrap();
        self.log = Log::new(pool);
        self.carry_on(LogError::NeedsSegment);
    }

    fn power_cut(&mut self) {
        let mut candidates = vec![self.stream.clone()];
        loop {
            self.seen.power_cuts += 1;
            self.disk = self.disk.power_cut(&mut self.rng);
            self.look(&candidates);
            if self.rng.one_in(3) {
                self.maybe_plan_fault(1);
            }
            match self.recover() {
                Ok(()) => break,
                // Recovery failed, and the power fails again: what is there is the old stream or
                // the new one.
                Err(_) => candidates.insert(0, self.stream.clone()),
            }
            self.disk.clear_faults();
        }
        self.disk.clear_faults();
        let stream = self.stream.clone();
        check(&self.disk, &stream, self.log_state.checkpoint_lsn, self.log_state.durable, "after recovery");
    }

    /// Scans, finds which stream it is, and cuts it where the log ends. All that was acknowledged
    /// is there.
    fn look(&mut self, candidates: &[Stream]) {
        let from = self.log_state.checkpoint_lsn;
        let (bytes, _) = read_all(&self.disk, from).expect("nothing is damaged after a power cut");
        let end = from.advanced_by(bytes.len() as u64);
        assert!(end >= self.log_state.durable, "the log ends at {end}, {} was acknowledged", self.log_state.durable);
        let of = candidates.iter().find(|s| s.bytes.get(from.0 as usize..end.0 as usize) == Some(&bytes));
        let stream = of.expect("wrong bytes");
        self.seen.lost_tails += u32::from(end < stream.end());
        self.stream = stream.clone();
    }

    fn recover(&mut self) -> Result<()> {
        let checkpoint = self.log_state.checkpoint_lsn;
        let (bytes, log_state) = read_all(&self.disk, checkpoint)?;
        let end = checkpoint.advanced_by(bytes.len() as u64);
        assert!(log_state.checkpoint_txn <= self.log_state.checkpoint_txn);
        self.stream.ends.retain(|&e| e <= end);
        let whole = self.stream.ends.last().copied().unwrap_or_default();
        self.stream.bytes.truncate(whole.0 as usize);
        // A commit is acknowledged when its whole record is durable, so that is all that must
        // remain from here on.
        self.log_state.durable = self.log_state.durable.min(whole);
        let mut start = log_state.durable;
        if whole < log_state.durable {
            // The durable position is inside a record that was never completed.
            self.seen.voided += 1;
            start = whole;
            let payload = vec![0; (log_state.durable.bytes_since(whole) as usize).saturating_sub(RECORD_HEADER_BYTES)];
            record::encode(&mut self.stream.bytes, STORE.seed(), whole, 0, RecordKind::Abort, &payload);
            let end = self.stream.end();
            self.stream.ends.push(end);
        }
        let pool = open_pool(&self.disk, checkpoint)?;
        while pool.stats().spares < 2 {
            pool.add_spare()?;
        }
        self.log = Log::new(pool);
        let log_state = LogState { durable: start, incarnation: self.log_state.incarnation + 1, ..self.log_state };
        let durable = self.log.start_segment(&log_state, self.stream.left_after(start), &mut self.stream.fill())?;
        assert_eq!(durable, self.stream.end(), "one segment takes it all");
        self.log_state = LogState { durable, ..log_state };
        Ok(())
    }
}

fn run(seed: u64, steps: u32) -> Seen {
    let mut model = Model::new(seed);
    for _ in 0..steps {
        model.step();
    }
    model.power_cut();
    model.seen
}

#[test]
fn random_histories_keep_what_was_acknowledged() {
    if let Ok(seed) = std::env::var("UNTORN_WAL_SEED") {
        println!("{:?}", run(seed.parse().expect("a number"), 120));
        return;
    }
    let mut all = Seen::default();
    for seed in 0..400 {
        let seen = std::panic::catch_unwind(|| run(seed, 120))
            .unwrap_or_else(|_| panic!("replay with UNTORN_WAL_SEED={seed} cargo test -p untorn-wal --test power"));
        all.power_cuts += seen.power_cuts;
        all.faults += seen.faults;
        all.voided += seen.voided;
        all.recycled += seen.recycled;
        all.dead_loggers += seen.dead_loggers;
        all.lost_tails += seen.lost_tails;
    }
    println!("{all:?}");
    assert!(all.power_cuts > 1000 && all.faults > 100 && all.voided > 100 && all.recycled > 100, "{all:?}");
    assert!(all.dead_loggers > 500 && all.lost_tails > 100, "{all:?}");
}
