//! The layout of the page, for any size of the terminal.
//!
//! The parts are ordered by how often they are read: throughput and lag, latencies, space, and
//! then, in the remaining rows, the processes that use the store.

use super::rates::{Look, Moment};
use super::text::{UNKNOWN, age, bytes, count, latency, or_unknown};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, Wrap};
use std::path::Path;
use untorn::{Error, Latency, Observation, Stats};

/// Draws the page of `now`, with rates since `earlier`.
pub(crate) fn draw(frame: &mut Frame<'_>, path: &Path, earlier: Option<&Look>, now: &Look) {
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(frame.area());
    draw_title(frame, title, path, now);
    let message = match (&now.found, Moment::new(earlier, now)) {
        (_, Some(moment)) => return draw_live(frame, body, &moment),
        (Err(Error::NotFound { .. }), _) => "There is no store here any more.".to_string(),
        (Err(error), _) => format!("{error}."),
        (Ok(Observation::Starting), _) => "A logger recovers the store.".to_string(),
        (Ok(_), _) => {
            "No process has the store open, and no logger serves it. This page continues when one does.".into()
        }
    };
    frame.render_widget(Paragraph::new(format!("\n{message}")).wrap(Wrap { trim: false }), body);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, path: &Path, now: &Look) {
    let stats = match &now.found {
        Ok(Observation::Live(stats)) => Some(stats),
        _ => None,
    };
    let logger = match stats.map(|stats| (stats.logger_pid, stats.logger_age_ns)) {
        Some((Some(pid), since)) => format!("logger {pid}, for {}", age(since.unwrap_or(0))),
        Some((None, _)) => "NO LOGGER".to_string(),
        None => String::new(),
    };
    let right = format!("{logger}   q quits");
    let room = usize::from(area.width).saturating_sub(right.chars().count() + 2);
    let left = shortened(&format!("untorn  {}", path.display()), room);
    let line = format!("{left:room$}  {right}");
    frame.render_widget(Paragraph::new(line).style(Modifier::REVERSED), area);
}

/// Returns the end of a text that is too long: for a path, its most specific part.
fn shortened(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_string();
    }
    let rest: String = text.chars().skip(length - room.saturating_sub(1)).collect();
    if room == 0 { String::new() } else { format!("…{rest}") }
}

fn draw_live(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    let stats = moment.now;
    let notice = u16::from(stats.needs_recovery.is_some());
    let rows = [3, notice, 11, 4, 0].map(Constraint::Length);
    let [progress, broken, latencies, space, users] =
        Layout::vertical([rows[0], rows[1], rows[2], rows[3], Constraint::Fill(1)]).areas(area);
    draw_progress(frame, progress, moment);
    if let Some(reason) = &stats.needs_recovery {
        let text = format!("TAKES NO MORE WRITES until all processes have closed it: {reason}");
        frame.render_widget(Paragraph::new(text).style(Modifier::REVERSED), broken);
    }
    draw_latencies(frame, latencies, moment);
    draw_space(frame, space, moment);
    let [processes, readers] =
        Layout::horizontal([Constraint::Percentage(54), Constraint::Fill(1)]).spacing(2).areas(users);
    draw_processes(frame, processes, moment);
    draw_readers(frame, readers, stats);
}

/// Alternates names and figures; the figures are highlighted.
fn figures<'t>(pairs: impl IntoIterator<Item = (&'t str, String)>) -> Line<'t> {
    let spans = pairs.into_iter().flat_map(|(name, value)| {
        [Span::raw(name), Span::raw(" "), Span::styled(value, Modifier::BOLD), Span::raw("   ")]
    });
    Line::from_iter(spans)
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    let stats = moment.now;
    let lag = match stats.lag_txns {
        0 => "none".to_string(),
        txns => format!("{} txns, {}", count(txns), latency(std::time::Duration::from_nanos(stats.lag_ns))),
    };
    let lines = vec![
        figures([
            ("commits/s", or_unknown(moment.rate(|stats| stats.commits))),
            ("fsyncs/s", or_unknown(moment.rate(|stats| stats.fsyncs))),
            ("commits/fsync", or_unknown(moment.commits_per_fsync())),
            ("lag", lag),
        ]),
        figures([
            ("visible", stats.committed.to_string()),
            ("durable", stats.durable.to_string()),
            ("checkpointed", stats.checkpointed.to_string()),
            ("deadlines missed", count(stats.deadlines.missed)),
        ]),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::UNDERLINED)
}

