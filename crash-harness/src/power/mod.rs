//! Power cuts: the power may fail at any instant, with any part of the unsynced data on the disk.
//! The store must open. Everything acknowledged as durable must be there. Every transaction must be
//! whole or absent, in order. New work must be possible.
//!
//! Real processes work on a file system that this process serves. It records what a disk would
//! receive (see [`crate::recorder`]). Meanwhile another process makes the kernel write mapped pages
//! back all the time. Then the record is cut at many places. States that the cut could have left
//! are laid out in memory, recovered by a new process, and checked. Some of these states are used
//! further, on another recorder, and the power fails again.
//!
//! | module | its one job |
//! |---|---|
//! | [`roles`], [`lives`], [`failures`] | what processes do on a recorder, and what happens to them |
//! | [`device`], [`loop_device`] | power cuts beneath a real file system, on a block device |
//! | [`judge`] | the checks of a state |
//! | [`search`], [`operations`] | the states that are tried, and the operations before them |
//! | [`replay`] | repeats a state that violated a promise |

pub mod device;
pub mod failures;
pub mod judge;
pub mod lives;
pub mod loop_device;
pub mod operations;
pub mod replay;
pub mod roles;
pub mod search;

use crate::context::{Context, Limit};
use crate::outcome::{Coverage, Finding, Outcome};
use crate::processes::instrumented;
use crate::recorder::choice::Choice;
use crate::recorder::image::Image;
use crate::recorder::{Event, Record, Recorder, own_mounts};
use device::{FileSystem, Unmade};
use failures::Failures;
use judge::AcknowledgedAtCut;
use lives::{Life, Lived};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use search::{Bad, Counts, Search};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Smallest number of states that are tried of each life.
const STATES_MIN: u64 = 24;
/// The same if only one life is tried.
const STATES_ONLY: u64 = 300;
/// If a cut has at most this many combinations, all are tried: in a short run, in a long one.
const EXHAUST: (u64, u64) = (64, 256);

/// How a record is made whose states are then tried.
#[derive(Clone, Copy)]
enum Story {
    /// From the store's creation on.
    Fresh(fn(Life, &mut StdRng) -> Result<Lived, Finding>),
    /// The same, with cuts only while checkpoints are taken.
    Checkpoints,
    /// Syncs fail.
    Failing(&'static Failures),
    /// A cut, and cuts during the recovery from it.
    Recovery,
    /// A cut, work after the recovery, and another cut. `kills` processes are killed during
    /// recovery.
    LivingOn { kills: u64 },
    /// One sync covers two batches of the log, and the power fails with the second batch on the
    /// disk and without the first. After the recovery, records of the same lengths take the place
    /// of the first batch and are acknowledged. The power fails again: the second batch must not
    /// reappear.
    LaterBatch { kills: u64 },
    /// On a file system of the kernel, on a recorded device.
    Device(FileSystem),
}

impl Story {
    fn file_system(self) -> Option<FileSystem> {
        match self {
            Story::Device(file_system) => Some(file_system),
            _ => None,
        }
    }
}

/// A life with its name and its weight in the division of time.
struct Item {
    name: String,
    story: Story,
    weight: f64,
    /// Number of states of one record, after which another record is made.
    states_of_one: u64,
}

fn items() -> Vec<Item> {
    let item = |name: &str, story, weight, states_of_one| Item { name: name.to_string(), story, weight, states_of_one };
    let mut items = vec![
        item("plain", Story::Fresh(lives::plain), 6.0, 1500),
        item("by message", Story::Fresh(lives::by_message), 3.0, 1000),
        item("with kills", Story::Fresh(lives::with_kills), 4.0, 1500),
        item("checkpoints", Story::Checkpoints, 3.0, 1000),
        item("recovery", Story::Recovery, 4.0, 80),
        item("after a cut", Story::LivingOn { kills: 0 }, 3.0, 150),
        item("after a cut, killed while recovering", Story::LivingOn { kills: 3 }, 3.0, 150),
        item("a later batch without the earlier", Story::LaterBatch { kills: 0 }, 1.5, 150),
        item("a later batch without the earlier, killed while recovering", Story::LaterBatch { kills: 2 }, 1.5, 150),
    ];
    items.extend(device::ALL.map(|file_system| item(file_system.name(), Story::Device(file_system), 5.0, 400)));
    items.extend(failures::ALL.iter().map(|failures| item(&failures.name(), Story::Failing(failures), 1.0, 300)));
    items
}

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    if let Err(why) = prepare() {
        outcome.skip("power cuts", why);
    } else if let Some(saved) = context.only.as_deref().and_then(|only| only.strip_prefix("record:")) {
        replay::again(context, &mut outcome, saved);
    } else {
        let mut suite = Suite::new(context, &mut outcome);
        suite.run();
        suite.report();
    }
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

/// Checks that file systems can be mounted here. The mounts vanish with this process, however it
/// ends.
///
/// # Errors
/// The reason why they can't be mounted.
pub fn prepare() -> Result<(), String> {
    own_mounts().map_err(|error| format!("no mounts of its own (that takes root): {error}"))?;
    let tried = Recorder::mount(lives::of_one_boot(), None);
    tried.map(drop).map_err(|error| format!("no file system in user space: {error}"))
}

/// The budget of one item.
#[derive(Clone, Copy)]
struct Share {
    until: Option<Instant>,
    states: u64,
}

struct Suite<'a> {
    context: &'a Context,
    outcome: &'a mut Outcome,
    /// The record of a plain life, from which other lives continue.
    base: Option<Record>,
    /// Number of cuts right after each operation.
    hits: BTreeMap<String, u64>,
    /// Number of states that were tried of each item.
    tried: Vec<(String, u64)>,
    counts: Counts,
    lives: u64,
    writes: u64,
}

