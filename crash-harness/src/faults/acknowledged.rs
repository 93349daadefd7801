//! The acknowledgements that writers received, encoded as an argument of the process that checks
//! the store.

use crate::workload::oracle::Acknowledged;

/// Encodes the acknowledgements as `name=visible,durable,cell;…`, which [`parse`] decodes.
pub(super) fn write(acknowledged: &[(String, Acknowledged)]) -> String {
    let one = |(name, acknowledged): &(String, Acknowledged)| {
        format!("{name}={},{},{}", acknowledged.visible, acknowledged.durable, acknowledged.cell)
    };
    acknowledged.iter().map(one).collect::<Vec<_>>().join(";")
}

/// Decodes the output of [`write`].
pub(super) fn parse(words: &str) -> Vec<(String, Acknowledged)> {
    let one = |word: &str| {
        let (name, numbers) = word.split_once('=')?;
        let mut numbers = numbers.split(',').map(|number| number.parse().unwrap_or(0));
        let (visible, durable, cell) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some((name.to_string(), Acknowledged { visible, durable, cell, is_messenger: false }))
    };
    words.split(';').filter_map(one).collect()
}

/// Returns the acknowledgements in the lines that a process has printed so far.
pub(super) fn by(lines: &[String]) -> Acknowledged {
    let newest = |what: &str| {
        let number = |line: &String| line.strip_prefix(what)?.trim().parse().ok();
        lines.iter().rev().find_map(number).unwrap_or(0)
    };
    let durable = newest("D ");
    Acknowledged { visible: newest("V ").max(durable), durable, cell: newest("C "), is_messenger: false }
}
