//! A scan of a range by message: fetched in pieces, all of one snapshot that the server keeps.

use crate::remote::Client;
use crate::remote::connection::Kind;
use crate::{Error, Result, TxnId};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use untorn_wal::wire::{Edge, PIECE_BYTES_MAX, Reply, Request};

/// A record of a scan: its key and value.
type KeyValue = (Vec<u8>, Vec<u8>);

/// An iterator over the records of a range, made by [`Client::scan`]. All are of one snapshot,
/// whatever is written meanwhile.
pub struct Scan<'c> {
    client: &'c Client,
    txn: TxnId,
    /// The server's number for it; 0 when there are no more pieces.
    number: u32,
    /// The connection for which the number holds.
    generation: u64,
    records: VecDeque<KeyValue>,
}

/// The contents of a piece.
struct Piece {
    number: u32,
    txn: TxnId,
    records: VecDeque<KeyValue>,
}

impl<'c> Scan<'c> {
    pub(super) fn open(
        client: &'c Client,
        keyspace: &str,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
        is_reverse: bool,
    ) -> Result<Scan<'c>> {
        let request = Request::Scan {
            keyspace,
            lower: edge(lower),
            upper: edge(upper),
            is_reverse,
            piece_bytes: PIECE_BYTES_MAX as u32,
        };
        client.check_fork()?;
        let mut link = client.link.lock();
        let piece = link.call(Kind::Read, &request, read)?;
        let generation = link.generation();
        Ok(Scan { client, txn: piece.txn, number: piece.number, generation, records: piece.records })
    }

    /// Returns the transaction whose state the scan shows.
    pub fn txn_id(&self) -> TxnId {
        self.txn
    }

    fn fetch(&mut self) -> Result<()> {
        self.client.check_fork()?;
        let mut link = self.client.link.lock();
        if link.generation() != self.generation {
            return Err(Error::Disconnected { reason: "the scan's snapshot went with the connection".into() });
        }
        let piece = link.call(Kind::Bound, &Request::ScanNext { scan: self.number }, read)?;
        self.number = piece.number;
        self.records = piece.records;
        Ok(())
    }
}

impl Scan<'_> {
    /// Ends the scan at the server, which then drops its snapshot.
    fn close(&mut self) {
        let number = std::mem::take(&mut self.number);
        if number == 0 || self.client.check_fork().is_err() {
            return;
        }
        let mut link = self.client.link.lock();
        if link.generation() == self.generation {
            // If the request fails, the server drops the snapshot after its timeout.
            let _ = link.call(Kind::Bound, &Request::ScanClose { scan: number }, crate::remote::done);
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<KeyValue>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.client.check_fork() {
            return Some(Err(error));
        }
        while self.records.is_empty() && self.number != 0 {
            if let Err(error) = self.fetch() {
                // A scan can't continue after a gap.
                self.close();
                return Some(Err(error));
            }
        }
        self.records.pop_front().map(Ok)
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("txn", &self.txn).finish_non_exhaustive()
    }
}

fn read(reply: Reply<'_>) -> Option<Piece> {
    let Reply::Piece { scan, txn, records } = reply else { return None };
    // A faulty server could send any number of pieces without a record.
    if scan != 0 && records.0.is_empty() {
        return None;
    }
    let records = records.0.iter().map(|record| (record.key.to_vec(), record.value.to_vec())).collect();
    Some(Piece { number: scan, txn: TxnId::from_u64(txn), records })
}

/// Converts a bound to one of the protocol.
pub(super) fn edge<'k>(bound: Bound<&'k [u8]>) -> Edge<'k> {
    match bound {
        Bound::Unbounded => Edge::Open,
        Bound::Included(key) => Edge::With(key),
        Bound::Excluded(key) => Edge::Without(key),
    }
}
