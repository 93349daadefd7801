//! Checks whether a history is linearizable, with stateright's tester.

use super::event::{Answer, Event, What};
use super::model::{Model, Step};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};
use std::collections::{BTreeMap, BTreeSet};

/// The result of the tester.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Linearizable,
    NotLinearizable,
    /// The search was given up because there are too many orders.
    Undecided,
}

/// The operations of a client up to its next operation without an answer. The flag is set if the
/// thread ends in such an operation. These threads sort last, so that the tester first tries orders
/// without operations that may never have happened.
type Thread = (bool, u32);

/// Checks a history. `events` may be in any order.
///
/// # Errors
/// If the events do not form a history, for example if an answer has no operation.
pub(super) fn judge(events: &[Event]) -> Result<Verdict, String> {
    let mut events: Vec<&Event> = events.iter().collect();
    // If an answer and a beginning have the same time, the operations count as concurrent.
    events.sort_by_key(|event| (event.at_ns, !matches!(event.what, What::Began(_))));
    let threads = threads(&events);
    // Drops reads without an answer, because they have no effect.
    let mut kept: Vec<(&Event, Thread)> = events.iter().copied().zip(threads).collect();
    let last_begin: BTreeMap<Thread, u64> = kept
        .iter()
        .filter(|(event, _)| matches!(event.what, What::Began(_)))
        .map(|(event, thread)| (*thread, event.at_ns))
        .collect();
    kept.retain(|(event, thread)| match &event.what {
        What::Began(operation) => !thread.0 || !operation.write.is_empty() || event.at_ns != last_begin[thread],
        _ => true,
    });
    let mut ids = Vec::new();
    let (mut operations, mut writes) = (0, BTreeMap::new());
    for (event, thread) in &kept {
        match &event.what {
            What::Began(operation) => {
                operations += 1;
                writes.insert(*thread, !operation.write.is_empty());
            }
            What::Answered(Answer::Done { at: Some(at), .. }) if writes.get(thread) == Some(&true) => ids.push(*at),
            _ => {}
        }
    }
    let model = Model::new(operations, ids);
    let mut tester = LinearizabilityTester::new(model.clone());
    let mut index = 0;
    for (event, thread) in &kept {
        match &event.what {
            What::Began(operation) => {
                tester.on_invoke(*thread, Step { index, operation: operation.clone() })?;
                index += 1;
            }
            What::Answered(answer) => drop(tester.on_return(*thread, answer.clone())?),
            What::InDoubt => {}
        }
    }
    Ok(match (tester.is_consistent(), model.tried().1) {
        (true, _) => Verdict::Linearizable,
        (false, false) => Verdict::NotLinearizable,
        (false, true) => Verdict::Undecided,
    })
}

/// Returns the thread of each event.
fn threads(events: &[&Event]) -> Vec<Thread> {
    let mut next = 0;
    let mut of_client = BTreeMap::new();
    let mut open = BTreeSet::new();
    let mut numbers = Vec::new();
    for event in events {
        let number = *of_client.entry(event.client).or_insert_with(|| {
            next += 1;
            next
        });
        numbers.push(number);
        match event.what {
            What::Began(_) => drop(open.insert(number)),
            What::Answered(_) => drop(open.remove(&number)),
            // The client's next operation starts a new thread.
            What::InDoubt => drop(of_client.remove(&event.client)),
        }
    }
    numbers.into_iter().map(|number| (open.contains(&number), number)).collect()
}

#[cfg(test)]
mod tests {
    //! Goal: the checker accepts what a store may do and rejects each forbidden outcome.
    //!
    //! Method: hand-written histories; each wrong one differs from a right one in one answer.

    use super::*;
    use crate::history::event::{Key, Operation, Seen};

    struct History(Vec<Event>, u64);

    impl History {
        fn new() -> History {
            History(Vec::new(), 0)
        }

        fn event(mut self, client: u32, what: What) -> History {
            self.1 += 1;
            self.0.push(Event { client, at_ns: self.1, what });
            self
        }

        fn put(self, client: u32, key: Key, value: u64) -> History {
            self.event(client, What::Began(Operation { write: vec![(key, Some(value))], ..Operation::default() }))
        }

        fn wrote(self, client: u32, id: u64) -> History {
            self.event(client, What::Answered(Answer::Done { read: Vec::new(), at: Some(id) }))
        }

        /// Reads two keys; 0 means absent.
        fn reads(self, client: u32, values: [u64; 2]) -> History {
            self.began_read(client).has_read(client, values)
        }

        fn began_read(self, client: u32) -> History {
            self.event(client, What::Began(Operation { read: vec![0, 1], ..Operation::default() }))
        }

        fn has_read(self, client: u32, values: [u64; 2]) -> History {
            let seen = |value| match value {
                0 => Seen::Absent,
                value => Seen::Present { value: Some(value), version: None },
            };
            self.event(client, What::Answered(Answer::Done { read: values.map(seen).to_vec(), at: None }))
        }

