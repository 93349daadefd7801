//! Commands that pass messages, and `untorn-logger`.

use super::*;
use crate::common::program::logger as logger_program;

#[test]
fn the_logger_says_how_it_is_used() {
    let logger = |arguments: &[&OsStr]| {
        let output = Command::new(logger_program()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = logger(&[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("usage"));
    assert_eq!(logger(&["a".as_ref(), "b".as_ref()]).0, Some(2));
    assert_eq!(logger(&["--frobnicate".as_ref()]).0, Some(2));
    let fixture = Fixture::new();
    let (code, said) = logger(&[fixture.store().as_ref()]);
    assert_eq!(code, Some(3));
    assert!(said.contains("store"), "{said}");
}

/// `untorn-logger` in the foreground, stopped by a request at the end.
struct Logger {
    process: std::process::Child,
    store: PathBuf,
}

impl Logger {
    fn start(store: &Path, arguments: &[&str]) -> Logger {
        let process = Command::new(logger_program()).arg(store).args(arguments).spawn().unwrap();
        let logger = Logger { process, store: store.to_owned() };
        wait_until(|| logger.socket().exists());
        logger
    }

    fn socket(&self) -> PathBuf {
        self.store.join("logger.sock")
    }

    /// `untorn COMMAND SOCKET ARGUMENTS…`, with the input on standard input.
    fn feed(&self, input: &[u8], command: &str, arguments: &[&str]) -> Ran {
        let mut line = vec![OsStr::new(command).to_owned(), self.socket().into_os_string()];
        line.extend(arguments.iter().map(|argument| OsStr::new(argument).to_owned()));
        run(&line, input)
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Ran {
        self.feed(b"", command, arguments)
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let _ = Command::new(program()).arg("stop").arg(&self.store).stderr(Stdio::null()).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A store whose clients all pass messages: every command that can do its work so does, with the
/// same output and codes.
#[test]
fn a_socket_in_place_of_a_directory() {
    let fixture = Fixture::new();
    let logger = Logger::start(&fixture.store(), &["--create", "--idle", "never"]);
    logger.run("put", &["users", "alice", "1"]).ok();
    logger.run("put", &["users", "bob", "-2"]).ok();
    assert_eq!(logger.run("get", &["users", "alice"]).ok().text(), "1\n");
    assert_eq!(
        logger.run("get", &["users", "bob", "--json"]).ok().text(),
        fixture.run("get", &["users", "bob", "--json"]).ok().text()
    );
    let keys = awkward_keys();
    let lines: String = keys.iter().map(|key| format!("{}\t{}\n", hex(key), hex(key))).collect();
    logger.feed(lines.as_bytes(), "load", &["awkward", "--hex"]).ok();
    assert_eq!(logger.run("dump", &["awkward", "--hex"]).ok().text(), lines);
    assert_eq!(fixture.run("dump", &["awkward", "--hex"]).ok().text(), lines);
    assert_eq!(logger.run("scan", &["users", "--prefix", "b"]).ok().text(), "bob\t-2\n");
    logger.run("del", &["users", "bob"]).ok();
    logger.feed(b"a\t1\nb\t2\nba\t3\nc\t4\n", "load", &["letters"]).ok();
    assert_eq!(logger.run("del", &["letters", "--prefix", "b"]).ok().text(), "2\n");
    assert_eq!(fixture.run("del", &["letters", "--from", "b"]).ok().text(), "1\n");
    assert_eq!(logger.run("del", &["letters", "--to", "b", "--json"]).ok().text(), "{\"deleted\":1}\n");
    for (command, arguments) in [
        ("del", &["users", "bob"][..]),
        ("get", &["users", "bob"]),
        ("get", &["none", "bob"]),
        ("scan", &["none"]),
        ("dump", &["none"]),
        ("del", &["none", "x"]),
        ("del", &["none", "--prefix", "x"]),
    ] {
        let (by_message, direct) = (logger.run(command, arguments), fixture.run(command, arguments));
        assert_eq!((by_message.code, by_message.error), (1, direct.error), "{command} {arguments:?}");
    }
    // The lines before a bad one are loaded, and no other; the bad one is named.
    let long = format!("{}\t\n", "k".repeat(2000));
    for bad in ["no tab\n", &long] {
        let ran = logger.feed(format!("a\t1\nb\t2\n{bad}c\t3\n").as_bytes(), "load", &["partly"]);
        assert!(ran.code >= 2 && ran.error.contains("line 3"), "{} {}", ran.code, ran.error);
        assert_eq!(logger.run("dump", &["partly"]).ok().text(), "a\t1\nb\t2\n");
    }
    assert!(logger.run("checkpoint", &[]).ok().text().contains("checkpointed"));
    assert!(logger.run("stat", &["--json"]).ok().text().contains("\"committed\":"));
    assert!(logger.run("stat", &[]).ok().text().contains("keyspaces"));
    for command in ["verify", "stop"] {
        let ran = logger.run(command, &[]);
        assert!(ran.code == 2 && ran.error.contains("directory"), "{command}: {} {}", ran.code, ran.error);
    }
    // The owner is warned of an access file that cannot be read, once the logger has seen it.
    fs::write(fixture.store().join("access"), "allow everything\n").unwrap();
    wait_until(|| logger.run("get", &["users", "alice"]).ok().error.contains("line 1"));
    fixture.run("verify", &[]).ok();
    let socket = logger.socket();
    drop(logger);
    assert!(!socket.exists());
    // If the socket is gone, the store does not exist. If the socket exists and no server accepts
    // on it, the error is another one.
    let socket = socket.to_str().unwrap();
    assert_eq!(run(&["get", socket, "users", "alice"], b"").code, 3);
    assert_eq!(run(&["put", socket, "users", "alice", "1"], b"").code, 3);
    assert!(!Path::new(socket).exists(), "a store was made where a socket was meant");
    drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    let ran = run(&["get", socket, "users", "alice"], b"");
    assert!(ran.code == 3 && ran.error.contains("no server answers"), "{}", ran.error);
}

/// A logger that is to stay stays, and takes over from one that was there before.
#[test]
fn a_logger_that_stays() {
    let fixture = Fixture::new();
    let mut first = Logger::start(&fixture.store(), &["--create", "--idle", "never"]);
    fixture.run("put", &["users", "alice", "1"]).ok();
    // The second one waits for the first one's end. With an idle time, the first could leave before
    // `stop`, which would then stop the second.
    let mut logger = Logger::start(&fixture.store(), &["--idle", "never"]);
    assert!(fixture.run("stop", &[]).ok().error.contains("stopped"));
    assert!(first.process.wait().unwrap().success());
    wait_until(|| logger.run("get", &["users", "alice"]).code == 0);
    assert!(logger.process.try_wait().unwrap().is_none());
    fixture.run("stop", &[]).ok();
    assert!(logger.process.wait().unwrap().success());
    // With an idle time of its own it leaves after that.
    let mut logger = Logger::start(&fixture.store(), &["--idle", "1"]);
    wait_until(|| logger.process.try_wait().unwrap().is_some());
    assert!(logger.process.wait().unwrap().success());
    drop(logger);
    for arguments in [&["--idle", "soon"][..], &["--idle"], &["--stay"], &["another"]] {
        let program = logger_program();
        let output = Command::new(program).arg(fixture.store()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let missing = fixture.directory.path().join("missing");
    let output = Command::new(logger_program()).arg(&missing).output().unwrap();
    assert!(output.status.code() == Some(3) && !missing.exists());
}

#[test]
fn a_socket_can_be_watched() {
    let fixture = Fixture::new();
    let logger = Logger::start(&fixture.store(), &["--create", "--idle", "never"]);
    for (command, arguments) in
        [("put", &["users", "alice", "1"][..]), ("put", &["other", "bob", "2"]), ("del", &["users", "alice"])]
    {
        logger.run(command, arguments).ok();
    }
    for arguments in [&["--from", "0"][..], &["users", "a", "--from", "0", "--visible"], &["--from", "0", "--json"]] {
        let by_message = watched(&logger.socket(), arguments, 2);
        assert_eq!(by_message, watched(&fixture.store(), arguments, 2));
        assert!(by_message[0].contains("alice") && by_message.len() == 2, "{by_message:?}");
    }
    // A place that is not there.
    let ran = logger.run("watch", &["--from", "999999"]);
    assert!(ran.code == 3 && ran.error.contains("lost"), "{}", ran.error);
}
