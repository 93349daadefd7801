//! The file `access` in the store's directory, as text.
//!
//! ```text
//! # comments and empty lines
//! socket "/run/app/untorn.sock"        # where the socket is; default: logger.sock in the store's directory
//! allow 1000 read-write                # this uid, everything
//! allow 1001 read-only "sensors." "x"  # only keyspaces, cells and counters whose names begin with one of these
//! allow any read-only "public."        # every uid
//! connections 64                       # how many there may be at once; default 256
//! patience 2                           # how many seconds a peer may take for a message; default 10
//! ```

use crate::files::dir::PATH_BYTES_MAX;
use crate::server::policy::{Policy, PolicyFault, Principal, Rule};
use std::path::Path;
use std::time::Duration;

/// The file's name.
pub(super) const NAME: &str = "access";
/// The longest file that is read, in bytes.
pub(super) const BYTES_MAX: u64 = 64 << 10;

const CONNECTIONS_MAX: usize = 1024;
const MESSAGE_TIMEOUT_SECONDS_MAX: u64 = 3600;

/// Parses a file into a policy.
pub(super) fn parse(text: &[u8], principal: Principal) -> Result<Policy, PolicyFault> {
    let mut policy = Policy::of_owner(principal);
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let at = |what: String| PolicyFault { line: index + 1, what };
        let line = std::str::from_utf8(line).map_err(|_| at("it is not UTF-8".into()))?;
        let words = split(line).map_err(at)?;
        read_line(&mut policy, &words).map_err(at)?;
        let named = policy.rules.last().and_then(|rule| rule.uid);
        if let Some(uid) = named.filter(|uid| principal.unmapped == Some(*uid)) {
            return Err(at(format!(
                "{uid} names every user whose uid this user namespace has no number for; allow a uid that it has, or any"
            )));
        }
    }
    Ok(policy)
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Bare(String),
    Quoted(String),
}

/// Returns the words of a line without its comment.
fn split(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '#' => break,
            c if c.is_whitespace() => {}
            '"' => {
                let mut text = String::new();
                loop {
                    match rest.next() {
                        Some('"') => break,
                        Some('\\') => match rest.next() {
                            Some(c @ ('"' | '\\')) => text.push(c),
                            _ => return Err("a backslash is only allowed before \" or \\".into()),
                        },
                        Some(c) => text.push(c),
                        None => return Err("a quoted text has no end".into()),
                    }
                }
                if rest.peek().is_some_and(|c| !c.is_whitespace() && *c != '#') {
                    return Err("there is no space after a quoted text".into());
                }
                words.push(Word::Quoted(text));
            }
            c => {
                let mut text = String::from(c);
                while let Some(c) = rest.next_if(|c| !c.is_whitespace() && *c != '#' && *c != '"') {
                    text.push(c);
                }
                words.push(Word::Bare(text));
            }
        }
    }
    Ok(words)
}

fn read_line(policy: &mut Policy, words: &[Word]) -> Result<(), String> {
    let Some((Word::Bare(first), rest)) = words.split_first() else {
        return if words.is_empty() { Ok(()) } else { Err("a line begins with a word, not a quoted text".into()) };
    };
    match (&**first, rest) {
        ("allow", [Word::Bare(user), Word::Bare(access), prefixes @ ..]) => {
            policy.rules.push(Rule { uid: uid(user)?, may_write: may_write(access)?, prefixes: quoted(prefixes)? });
            Ok(())
        }
        ("allow", _) => Err("expected: allow UID|any read-only|read-write [\"PREFIX\" …]".into()),
        ("socket", [Word::Quoted(path)]) => {
            if !Path::new(path).is_absolute() || path.contains('\0') || Path::new(path).file_name().is_none() {
                return Err("the socket's path must be absolute, and name a file".into());
            }
            if path.len() > PATH_BYTES_MAX {
                let bytes = path.len();
                return Err(format!(
                    "the socket's path has {bytes} bytes, and system calls take at most {PATH_BYTES_MAX}"
                ));
            }
            if policy.socket.replace(path.into()).is_some() {
                return Err("there is already a line for the socket".into());
            }
            Ok(())
        }
        ("socket", _) => Err("expected: socket \"/PATH\"".into()),
        ("connections", [Word::Bare(count)]) => {
            policy.connections = number(count, CONNECTIONS_MAX as u64)? as usize;
            Ok(())
        }
        ("connections", _) => Err("expected: connections NUMBER".into()),
        ("patience", [Word::Bare(seconds)]) => {
            policy.patience = Duration::from_secs(number(seconds, MESSAGE_TIMEOUT_SECONDS_MAX)?);
            Ok(())
        }
        ("patience", _) => Err("expected: patience SECONDS".into()),
        _ => Err("a line begins with allow, socket, connections or patience".into()),
    }
}

