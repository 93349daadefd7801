//! What is compared: schemes of durability, how often they sync, and how many records come in a
//! second.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Who makes a record durable, and when its writer hears of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scheme {
    /// A file mapped by its writer, which syncs it now and then, and waits for that; a record
    /// counts as soon as it is in the mapping.
    MmapInterval,
    /// untorn's logger; a commit counts as soon as it is visible.
    LoggerVisible,
    /// untorn's logger; a commit counts when the sync that covers it has returned.
    LoggerDurable,
    /// The same, and each commit says by when; the logger syncs as late as that allows.
    LoggerWithin,
}

/// All of them.
pub const SCHEMES: [Scheme; 4] =
    [Scheme::MmapInterval, Scheme::LoggerVisible, Scheme::LoggerDurable, Scheme::LoggerWithin];

impl Scheme {
    /// Its name, for programs and people.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::MmapInterval => "mmap-interval",
            Scheme::LoggerVisible => "logger-visible",
            Scheme::LoggerDurable => "logger-durable",
            Scheme::LoggerWithin => "logger-within",
        }
    }

    /// Whether a writer hears of its record only when that is durable.
    pub fn waits(self) -> bool {
        matches!(self, Scheme::LoggerDurable | Scheme::LoggerWithin)
    }

    /// Whether it can sync as soon as there is something, without an interval.
    pub fn has_on_commit(self) -> bool {
        matches!(self, Scheme::LoggerVisible | Scheme::LoggerDurable)
    }
}

/// One point of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Who.
    pub scheme: Scheme,
    /// Syncs in a second that it is set to. `None`: as soon as there is something, one after the
    /// other (group commit).
    pub hz: Option<u32>,
    /// Records that come in a second.
    pub rate: u32,
}

impl Setting {
    /// The time between two syncs, or the deadline; zero if there is none.
    pub fn interval(&self) -> Duration {
        self.hz.map_or(Duration::ZERO, |hz| Duration::from_secs(1) / hz)
    }

    /// What to write to get it, for people.
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

/// The name that a replay line has, such as `logger-visible:10:1000`.
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

    /// Goal: the setting that a replay line names is the one that ran, and what is none is told.
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
