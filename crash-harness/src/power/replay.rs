//! Repeats a state that violated a promise. Real processes never produce the same record twice, so
//! the record is saved.

use super::device::FileSystem;
use super::judge::AcknowledgedAtCut;
use super::search::{self, Bad};
use crate::context::Context;
use crate::outcome::{Finding, Outcome};
use crate::recorder::Record;
use crate::recorder::choice::Choice;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Number of records that are kept; the oldest are removed.
const KEPT_MAX: usize = 20;

/// The data that is saved with a record.
#[derive(Serialize, Deserialize)]
struct Note {
    life: String,
    /// The file system on the device, if the record is one of a device.
    file_system: Option<String>,
    /// The acknowledgements before the record.
    acknowledged: AcknowledgedAtCut,
}

/// Saves a record and returns the command that repeats one of its states.
pub fn save(
    context: &Context,
    record: &Record,
    file_system: Option<FileSystem>,
    life: &str,
    acknowledged: &AcknowledgedAtCut,
    bad: &Bad,
) -> String {
    let file_system = file_system.map(|file_system| file_system.name().to_string());
    let note = Note { life: life.to_string(), file_system, acknowledged: acknowledged.clone() };
    match keep(context, record, &note) {
        Ok(path) => context.replay(&format!("record:{}:{}:{}", path.display(), bad.cut, bad.choice)),
        Err(error) => {
            eprintln!("the record of {life} could not be kept: {error}");
            context.replay(life)
        }
    }
}

fn keep(context: &Context, record: &Record, note: &Note) -> std::io::Result<PathBuf> {
    let directory = std::env::temp_dir().join("crash-harness-records");
    std::fs::create_dir_all(&directory)?;
    let mut kept: Vec<_> = std::fs::read_dir(&directory)?.flatten().map(|entry| entry.path()).collect();
    kept.sort_by_key(|path| path.metadata().and_then(|of| of.modified()).ok());
    for old in kept.iter().rev().skip(KEPT_MAX - 1) {
        let _ = std::fs::remove_file(old);
    }
    let prefix = format!("{}-{}-", context.suite, context.seed);
    let file = tempfile::Builder::new().prefix(&prefix).suffix(".record").tempfile_in(directory)?;
    let (_, path) = file.keep().map_err(|error| error.error)?;
    record.save(&path, note)?;
    Ok(path)
}

/// Checks the state that `saved` names: the record's file, the cut, the choice.
pub fn again(context: &Context, outcome: &mut Outcome, saved: &str) {
    let parts: Vec<&str> = saved.rsplitn(3, ':').collect();
    let &[choice, cut, file] = parts.as_slice() else {
        return outcome.skip(saved, "expected record:FILE:CUT:CHOICE");
    };
    let (Ok(cut), Ok(choice)) = (cut.parse(), choice.parse()) else {
        return outcome.skip(saved, "expected record:FILE:CUT:CHOICE");
    };
    let (record, note) = match Record::load::<Note>(Path::new(file)) {
        Ok(loaded) => loaded,
        Err(error) => return outcome.skip(saved, format!("the record can't be read: {error}")),
    };
    outcome.states += 1;
    if let Err(finding) = judge(context, &record, &note, cut, &choice) {
        outcome.violated(finding, &note.life, context.replay(&format!("record:{saved}")));
    }
}

fn judge(context: &Context, record: &Record, note: &Note, cut: usize, choice: &Choice) -> Result<(), Finding> {
    let bench = search::bench(note.file_system.as_deref().and_then(FileSystem::named));
    let (image, acknowledged) = search::state(record, bench.sector(), note.acknowledged.clone(), cut, choice)?;
    search::judge(&*bench, &image, &acknowledged, &context.directory_in_memory(""))
}