fn draw_latencies(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    type Pick = fn(&Stats) -> &Latency;
    let kinds: [(&str, Pick); 10] = [
        ("acknowledgement, urgent", |stats| &stats.latencies.acknowledgement.urgent),
        ("acknowledgement, within", |stats| &stats.latencies.acknowledgement.within),
        ("acknowledgement, bulk", |stats| &stats.latencies.acknowledgement.bulk),
        ("lock wait, urgent", |stats| &stats.latencies.lock_wait.urgent),
        ("lock wait, bulk", |stats| &stats.latencies.lock_wait.bulk),
        ("lock hold, urgent", |stats| &stats.latencies.lock_hold.urgent),
        ("lock hold, bulk", |stats| &stats.latencies.lock_hold.bulk),
        ("flush", |stats| &stats.latencies.flush),
        ("checkpoint", |stats| &stats.latencies.checkpoint),
        ("sample of cells", |stats| &stats.latencies.sample),
    ];
    let rows = kinds.map(|(name, pick)| {
        let recent = moment.latency(pick);
        let per_second = recent.as_ref().map(|(recent, passed)| recent.count() as f64 / passed.as_secs_f64().max(1e-9));
        let recent = recent.map(|(recent, _)| recent).filter(|recent| recent.count() > 0);
        let percentile =
            |percent| recent.as_ref().map_or_else(|| UNKNOWN.to_string(), |recent| latency(recent.percentile(percent)));
        let longest = pick(moment.now).max();
        let longest = if longest.is_zero() { UNKNOWN.to_string() } else { latency(longest) };
        let cells = [or_unknown(per_second), percentile(50.0), percentile(99.0), percentile(99.9), longest];
        Row::new(std::iter::once(Line::raw(name)).chain(cells.map(|cell| Line::raw(cell).right_aligned())))
    });
    let titles = ["per second", "p50", "p99", "p99.9", "longest"].map(|title| Line::raw(title).right_aligned());
    let header = Row::new(std::iter::once(Line::raw("latency of late")).chain(titles)).style(heading());
    let widths = [23, 10, 9, 9, 9, 12].map(Constraint::Length);
    frame.render_widget(Table::new(rows, widths).header(header), area);
}

fn draw_space(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    let stats = moment.now;
    let used = stats.pages_total.saturating_mul(stats.page_size);
    let percent = 100.0 * used as f64 / stats.max_size.max(1) as f64;
    let free = bytes(stats.pages_free.saturating_mul(stats.page_size));
    let (spares, kept) = (stats.wal_spares, stats.wal_kept);
    let in_use = stats.wal_segments;
    let lines = vec![
        Line::default(),
        figures([
            ("arena", format!("{} of {} ({percent:.1} %)", bytes(used), bytes(stats.max_size))),
            ("reusable", free),
            ("records", count(stats.records)),
        ]),
        figures([
            ("log since checkpoint", bytes(stats.wal_bytes)),
            ("segments", format!("{in_use} + {spares} spare + {kept} kept")),
        ]),
        figures([
            ("checkpoints", count(stats.checkpoints)),
            ("loggers started", count(stats.logger_starts)),
            ("locks taken over", count(stats.lock_take_overs)),
            ("reaped", count(stats.reaped)),
        ]),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_processes(frame: &mut Frame<'_>, area: Rect, moment: &Moment<'_>) {
    let stats = moment.now;
    let mut clients: Vec<_> = stats.clients.iter().map(|client| (client, moment.process_rate(client.id))).collect();
    // The lock's holder and dead clients first, then the most active clients.
    clients.sort_by(|(a, a_rate), (b, b_rate)| {
        let urgency = |client: &untorn::ClientStat| (client.holds_writer_lock, !client.is_alive);
        (urgency(b).cmp(&urgency(a)))
            .then(b_rate.unwrap_or(0.0).total_cmp(&a_rate.unwrap_or(0.0)))
            .then(a.pid.cmp(&b.pid))
    });
    let right = |text: String| Line::raw(text).right_aligned();
    let logger = stats.logger_pid.map(|pid| {
        let since = age(stats.logger_age_ns.unwrap_or(0));
        Row::new([
            right(pid.to_string()),
            right(since),
            Line::raw(""),
            Line::raw(""),
            Line::raw(""),
            Line::raw("logger"),
        ])
    });
    let clients = clients.iter().map(|(client, rate)| {
        let what = match (client.is_alive, client.holds_writer_lock) {
            (false, _) => "dead",
            (true, true) => "writes",
            (true, false) => "",
        };
        Row::new([
            right(client.pid.to_string()),
            right(age(client.age_ns)),
            right(count(client.commits)),
            right(or_unknown(*rate)),
            right(client.pins.to_string()),
            Line::raw(what),
        ])
    });
    let title = format!("processes: {}", stats.clients.len());
    let header = [
        right("pid".into()),
        right("age".into()),
        right("commits".into()),
        right("/s".into()),
        right("pins".into()),
        Line::raw(""),
    ];
    let widths = [8, 7, 9, 7, 4, 6].map(Constraint::Length);
    draw_users(frame, area, &title, Table::new(logger.into_iter().chain(clients), widths).header(Row::new(header)));
}

fn draw_readers(frame: &mut Frame<'_>, area: Rect, stats: &Stats) {
    let readers: Vec<_> = stats.readers.iter().filter(|reader| !reader.is_loggers).collect();
    let rows = readers.iter().map(|reader| {
        let behind = reader.txns_behind;
        Row::new([
            Line::raw(reader.pid.to_string()).right_aligned(),
            Line::raw(format!("{} txn{} behind", count(behind), if behind == 1 { "" } else { "s" })).right_aligned(),
            Line::raw(age(reader.age_ns.unwrap_or(0))).right_aligned(),
        ])
    });
    let title = format!("readers: {} (`stat` counts their pages)", readers.len());
    let header = Row::new(["pid", "oldest first", "age"].map(|title| Line::raw(title).right_aligned()));
    draw_users(frame, area, &title, Table::new(rows, [8, 18, 7].map(Constraint::Length)).header(header));
}

fn draw_users(frame: &mut Frame<'_>, area: Rect, title: &str, table: Table<'_>) {
    let [top, rest] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let width = usize::from(area.width);
    frame.render_widget(Paragraph::new(format!("{title:width$}")).style(heading()), top);
    frame.render_widget(table, rest);
}
