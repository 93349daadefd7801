//! The other processes of the axis of processes: each opens the store, reports that it is ready,
//! repeats one operation in the window that its command names, and reports how often.

use crate::arguments::{Arguments, ROUNDS};
use crate::load::{Loaded, Operation, Window, median};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The first argument of a worker; the store's path, the number of entries and a seed follow.
const ROLE: &str = "--worker";

/// Runs the worker, if the arguments are those of a worker.
pub(crate) fn work_if_asked(words: &[String]) -> bool {
    let [role, path, entries, seed] = words else { return false };
    if role != ROLE {
        return false;
    }
    let (store, mut runner) = Loaded::join(path.as_ref(), entries.parse().unwrap(), seed.parse().unwrap());
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let [operation, start, end] = line.split(' ').map(|word| word.parse().unwrap()).collect::<Vec<u64>>()[..]
        else {
            panic!("the command {line:?}")
        };
        println!("{}", runner.repeat(&store, Operation::ALL[operation as usize], Window { start, end }));
    }
    true
}

/// A worker.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start(loaded: &Loaded, seed: usize) -> Worker {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(ROLE).arg(loaded.path()).arg(loaded.entries.to_string()).arg((seed << 40).to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Worker { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "a worker died");
        line.trim().to_string()
    }
}

/// Returns the wall time per operation in nanoseconds, over all processes together: the median of
/// several rounds.
pub(crate) fn time_all(loaded: &Loaded, processes: usize, arguments: &Arguments) -> [f64; 3] {
    let mut workers: Vec<Worker> = (0..processes).map(|index| Worker::start(loaded, index + 1)).collect();
    workers.iter_mut().for_each(|worker| assert_eq!(worker.line(), "ready"));
    let mut time = |index: usize| {
        let mut rounds = [0.0; ROUNDS];
        for round in &mut rounds {
            // The lead time lets every process run on a processor before the window opens.
            let lead = Duration::from_millis(50 + 5 * processes as u64);
            let window = Window::new(lead, arguments.time_of_a_round());
            for worker in &mut workers {
                writeln!(worker.input, "{index} {} {}", window.start, window.end).unwrap();
            }
            let count: u64 = workers.iter_mut().map(|worker| worker.line().parse::<u64>().unwrap()).sum();
            *round = window.nanos() as f64 / count as f64;
        }
        loaded.settle();
        median(rounds)
    };
    let times = [time(0), time(1), time(2)];
    for Worker { mut child, input, .. } in workers {
        // The worker exits at the end of its input.
        drop(input);
        child.wait().unwrap();
    }
    times
}