        fn swap(self, client: u32, expected: Option<u64>, value: u64) -> History {
            let operation =
                Operation { expect: vec![(0, expected)], write: vec![(0, Some(value))], ..Operation::default() };
            self.event(client, What::Began(operation))
        }

        fn verdict(&self) -> Verdict {
            judge(&self.0).unwrap()
        }
    }

    #[test]
    fn a_read_sees_what_was_answered_before_it() {
        let written = || History::new().put(1, 0, 7).wrote(1, 10);
        assert_eq!(written().reads(2, [7, 0]).verdict(), Verdict::Linearizable);
        assert_eq!(written().reads(2, [0, 0]).verdict(), Verdict::NotLinearizable);
        assert_eq!(written().put(1, 0, 8).wrote(1, 11).reads(2, [7, 0]).verdict(), Verdict::NotLinearizable);
    }

    #[test]
    fn of_two_swaps_from_one_version_one_is_refused() {
        let both = History::new().put(1, 0, 7).wrote(1, 10).swap(1, Some(10), 8).swap(2, Some(10), 9).wrote(1, 11);
        let refused = What::Answered(Answer::Mismatch { key: 0, current: Some(11) });
        assert_eq!(both.event(2, refused).verdict(), Verdict::Linearizable);
        let both = History::new().put(1, 0, 7).wrote(1, 10).swap(1, Some(10), 8).swap(2, Some(10), 9).wrote(1, 11);
        assert_eq!(both.wrote(2, 12).verdict(), Verdict::NotLinearizable, "a lost update");
    }

    #[test]
    fn a_transaction_is_seen_whole() {
        let pair = |values: [u64; 2]| {
            let write = vec![(0, Some(5)), (1, Some(6))];
            let history = History::new().began_read(2);
            let history = history.event(1, What::Began(Operation { write, ..Operation::default() }));
            history.has_read(2, values).wrote(1, 10).verdict()
        };
        assert_eq!(pair([0, 0]), Verdict::Linearizable);
        assert_eq!(pair([5, 6]), Verdict::Linearizable);
        assert_eq!(pair([5, 0]), Verdict::NotLinearizable);
    }

    #[test]
    fn an_operation_without_an_answer_happens_once_or_never() {
        let dead = || History::new().put(1, 0, 7);
        assert_eq!(dead().reads(2, [0, 0]).reads(2, [0, 0]).verdict(), Verdict::Linearizable);
        assert_eq!(dead().reads(2, [0, 0]).reads(2, [7, 0]).verdict(), Verdict::Linearizable);
        assert_eq!(dead().reads(2, [7, 0]).reads(2, [0, 0]).verdict(), Verdict::NotLinearizable);
        let doubtful = dead().event(1, What::InDoubt).put(1, 0, 8).wrote(1, 10);
        assert_eq!(doubtful.reads(2, [8, 0]).reads(2, [7, 0]).verdict(), Verdict::Linearizable);
        let again = dead().event(1, What::InDoubt).put(1, 0, 8).wrote(1, 10).reads(2, [7, 0]).put(2, 0, 9).wrote(2, 11);
        assert_eq!(again.reads(2, [7, 0]).verdict(), Verdict::NotLinearizable, "it happened twice");
    }

    #[test]
    fn transactions_happen_in_the_order_of_their_ids() {
        let written =
            |first, second| History::new().put(1, 0, 7).wrote(1, first).put(2, 1, 8).wrote(2, second).verdict();
        assert_eq!(written(10, 11), Verdict::Linearizable);
        assert_eq!(written(11, 10), Verdict::NotLinearizable);
        assert_eq!(written(10, 10), Verdict::NotLinearizable);
        let seen_at = |at| {
            let history = History::new().put(1, 0, 7).wrote(1, 10).put(1, 0, 8).wrote(1, 12);
            let read = vec![Seen::Present { value: Some(8), version: Some(12) }];
            let history = history.event(2, What::Began(Operation { read: vec![0], ..Operation::default() }));
            history.event(2, What::Answered(Answer::Done { read, at: Some(at) })).verdict()
        };
        assert_eq!(seen_at(13), Verdict::Linearizable);
        assert_eq!(seen_at(11), Verdict::NotLinearizable);
    }

    #[test]
    fn many_operations_at_once_are_judged_quickly() {
        // Without memoization the search would try all orders of the reads.
        let mut history = History::new();
        for client in 0..16 {
            history = history.put(100 + client, 0, 1000 + u64::from(client)).began_read(client);
        }
        for client in 0..16 {
            history = history.has_read(client, [0, 0]).wrote(100 + client, 10 + u64::from(client));
        }
        let right = history.reads(1, [1015, 0]);
        assert_eq!(right.verdict(), Verdict::Linearizable);
        assert_eq!(right.reads(1, [1014, 0]).verdict(), Verdict::NotLinearizable);
    }

    #[test]
    fn an_answer_to_nothing_is_no_history() {
        assert!(judge(&History::new().wrote(1, 10).0).is_err());
    }
}
