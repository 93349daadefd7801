//! Hostile peers on the logger's socket. They send garbage, truncated or changed messages, wrong
//! lengths, and single bytes. They also flood the logger with requests without reading the answers.
//! The logger must survive and serve the correct clients.

use super::after;
use super::processes::{ScenarioProcesses, ScenarioResult, found};
use crate::outcome::Kind;
use crate::workload;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Concurrent hostile peers.
const STRANGERS: u64 = 6;
/// Duration of the attack.
const ATTACK: Duration = Duration::from_millis(1500);
/// The first message of a client: magic, oldest and newest version, reserved.
const HELLO: [u8; 16] = *b"untorn\r\n\x01\x00\x01\x00\x00\x00\x00\x00";
/// Length of the server's answer to [`HELLO`], without a text.
const WELCOME_BYTES: usize = 20;

/// Runs the scenario and returns the number of hostile connections.
pub(super) fn play(path: &Path, seed: u64) -> ScenarioResult<u64> {
    let mut processes = ScenarioProcesses::new(path)?;
    let writer = processes.start("a", "enduring", &["a", "", "stay", "", "visible"])?;
    processes.wait_for(writer, "D ", 1)?;
    let messenger = processes.start("m", "messenger", &["m"])?;
    processes.wait_for(messenger, "D ", 1)?;
    let logger = logger_of(path)?;
    let (stop, connections) = (AtomicBool::new(false), AtomicU64::new(0));
    let socket = path.join("logger.sock");
    let served = std::thread::scope(|scope| {
        for stranger in 0..STRANGERS {
            let (stop, connections, socket) = (&stop, &connections, &socket);
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(stranger));
                while !stop.load(Ordering::Relaxed) {
                    let Ok(stream) = UnixStream::connect(socket) else { continue };
                    connections.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
                    let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
                    let _ = bother(stream, &mut dice, stop);
                }
            });
        }
        let before = [writer, messenger].map(|process| (process, processes.count(process, "D ")));
        std::thread::sleep(ATTACK);
        // Both clients make progress during the attack.
        let served = before.into_iter().try_for_each(|(process, count)| processes.wait_for(process, "D ", count + 2));
        stop.store(true, Ordering::Relaxed);
        served
    });
    served?;
    processes.check()?;
    let later = logger_of(path)?;
    if logger != later || logger.is_none() {
        let what = format!("the logger {logger:?} ended during the attack, {later:?} is there");
        return found(Kind::Misbehaved, format!("{what}; {}", processes.loggers_ended()));
    }
    let mut acknowledged = processes.end()?;
    acknowledged
        .iter_mut()
        .filter(|(name, _)| name == "m")
        .for_each(|(_, acknowledged)| acknowledged.is_messenger = true);
    after::judge(path, &acknowledged, false)?;
    Ok(connections.into_inner())
}

/// Returns the process id of the logger from the statistics of the store.
fn logger_of(path: &Path) -> ScenarioResult<Option<u32>> {
    let store = workload::open(path)?;
    Ok(store.stats().map_err(workload::misbehaved("stats"))?.logger_pid)
}

/// Runs one hostile connection.
fn bother(mut stream: UnixStream, dice: &mut StdRng, stop: &AtomicBool) -> std::io::Result<()> {
    let mut garbage = vec![0; dice.random_range(1..5000)];
    dice.fill_bytes(&mut garbage);
    if dice.random_range(0..8) == 0 {
        // Sends garbage in place of the hello.
        return stream.write_all(&garbage);
    }
    let mut hello = HELLO;
    if dice.random_range(0..12) == 0 {
        hello[dice.random_range(0..16)] ^= 1 << dice.random_range(0..8);
    }
    stream.write_all(&hello)?;
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome)?;
    match dice.random_range(0..7) {
        0 => stream.write_all(&garbage),
        // A length field with any 32-bit value, then at most that many bytes of garbage.
        1 => {
            let len: u32 = dice.random::<u32>() >> dice.random_range(0..32);
            stream.write_all(&len.to_le_bytes())?;
            stream.write_all(&garbage[..garbage.len().min(len as usize)])
        }
        // Valid messages. The last message is truncated.
        2 => {
            let message = framed(&request(dice));
            stream.write_all(&framed(&request(dice)))?;
            stream.write_all(&message[..dice.random_range(0..message.len())])
        }
        // A message, byte by byte.
        3 => {
            for byte in framed(&request(dice)) {
                stream.write_all(&[byte])?;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(())
        }
        // A flood of requests whose answers are not read.
        4 => {
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&framed(&request(dice)))?;
            }
            Ok(())
        }
        // Corrupt messages. The answers are read.
        _ => {
            for _ in 0..20 {
                let mut body = request(dice);
                for _ in 0..dice.random_range(0..4) {
                    let at = dice.random_range(0..body.len());
                    match dice.random_range(0..4) {
                        0 => body.truncate(at.max(1)),
                        1 => body.insert(at, dice.random()),
                        _ => body[at] ^= 1 << dice.random_range(0..8),
                    }
                }
                stream.write_all(&framed(&body))?;
                let mut length = [0; 4];
                stream.read_exact(&mut length)?;
                let mut reply = vec![0; (u32::from_le_bytes(length) as usize).min(1 << 20)];
                stream.read_exact(&mut reply)?;
            }
            Ok(())
        }
    }
}

/// Returns a request of any kind, about names that only the hostile peers use.
fn request(dice: &mut StdRng) -> Vec<u8> {
    let bytes = |to: &mut Vec<u8>, bytes: &[u8]| {
        to.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        to.extend_from_slice(bytes);
    };
    let kind: u32 = dice.random_range(0..20);
    let mut body = kind.to_le_bytes().to_vec();
    match kind {
        0 => {
            bytes(&mut body, b"hostile");
            bytes(&mut body, b"key");
        }
        2 | 3 => {
            bytes(&mut body, b"hostile");
            bytes(&mut body, &[dice.random()]);
            if kind == 2 {
                bytes(&mut body, &vec![7; dice.random_range(0..9000)]);
            }
            body.extend_from_slice(&1u32.to_le_bytes());
        }
        // No operations, or an impossible number of them.
        4 => {
            let count = if dice.random() { 0 } else { dice.random::<u64>() };
            body.extend_from_slice(&count.to_le_bytes());
            body.extend_from_slice(&1u32.to_le_bytes());
        }
        5 => {
            bytes(&mut body, b"hostile");
            body.extend_from_slice(&[0; 8]);
            body.push(0);
            body.extend_from_slice(&dice.random::<u32>().to_le_bytes());
        }
        6 | 7 | 18 => body.extend_from_slice(&(dice.random::<u32>() >> 20).to_le_bytes()),
        12 | 16 => bytes(&mut body, b"hostile cell"),
        14 => {
            bytes(&mut body, b"hostile cell");
            bytes(&mut body, &[9; 40]);
            body.push(0);
        }
        15 => {
            bytes(&mut body, b"hostile counter");
            body.extend_from_slice(&1u64.to_le_bytes());
        }
        17 => {
            body.push(0);
            body.extend_from_slice(&1u32.to_le_bytes());
            body.push(0);
            bytes(&mut body, b"");
        }
        _ => {}
    }
    body
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}
