//! The names of sites and faults, as replay lines and catalogues contain them.

use super::call::{Call, Effect};
use std::fmt;
use std::str::FromStr;

/// Where calls are counted: the program, the call and the class of files. Written
/// `process:call:class`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Site {
    /// The program, and its thread if the thread has a name of its own: `writer`,
    /// `untorn-logger/untorn-flush`.
    pub process: String,
    /// The kind of call.
    pub call: Call,
    /// The file's path in the directory, with `#` for each number in it.
    pub class: String,
}

/// How long calls fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Span {
    /// Only the one call fails.
    Once,
    /// That call fails, and from then on each call of this kind on this class of files, from any
    /// program.
    Lasting,
    /// That call fails, and from then on each call that changes anything. For a full disk, each
    /// call that needs space.
    Everything,
}

/// A fault: the n-th call at a site fails. Written `process:call:class:n:effect:span`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The site.
    pub site: Site,
    /// The number of the call at the site, from 1.
    pub nth: u64,
    /// How the call fails.
    pub effect: Effect,
    /// How long calls fail.
    pub span: Span,
}

impl Fault {
    /// Returns whether the n-th call at this site is to fail. `has_begun` means that a call has
    /// failed already.
    pub(super) fn is_due(&self, site: &Site, n: u64, makes: bool, has_begun: bool) -> bool {
        if !has_begun {
            return self.site == *site && self.nth == n;
        }
        match self.span {
            Span::Once => false,
            Span::Lasting => self.site.call == site.call && self.site.class == site.class,
            Span::Everything if self.effect == Effect::Error(libc::ENOSPC) => site.call.allocates(makes),
            Span::Everything => site.call.changes(makes),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.process, self.call, self.class)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Span::Once => "once",
            Span::Lasting => "lasting",
            Span::Everything => "everything",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.site, self.nth, self.effect, self.span)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Fault, String> {
        let wrong = || {
            format!("{name:?} is not a fault, which has the form process:call:class:n:effect:once|lasting|everything")
        };
        let parts: Vec<&str> = name.split(':').collect();
        let [process, call, class, nth, effect, span] = parts[..] else { return Err(wrong()) };
        let span = match span {
            "once" => Span::Once,
            "lasting" => Span::Lasting,
            "everything" => Span::Everything,
            _ => return Err(wrong()),
        };
        let call = Call::named(call).ok_or_else(wrong)?;
        Ok(Fault {
            site: Site { process: process.into(), call, class: class.into() },
            nth: nth.parse().map_err(|_| wrong())?,
            effect: Effect::named(effect).ok_or_else(wrong)?,
            span,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_faults() {
        for name in ["writer:open:wal/seg-#:3:EIO:once", "logger/flush:write:arena:12:short:lasting"] {
            assert_eq!(name.parse::<Fault>().unwrap().to_string(), name);
        }
        assert!("writer:open:wal:x:EIO:once".parse::<Fault>().is_err());
        assert!("flip:arena:3".parse::<Fault>().is_err());
    }
}