/// Why there is no record.
enum Ended {
    /// A check of a process failed.
    Found(Finding),
    /// As `Found`, with the command that repeats the state from which the process continued.
    FoundAfter(Finding, String),
    /// The state could not be reached.
    NotReached(String),
    /// The system does not permit it.
    Skipped(String),
}

impl From<Unmade> for Ended {
    fn from(unmade: Unmade) -> Ended {
        match unmade {
            Unmade::Skipped(why) => Ended::Skipped(why),
            Unmade::Found(finding) => Ended::Found(finding),
        }
    }
}

impl From<Finding> for Ended {
    fn from(finding: Finding) -> Ended {
        Ended::Found(finding)
    }
}

/// A record to be searched.
struct Lead {
    lived: Lived,
    /// The acknowledgements before the record.
    acknowledged: AcknowledgedAtCut,
    spans: Vec<RangeInclusive<usize>>,
}

impl Lead {
    fn new(lived: Lived, acknowledged: AcknowledgedAtCut) -> Lead {
        let spans = vec![lived.from..=lived.record.events.len()];
        Lead { lived, acknowledged, spans }
    }
}

impl<'a> Suite<'a> {
    fn new(context: &'a Context, outcome: &'a mut Outcome) -> Suite<'a> {
        let (hits, tried, counts) = (BTreeMap::new(), Vec::new(), Counts::default());
        Suite { context, outcome, base: None, hits, tried, counts, lives: 0, writes: 0 }
    }

    fn run(&mut self) {
        let mut items: Vec<Item> = items().into_iter().filter(|item| self.context.wants(&item.name)).collect();
        if !self.context.is_long() && self.context.only.is_none() {
            // These file systems are slow.
            let is_slow = |item: &Item| matches!(item.story, Story::Device(FileSystem::Xfs | FileSystem::Btrfs));
            let left_out = items.extract_if(.., |item| is_slow(item)).map(|item| item.name);
            self.outcome
                .uncovered
                .extend(left_out.map(|name| format!("{name}: needs a run of at least 1,200 seconds")));
        }
        // There are many scenarios of failing syncs. A random order ensures that a short run does
        // not always omit the same scenarios.
        let is_failing = |item: &Item| matches!(item.story, Story::Failing(_));
        let first = items.iter().position(is_failing).unwrap_or(items.len());
        items[first..].shuffle(&mut self.context.random(0));
        for (index, item) in items.iter().enumerate() {
            if !self.context.may_continue(self.outcome.states, &item.name) && self.context.only.is_none() {
                self.outcome.uncovered.push(format!("{}: the time was up", item.name));
                continue;
            }
            let left: f64 = items[index..].iter().map(|item| item.weight).sum();
            let share = self.share(item.weight / left);
            let before = self.outcome.states;
            self.live(item, share);
            self.tried.push((item.name.clone(), self.outcome.states - before));
        }
    }

    /// Returns this part of the remaining budget.
    fn share(&self, part: f64) -> Share {
        let least = if self.context.only.is_some() { STATES_ONLY } else { STATES_MIN };
        match self.context.limit {
            Limit::Seconds(seconds) => {
                let left = (seconds as f64 - self.context.elapsed().as_secs_f64()).max(0.0);
                Share { until: Some(Instant::now() + Duration::from_secs_f64(left * part)), states: u64::MAX }
            }
            Limit::States(states) => {
                let left = states.saturating_sub(self.outcome.states) as f64;
                Share { until: None, states: least.max((left * part).ceil() as u64) }
            }
        }
    }

    /// Makes records and tries states until the share is used up or a violation is found.
    fn live(&mut self, item: &Item, share: Share) {
        let mut random =
            self.context.random(item.name.bytes().fold(1, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte)));
        let begun = self.outcome.states;
        let may_continue = |states: u64| {
            let done = states - begun;
            let is_in_time = share.until.is_none_or(|until| Instant::now() < until);
            done < share.states && (is_in_time || done < STATES_MIN)
        };
        let mut is_first = true;
        while is_first || may_continue(self.outcome.states) {
            is_first = false;
            let lead = match self.lead(item, &mut random) {
                Ok(lead) => lead,
                Err(Ended::NotReached(why)) => {
                    self.outcome.uncovered.push(format!("{}: {why}", item.name));
                    return;
                }
                Err(Ended::Skipped(why)) => {
                    return self.outcome.skip(format!("cuts beneath {}", item.name), why);
                }
                Err(Ended::Found(finding)) => {
                    self.outcome.states += 1;
                    return self.outcome.violated(finding, &item.name, self.context.replay(&item.name));
                }
                Err(Ended::FoundAfter(finding, replay)) => {
                    self.outcome.states += 1;
                    return self.outcome.violated(finding, &item.name, replay);
                }
            };
            self.lives += 1;
            self.outcome.kills += lead.lived.kills;
            let is_write = |event: &&Event| matches!(event, Event::Write { .. });
            self.writes += lead.lived.record.events.iter().filter(is_write).count() as u64;
            if let Some(bad) = self.search(item, &lead, &mut random, &may_continue) {
                let only = replay::save(
                    self.context,
                    &lead.lived.record,
                    item.story.file_system(),
                    &item.name,
                    &lead.acknowledged,
                    &bad,
                );
                return self.outcome.violated(bad.finding, &item.name, only);
            }
            if matches!(item.story, Story::Fresh(_)) && item.name == "plain" {
                self.base = Some(lead.lived.record);
            }
        }
    }

    /// Tries states of one record.
    fn search(
        &mut self,
        item: &Item,
        lead: &Lead,
        random: &mut StdRng,
        may_continue: &dyn Fn(u64) -> bool,
    ) -> Option<Bad> {
        let directory = self.context.directory_in_memory("states");
        let _ = std::fs::create_dir_all(&directory);
        let exhaust = if self.context.is_long() { EXHAUST.1 } else { EXHAUST.0 };
        let record = &lead.lived.record;
        let bench = search::bench(item.story.file_system());
        let mut search =
            Search::new(record, &*bench, lead.acknowledged.clone(), &lead.spans, directory.clone(), exhaust);
        let (before, context) = (self.outcome.states, self.context);
        let mut found = None;
        while found.is_none()
            && search.counts.states < item.states_of_one
            && may_continue(before + search.counts.states)
        {
            let tried = search.counts.states;
            let mut is_in_share = |states: u64| {
                context.may_continue(before + states, &item.name);
                may_continue(before + states)
            };
            found = search.pass(STATES_MIN * 3, random, &mut is_in_share).err();
            // No new state is left.
            if search.counts.states == tried {
                break;
            }
        }
        self.outcome.states += search.counts.states;
        self.counts.cuts += search.counts.cuts;
        self.counts.exhausted += search.counts.exhausted;
        for (operation, hits) in search.hits {
            *self.hits.entry(operation).or_default() += hits;
        }
        let _ = std::fs::remove_dir_all(directory);
        found.map(|found| *found)
    }

    /// Makes a record of the story.
    fn lead(&mut self, item: &Item, random: &mut StdRng) -> Result<Lead, Ended> {
        let begin = |image: Option<&Image>| {
            Life::begin(instrumented::own(), image)
                .map_err(|error| Ended::NotReached(format!("nothing can be mounted any more: {error}")))
        };
        Ok(match item.story {
            Story::Fresh(live) => Lead::new(live(begin(None)?, random)?, AcknowledgedAtCut::default()),
            Story::Failing(failures) => Lead::new(failures.live(begin(None)?)?, AcknowledgedAtCut::default()),
            Story::Checkpoints => {
                let mut lead = Lead::new(lives::checkpoints(begin(None)?, random)?, AcknowledgedAtCut::default());
                lead.spans = between(&lead.lived.record, "K<", "K>");
                lead
            }
            Story::Recovery => {
                let mut lead = self.after_a_cut("recover", 0, random)?;
                let end = lead.lived.record.events.len();
                let found = |event: &Event| matches!(event, Event::Mark(said) if said == "F.");
                let recovered = lead.lived.record.events.iter().position(found).map_or(end, |at| at + 1);
                lead.spans = vec![lead.lived.from..=recovered];
                lead
            }
            Story::LivingOn { kills } => self.after_a_cut("second", kills, random)?,
            Story::Device(file_system) => {
                let directory = self.context.directory(&format!("mounted-{}", self.lives));
                Lead::new(device::live(file_system, &directory)?, AcknowledgedAtCut::default())
            }
            Story::LaterBatch { kills } => later_batch(self.context, &item.name, begin, kills, random)?,
        })
    }

    /// Continues from a state of a plain life.
    fn after_a_cut(&mut self, role: &str, kills: u64, random: &mut StdRng) -> Result<Lead, Ended> {
        let unmounted = |error| Ended::NotReached(format!("nothing can be mounted any more: {error}"));
        if self.base.is_none() {
            let life = Life::begin(instrumented::own(), None).map_err(unmounted)?;
            self.base = Some(lives::plain(life, random)?.record);
        }
        let base = self.base.as_ref().expect("lived just now");
        let samples = search::samples(base, &AcknowledgedAtCut::default(), 1, random)?;
        let sample = samples.into_iter().next();
        let sample = sample.ok_or_else(|| Ended::NotReached("no state of the log in doubt was found".into()))?;
        let life = Life::begin(instrumented::own(), Some(&sample.image)).map_err(unmounted)?;
        let lived = lives::live_on(life, random, role, kills).map_err(|finding| {
            let bad = Bad { finding, cut: sample.cut, choice: sample.choice };
            let only = replay::save(self.context, base, None, "after a cut", &AcknowledgedAtCut::default(), &bad);
            Ended::FoundAfter(bad.finding, only)
        })?;
        Ok(Lead::new(lived, sample.acknowledged.next_life()))
    }

    /// Copies the figures into the outcome.
    fn report(self) {
        let Suite { outcome, hits, tried, counts, lives, writes, .. } = self;
        let states =
            |name: &str| tried.iter().filter(|(tried, _)| tried == name).map(|(_, states)| *states).sum::<u64>();
        let mut figure = |name: &str, value: u64| {
            outcome.figures.insert(name.into(), value as f64);
        };
        figure("lives", lives);
        figure("writes recorded", writes);
        figure("states recovered by a fresh process", tried.iter().map(|(_, states)| *states).sum());
        figure("cuts", counts.cuts);
        figure("cuts of which every combination was tried", counts.exhausted);
        figure("states of cuts during recovery", states("recovery"));
        figure("states of cuts during checkpoints", states("checkpoints"));
        outcome
            .coverage
            .push(Coverage { of: "operations right before a cut".into(), hits: hits.into_iter().collect() });
        outcome.coverage.push(Coverage { of: "lives, by states".into(), hits: tried });
    }
}

