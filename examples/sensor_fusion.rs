//! Three processes: a sensor, a publisher of its calibration, and a consumer that uses only values
//! that belong together.
//!
//! Readings and calibrations are cells, updated in place, thousands of times a second if necessary.
//! A store into a cell returns a version, which messages can refer to. The sensor announces each
//! reading, by name and version, through the change feed; a reading contains the version of its
//! calibration. The consumer requests exactly those versions. It gets them, or the error that they
//! are overwritten (`Stale`); it never gets another version instead.
//!
//! `cargo run --release --example sensor_fusion`

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use untorn::{Cell, Durability, Error, Feed, Options, Store, Version};

const READINGS: u64 = 1000;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Calibration {
    gain: f64,
    offset: f64,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Reading {
    /// The measured value, in the sensor's own units.
    raw: f64,
    /// The true value.
    truth: f64,
    /// The version of the calibration that was used.
    calibration: u64,
}

impl Calibration {
    /// Returns whether the calibration gives the true value, which only this example can check.
    fn is_of(&self, reading: &Reading) -> bool {
        (reading.raw * self.gain + self.offset - reading.truth).abs() < 1e-6
    }
}

type Anything<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Anything {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [role, path] if role == "sensor" => return sensor(&options().open(path)?),
        [_, path] => return publisher(&options().open(path)?),
        _ => {}
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("data");
    let store = options().open(&path)?;
    let start = |role: &str| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([role.as_ref(), path.as_os_str()]).stdin(Stdio::piped()).spawn()
    };
    let mut publisher = start("publisher")?;
    let mut sensor = start("sensor")?;
    let consumed = consumer(&store, &path);
    // It publishes until its input ends.
    drop(publisher.stdin.take());
    let ended = (sensor.wait()?, publisher.wait()?);
    assert!(ended.0.success() && ended.1.success());
    consumed?;
    store.close()?;
    untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
    Ok(())
}

fn options() -> Options {
    let mut options = Store::options();
    options.durability(Durability::Visible);
    options
}

fn calibration(store: &Store) -> untorn::Result<Cell<Calibration>> {
    store.cell_of("calibration")
}

/// Publishes a new calibration every few milliseconds.
fn publisher(store: &Store) -> Anything {
    let cell = calibration(store)?;
    let told_to_end = std::thread::spawn(|| std::io::stdin().lines().count());
    for n in 1u32.. {
        cell.store(&Calibration { gain: 1.0 + f64::from(n % 97) / 10.0, offset: f64::from(n % 89) })?;
        std::thread::sleep(Duration::from_millis(5));
        if told_to_end.is_finished() {
            break;
        }
    }
    Ok(())
}

/// Stores a reading every millisecond, and announces it by name and version.
fn sensor(store: &Store) -> Anything {
    let (calibration, cell) = (calibration(store)?, store.cell_of::<Reading>("reading")?);
    let announcements = store.keyspace("announcements")?;
    for n in 0..READINGS {
        let (now, version) = calibration.load()?;
        let truth = n as f64;
        // A gain of 0 is the initial value of the cell.
        let raw = if now.gain == 0.0 { 0.0 } else { (truth - now.offset) / now.gain };
        let version = cell.store(&Reading { raw, truth, calibration: version.as_u64() })?;
        announcements.put(b"reading", &version.as_u64().to_le_bytes())?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Uses each announced reading, if it and its calibration are still there.
fn consumer(store: &Store, path: &Path) -> Anything {
    let (calibration, cell) = (calibration(store)?, store.cell_of::<Reading>("reading")?);
    let mut changes = store.changes(untorn::TxnId::ZERO, Feed::Visible)?.keyspace("announcements");
    let (mut taken, mut late, mut outdated, mut mixed_up, mut mixed_up_naively) = (0, 0, 0, 0, 0);
    for announced in 1..=READINGS {
        let Some(change) = changes.try_next(Duration::from_secs(10))? else {
            return Err(format!("no news of {}", path.display()).into());
        };
        let version = u64::from_le_bytes(change.value().expect("it is put").try_into()?);
        // The newest calibration, as a consumer without versions would use it.
        let (newest, _) = calibration.load()?;
        match cell.load_version(Version::from_u64(version)) {
            Err(Error::Stale) => late += 1,
            Err(error) => return Err(error.into()),
            Ok(reading) => match calibration.load_version(Version::from_u64(reading.calibration)) {
                Err(Error::Stale) => outdated += 1,
                Err(error) => return Err(error.into()),
                Ok(its_own) => {
                    taken += 1;
                    mixed_up += u64::from(its_own.gain != 0.0 && !its_own.is_of(&reading));
                    mixed_up_naively += u64::from(its_own.gain != 0.0 && !newest.is_of(&reading));
                }
            },
        }
        // From time to time it does other work, and falls behind.
        if announced % 100 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("{READINGS} readings were announced");
    println!("{taken} taken, each with the calibration that it was made with");
    println!("{late} stale: overwritten before the consumer came to them");
    println!("{outdated} left out, since their calibration was overwritten");
    println!("{mixed_up} mixed up; with the newest calibration instead it would have been {mixed_up_naively}");
    Ok(())
}
