//! `watch`: prints the changes of a store, until it is interrupted or its output is closed.
//!
//! It may be killed at any time, like every client. It handles the signals only so that an
//! interrupted `watch` ends with success. The system calls for that are the `unsafe` of this file.
#![allow(unsafe_code)]

use crate::arguments::{Format, WatchOptions};
use crate::outcome::{CommandFailure, Outcome};
use crate::output::Output;
use crate::{target, text};
use serde::Serialize;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use untorn::{Change, ChangeKind, Feed, TxnId};

/// Time between checks whether it must end.
const WATCH_POLL_INTERVAL: Duration = Duration::from_millis(200);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A change in a JSON line.
#[derive(Serialize)]
struct JsonChange<'a> {
    txn: u64,
    keyspace: &'a str,
    kind: &'static str,
    key: String,
    /// The end of a range that was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    value: Option<String>,
    last: bool,
}

pub(crate) fn run(options: &WatchOptions, format: Format) -> Outcome {
    let prefix = text::parse(options.prefix.as_deref().unwrap_or_default(), format)?;
    let feed = if options.visible { Feed::Visible } else { Feed::Durable };
    let from = options.from.as_deref().map(parse_txn).transpose()?;
    let store = target::to_read(&options.store)?;
    let mut changes = store.follow(from, feed, options.keyspace.as_deref(), &prefix)?;
    end_on_signals()?;
    let mut out = Output::new(format);
    while !INTERRUPTED.load(Ordering::Relaxed) {
        let Some(change) = changes.try_next(WATCH_POLL_INTERVAL)? else {
            if is_output_closed() {
                return Err(CommandFailure::OutputClosed);
            }
            continue;
        };
        write(&mut out, &change, format)?;
        if change.last_in_txn() {
            out.flush().map_err(CommandFailure::output)?;
        }
    }
    // The buffer holds a part of a transaction; a consumer that resumes gets that transaction again
    // as a whole.
    out.flush().map_err(CommandFailure::output)
}

/// Parses a transaction id as `stat` or an error prints it.
fn parse_txn(text: &str) -> Outcome<TxnId> {
    let parsed = match text.split_once('.') {
        None => text.parse().ok().map(TxnId::from_u64),
        Some((incarnation, sequence)) => {
            let of = |incarnation: u64, sequence: u64| {
                let id = TxnId::from_u64(incarnation.checked_shl(44)? | sequence);
                (u64::from(id.incarnation()) == incarnation && id.sequence() == sequence).then_some(id)
            };
            incarnation.parse().ok().zip(sequence.parse().ok()).and_then(|(high, low)| of(high, low))
        }
    };
    parsed.ok_or_else(|| {
        CommandFailure::Usage(format!("{text:?} is no transaction id; they look like 3.14 or 52776558133262"))
    })
}

fn write(out: &mut impl Write, change: &Change, format: Format) -> Outcome {
    let kind = match change.kind() {
        ChangeKind::Put => "put",
        ChangeKind::Delete => "delete",
        ChangeKind::DeleteRange => "delete-range",
        _ => "drop",
    };
    let mut line = Vec::new();
    if format.json {
        let record = JsonChange {
            txn: change.txn_id().as_u64(),
            keyspace: change.keyspace(),
            kind,
            key: text::render(change.key(), format)?,
            end: change.end().map(|end| text::render(end, format)).transpose()?,
            value: change.value().map(|value| text::render(value, format)).transpose()?,
            last: change.last_in_txn(),
        };
        serde_json::to_writer(&mut line, &record).map_err(|error| CommandFailure::System(error.to_string()))?;
    } else {
        let as_text = Format { hex: false, json: false };
        line.extend_from_slice(format!("{}\t", change.txn_id()).as_bytes());
        text::render_field(change.keyspace().as_bytes(), as_text, &mut line);
        line.extend_from_slice(format!("\t{kind}").as_bytes());
        if change.kind() != ChangeKind::DropKeyspace {
            line.push(b'\t');
            text::render_field(change.key(), format, &mut line);
        }
        // A range without an upper bound has no field for its end.
        if let Some(end) = change.end() {
            line.push(b'\t');
            text::render_field(end, format, &mut line);
        }
        if let Some(value) = change.value() {
            line.push(b'\t');
            text::render_field(value, format, &mut line);
        }
    }
    line.push(b'\n');
    out.write_all(&line).map_err(CommandFailure::output)
}

extern "C" fn interrupted(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Ends the command at the next check after SIGINT or SIGTERM.
fn end_on_signals() -> Outcome {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores into an atomic, which is safe at any point of any thread.
        // An all-zero `sigaction` is a valid one, without flags and with an empty mask.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupted as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0
        };
        if failed {
            return Err(CommandFailure::system("handling signals")(io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Returns whether the output was closed; a `watch` without changes would not notice otherwise.
fn is_output_closed() -> bool {
    let mut entry = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    // SAFETY: one entry, which lives for the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
    ready > 0 && entry.revents & (libc::POLLERR | libc::POLLNVAL) != 0
}
