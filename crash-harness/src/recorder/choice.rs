//! The choice of which data in doubt is on the disk after a cut. A choice has a textual form.

use std::fmt;
use std::str::FromStr;

/// A choice. Equal choices at the same cut are the same state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// No data; either no names or all names.
    Nothing {
        /// Whether all names are there.
        names: bool,
    },
    /// All data; either no names or all names.
    Everything {
        /// Whether all names are there.
        names: bool,
    },
    /// Only the data of one event.
    Only(usize),
    /// All data except that of one event.
    Without(usize),
    /// A random part, from this seed.
    Random(u64),
    /// The n-th combination of whole pages, names and sizes; see
    /// [`super::disk::Disk::combinations`].
    Combination(u64),
}

impl fmt::Display for Choice {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Nothing { names } => write!(to, "nothing{}", if *names { "-named" } else { "" }),
            Choice::Everything { names } => write!(to, "everything{}", if *names { "-named" } else { "" }),
            Choice::Only(event) => write!(to, "only-{event}"),
            Choice::Without(event) => write!(to, "without-{event}"),
            Choice::Random(seed) => write!(to, "random-{seed}"),
            Choice::Combination(nth) => write!(to, "combination-{nth}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let unknown = || format!("no choice {text:?}");
        let (kind, rest) = text.split_once('-').unwrap_or((text, ""));
        let number = || rest.parse::<u64>().map_err(|_| unknown());
        match kind {
            "nothing" => Ok(Choice::Nothing { names: rest == "named" }),
            "everything" => Ok(Choice::Everything { names: rest == "named" }),
            "only" => Ok(Choice::Only(number()? as usize)),
            "without" => Ok(Choice::Without(number()? as usize)),
            "random" => Ok(Choice::Random(number()?)),
            "combination" => Ok(Choice::Combination(number()?)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_was_written() {
        let choices = [
            Choice::Nothing { names: true },
            Choice::Nothing { names: false },
            Choice::Everything { names: true },
            Choice::Everything { names: false },
            Choice::Only(7),
            Choice::Without(8),
            Choice::Random(u64::MAX),
            Choice::Combination(0),
        ];
        for choice in choices {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("some-7".parse::<Choice>().is_err() && "only-x".parse::<Choice>().is_err());
    }
}
