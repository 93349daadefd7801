//! Damage at rest: bits flip in the files of a closed store, and files are shortened, lengthened,
//! removed or added. Opening or `verify` must report the damage unless it is harmless. If both
//! accept the store, its content must be what was stored.
//!
//! Two stores are damaged: one that all processes closed in order, and one after a kernel crash,
//! whose log is still needed. A separate process tries the cases of damage one by one, so that the
//! harness detects a crash that the damage causes.

use super::acknowledged;
use crate::context::Context;
use crate::outcome::{Coverage, Finding, Kind, Outcome};
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::{crash_kernel, kill_loggers};
use crate::processes::process::{Checked, start_role};
use crate::processes::role::{self, Role, say};
use crate::workload::oracle::{self, Acknowledged};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::{Error, Options, Store};

const PAGE: u64 = 4096;
/// Length of the fields that describe a page or a block of the log.
const HEADER: u64 = 128;
/// Bytes in use of a header slot.
const SLOT: u64 = 512;
/// Additional values that a long run tries for each byte of a header.
const OTHERS: usize = 2;

/// Number of cases of damage that one process tries.
const BATCH: &str = "20";

/// The names of the files below a store's directory, and their contents.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// One case of damage.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Damage {
    Flip { file: String, at: u64, bit: u32 },
    Cut { file: String, to: u64 },
    Longer { file: String, by: u64 },
    Gone { file: String },
    Stray { file: String },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Flip { file, at, bit } => write!(f, "flip:{file}:{at}:{bit}"),
            Damage::Cut { file, to } => write!(f, "cut:{file}:{to}"),
            Damage::Longer { file, by } => write!(f, "longer:{file}:{by}"),
            Damage::Gone { file } => write!(f, "gone:{file}"),
            Damage::Stray { file } => write!(f, "stray:{file}"),
        }
    }
}

impl Damage {
    fn parse(name: &str) -> Option<Damage> {
        let parts: Vec<&str> = name.split(':').collect();
        let file = parts.get(1)?.to_string();
        let number = |at: usize| parts.get(at).and_then(|part| part.parse::<u64>().ok());
        Some(match parts[0] {
            "flip" => Damage::Flip { file, at: number(2)?, bit: number(3)? as u32 % 8 },
            "cut" => Damage::Cut { file, to: number(2)? },
            "longer" => Damage::Longer { file, by: number(2)? },
            "gone" => Damage::Gone { file },
            "stray" => Damage::Stray { file },
            _ => return None,
        })
    }

    fn apply(&self, files: &mut Files) {
        match self {
            Damage::Flip { file, at, bit } => {
                if let Some(byte) = files.get_mut(file).and_then(|bytes| bytes.get_mut(*at as usize)) {
                    *byte ^= 1 << bit;
                }
            }
            Damage::Cut { file, to } => {
                files.entry(file.clone()).or_default().truncate(*to as usize);
            }
            Damage::Longer { file, by } => {
                let bytes = files.entry(file.clone()).or_default();
                let len = bytes.len() + *by as usize;
                bytes.resize(len, 0xa5);
            }
            Damage::Gone { file } => drop(files.remove(file)),
            Damage::Stray { file } => drop(files.insert(file.clone(), vec![0x5a; 5000])),
        }
    }

    /// Returns whether a replay line selects this case. A replay line names one case or a prefix
    /// such as `flip:arena` or `flip:wal`.
    fn is_meant_by(&self, only: &str) -> bool {
        let name = self.to_string();
        name.strip_prefix(only).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    }

    /// Returns the class under which the coverage map counts the damage.
    fn class(&self) -> String {
        let (kind, file) = match self {
            Damage::Flip { file, .. } => ("flip", file),
            Damage::Cut { file, .. } => ("cut", file),
            Damage::Longer { file, .. } => ("longer", file),
            Damage::Gone { file } => ("gone", file),
            Damage::Stray { file } => ("stray", file),
        };
        let file = if file.starts_with("wal/seg-") { "wal/seg-#" } else { file };
        format!("{kind}:{file}")
    }

    /// Returns whether no store can detect the damage. If the whole end of the log is missing, the
    /// log looks as if that part had never been written.
    fn is_beyond_notice(&self, newest_segment: &str) -> bool {
        match self {
            Damage::Gone { file } | Damage::Cut { file, .. } => file == newest_segment,
            _ => false,
        }
    }
}

