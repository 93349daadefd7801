//! Goal: an executable becomes a logger only with the feature `logger-hook`, and a store works
//! without it by another program. Method: this very test, started with the variable that the hook
//! checks; a store whose logger is `untorn-logger`. Run it with and without
//! `--no-default-features`.

use crate::common::program::logger as logger_program;
use crate::common::{TestStore, limit};
use std::process::Command;

/// The output of this executable when it is started as a logger for a store that does not exist.
fn started_as_logger() -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "nothing_of_this_name"]).env("UNTORN_BECOME_LOGGER", "/nonexistent/store");
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn only_the_hook_makes_an_executable_a_logger() {
    let _limit = limit();
    let said = started_as_logger();
    if cfg!(feature = "logger-hook") {
        // `main` has not run; the logger prints why it can't serve.
        assert!(said.contains("/nonexistent/store") && !said.contains("running 0 tests"), "{said:?}");
    } else {
        assert!(said.contains("running 0 tests"), "{said:?}");
    }
}

#[test]
fn the_named_program_is_the_logger() {
    let _limit = limit();
    let test = TestStore::new();
    let program = logger_program();
    let store = test.open_with(|options| {
        options.logger_program(program);
    });
    store.keyspace("keys").unwrap().put("k", "v").unwrap();
    let pid = store.stats().unwrap().logger_pid.unwrap();
    let running = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(running, std::fs::canonicalize(program).unwrap());
    drop(store);
    test.stop_logger();
    let again = test.open_with(|options| {
        options.logger_program(program);
    });
    assert_eq!(again.keyspace("keys").unwrap().get("k").unwrap().unwrap(), b"v");
}

/// Neither named, nor beside this executable, nor on `PATH`.
#[cfg(not(feature = "logger-hook"))]
#[test]
fn without_the_hook_and_a_program_there_is_no_logger() {
    let _limit = limit();
    let test = TestStore::new();
    let error = untorn::Store::open(&test.path).unwrap_err();
    assert!(matches!(error, untorn::Error::LoggerUnavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("untorn-logger"), "{error}");
}