/// Parses a uid; `None` for any.
fn uid(text: &str) -> Result<Option<u32>, String> {
    if text == "any" {
        return Ok(None);
    }
    match (text.bytes().all(|byte| byte.is_ascii_digit()), text.parse()) {
        // The last number means "no user" in system calls.
        (true, Ok(uid)) if uid != u32::MAX => Ok(Some(uid)),
        _ => Err("a uid is a decimal number, or any".into()),
    }
}

fn may_write(text: &str) -> Result<bool, String> {
    match text {
        "read-only" => Ok(false),
        "read-write" => Ok(true),
        _ => Err("expected read-only or read-write".into()),
    }
}

fn quoted(words: &[Word]) -> Result<Vec<String>, String> {
    let texts = words.iter().map(|word| match word {
        // An empty prefix would allow everything, for which the prefix is omitted instead.
        Word::Quoted(text) if text.is_empty() => Err("the prefix is empty; omit it to allow every name".to_string()),
        Word::Quoted(text) => Ok(text.clone()),
        Word::Bare(_) => Err("a prefix needs quotation marks".to_string()),
    });
    texts.collect()
}

fn number(text: &str, max: u64) -> Result<u64, String> {
    match (text.bytes().all(|byte| byte.is_ascii_digit()), text.parse()) {
        (true, Ok(number)) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from 1 to {max}")),
    }
}

/// Checks the result of parsing any file against the guarantees of a policy. For the fuzz target
/// `access`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_access(text: &[u8]) {
    let principal = Principal { uid: 7, unmapped: Some(65534) };
    let policy = Policy::parse(text, principal);
    assert!(policy.rights(principal.uid).is_some_and(|rights| rights.is_owner()), "the owner is not admitted");
    assert!((1..=CONNECTIONS_MAX).contains(&policy.connections));
    assert!((1..=MESSAGE_TIMEOUT_SECONDS_MAX).contains(&policy.patience.as_secs()));
    assert!(policy.socket.as_ref().is_none_or(|path| path.is_absolute() && path.file_name().is_some()));
    let uids = [0, 1000, 65534, u32::MAX - 1].into_iter().chain(policy.rules.iter().filter_map(|rule| rule.uid));
    for rights in uids.filter(|uid| *uid != principal.uid).filter_map(|uid| policy.rights(uid)) {
        assert!(policy.fault.is_none() && !policy.is_owners_alone(), "a file that is not understood lets others in");
        for name in ["", "a.b", "public", "untorn.cells", "größe"] {
            assert!(!rights.may_write(name) || rights.may_read(name));
            assert!(!rights.may_write(name) || !name.starts_with("untorn."));
            assert!(rights.may_read(name) || !rights.may_read_all());
        }
    }
    if let Some(fault) = &policy.fault {
        assert!(policy.rules.is_empty() && fault.line <= text.split(|byte| *byte == b'\n').count());
        return;
    }
    // A policy that was parsed can be written as text again, with the same meaning.
    let quote = |text: &str| format!(" \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut again = format!("connections {}\npatience {}\n", policy.connections, policy.patience.as_secs());
    if let Some(path) = &policy.socket {
        again += &format!("socket{}\n", quote(path.to_str().expect("it was text")));
    }
    for rule in &policy.rules {
        let uid = rule.uid.map_or("any".to_owned(), |uid| uid.to_string());
        let access = if rule.may_write { "read-write" } else { "read-only" };
        again +=
            &format!("allow {uid} {access}{}\n", rule.prefixes.iter().map(|prefix| quote(prefix)).collect::<String>());
    }
    assert_eq!(Policy::parse(again.as_bytes(), principal), policy, "written again: {again:?}");
}