/// One of the two stores, and the progress of its cases of damage.
struct Image {
    how: &'static str,
    path: PathBuf,
    acknowledged: Vec<(String, Acknowledged)>,
    done: u64,
    is_through: bool,
}

/// Results of the cases of damage so far.
#[derive(Default)]
struct Tally {
    hits: BTreeMap<String, u64>,
    verdicts: BTreeMap<String, u64>,
}

/// Runs this part. It alternates between the two stores.
pub(super) fn run(context: &Context, outcome: &mut Outcome, may_continue: &dyn Fn(u64, &str) -> bool) {
    let mut images = Vec::new();
    for how in ["left", "crashed"] {
        if context.only.is_some() && only(context, how).is_none() {
            continue;
        }
        let path = context.directory_in_memory(&format!("image-{how}"));
        match make(&path, how) {
            Ok(acknowledged) => images.push(Image { how, path, acknowledged, done: 0, is_through: false }),
            Err(finding) => outcome.violated(finding, how, context.replay(how)),
        }
    }
    let mut tally = Tally::default();
    while images.iter().any(|image| !image.is_through) {
        for image in images.iter_mut().filter(|image| !image.is_through) {
            if may_continue(outcome.states, &format!("damage at rest, {}", image.how)) {
                batch(context, image, &mut tally, outcome);
                image.is_through |= only(context, image.how).is_some_and(|only| Damage::parse(only).is_some());
            } else {
                outcome.uncovered.push(format!("damage at rest, {}, after {}: the time was up", image.how, image.done));
                image.is_through = true;
            }
        }
    }
    for (verdict, count) in tally.verdicts {
        outcome.figures.insert(format!("damage at rest: {verdict}"), count as f64);
    }
    if !tally.hits.is_empty() {
        outcome.coverage.push(Coverage { of: "damage at rest".into(), hits: tally.hits.into_iter().collect() });
    }
    images.iter().for_each(|image| drop(fs::remove_dir_all(&image.path)));
}

/// Returns the case of damage, or the prefix of cases, that a replay line names.
fn only<'c>(context: &'c Context, how: &str) -> Option<&'c str> {
    context.only.as_deref()?.strip_prefix(how)?.strip_prefix(':')
}

