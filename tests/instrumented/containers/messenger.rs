//! A process that has nothing of a store but a path to its socket, and executes one command at a
//! time.

use crate::common::{HANGS, Role, listen, say};
use std::time::Duration;
use untorn::{Client, Feed, TxnId};

/// The role `messenger`: connects, then obeys.
pub(crate) fn serve(role: &Role) {
    say(format_args!("process {}", std::process::id()));
    let mut options = Client::options();
    let client = match options.reconnect_timeout(Duration::from_secs(3)).connect(&role.store) {
        Ok(client) => client,
        Err(error) => {
            say(format_args!("refused: {error}"));
            listen();
            return;
        }
    };
    say("connected");
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split(' ').collect();
        say(answer(&client, &words).unwrap_or_else(|error| format!("error: {error}")));
    }
}

fn answer(client: &Client, words: &[&str]) -> untorn::Result<String> {
    Ok(match words {
        ["put", keyspace, key, value] => {
            client.put(keyspace, key.as_bytes(), value.as_bytes())?;
            "durable".into()
        }
        ["get", keyspace, key] => {
            let value = client.get(keyspace, key.as_bytes())?;
            value.map_or("nothing".into(), |value| String::from_utf8_lossy(&value).into_owned())
        }
        ["scan", keyspace] => {
            let records = client.scan(keyspace, ..)?.collect::<untorn::Result<Vec<_>>>()?;
            records.iter().map(|(key, _)| String::from_utf8_lossy(key)).collect::<Vec<_>>().join(" ")
        }
        // The first change there ever was.
        ["follow", keyspace] => {
            let mut changes = client.changes(TxnId::ZERO, Feed::Durable)?.keyspace(keyspace);
            let change = changes.try_next(HANGS)?;
            change.map_or("nothing".into(), |change| String::from_utf8_lossy(change.key()).into_owned())
        }
        // Puts for ever.
        ["storm", keyspace] => loop {
            client.put(keyspace, b"storm", &[7; 100_000])?;
        },
        // Lists the root directory, but for libraries.
        ["look"] => {
            let names = std::fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| !name.starts_with("lib") && name != "usr").collect();
            names.sort();
            names.join(" ")
        }
        other => panic!("no command {other:?}"),
    })
}