#[cfg(test)]
mod tests {
    //! Any file is either parsed or rejected; if it is rejected, only the owner is admitted. A
    //! parsed policy has the intended meaning.

    use super::*;
    use proptest::prelude::*;

    const OWNER: u32 = 7;
    const PRINCIPAL: Principal = Principal { uid: OWNER, unmapped: None };

    fn fault(text: &str) -> (usize, String) {
        let fault = Policy::parse(text.as_bytes(), PRINCIPAL).fault.unwrap_or_else(|| panic!("{text:?} is understood"));
        (fault.line, fault.what)
    }

    #[test]
    fn a_whole_file() {
        let text = "# rules\n\n  allow 1000 read-write# all\nallow 1001 read-only \"a.\" \"b \\\"\\\\#\"\t# some\n\
                    allow any read-only \"public\"\r\nsocket \"/run/x y.sock\"\nconnections 9\npatience 3";
        let policy = Policy::parse(text.as_bytes(), PRINCIPAL);
        assert_eq!(policy.fault, None);
        assert_eq!(policy.socket.as_deref(), Some(Path::new("/run/x y.sock")));
        assert_eq!((policy.connections, policy.patience), (9, Duration::from_secs(3)));
        assert!(!policy.is_owners_alone());
        let all = policy.rights(1000).unwrap();
        assert!(all.may_read("x") && all.may_write("x") && all.may_read_all() && all.may_write_all());
        let some = policy.rights(1001).unwrap();
        assert!(some.may_read("a.1") && some.may_read("b \"\\#2") && some.may_read("public") && !some.may_read("a"));
        assert!(!some.may_write("a.1") && !some.may_write_some() && !some.may_read_all());
        assert!(policy.rights(5).unwrap().may_read("publicity"));
        for uid in [OWNER, 1000] {
            assert!(!policy.rights(uid).unwrap().may_write("untorn.cells"));
        }
    }

    #[test]
    fn the_stores_own_names_are_not_meant_by_the_way() {
        for (prefixes, may_read) in
            [("", true), ("\"untorn.\"", true), ("\"untorn.c\"", true), ("\"u\" \"untorn\"", false)]
        {
            let policy = Policy::parse(format!("allow 1 read-only {prefixes}").as_bytes(), PRINCIPAL);
            assert_eq!(policy.rights(1).unwrap().may_read("untorn.cells"), may_read, "{prefixes}");
        }
    }

    #[test]
    fn without_rules() {
        let policy = Policy::parse(b"", PRINCIPAL);
        assert_eq!(policy, Policy::of_owner(PRINCIPAL));
        assert!(policy.is_owners_alone() && policy.rights(0).is_none() && policy.rights(OWNER).is_some());
    }

    #[test]
    fn a_path_longer_than_system_calls_take() {
        let path = |bytes: usize| format!("socket \"/{}\"", "x/".repeat(bytes / 2));
        assert_eq!(Policy::parse(path(PATH_BYTES_MAX - 1).as_bytes(), PRINCIPAL).fault, None);
        let (line, what) = fault(&path(PATH_BYTES_MAX + 1));
        assert!(line == 1 && what.contains("4097 bytes") && what.contains("at most 4095"), "{what}");
    }

