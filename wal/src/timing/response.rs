//! The longest time that a commit can take: response-time analysis for fixed priorities without
//! preemption.
//!
//! The writer lock is a resource like the bus of a controller area network: its holder is not
//! interrupted, and the most urgent waiter is next. So the analysis of that bus applies: K.
//! Tindell, A. Burns, A. Wellings, *Calculating controller area network (CAN) message response
//! times* (1995), as corrected by R. Davis, A. Burns, R. Bril, J. Lukkien, *Controller Area Network
//! (CAN) schedulability analysis: Refuted, revisited and revised*, Real-Time Systems 35 (2007). The
//! older analysis considered only the first instance. A later instance of the same busy period can
//! take longer, since an instance that is not preempted delays others.
//!
//! There is one difference. Messages of one priority are sent in the order of their arrival. If two
//! requests of one class wait for the lock, either may get it first. So all requests of the same
//! class that arrive before a request gets the lock may pass it.
//!
//! All times are nanoseconds. Pure arithmetic.

/// A source of repeated requests for the resource. A slice of tasks is in the order of their
/// priorities, the highest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// The longest time for which it holds the resource.
    pub hold_ns: u64,
    /// The shortest time between two of its requests, on average over a burst.
    pub period_ns: u64,
    /// How much earlier than the period implies a request may arrive. A burst of n requests is a
    /// jitter of n − 1 periods.
    pub jitter_ns: u64,
}

impl Task {
    /// Returns the task of `callers` threads that make `per_second` requests in all, each for at
    /// most `hold_ns`. All threads may request at once.
    #[must_use]
    pub fn of_callers(callers: u64, per_second: f64, hold_ns: u64) -> Task {
        // A lower rate is rounded up to one request in `RESPONSE_MAX_NS`, and 0 as well.
        let period_ns = (1e9 / per_second).clamp(1.0, RESPONSE_MAX_NS as f64) as u64;
        Task::of_callers_each(callers, period_ns, hold_ns)
    }

    fn of_callers_each(callers: u64, period_ns: u64, hold_ns: u64) -> Task {
        Task { hold_ns, period_ns, jitter_ns: callers.saturating_sub(1).saturating_mul(period_ns) }
    }

    fn callers(&self) -> u64 {
        self.jitter_ns / self.period_ns.max(1) + 1
    }

    /// Returns how many requests can come in a window of `ns`, including its end.
    fn requests(&self, ns: u64) -> u64 {
        (ns.saturating_add(self.jitter_ns) / self.period_ns.max(1)).saturating_add(1)
    }
}

/// The longest bound that is searched for: a longer one would be of no use.
const RESPONSE_MAX_NS: u64 = 3_600_000_000_000;

/// The search also ends after this many steps, or instances. More are needed only if the resource
/// is almost completely in use.
const STEPS_MAX: u64 = 10_000;

/// Returns the longest time from a request of task `index` until it releases the resource, if tasks
/// of lower priority may block it for `blocking_ns`. Returns `None` if there is no bound, because
/// the resource is overloaded or almost so.
#[must_use]
pub fn response_ns(tasks: &[Task], index: usize, blocking_ns: u64) -> Option<u64> {
    let task = tasks.get(index)?;
    let higher = &tasks[..index];
    let asked = |tasks: &[Task], window: u64| {
        tasks.iter().fold(0_u64, |sum, task| sum.saturating_add(task.requests(window).saturating_mul(task.hold_ns)))
    };
    // The longest time for which tasks of this priority and above keep the resource busy. A request
    // that comes exactly at its end is not part of it.
    let busy_ns = fixed_point(task.hold_ns.max(1), |busy| {
        blocking_ns.saturating_add(asked(&tasks[..=index], busy.saturating_sub(1)))
    })?;
    let instances = task.requests(busy_ns.saturating_sub(1));
    if instances > STEPS_MAX {
        return None;
    }
    let mut longest = 0;
    // The start of instance q cannot be delayed by more than all requests that came up to then,
    // including that instant.
    let mut start_ns = 0;
    // Requests of one class may pass each other, so the instance that starts is not known. It may
    // be the first of all requests since the last start at which only one request was waiting: that
    // one could not be passed.
    let mut first = 0_u64;
    for instance in 0..instances {
        let before = blocking_ns.saturating_add(instance.saturating_mul(task.hold_ns));
        start_ns = fixed_point(before.max(start_ns), |start| before.saturating_add(asked(higher, start)))?;
        // The first requests are late by the jitter, and later ones come at the period: the window
        // begins with the first.
        let asked_at = first.saturating_mul(task.period_ns).saturating_sub(task.jitter_ns);
        longest = longest.max(start_ns.saturating_add(task.hold_ns).saturating_sub(asked_at));
        if task.requests(start_ns) <= instance + 1 {
            first = instance + 1;
        }
    }
    Some(longest)
}

