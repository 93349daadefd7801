//! What of all that is in doubt after a cut is on the disk. A choice can be written down and read
//! again.

use std::fmt;
use std::str::FromStr;

/// A choice; the same one of the same cut is the same state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Nothing; and of the names nothing, or all.
    Nothing {
        /// All of the names.
        names: bool,
    },
    /// Everything; and of the names nothing, or all.
    Everything {
        /// All of the names.
        names: bool,
    },
    /// What one event wrote, alone.
    Only(usize),
    /// All but what one event wrote.
    Without(usize),
    /// Something, by dice of this seed.
    Random(u64),
    /// The n-th of all combinations of whole pages, names and sizes, of which
    /// [`super::disk::Disk::combinations`] says how many there are.
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
