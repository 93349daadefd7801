//! `verify`: checks every page, record and checksum. Damage is a failed check, whether it is found
//! at open or later.

use super::stat;
use crate::arguments::Format;
use crate::outcome::{CommandFailure, Outcome};
use crate::target::{options, refuse_socket};
use std::path::Path;
use untorn::{Error, VerifyReport};

pub(crate) fn run(path: &Path, format: Format) -> Outcome {
    refuse_socket(path, "verify")?;
    let problems = match check(path) {
        Ok(report) => {
            stat::print(&report, format)?;
            report.problems.len()
        }
        // Damage that prevented the check of the whole store: the same report, with the known part.
        Err(Error::Corrupt { file, offset, what }) => {
            let problem = serde_json::json!({ "file": file, "offset": offset, "what": what });
            stat::print(&serde_json::json!({ "problems": [problem] }), format)?;
            1
        }
        Err(error) => return Err(error.into()),
    };
    match problems {
        0 => Ok(()),
        1 => Err(CommandFailure::CheckFailed("1 problem found".to_owned())),
        count => Err(CommandFailure::CheckFailed(format!("{count} problems found"))),
    }
}

fn check(path: &Path) -> untorn::Result<VerifyReport> {
    options().create(false).read_only(true).open(path)?.verify()
}