/// Returns the least value from `begin` on that `next` maps to itself.
fn fixed_point(begin: u64, next: impl Fn(u64) -> u64) -> Option<u64> {
    let mut now = begin;
    for _ in 0..STEPS_MAX {
        let then = next(now).max(now);
        if then == now {
            return Some(now);
        }
        if then > RESPONSE_MAX_NS {
            return None;
        }
        now = then;
    }
    None
}

/// The figures of a store from which the bounds of its two classes of commits are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Classes {
    /// The urgent commits.
    pub urgent: Task,
    /// The bulk commits.
    pub bulk: Task,
    /// How long a bulk commit waits for the lock before it counts as urgent.
    pub bulk_patience_ns: u64,
    /// How long a bulk commit waits at most for its share of the ring, while urgent commits come.
    pub share_wait_ns: u64,
    /// The longest flush: an fsync that has begun is not interrupted.
    pub flush_ns: u64,
    /// How late a sleeping thread wakes up.
    pub wake_ns: u64,
}

/// The bound of an urgent commit, part by part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseBound {
    /// How long bulk commits block it: for two of their critical sections. One is under way when
    /// the urgent commit requests the lock; another may begin just before it has announced itself.
    /// The comment of the writer lock explains why there is no third.
    pub blocking_ns: u64,
    /// The time until the commit is visible and the lock is released.
    pub visible_ns: u64,
    /// The time until the commit is durable and its caller returns.
    pub durable_ns: u64,
}

impl Classes {
    /// Returns the longest times of an urgent commit; `None` if there is no bound.
    ///
    /// The time after the lock is released does not depend on the number of commits, since one
    /// flush covers all that is published when it begins. So a commit waits for the flush that has
    /// just begun, for its own, and for the wake-ups of the logger and of its caller.
    ///
    /// Bulk commits that have waited longer than their patience may also precede the urgent commit,
    /// as often as their rate allows. Every critical section may begin with the wake-up of the
    /// waiter that the lock is reserved for, during which no other waiter gets it.
    #[must_use]
    pub fn urgent(&self) -> Option<ResponseBound> {
        let bulk = self.handed(self.bulk);
        let callers = bulk.callers();
        let period_ns = bulk.period_ns.max(self.bulk_patience_ns / callers);
        let impatient = Task::of_callers_each(callers, period_ns, bulk.hold_ns);
        let blocking_ns = bulk.hold_ns.saturating_mul(2);
        let visible_ns = response_ns(&[impatient, self.handed(self.urgent)], 1, blocking_ns)?;
        Some(self.with_flush(blocking_ns, visible_ns))
    }

    /// Returns the longest times of a bulk commit whose caller waits: for its share of the ring,
    /// for the lock, and for the flush.
    #[must_use]
    pub fn bulk(&self) -> Option<ResponseBound> {
        let share_wait_ns = if self.urgent.period_ns < RESPONSE_MAX_NS { self.share_wait_ns } else { 0 };
        let lock_ns = response_ns(&[self.handed(self.urgent), self.handed(self.bulk)], 1, 0)?;
        Some(self.with_flush(0, share_wait_ns.saturating_add(lock_ns)))
    }

    fn handed(&self, task: Task) -> Task {
        Task { hold_ns: task.hold_ns.saturating_add(self.wake_ns), ..task }
    }

