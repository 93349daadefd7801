//! The coordinator's side of a worker process.

use crate::measure::Slice;
use crate::store::{Error, Result};
use crate::worker::{Command, Job, Reply};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The first argument of a process that the program starts itself.
pub(crate) const ROLE: &str = "--role";

/// A worker, which is killed when the handle is dropped.
pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    replies: Receiver<String>,
}

/// Longest wait for a reply, beyond the length of a slice.
const REPLY_TIMEOUT: Duration = Duration::from_secs(900);

impl Worker {
    /// Starts a worker. Its first reply reports that the store is open and warm.
    pub(crate) fn start(job: &Job) -> Result<Worker> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args([ROLE, "worker"]).arg(serde_json::to_string(job)?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("the worker has no input")?;
        let output = child.stdout.take().ok_or("the worker has no output")?;
        let (sender, replies) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Worker { child, input, replies })
    }

    /// Sends a command without waiting for the reply.
    pub(crate) fn send(&mut self, command: &Command) -> Result<()> {
        writeln!(self.input, "{}", serde_json::to_string(command)?)?;
        Ok(self.input.flush()?)
    }

    /// Waits for a reply.
    pub(crate) fn wait(&self) -> Result<Slice> {
        let line = self.replies.recv_timeout(REPLY_TIMEOUT).map_err(|_| Error::from("a worker does not answer"))?;
        match serde_json::from_str(&line)? {
            Reply::Done(slice) => Ok(slice),
            Reply::Failed(error) => Err(error.into()),
        }
    }

    /// Sends a command and waits for the reply.
    pub(crate) fn call(&mut self, command: &Command) -> Result<Slice> {
        self.send(command)?;
        self.wait()
    }

    /// Requests that the worker exits, and waits for its end.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.send(&Command::Quit)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a worker ended with {status}").into()) }
    }

    /// Kills the worker and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // This has no effect on a worker that has ended.
        let _ = self.kill();
    }
}