    #[test]
    fn what_is_not_understood_is_said_with_its_line() {
        for (text, line, what) in [
            ("allow 1 read-only\nallow 2", 2, "expected: allow"),
            ("allow x read-only", 1, "uid"),
            ("allow -1 read-only", 1, "uid"),
            ("allow +1 read-only", 1, "uid"),
            ("allow 4294967295 read-only", 1, "uid"),
            ("allow 99999999999 read-only", 1, "uid"),
            ("allow 1 readonly", 1, "read-only or read-write"),
            ("allow 1 read-only a.", 1, "quotation"),
            ("allow 1 read-only \"\"", 1, "empty"),
            ("allow 1 read-only \"a", 1, "no end"),
            ("allow 1 read-only \"a\\n\"", 1, "backslash"),
            ("allow 1 read-only \"a\"\"b\"", 1, "space"),
            ("\"allow\" 1 read-only", 1, "begins with"),
            ("Allow 1 read-only", 1, "begins with"),
            ("deny 1", 1, "begins with"),
            ("socket \"run/x\"", 1, "absolute"),
            ("socket \"/run/..\"", 1, "absolute"),
            ("socket /run/x", 1, "expected: socket"),
            ("socket \"/a\"\nsocket \"/b\"", 2, "already"),
            ("connections 0", 1, "number from 1"),
            ("connections 1025", 1, "number from 1"),
            ("connections", 1, "expected: connections"),
            ("patience 0", 1, "number from 1"),
            ("patience 1 2", 1, "expected: patience"),
        ] {
            let (at, why) = fault(text);
            assert!(at == line && why.contains(what), "{text:?}: line {at}: {why}");
        }
        let policy = Policy::parse(b"allow 1 read-write\n\xff", PRINCIPAL);
        assert_eq!(policy.fault.as_ref().unwrap().to_string(), "the file access, line 2: it is not UTF-8");
        assert!(policy.rights(1).is_none() && policy.is_owners_alone());
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("allow".to_string()),
            Just("any".to_string()),
            Just("socket".to_string()),
            Just("read-only".to_string()),
            Just("read-write".to_string()),
            Just("connections".to_string()),
            "[0-9]{1,11}",
            "\"[a-z./\\\\\"]{0,6}\"",
            any::<String>(),
            "[ \t#\r\n\"\\\\]{1,3}",
        ]
    }

    proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>, uid: u32) {
            let policy = Policy::parse(&text, PRINCIPAL);
            prop_assert!(policy.rights(OWNER).is_some());
            prop_assert!(policy.fault.is_none() || uid == OWNER || policy.rights(uid).is_none());
        }

        #[test]
        fn nearly_rules(words in prop::collection::vec(word(), 0..24), uid: u32, name: String) {
            let policy = Policy::parse(words.join(" ").as_bytes(), PRINCIPAL);
            prop_assert!((1..=CONNECTIONS_MAX).contains(&policy.connections));
            let Some(rights) = policy.rights(uid) else { return Ok(()) };
            prop_assert!(!rights.may_write(&name) || rights.may_read(&name));
            let own = ["untorn.", &name].concat();
            prop_assert!(!rights.may_write(&own));
        }

        #[test]
        fn rules_mean_what_they_say(
            uid in 8u32..1000,
            may_write: bool,
            prefixes in prop::collection::vec("[^\0\n]{1,5}", 0..4),
            name: String,
        ) {
            let access = if may_write { "read-write" } else { "read-only" };
            let quote = |text: &String| format!(" \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let line = format!("allow {uid} {access}{}", prefixes.iter().map(quote).collect::<String>());
            let policy = Policy::parse(line.as_bytes(), PRINCIPAL);
            prop_assert_eq!(&policy.fault, &None, "{}", line);
            let rights = policy.rights(uid).unwrap();
            let is_meant = |prefix: &&String| !name.starts_with("untorn.") || prefix.starts_with("untorn.");
            let covered = prefixes.is_empty() || prefixes.iter().filter(is_meant).any(|prefix| name.starts_with(prefix));
            prop_assert_eq!(rights.may_read(&name), covered);
            prop_assert_eq!(rights.may_write(&name), covered && may_write && !name.starts_with("untorn."));
            prop_assert!(policy.rights(uid + 1).is_none());
        }
    }
}