/// Runs a process that tries the next cases of damage of an image.
fn batch(context: &Context, image: &mut Image, tally: &mut Tally, outcome: &mut Outcome) {
    let scratch = context.directory_in_memory(&format!("damaged-{}", image.how));
    let arguments = [
        scratch.to_str().unwrap_or_default(),
        &context.seed.to_string(),
        &image.done.to_string(),
        BATCH,
        only(context, image.how).unwrap_or_default(),
        if context.is_long() { "long" } else { "short" },
        &acknowledged::write(&image.acknowledged),
    ];
    let mut process = start_role(&instrumented::own(), "damaged", &image.path, &arguments, &[]);
    let (mut heard, mut since) = (0, Instant::now());
    while process.is_running() && since.elapsed() < HANGS {
        let lines = process.lines().len();
        if lines != heard {
            (heard, since) = (lines, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let hangs = process.is_running();
    let ended_well = !hangs && process.wait();
    process.kill();
    let lines = process.lines();
    let mut trying = String::new();
    let mut tried = 0;
    for line in &lines {
        let name = format!("{}:{trying}", image.how);
        if let Some(name) = line.strip_prefix("T ") {
            trying = name.to_string();
            tried += 1;
            *tally.hits.entry(Damage::parse(name).map_or_else(String::new, |damage| damage.class())).or_default() += 1;
        } else if let Some(verdict) = line.strip_prefix("R ") {
            *tally.verdicts.entry(verdict.to_string()).or_default() += 1;
        } else if let Some(finding) = role::finding(line) {
            outcome.violated(finding, &name, context.replay(&name));
        }
    }
    if !ended_well {
        let what = if hangs { "hangs" } else { "died" };
        let name = format!("{}:{trying}", image.how);
        let finding = Finding::new(Kind::Misbehaved, format!("the process that checks the damaged store {what}"));
        outcome.violated(finding, &name, context.replay(&name));
    }
    let _ = fs::remove_dir_all(&scratch);
    image.done += tried;
    outcome.states += tried;
    image.is_through |= tried == 0 || lines.iter().any(|line| line == "all");
}

/// Makes a store, keeps its files, and returns the acknowledgements of its writer.
fn make(path: &Path, how: &str) -> Result<Vec<(String, Acknowledged)>, Finding> {
    let mut writer = start_role(&instrumented::own(), "writer", path, &["w", "4"], &[]);
    if !writer.wait() {
        writer.refuse_finding()?;
        return Err(Finding::new(Kind::Misbehaved, "the writer that makes the store failed"));
    }
    let acknowledged = vec![("w".to_string(), Acknowledged::by(&writer))];
    if how == "left" {
        let stopped = untorn::logger::stop_logger(path, Duration::from_secs(60));
        stopped.map_err(crate::workload::misbehaved("stop_logger"))?;
    } else {
        // The next block records the newest durable position. The logger writes that block soon.
        std::thread::sleep(Duration::from_millis(300));
        kill_loggers(path);
    }
    crash_kernel(path);
    for name in ["logger.sock", "logger.note"] {
        let _ = fs::remove_file(path.join(name));
    }
    Ok(acknowledged)
}

/// Returns all files of a store, by name.
pub(crate) fn load(path: &Path) -> Files {
    let mut files = Files::new();
    for folder in ["", "wal/"] {
        for entry in fs::read_dir(path.join(folder)).into_iter().flatten().flatten() {
            if entry.path().is_file() {
                let name = format!("{folder}{}", entry.file_name().to_string_lossy());
                files.insert(name, fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    files
}

fn lay_out(files: &Files, path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path.join("wal"))?;
    files.iter().try_for_each(|(name, bytes)| fs::write(path.join(name), bytes))
}

/// Returns all cases of damage of a run, in the order of the tries.
fn schedule(files: &Files, is_long: bool, dice: &mut StdRng) -> Vec<Damage> {
    let mut structural = Vec::new();
    let mut headers = Vec::new();
    for (name, bytes) in files {
        let (file, len) = (name.clone(), bytes.len() as u64);
        for to in [0, 1, 100, len / 2, len.saturating_sub(PAGE), len.saturating_sub(1)] {
            if to < len {
                structural.push(Damage::Cut { file: file.clone(), to });
            }
        }
        structural.push(Damage::Longer { file: file.clone(), by: PAGE });
        structural.push(Damage::Longer { file: file.clone(), by: 1 });
        if name != "lock" {
            structural.push(Damage::Gone { file: file.clone() });
        }
        for start in (0..len).step_by(PAGE as usize) {
            let header = match name.as_str() {
                "checkpoint" => SLOT,
                "arena" if bytes[start as usize..].iter().take(HEADER as usize).any(|byte| *byte != 0) => HEADER,
                log if log.starts_with("wal/") && bytes[start as usize..].starts_with(b"untornW") => HEADER,
                _ => 0,
            };
            headers.extend((start..(start + header).min(len)).map(|at| (file.clone(), at)));
        }
    }
    for name in ["wal/new-00000099", "wal/seg-99999999", "wal/strange", "control", "control.new", "arena.new", "access"]
    {
        structural.push(Damage::Stray { file: name.into() });
    }
    let flip = |dice: &mut StdRng, (file, at): (String, u64)| Damage::Flip { file, at, bit: dice.random_range(0..8) };
    let others = if is_long { headers.len() * OTHERS } else { headers.len() };
    let mut flips: Vec<Damage> = headers.into_iter().map(|at| flip(dice, at)).collect();
    let sizes: Vec<(&String, u64)> = files.iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect();
    for _ in 0..others {
        let (name, len) = sizes[dice.random_range(0..sizes.len())];
        if len > 0 {
            // Most flips go to the part of the file that is in use.
            let used = files[name].iter().rposition(|byte| *byte != 0).map_or(len, |at| at as u64 + 1);
            let bound = if dice.random_range(0..8) == 0 { len } else { used };
            let at = dice.random_range(0..bound);
            flips.push(flip(dice, (name.clone(), at)));
        }
    }
    flips.shuffle(dice);
    structural.shuffle(dice);
    // One case of structural damage, then three flips, as long as there are any.
    let mut all = Vec::new();
    let mut flips = flips.into_iter();
    for damage in structural {
        all.push(damage);
        all.extend(flips.by_ref().take(3));
    }
    all.extend(flips);
    all
}

/// Plays the role of the process that tries cases of damage of an image. The role's store is the
/// image; its arguments are `SCRATCH SEED SKIP COUNT ONLY short|long TOLD`.
///
/// # Errors
/// The first violation.
pub(crate) fn play(role: &Role) -> Result<(), Finding> {
    let argument = |at: usize| role.arguments.get(at).map_or("", String::as_str);
    let number = |at: usize| argument(at).parse::<u64>().unwrap_or(0);
    let files = load(&role.store);
    let acknowledged = acknowledged::parse(argument(6));
    let mut dice = StdRng::seed_from_u64(number(1));
    let all = match Damage::parse(argument(4)) {
        Some(only) => vec![only],
        None => {
            let mut all = schedule(&files, argument(5) == "long", &mut dice);
            all.retain(|damage| argument(4).is_empty() || damage.is_meant_by(argument(4)));
            all
        }
    };
    let newest = newest_segment(&files);
    let skip = number(2) as usize;
    for (index, damage) in all.iter().enumerate().skip(skip).take(number(3) as usize) {
        say(format_args!("T {damage}"));
        let path = Path::new(argument(0)).join(index.to_string());
        let mut damaged = files.clone();
        damage.apply(&mut damaged);
        let laid_out = lay_out(&damaged, &path);
        laid_out.map_err(|error| Finding::new(Kind::Misbehaved, format!("laying out a store: {error}")))?;
        match judge(&path, &acknowledged) {
            Ok(verdict) => say(format_args!("R {verdict}")),
            Err(finding) if finding.kind == Kind::LostAcked && damage.is_beyond_notice(&newest) => {
                say("R the newest part of the log is gone as a whole, which nothing shows");
            }
            // A violation does not prevent the remaining tries.
            Err(finding) => role::say_finding(&finding),
        }
        let _ = fs::remove_dir_all(&path);
    }
    if all.len() <= skip + number(3) as usize {
        say("all");
    }
    Ok(())
}

/// Returns the segment with the highest number in its header.
fn newest_segment(files: &Files) -> String {
    let number =
        |bytes: &[u8]| bytes.get(32..40).and_then(|number| number.try_into().ok()).map_or(0, u64::from_le_bytes);
    let segments = files.iter().filter(|(_, bytes)| bytes.starts_with(b"untornWS"));
    segments.max_by_key(|(_, bytes)| number(bytes)).map_or_else(String::new, |(name, _)| name.clone())
}

/// Opens a store, which a thread of this process recovers, and checks it against the
/// acknowledgements.
fn judge(path: &Path, acknowledged: &[(String, Acknowledged)]) -> Result<&'static str, Finding> {
    let store = match in_process().open(path) {
        Ok(store) => store,
        Err(Error::Corrupt { file, .. } | Error::Mismatch { file, .. } | Error::FormatVersion { file, .. })
            if !file.is_empty() =>
        {
            return Ok("refused");
        }
        Err(Error::Io { what, .. }) if !what.trim().is_empty() => return Ok("refused"),
        Err(Error::NotFound { .. }) => return Ok("refused"),
        Err(error) => return Err(Finding::new(Kind::Misbehaved, format!("an unclear error: {error:?}"))),
    };
    let kept =
        oracle::kept(&store, acknowledged.iter().map(|(name, acknowledged)| (name.as_str(), *acknowledged)), true);
    match (kept, store.verify()) {
        (Ok(()), Ok(report)) if report.is_clean() => Ok("harmless"),
        (Err(finding), Ok(report)) if report.is_clean() => {
            Err(Finding { what: format!("{}; verify finds nothing", finding.what), ..finding })
        }
        (_, Ok(_) | Err(Error::Corrupt { .. })) => Ok("found by verify"),
        (_, Err(error)) => Err(Finding::new(Kind::Misbehaved, format!("verify: {error:?}"))),
    }
}

/// Returns options under which a thread of this process recovers the store, so that no other
/// process remains.
pub(super) fn in_process() -> Options {
    let mut options = Store::options();
    options.logger_thread(true).logger_idle(Duration::from_millis(1)).create(false);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_damages() {
        for name in ["flip:wal/seg-00000001:77:3", "cut:arena:4096", "longer:lock:1", "gone:checkpoint", "stray:access"]
        {
            assert_eq!(Damage::parse(name).unwrap().to_string(), name);
        }
        let flip = Damage::parse("flip:arena:77:3").unwrap();
        assert!(["flip", "flip:arena", "flip:arena:77:3"].iter().all(|only| flip.is_meant_by(only)));
        assert!(!["flip:arena:7", "flip:arenas", "cut"].iter().any(|only| flip.is_meant_by(only)));
    }
}
