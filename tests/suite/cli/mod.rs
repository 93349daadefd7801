//! Drives the command line as a user does: exit codes, formats, round trips of awkward bytes, the
//! tour.
#![allow(unsafe_code)]

use crate::common::{HANGS, program, wait_until};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

mod sockets;
mod watch;

use program::untorn as program;
use watch::watched;

/// What a run of the program has left.
struct Ran {
    code: i32,
    out: Vec<u8>,
    error: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("the output is UTF-8")
    }

    #[track_caller]
    fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.error, self.text());
        self
    }
}

/// A directory for one test's store; the store's logger is stopped at the end.
struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// `untorn COMMAND STORE ARGUMENTS…`, with the input on standard input.
    fn feed(&self, input: &[u8], command: &str, arguments: &[&str]) -> Ran {
        let mut line = vec![OsStr::new(command).to_owned(), self.store().into_os_string()];
        line.extend(arguments.iter().map(|argument| OsStr::new(argument).to_owned()));
        run(&line, input)
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Ran {
        self.feed(b"", command, arguments)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.store().exists() {
            let _ = Command::new(program()).arg("stop").arg(self.store()).stderr(Stdio::null()).status();
        }
    }
}

/// What the program writes to a terminal.
fn on_terminal(arguments: &[&OsStr]) -> Vec<u8> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the call writes two descriptors into values that outlive it; the other pointers may
    // be null.
    let made = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the call has just made them, and nothing else owns them.
    let (mut ours, theirs) = unsafe { (fs::File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut child = Command::new(program()).args(arguments).stdout(theirs).spawn().expect("the program starts");
    let mut written = Vec::new();
    let mut piece = [0; 4096];
    // When the last descriptor of the other side is closed, the system answers EIO.
    while let Ok(count @ 1..) = ours.read(&mut piece) {
        written.extend_from_slice(&piece[..count]);
    }
    assert!(child.wait().expect("the program ends").success(), "{}", String::from_utf8_lossy(&written));
    // The terminal itself makes two characters of each newline.
    String::from_utf8_lossy(&written).replace("\r\n", "\n").into_bytes()
}

/// A terminal gets no byte of a key, a value or a name that it would obey; a pipe gets them all.
#[test]
fn a_terminal_obeys_nothing_of_the_store() {
    let fixture = Fixture::new();
    let (keyspace, key, value) = ("space\u{1b}[1m", "key\u{7}", "v\u{1b}[2J\u{9b}\r\u{202e}");
    fixture.run("put", &[keyspace, key, value]).ok();
    let store = fixture.store();
    let is_harmless = |shown: &[u8]| {
        let text = std::str::from_utf8(shown).expect("the output is UTF-8");
        text.chars().all(|c| c == '\n' || c == '\t' || (!c.is_control() && c != '\u{202e}'))
    };
    for (command, arguments) in [
        ("get", vec![keyspace, key]),
        ("scan", vec![keyspace]),
        ("dump", vec![keyspace]),
        ("stat", vec![]),
        ("verify", vec![]),
    ] {
        for json in [false, true] {
            let mut line: Vec<&OsStr> = vec![command.as_ref(), store.as_os_str()];
            line.extend(arguments.iter().map(OsStr::new));
            if json {
                line.push("--json".as_ref());
            }
            let shown = on_terminal(&line);
            assert!(is_harmless(&shown), "{command} json={json}: {:?}", String::from_utf8_lossy(&shown));
            let text = String::from_utf8(shown).unwrap();
            if !matches!(command, "stat" | "verify") {
                let escape = if json { "\\u001b[2J" } else { "\\x1b[2J" };
                assert!(text.contains(escape), "{command} json={json}: {text:?}");
            }
            if json {
                let parsed: serde_json::Value = serde_json::from_str(text.trim()).expect("a line of JSON");
                assert!(matches!(command, "stat" | "verify") || parsed["value"] == value, "{command}: {parsed}");
            }
        }
    }
    // As before for scripts, and what a terminal shows of a dump can be loaded.
    assert_eq!(fixture.run("get", &[keyspace, key]).ok().out, format!("{value}\n").as_bytes());
    assert!(fixture.run("dump", &[keyspace]).ok().text().contains(value));
    let shown = on_terminal(&["dump".as_ref(), store.as_os_str(), keyspace.as_ref()]);
    fixture.feed(&shown, "load", &["again"]).ok();
    assert_eq!(fixture.run("get", &["again", key]).ok().out, format!("{value}\n").as_bytes());
    // Errors, which repeat names, are harmless wherever they go.
    let missing = fixture.run("get", &["none\u{1b}[1m", key]);
    assert!(missing.code == 1 && is_harmless(missing.error.as_bytes()), "{:?}", missing.error);
}

fn run(arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Ran {
    let mut child = Command::new(program())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Small enough for the pipe, or read by `load` as it comes. A program that does not care for it
    // closes it.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("the program ends");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Bytes that formats stumble over, in ascending order.
fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = [
        &b"\0"[..],
        b"\0\0",
        b"\t",
        b"\n",
        b"\r\n",
        b" ",
        b"\"",
        b"\\",
        b"\\t",
        b"\\x41",
        b"a",
        b"a\tb",
        b"a\nb",
        b"a\\",
        b"--hex",
        "grüße €".as_bytes(),
        b"\x7f",
        b"\x80",
        b"\xc3",
        b"\xe2\x82",
        b"\xff",
        b"\xff\xff",
    ]
    .iter()
    .map(|key| key.to_vec())
    .collect();
    keys.extend((0..=255).map(|byte| vec![b'k', byte]));
    keys.sort();
    keys.dedup();
    keys
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn keys_are_set_found_and_deleted() {
    let fixture = Fixture::new();
    fixture.run("put", &["users", "alice", "1"]).ok();
    fixture.run("put", &["users", "bob", "-2"]).ok();
    assert_eq!(fixture.run("get", &["users", "alice"]).ok().text(), "1\n");
    assert_eq!(fixture.run("get", &["users", "bob"]).ok().text(), "-2\n");
    assert_eq!(
        fixture.run("get", &["users", "bob", "--json"]).ok().text(),
        "{\"keyspace\":\"users\",\"key\":\"bob\",\"value\":\"-2\"}\n"
    );
    fixture.run("put", &["users", "alice", ""]).ok();
    assert_eq!(fixture.run("get", &["users", "alice"]).ok().text(), "\n");
    fixture.run("del", &["users", "alice"]).ok();
    assert_eq!(fixture.run("get", &["users", "alice"]).code, 1);
    assert_eq!(fixture.run("del", &["users", "alice"]).code, 1);
    assert_eq!(fixture.run("scan", &["users"]).ok().text(), "bob\t-2\n");
}

#[test]
fn ranges_are_deleted_and_counted() {
    let fixture = Fixture::new();
    fixture.feed(b"a\t1\nab\t2\nb\t3\nc\t4\nd\t5\n", "load", &["letters"]).ok();
    assert_eq!(fixture.run("del", &["letters", "--prefix", "a"]).ok().text(), "2\n");
    assert_eq!(fixture.run("del", &["letters", "--from", "b", "--to", "d"]).ok().text(), "2\n");
    assert_eq!(fixture.run("del", &["letters", "--from", "x", "--json"]).ok().text(), "{\"deleted\":0}\n");
    assert_eq!(fixture.run("scan", &["letters"]).ok().text(), "d\t5\n");
    assert_eq!(fixture.run("del", &["letters", "--to", "ff", "--hex"]).ok().text(), "1\n");
    // Arguments that have no meaning, and arguments that are easily misread.
    for wrong in [
        &["letters"][..],
        &["letters", "a", "--prefix", "a"],
        &["letters", "--from", "a", "--prefix", "a"],
        &["letters", "--from", "b", "--to", "a"],
        &["letters", "--prefix", ""],
        &["letters", "--prefix", "0", "--hex"],
    ] {
        let ran = fixture.run("del", wrong);
        assert_eq!((ran.code, ran.out.len()), (2, 0), "{wrong:?}: {}", ran.error);
    }
    fixture.feed(b"-a\t1\n\xff\t2\n", "load", &["letters"]);
    assert_eq!(fixture.run("del", &["letters", "--from", "-a", "--to", "-b"]).ok().text(), "1\n");
    assert_eq!(fixture.run("del", &["others", "--prefix", "a"]).code, 1);
    assert_eq!(fixture.run("del", &["letters", "--from", ""]).code, 0);
    assert_eq!(fixture.run("scan", &["letters"]).ok().text(), "");
}

#[test]
fn what_is_missing_is_said_and_not_created() {
    let fixture = Fixture::new();
    for (command, arguments) in [
        ("get", &["users", "alice"][..]),
        ("del", &["users", "alice"]),
        ("scan", &["users"]),
        ("dump", &["users"]),
        ("stat", &[]),
        ("verify", &[]),
        ("checkpoint", &[]),
    ] {
        let ran = fixture.run(command, arguments);
        assert_eq!(ran.code, 3, "{command}: {}", ran.error);
        assert!(!ran.error.is_empty() && ran.out.is_empty(), "{command}");
        assert!(!fixture.store().exists(), "{command} has created a store");
    }
    fixture.run("put", &["users", "alice", "1"]).ok();
    for (command, arguments) in
        [("get", &["others", "alice"][..]), ("del", &["others", "alice"]), ("scan", &["others"]), ("dump", &["others"])]
    {
        let ran = fixture.run(command, arguments);
        assert_eq!(ran.code, 1, "{command}: {}", ran.error);
        assert!(ran.error.contains("others"), "{command}: {}", ran.error);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let fixture = Fixture::new();
    let nothing: [&str; 0] = [];
    assert_eq!(run(&nothing, b"").code, 2);
    assert_eq!(run(&["frobnicate"], b"").code, 2);
    assert_eq!(run(&["get"], b"").code, 2);
    assert_eq!(fixture.run("put", &["users", "alice"]).code, 2);
    assert_eq!(fixture.run("scan", &["users", "--unknown"]).code, 2);
    assert_eq!(fixture.run("put", &["users", "0g", "00", "--hex"]).code, 2);
    assert_eq!(fixture.run("put", &["users", "0", "00", "--hex"]).code, 2);
    assert_eq!(run(&["tour", "/nonexistent"], b"").code, 2);
    assert!(!fixture.store().exists());
    assert_eq!(run(&["--help"], b"").code, 0);
}

#[test]
fn hex_reaches_every_byte() {
    let fixture = Fixture::new();
    fixture.run("put", &["bytes", "00ff", "0a09", "--hex"]).ok();
    assert_eq!(fixture.run("get", &["bytes", "00FF", "--hex"]).ok().text(), "0a09\n");
    assert_eq!(fixture.run("scan", &["bytes", "--hex", "--prefix", "00"]).ok().text(), "00ff\t0a09\n");
    assert_eq!(
        fixture.run("dump", &["bytes", "--hex", "--json"]).ok().text(),
        "{\"keyspace\":\"bytes\",\"key\":\"00ff\",\"value\":\"0a09\"}\n"
    );
    // Without it, the line formats escape, and the formats that can't escape refuse.
    assert_eq!(fixture.run("dump", &["bytes"]).ok().out, b"\0\\xff\t\\n\\t\n");
    let refused = fixture.run("dump", &["bytes", "--json"]);
    assert_eq!(refused.code, 2);
    assert!(refused.error.contains("--hex"));
    fixture.run("del", &["bytes", "00ff", "--hex"]).ok();
    assert_eq!(fixture.run("dump", &["bytes"]).ok().text(), "");
}

#[test]
fn a_prefix_selects() {
    let fixture = Fixture::new();
    fixture.feed(b"al\t1\nalice\t2\nam\t3\nb\t4\n", "load", &["users"]).ok();
    assert_eq!(fixture.run("scan", &["users", "--prefix", "al"]).ok().text(), "al\t1\nalice\t2\n");
    assert_eq!(fixture.run("scan", &["users", "--prefix", "x"]).ok().text(), "");
    assert_eq!(fixture.run("scan", &["users"]).ok().text(), "al\t1\nalice\t2\nam\t3\nb\t4\n");
}

#[test]
fn dumps_load_back_byte_for_byte() {
    let fixture = Fixture::new();
    let keys = awkward_keys();
    let mut lines = String::new();
    for (key, value) in keys.iter().zip(keys.iter().rev()) {
        lines += &format!("{}\t{}\n", hex(key), hex(value));
    }
    fixture.feed(lines.as_bytes(), "load", &["first", "--hex"]).ok();
    assert_eq!(fixture.run("dump", &["first", "--hex"]).ok().text(), lines, "in key order, nothing lost");
    for (format, keyspace) in [(&[][..], "escaped"), (&["--hex", "--json"], "json")] {
        let dumped = fixture.run("dump", &[&["first"], format].concat()).ok();
        fixture.feed(&dumped.out, "load", &[&[keyspace], format].concat()).ok();
        assert_eq!(fixture.run("dump", &[keyspace, "--hex"]).ok().text(), lines, "{keyspace}");
    }
}

#[test]
fn many_records_take_many_batches() {
    let fixture = Fixture::new();
    let lines: String = (0..5000).map(|number| format!("key {number:05}\t{}\n", "v".repeat(number % 600))).collect();
    fixture.feed(lines.as_bytes(), "load", &["many"]).ok();
    assert_eq!(fixture.run("dump", &["many"]).ok().text(), lines);
    assert_eq!(fixture.run("verify", &[]).ok().code, 0);
}

#[test]
fn a_bad_line_ends_a_load_where_it_says() {
    let bad: [(&[u8], &[&str]); 6] = [
        (b"no tab", &[]),
        (b"one\ttwo\tthree", &[]),
        (b"bad\\q\tescape", &[]),
        (b"", &[]),
        (b"{\"key\":\"a\"}", &["--json"]),
        (b"0g\t00", &["--hex"]),
    ];
    for (line, format) in bad {
        let fixture = Fixture::new();
        let good: &[u8] = match format {
            ["--json"] => b"{\"key\":\"61\",\"value\":\"62\"}\n",
            _ => b"61\t62\n",
        };
        let input = [good, line, b"\n", b"63\t64\n"].concat();
        let ran = fixture.feed(&input, "load", &[&["keys"], format].concat());
        assert_eq!(ran.code, 2, "{}", ran.error);
        assert!(ran.error.contains("line 2"), "{}", ran.error);
        let dumped = fixture.run("dump", &[&["keys"], format].concat()).ok();
        assert_eq!(dumped.text().lines().count(), 1, "the line before it, and none after it");
    }
}

#[test]
fn a_record_beyond_the_limits_takes_nothing_with_it() {
    let fixture = Fixture::new();
    let input = format!("a\t1\nb\t2\n{}\t3\nd\t4\n", "c".repeat(70_000));
    let ran = fixture.feed(input.as_bytes(), "load", &["keys"]);
    assert_eq!(ran.code, 3, "{}", ran.error);
    assert!(ran.error.contains("line 3"), "{}", ran.error);
    assert_eq!(fixture.run("dump", &["keys"]).ok().text(), "a\t1\nb\t2\n");
}

#[test]
fn a_last_line_needs_no_newline() {
    let fixture = Fixture::new();
    fixture.feed(b"a\t1\nb\t2", "load", &["keys"]).ok();
    assert_eq!(fixture.run("dump", &["keys"]).ok().text(), "a\t1\nb\t2\n");
}

#[test]
fn a_closed_output_is_a_quiet_end() {
    let fixture = Fixture::new();
    let lines: String = (0..5000).map(|number| format!("{number:05}\t{}\n", "v".repeat(100))).collect();
    fixture.feed(lines.as_bytes(), "load", &["many"]).ok();
    let mut child = Command::new(program())
        .arg("dump")
        .arg(fixture.store())
        .arg("many")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut start).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(&start, b"00000\tvvvv");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_store_is_looked_after() {
    let fixture = Fixture::new();
    fixture.run("put", &["users", "alice", "1"]).ok();
    let stat = fixture.run("stat", &["--json"]).ok();
    for field in ["\"committed\":", "\"durable\":", "\"fsyncs\":", "\"logger_pid\":"] {
        assert!(stat.text().contains(field), "{field} in {}", stat.text());
    }
    assert!(fixture.run("stat", &[]).ok().text().lines().any(|line| line.starts_with("committed ")));
    assert!(fixture.run("checkpoint", &["--json"]).ok().text().contains("\"checkpointed\":"));
    assert!(fixture.run("verify", &["--json"]).ok().text().contains("\"problems\":[]"));
    let deadlines = fixture.run("deadlines", &["--seconds", "0.1", "--json"]).ok();
    for field in
        ["\"blocked_at_most_us\":", "\"durable_within_us\":", "\"lock_hold_longest_us\":", "\"deadlines_met\":0"]
    {
        assert!(deadlines.text().contains(field), "{field} in {}", deadlines.text());
    }
    let lines = fixture.run("deadlines", &["--seconds", "0"]).ok();
    assert!(lines.text().lines().any(|line| line.starts_with("urgent.visible_within_us ")), "{}", lines.text());
    assert_eq!(fixture.run("deadlines", &["--seconds", "-1"]).code, 2);
    fixture.run("stop", &[]).ok();
    assert_eq!(fixture.run("deadlines", &[]).code, 3);
    assert_eq!(fixture.run("stop", &["--json"]).ok().text(), "{\"stopped\":false}\n");
    assert_eq!(fixture.run("get", &["users", "alice"]).ok().text(), "1\n");
}

#[test]
fn the_tour_finds_nothing_missing() {
    let fixture = Fixture::new();
    let tree = fixture.directory.path().join("tree");
    for number in 0..40 {
        let directory = tree.join(format!("directory {}", number % 5));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("file {number}")), vec![number; 100 * usize::from(number)]).unwrap();
    }
    let tree = tree.to_str().unwrap();
    let (store, kept) = (fixture.directory.path().join("tour"), fixture.store());
    let ran = run(&["tour", tree, "--json", "--store", store.to_str().unwrap()], b"");
    assert_eq!(ran.code, 0, "{}{}", ran.text(), ran.error);
    for field in ["\"files\":40", "\"records\":40", "\"torn_reads\":0", "\"violations\":[]", "\"lost\":0"] {
        assert!(ran.text().contains(field), "{field} in {}", ran.text());
    }
    assert!(!store.exists(), "the tour cleans up");

    let ran = run(&["tour", tree, "--limit", "30", "--keep", kept.to_str().unwrap()], b"").ok();
    assert!(ran.text().contains("30 files"), "{}", ran.text());
    assert_eq!(fixture.run("scan", &["files"]).ok().text().lines().count(), 30);
    assert!(fixture.run("get", &["files", "directory 0/file 0"]).ok().text().contains(" size 0 "));
    let again = run(&["tour", tree, "--store", kept.to_str().unwrap()], b"");
    assert_eq!(again.code, 2, "a store that is there is not the tour's to remove");
    assert!(kept.exists());
}
