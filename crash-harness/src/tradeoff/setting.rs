//! The settings that are compared: durability schemes, sync frequencies, and record rates.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The component that makes a record durable, and the time of the acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scheme {
    /// A file that its writer maps. The writer syncs it at intervals and blocks during a sync. A
    /// record is acknowledged when it is in the mapping.
    MmapInterval,
    /// untorn's logger; a commit is acknowledged when it is visible.
    LoggerVisible,
    /// untorn's logger; a commit is acknowledged when the sync that covers it has returned.
    LoggerDurable,
    /// As `LoggerDurable`, with a deadline for each commit; the logger syncs as late as the
    /// deadline allows.
    LoggerWithin,
}

/// All schemes.
pub const SCHEMES: [Scheme; 4] =
    [Scheme::MmapInterval, Scheme::LoggerVisible, Scheme::LoggerDurable, Scheme::LoggerWithin];

impl Scheme {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::MmapInterval => "mmap-interval",
            Scheme::LoggerVisible => "logger-visible",
            Scheme::LoggerDurable => "logger-durable",
            Scheme::LoggerWithin => "logger-within",
        }
    }

    /// Returns whether a record is acknowledged only when it is durable.
    pub fn waits(self) -> bool {
        matches!(self, Scheme::LoggerDurable | Scheme::LoggerWithin)
    }

    /// Returns whether it can sync immediately, without an interval.
    pub fn has_on_commit(self) -> bool {
        matches!(self, Scheme::LoggerVisible | Scheme::LoggerDurable)
    }
}

/// One point of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The scheme.
    pub scheme: Scheme,
    /// Configured syncs per second. `None`: a sync as soon as there is something to sync (group
    /// commit).
    pub hz: Option<u32>,
    /// Records that arrive per second.
    pub rate: u32,
}

impl Setting {
    /// Returns the time between two syncs, or the deadline; zero if there is none.
    pub fn interval(&self) -> Duration {
        self.hz.map_or(Duration::ZERO, |hz| Duration::from_secs(1) / hz)
    }

    /// Returns the options that select the setting, as text.
    pub fn in_words(&self) -> String {
        let interval = format!("{:?}", self.interval());
        match (self.scheme, self.hz) {
            (Scheme::MmapInterval, _) => format!("msync every {interval}"),
            (Scheme::LoggerVisible, Some(_)) => format!("Durability::Visible, FlushPolicy::Every({interval})"),
            (Scheme::LoggerVisible, None) => "Durability::Visible, FlushPolicy::OnCommit".into(),
            (Scheme::LoggerDurable, Some(_)) => format!("Durability::Durable, FlushPolicy::Every({interval})"),
            (Scheme::LoggerDurable, None) => "Durability::Durable, FlushPolicy::OnCommit".into(),
            (Scheme::LoggerWithin, _) => format!("Durability::Within({interval})"),
        }
    }
}

/// Writes the name in a replay line, such as `logger-visible:10:1000`.
impl fmt::Display for Setting {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:", self.scheme.name())?;
        match self.hz {
            Some(hz) => write!(to, "{hz}:{}", self.rate),
            None => write!(to, "on-commit:{}", self.rate),
        }
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Setting, String> {
        let unknown = || format!("{text:?} is not a setting SCHEME:HZ:RATE, such as logger-visible:10:1000");
        let parts: Vec<&str> = text.split(':').collect();
        let &[scheme, hz, rate] = parts.as_slice() else { return Err(unknown()) };
        let scheme = SCHEMES.into_iter().find(|known| known.name() == scheme).ok_or_else(unknown)?;
        let number = |text: &str| text.parse().ok().filter(|number: &u32| *number > 0).ok_or_else(unknown);
        let hz = if hz == "on-commit" { None } else { Some(number(hz)?) };
        if hz.is_none() && !scheme.has_on_commit() {
            return Err(format!("{text:?}: {} syncs at intervals only", scheme.name()));
        }
        Ok(Setting { scheme, hz, rate: number(rate)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the setting that a replay line names is the one that ran, and an invalid name is an
    /// error.
    #[test]
    fn a_setting_is_read_as_it_was_written() {
        for scheme in SCHEMES {
            for hz in [Some(1), Some(1000), None] {
                let setting = Setting { scheme, hz, rate: 10 };
                let read = setting.to_string().parse();
                assert_eq!(read.is_ok(), hz.is_some() || scheme.has_on_commit(), "{setting}");
                assert!(read.is_err() || read == Ok(setting), "{setting}");
            }
        }
        for wrong in ["", "logger-visible", "logger-visible:0:1", "other:1:1", "logger-visible:1:1:1"] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
    }
}
