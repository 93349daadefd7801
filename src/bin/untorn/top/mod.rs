//! `top`: a live page about a store, until `q`; or one such page as text.
//!
//! It observes the store from outside: it is no client of the store, starts no logger and keeps
//! none. So it continues, and shows it, when the logger restarts or all processes leave.

mod frame;
mod rates;
mod text;

use crate::arguments::TopOptions;
use crate::outcome::{CommandFailure, Outcome};
use crate::target;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use rates::Look;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// With less time, the page would flicker, and the latencies of one interval would be computed from
/// a few samples.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Columns and rows of a page as text, unless the variables `COLUMNS` and `LINES` set others.
const TEXT_SIZE: (u16, u16) = (100, 32);

pub(crate) fn run(options: &TopOptions) -> Outcome {
    let interval = Duration::from_millis(options.interval).max(INTERVAL_MIN);
    let path = &options.store;
    // Damage of the store at the beginning is an error, and not shown on a page.
    target::options().observe(path)?;
    if options.once || !io::stdout().is_terminal() {
        return print_once(path, interval);
    }
    let mut terminal = ratatui::try_init().map_err(CommandFailure::system("setting up the terminal"))?;
    let ended = follow(&mut terminal, path, interval);
    ratatui::restore();
    ended.map_err(CommandFailure::system("drawing on the terminal"))
}

/// Draws a page in each interval, and at once when the terminal's size changes, until it is ended.
fn follow(terminal: &mut DefaultTerminal, path: &Path, interval: Duration) -> io::Result<()> {
    let (mut earlier, mut now) = (None, Look::at(path));
    loop {
        terminal.draw(|frame| frame::draw(frame, path, earlier.as_ref(), &now))?;
        let next = now.at + interval;
        loop {
            if !event::poll(next.saturating_duration_since(Instant::now()))? {
                earlier = Some(std::mem::replace(&mut now, Look::at(path)));
                break;
            }
            match event::read()? {
                Event::Key(key) if is_end(key) => return Ok(()),
                Event::Resize(..) => break,
                _ => {}
            }
        }
    }
}

fn is_end(key: KeyEvent) -> bool {
    let is_control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release && (is_control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Prints one page, of one interval.
fn print_once(path: &Path, interval: Duration) -> Outcome {
    let earlier = Look::at(path);
    std::thread::sleep(interval);
    let now = Look::at(path);
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse().ok()).filter(|size| *size > 0);
    let columns = variable("COLUMNS").unwrap_or(TEXT_SIZE.0);
    let rows = variable("LINES").unwrap_or(TEXT_SIZE.1);
    let text = as_text(path, Some(&earlier), &now, (columns, rows));
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CommandFailure::output)
}

/// Returns a page as lines of text.
fn as_text(path: &Path, earlier: Option<&Look>, now: &Look, (columns, rows): (u16, u16)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
    let Ok(_) = terminal.draw(|frame| frame::draw(frame, path, earlier, now));
    let cells = terminal.backend().buffer().content();
    let lines = cells.chunks(usize::from(columns)).map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_string()
    });
    let mut text = lines.collect::<Vec<_>>().join("\n");
    text.truncate(text.trim_end().len());
    text + "\n"
}

#[cfg(test)]
mod tests {
    //! Goal: the page has all of its parts at any supported size, and shows the activity of a
    //! store.
    //!
    //! Method: pages of a store under a load of known size, drawn as text.

    use super::*;
    use untorn::{Durability, Observation, Store};

    const PARTS: [&str; 13] = [
        "commits/s",
        "fsyncs/s",
        "commits/fsync",
        "lag",
        "visible",
        "durable",
        "acknowledgement",
        "lock hold",
        "flush",
        "arena",
        "checkpoints",
        "processes",
        "readers",
    ];

    fn live(look: &Look) -> &untorn::Stats {
        match &look.found {
            Ok(Observation::Live(stats)) => stats,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_of_a_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::options().logger_thread(true).open(&path).unwrap();
        let keys = store.keyspace("keys").unwrap();
        let earlier = Look::at(&path);
        for key in 0..30_u32 {
            keys.put(&key.to_be_bytes(), b"value").unwrap();
        }
        let pinned = store.snapshot().unwrap();
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"key", b"value").unwrap();
        txn.commit().unwrap().wait().unwrap();
        let now = Look::at(&path);
        assert_eq!(live(&now).commits - live(&earlier).commits, 31);
        for size in [(80, 24), (200, 60)] {
            let page = as_text(&path, Some(&earlier), &now, size);
            for part in PARTS {
                assert!(page.contains(part), "{part} is missing at {size:?}:\n{page}");
            }
            let lines: Vec<&str> = page.lines().collect();
            assert!(
                lines.len() <= usize::from(size.1)
                    && lines.iter().all(|line| line.chars().count() <= usize::from(size.0))
            );
            // This process is the only client, its logger is a thread of it, and it has one
            // snapshot.
            let own = std::process::id().to_string();
            assert!(lines.iter().filter(|line| line.contains(&own)).count() >= 2, "{page}");
            assert!(page.contains("1 txn behind"), "{page}");
            assert!(page.contains(&path.display().to_string()) || size.0 < 200, "{page}");
        }
        let idle = as_text(&path, Some(&now), &Look::at(&path), (80, 24));
        assert_ne!(as_text(&path, Some(&earlier), &now, (80, 24)), idle);
        // Tiny pages are drawn without a panic.
        for columns in 1..30 {
            for rows in 1..12 {
                as_text(&path, Some(&earlier), &now, (columns, rows));
            }
        }
        drop(pinned);
        drop(keys);
        store.close().unwrap();
        untorn::logger::stop_logger(&path, Duration::from_secs(300)).unwrap();
        let unused = as_text(&path, Some(&now), &Look::at(&path), (80, 24));
        assert!(unused.contains("No process has the store open"), "{unused}");
        std::fs::remove_dir_all(&path).unwrap();
        let gone = as_text(&path, None, &Look::at(&path), (80, 24));
        assert!(gone.contains("no store"), "{gone}");
    }
}