/// Returns the ranges of events between these two marks.
fn between(record: &Record, from: &str, to: &str) -> Vec<RangeInclusive<usize>> {
    let mut spans = Vec::new();
    let mut begun = None;
    for (at, event) in record.events.iter().enumerate() {
        match event {
            Event::Mark(said) if said == from => begun = Some(at + 1),
            Event::Mark(said) if said == to => spans.extend(begun.take().map(|begun| begun..=at + 1)),
            _ => {}
        }
    }
    spans
}

/// Makes the record of [`Story::LaterBatch`].
fn later_batch(
    context: &Context,
    name: &str,
    begin: impl Fn(Option<&Image>) -> Result<Life, Ended>,
    kills: u64,
    random: &mut StdRng,
) -> Result<Lead, Ended> {
    let first = lives::two_batches(begin(None)?, random)?.record;
    let Some((cut, earlier)) = two_batches(&first) else {
        return Err(Ended::NotReached("the log never wrote two batches before one sync".into()));
    };
    let choice = Choice::Without(earlier);
    let (image, acknowledged) =
        search::state(&first, crate::recorder::SECTOR, AcknowledgedAtCut::default(), cut, &choice)?;
    let lived = lives::live_on(begin(Some(&image))?, random, "bulk", kills).map_err(|finding| {
        let bad = Bad { finding, cut, choice };
        let only = replay::save(context, &first, None, name, &AcknowledgedAtCut::default(), &bad);
        Ended::FoundAfter(bad.finding, only)
    })?;
    Ok(Lead::new(lived, acknowledged.next_life()))
}

/// Returns the position of a sync that covers two batches, and the position of the first batch's
/// write.
fn two_batches(record: &Record) -> Option<(usize, usize)> {
    /// Number of pages of a batch that fills the largest possible write.
    const WHOLE: usize = 256;
    let mut writes: Vec<usize> = Vec::new();
    let mut begun = false;
    for (at, event) in record.events.iter().enumerate() {
        match event {
            Event::Write { file, pages, .. } if begun => {
                let continues =
                    |before: &usize| matches!(&record.events[*before], Event::Write { file: f, .. } if f == file);
                if pages.len() == WHOLE {
                    writes = vec![at];
                } else if writes.len() == 1 && writes.iter().all(continues) {
                    writes.push(at);
                }
            }
            Event::Synced { .. } if writes.len() == 2 => return Some((at, writes[0])),
            Event::Mark(said) => begun |= said.starts_with("B "),
            _ => {}
        }
    }
    None
}
