//! `untorn watch`.

use super::*;

/// A `watch` that runs, and its lines as they come; killed when dropped.
struct Watch {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Watch {
    fn start(fixture: &Fixture, arguments: &[&str]) -> Watch {
        let mut command = Command::new(program());
        command.arg("watch").arg(fixture.store()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Watch { child, lines }
    }

    #[track_caller]
    fn expect(&self, expected: &[&str]) {
        for line in expected {
            assert_eq!(self.lines.recv_timeout(HANGS).as_deref(), Ok(*line));
        }
    }

    /// Ends it as a terminal does; returns its exit code and its error output.
    fn interrupt(mut self, signal: libc::c_int) -> (Option<i32>, String) {
        // SAFETY: signals a child of ours that has not been waited for.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(self.child.id() as i32, signal);
        }
        let code = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watch_follows_the_changes() {
    let fixture = Fixture::new();
    fixture.run("put", &["users", "al\tice", "1"]).ok();
    fixture.run("put", &["other", "k", "v"]).ok();
    fixture.run("del", &["users", "al\tice"]).ok();
    let all = Watch::start(&fixture, &["--from", "0"]);
    all.expect(&["0.2\tusers\tput\tal\\tice\t1", "0.4\tother\tput\tk\tv", "0.5\tusers\tdelete\tal\\tice"]);
    let json = Watch::start(&fixture, &["users", "--json", "--from", "0.2", "--visible"]);
    json.expect(&[r#"{"txn":5,"keyspace":"users","kind":"delete","key":"al\tice","value":null,"last":true}"#]);
    let hex = Watch::start(&fixture, &["other", "6b", "--hex", "--from", "0"]);
    hex.expect(&["0.4\tother\tput\t6b\t76"]);
    // They wait for more, and each prints what its arguments select.
    fixture.run("put", &["users", "bob", "2"]).ok();
    all.expect(&["0.6\tusers\tput\tbob\t2"]);
    json.expect(&[r#"{"txn":6,"keyspace":"users","kind":"put","key":"bob","value":"2","last":true}"#]);
    assert!(hex.lines.try_recv().is_err());
    // Ranges are removed by programs; one has an end, the other has none.
    let store = untorn::Store::open(fixture.store()).unwrap();
    let users = store.keyspace("users").unwrap();
    assert_eq!(users.delete_range("b".."c").unwrap(), 1);
    users.put("carol", "3").unwrap();
    assert_eq!(users.clear().unwrap(), 1);
    all.expect(&["0.7\tusers\tdelete-range\tb\tc", "0.8\tusers\tput\tcarol\t3", "0.9\tusers\tdelete-range\t"]);
    json.expect(&[
        r#"{"txn":7,"keyspace":"users","kind":"delete-range","key":"b","end":"c","value":null,"last":true}"#,
        r#"{"txn":8,"keyspace":"users","kind":"put","key":"carol","value":"3","last":true}"#,
        r#"{"txn":9,"keyspace":"users","kind":"delete-range","key":"","value":null,"last":true}"#,
    ]);
    drop((users, store));
    for (watch, signal) in [(all, libc::SIGINT), (json, libc::SIGTERM), (hex, libc::SIGINT)] {
        assert_eq!(watch.interrupt(signal), (Some(0), String::new()));
    }
}

#[test]
fn watch_begins_now_unless_told_otherwise() {
    let fixture = Fixture::new();
    fixture.run("put", &["users", "before", "1"]).ok();
    let watch = Watch::start(&fixture, &["users"]);
    // `watch` does not announce its start, so the test repeats the change until it is printed.
    let line = loop {
        fixture.run("put", &["users", "after", "2"]).ok();
        match watch.lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => break line,
            Err(_) => continue,
        }
    };
    assert!(line.ends_with("\tusers\tput\tafter\t2"), "{line}");
}

#[test]
fn watch_ends_when_its_output_is_closed_and_prints_errors() {
    let fixture = Fixture::new();
    fixture.run("put", &["users", "k", "v"]).ok();
    let mut command = Command::new(program());
    let mut child = command.arg("watch").arg(fixture.store()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    // It ends without a reader.
    wait_until(|| child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for (arguments, code) in [(["--from", "x"], 2), (["--from", "9.9999"], 3), (["--durable", "--visible"], 2)] {
        assert_eq!(fixture.run("watch", &arguments).code, code, "{arguments:?}");
    }
    assert_eq!(run(&["watch", "/nowhere/at/all"], b"").code, 3);
}

/// The first lines that `untorn watch STORE ARGUMENTS…` prints.
pub(crate) fn watched(store: &Path, arguments: &[&str], lines: usize) -> Vec<String> {
    let mut command = Command::new(program());
    let mut process = command.arg("watch").arg(store).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let out = std::io::BufReader::new(process.stdout.take().unwrap());
    let lines = std::io::BufRead::lines(out).take(lines).map(Result::unwrap).collect();
    process.kill().unwrap();
    process.wait().unwrap();
    lines
}
