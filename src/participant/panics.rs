//! A panic of one of the logger's threads ends the logger.
//!
//! A logger without one of its threads would hold its byte and do only a part of its work; clients
//! would wait for the rest. A daemon aborts in its panic hook (`daemon`). A logger inside of a
//! host's process must not, so the panic is recorded here. The thread that serves then ends the
//! others, gives the byte up, and returns the panic as an error.
//!
//! | thread waits for | ended by |
//! |---|---|
//! | its event | the event, once its `ending` flag is set |
//! | the log, in a transaction or a checkpoint | [`Engine::has_failed`](crate::participant::engine::Engine), which each check of the logger reads |
//! | the writer lock, the growth lock | the thread's own short limit |

use crate::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// The first panic of a logger's threads.
#[derive(Default)]
pub(crate) struct Panics {
    first: OnceLock<(&'static str, String)>,
}

impl Panics {
    /// Does the work of the thread named `thread`. If it panics, records the panic and calls
    /// `on_panic`, which wakes the thread that serves.
    pub(crate) fn watch(&self, thread: &'static str, work: impl FnOnce(), on_panic: impl FnOnce()) {
        // The work's state is not used after a panic: the logger ends.
        let Err(payload) = catch_unwind(AssertUnwindSafe(work)) else { return };
        let text = match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_string(),
            (None, None) => "no message".to_string(),
        };
        // Its destructor may panic as well.
        std::mem::forget(payload);
        let _ = self.first.set((thread, text));
        on_panic();
    }

    /// Returns the error with which the logger ends, if a thread has panicked.
    pub(crate) fn error(&self) -> Option<Error> {
        let (thread, text) = self.first.get()?;
        Some(Error::LoggerPanicked { thread: (*thread).to_string(), message: text.clone() })
    }
}