    fn with_flush(&self, blocking_ns: u64, visible_ns: u64) -> ResponseBound {
        let flushes = self.flush_ns.saturating_mul(2).saturating_add(self.wake_ns.saturating_mul(2));
        ResponseBound { blocking_ns, visible_ns, durable_ns: visible_ns.saturating_add(flushes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const US: u64 = 1000;

    fn task(hold_us: u64, period_us: u64) -> Task {
        Task { hold_ns: hold_us * US, period_ns: period_us * US, jitter_ns: 0 }
    }

    /// The example by which Davis et al. refute the older analysis (their Table 2): messages of 1
    /// ms, with periods of 2.5, 3.5 and 3.5 ms. The first instance of the third takes 3 ms, the
    /// second one 3.5.
    #[test]
    fn the_example_in_which_the_second_instance_takes_longer() {
        let tasks = [task(1000, 2500), task(1000, 3500), task(1000, 3500)];
        assert_eq!(response_ns(&tasks, 0, 1000 * US), Some(2000 * US));
        assert_eq!(response_ns(&tasks, 1, 1000 * US), Some(3000 * US));
        assert_eq!(response_ns(&tasks, 2, 0), Some(3500 * US));
    }

    #[test]
    fn no_bound_when_more_is_asked_for_than_there_is() {
        let tasks = [task(600, 1000), task(500, 1000)];
        assert_eq!(response_ns(&tasks, 0, 500 * US), Some(1100 * US));
        assert_eq!(response_ns(&tasks, 1, 0), None);
        assert_eq!(response_ns(&tasks, 2, 0), None);
    }

    #[test]
    fn callers_of_one_class_wait_for_each_other() {
        let four = Task::of_callers(4, 100.0, 200 * US);
        assert_eq!(response_ns(&[four], 0, 0), Some(800 * US));
        assert_eq!(response_ns(&[four], 0, 300 * US), Some(1100 * US));
        // A task that never makes a request.
        assert_eq!(response_ns(&[Task::of_callers(3, 0.0, 200 * US), task(100, 1000)], 1, 0), Some(700 * US));
    }

    #[test]
    fn flushes_count_twice_however_many_commits_there_are() {
        let classes = |callers| Classes {
            urgent: Task::of_callers(callers, 100.0, 10 * US),
            bulk: Task::of_callers(1, 100.0, 1000 * US),
            bulk_patience_ns: 50_000 * US,
            share_wait_ns: 50_000 * US,
            flush_ns: 3000 * US,
            wake_ns: 100 * US,
        };
        let (one, eight) = (classes(1).urgent().unwrap(), classes(8).urgent().unwrap());
        assert_eq!(one.blocking_ns, 2200 * US);
        assert_eq!(one.durable_ns - one.visible_ns, 6200 * US);
        // Seven more sections, and as many wake-ups.
        assert_eq!(eight.durable_ns - one.durable_ns, 770 * US);
        // Without urgent commits, no commit comes first, and there is no wait for a share.
        let alone = Classes { urgent: Task::of_callers(1, 0.0, 0), ..classes(1) };
        let (alone, beside) = (alone.bulk().unwrap(), classes(1).bulk().unwrap());
        assert_eq!(beside.visible_ns - alone.visible_ns, 50_000 * US + 10 * US);
    }

    /// Of two waiting requests, the later one may be first: the third request of this burst passes
    /// the second.
    #[test]
    fn a_request_may_be_passed_by_a_later_one_of_its_class() {
        let task = Task { jitter_ns: 1000 * US, ..task(400, 1000) };
        assert_eq!(response_ns(&[task], 0, 800 * US), Some(2000 * US));
    }

    #[test]
    fn no_bound_is_looked_for_without_end() {
        let tasks =
            [Task { hold_ns: 1, period_ns: 1_000_000_007, jitter_ns: 0 }, Task::of_callers(3, 1e9 / 1001.0, 1000)];
        assert_eq!(response_ns(&tasks, 1, 1_000_000), None);
    }

    /// Simulates the resource for these requests, which are in the order of arrival. Returns the
    /// class of each request, and how long it took. Within a class, `last` (an index in
    /// `requests`) is served last, and of the others the latest first.
    fn simulate(requests: &[(u64, usize)], holds: &[u64], last: usize) -> Vec<(usize, u64)> {
        let mut waiting: Vec<usize> = Vec::new();
        let (mut to_come, mut now, mut done) = (0, 0, Vec::new());
        loop {
            while to_come < requests.len() && requests[to_come].0 <= now {
                waiting.push(to_come);
                to_come += 1;
            }
            let next = waiting.iter().copied().min_by_key(|&at| (requests[at].1, at == last, std::cmp::Reverse(at)));
            match next {
                Some(next) => {
                    waiting.retain(|other| *other != next);
                    let (at, class) = requests[next];
                    now += holds[class];
                    done.push((class, now - at));
                }
                None if to_come < requests.len() => now = requests[to_come].0,
                None => return done,
            }
        }
    }

    proptest! {
        /// Goal: no simulated run of a non-preemptive resource takes longer than the bound,
        /// whatever the offsets, the bursts, and the order within a class.
        #[test]
        fn no_run_exceeds_the_bound(
            params in proptest::collection::vec((1_u64..20, 1_u64..60, 0_u64..60, 1_u64..4), 1..5),
            lasts in proptest::collection::vec(proptest::arbitrary::any::<proptest::sample::Index>(), 8),
        ) {
            let tasks: Vec<Task> =
                params.iter().map(|&(hold, slack, _, callers)| Task::of_callers_each(callers, hold + slack, hold)).collect();
            let mut requests: Vec<(u64, usize)> = Vec::new();
            for (class, (&(.., offset, _), task)) in params.iter().zip(&tasks).enumerate() {
                requests.extend((0..40).map(|n| (offset + (n * task.period_ns).saturating_sub(task.jitter_ns), class)));
            }
            requests.sort_unstable();
            let holds: Vec<u64> = tasks.iter().map(|task| task.hold_ns).collect();
            for last in lasts {
                for (class, took) in simulate(&requests, &holds, last.index(requests.len())) {
                    let blocking = tasks[class + 1..].iter().map(|task| task.hold_ns).max().unwrap_or(0);
                    if let Some(bound) = response_ns(&tasks, class, blocking) {
                        prop_assert!(took <= bound, "{:?}: class {} took {} of {}", tasks, class, took, bound);
                    }
                }
            }
        }
    }
}
