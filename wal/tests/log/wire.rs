//! Goal: decoding any bytes from the socket returns a message or an error, and allocates no memory
//! for a length that is only claimed. An encoded message is decoded unchanged.
//!
//! Method: random bytes, random messages, and valid messages with bytes changed, cut and added;
//! with an allocator that counts. How many cases: `PROPTEST_CASES`.
#![allow(unsafe_code)]

use proptest::collection::vec;
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use untorn_wal::wire::hello::{CLIENT_HELLO_BYTES, ClientHello, Refusal, SERVER_HELLO_BYTES, ServerHello};
use untorn_wal::wire::{
    self, ChangeItem, Durability, Edge, FRAME_HEADER_BYTES, Failure, Feed, FoundValue, Happened, List,
    MESSAGE_BYTES_MAX, Operation, RangeRecord, Reply, Request, WireError,
};

/// Counts the bytes that a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|count| count.set(count.get() + layout.size()));
        // SAFETY: as the caller promises us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises us.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATED.try_with(|count| count.set(count.get() + size));
        // SAFETY: as the caller promises us.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated_by<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATED.get();
    let result = run();
    (ALLOCATED.get() - before, result)
}

/// Decodes the bytes as both kinds of message, and checks that the memory used is proportional to
/// the bytes.
fn decode_both(bytes: &[u8]) {
    // The smallest item has 8 bytes in a message and 72 in memory, and a growing list is copied a
    // few times.
    let bound = 4096 + 40 * bytes.len();
    let (request, _) = allocated_by(|| drop(wire::decode::<Request<'_>>(bytes)));
    let (reply, _) = allocated_by(|| drop(wire::decode::<Reply<'_>>(bytes)));
    assert!(request.max(reply) <= bound, "{request} and {reply} bytes for {}", bytes.len());
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z.]{0,12}", any::<String>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

/// The parts of a random message, which borrows them.
#[derive(Clone, Debug)]
struct Material {
    names: Vec<String>,
    bytes: Vec<Vec<u8>>,
    numbers: Vec<u64>,
    choice: u32,
}

fn material() -> impl Strategy<Value = Material> {
    (vec(name(), 4), vec(bytes(), 4), vec(any::<u64>(), 4), any::<u32>())
        .prop_map(|(names, bytes, numbers, choice)| Material { names, bytes, numbers, choice })
}

impl Material {
    fn edge(&self, at: usize) -> Edge<'_> {
        match self.numbers[at] % 3 {
            0 => Edge::Open,
            1 => Edge::With(&self.bytes[at]),
            _ => Edge::Without(&self.bytes[at]),
        }
    }

    fn durability(&self) -> Durability {
        match self.numbers[3] % 3 {
            0 => Durability::Durable,
            1 => Durability::Visible,
            _ => Durability::Within { micros: self.numbers[2] },
        }
    }

    fn request(&self) -> Request<'_> {
        let (keyspace, key, value) = (&*self.names[0], &*self.bytes[0], &*self.bytes[1]);
        let (name, number, durability) = (&*self.names[1], self.numbers[0], self.durability());
        match self.choice % 20 {
            0 => Request::Get { keyspace, key },
            1 => Request::MultiGet { keyspace, keys: List(self.bytes.iter().map(|key| &**key).collect()) },
            2 => Request::Put { keyspace, key, value, durability },
            3 => Request::Delete { keyspace, key, durability },
            4 => {
                let operations = vec![
                    Operation::ExpectVersion { keyspace, key, version: number },
                    Operation::Put { keyspace: name, key, value },
                    Operation::ExpectAbsent { keyspace, key: value },
                    Operation::Delete { keyspace, key },
                    Operation::DeleteRange { keyspace, lower: self.edge(2), upper: self.edge(3) },
                ];
                Request::Commit { operations: List(operations), durability }
            }
            5 => Request::Scan {
                keyspace,
                lower: self.edge(2),
                upper: self.edge(3),
                is_reverse: number % 2 == 0,
                piece_bytes: number as u32,
            },
            6 => Request::ScanNext { scan: number as u32 },
            7 => Request::ScanClose { scan: number as u32 },
            8 => Request::Keyspaces,
            9 => Request::Sync,
            10 => Request::Checkpoint,
            11 => Request::Stats,
            12 => Request::CellLoad { name },
            13 => Request::CellLoadVersion { name, version: number },
            14 => Request::CellStore { name, value, is_durable: number % 2 == 0 },
            15 => Request::CounterAdd { name, amount: number },
            16 => Request::CounterGet { name },
            17 => {
                let feed = if number % 2 == 0 { Feed::Durable } else { Feed::Visible };
                Request::Changes { from: Some(number), feed, keyspace: Some(keyspace), prefix: key }
            }
            18 => Request::ChangesNext { wait_ms: number as u32 },
            _ => Request::DeleteRange { keyspace, lower: self.edge(2), upper: self.edge(3), durability },
        }
    }

    fn reply(&self) -> Reply<'_> {
        let (name, key, value) = (&*self.names[0], &*self.bytes[0], &*self.bytes[1]);
        let (txn, number) = (self.numbers[0], self.numbers[1]);
        let found = FoundValue { version: number, value };
        match self.choice % 14 {
            0 => Reply::Failed(Failure { text: name, error: value }),
            1 => Reply::Done,
            2 => Reply::Value(Some(found)),
            3 => Reply::Values { txn, values: List(vec![None, Some(found), None]) },
            4 => Reply::Committed { txn },
            5 => Reply::Deleted { txn, was_there: number % 2 == 0 },
            6 => Reply::Unmet { index: number as u32, current: Some(txn) },
            7 => Reply::Piece { scan: number as u32, txn, records: List(vec![RangeRecord { key, value }; 3]) },
            8 => Reply::Names(List(self.names.iter().map(|name| &**name).collect())),
            9 => Reply::Stats(value),
            10 => Reply::Cell { version: number, value },
            11 => Reply::Count(number),
            12 => Reply::RangeDeleted { txn, removed: number },
            _ => {
                let change = |what| ChangeItem { txn, keyspace: name, key, what, is_last_in_txn: true };
                let end = Some(value).filter(|_| number % 2 == 0);
                let changes = vec![change(Happened::Put(value)), change(Happened::DeleteRange { end })];
                Reply::Changes { through: txn, changes: List(changes) }
            }
        }
    }
}

/// One change to a message's bytes.
fn mutate(body: &mut Vec<u8>, at: prop::sample::Index, how: u8, byte: u8) {
    if body.is_empty() {
        return;
    }
    let at = at.index(body.len());
    match how % 4 {
        0 => body.truncate(at),
        1 => body.insert(at, byte),
        2 => body[at] = 0xff,
        _ => body[at] ^= byte,
    }
}

proptest! {
    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..600), tag in 0u32..24) {
        decode_both(&bytes);
        // These bytes follow a known tag.
        decode_both(&[&tag.to_le_bytes()[..], &bytes].concat());
    }

    #[test]
    fn messages_come_out_as_they_were(material in material()) {
        let request = material.request();
        let frame = wire::encode(&request).unwrap();
        let header = frame[..FRAME_HEADER_BYTES].try_into().unwrap();
        prop_assert_eq!(wire::frame_len(header).unwrap(), frame.len() - FRAME_HEADER_BYTES);
        prop_assert_eq!(&wire::decode::<Request<'_>>(&frame[FRAME_HEADER_BYTES..]).unwrap(), &request);
        let reply = material.reply();
        let frame = wire::encode(&reply).unwrap();
        prop_assert_eq!(&wire::decode::<Reply<'_>>(&frame[FRAME_HEADER_BYTES..]).unwrap(), &reply);
    }

    #[test]
    fn a_part_of_a_message_is_none(material in material(), at: prop::sample::Index, more in vec(any::<u8>(), 1..9)) {
        let frame = wire::encode(&material.request()).unwrap();
        let body = &frame[FRAME_HEADER_BYTES..];
        prop_assert!(wire::decode::<Request<'_>>(&body[..at.index(body.len())]).is_err());
        prop_assert!(wire::decode::<Request<'_>>(&[body, &more].concat()).is_err());
    }

    #[test]
    fn mutated_messages(
        material in material(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..5),
    ) {
        for frame in [wire::encode(&material.request()).unwrap(), wire::encode(&material.reply()).unwrap()] {
            let mut body = frame[FRAME_HEADER_BYTES..].to_vec();
            for (at, how, byte) in &changes {
                mutate(&mut body, *at, *how, *byte);
            }
            decode_both(&body);
        }
    }

    #[test]
    fn hellos(bytes in vec(any::<u8>(), SERVER_HELLO_BYTES), keeps_magic: bool, oldest: u16, newest: u16, text in ".{0,80}") {
        let mut bytes = bytes;
        if keeps_magic {
            bytes[..8].copy_from_slice(&wire::hello::MAGIC);
        }
        let client: &[u8; CLIENT_HELLO_BYTES] = bytes[..CLIENT_HELLO_BYTES].try_into().unwrap();
        if let Ok(hello) = ClientHello::decode(client) {
            let common = hello.common_version();
            prop_assert!(common.is_none_or(|version| (hello.oldest..=hello.newest).contains(&version)));
        }
        let _ = ServerHello::decode(bytes[..].try_into().unwrap());
        let hello = ClientHello { oldest: oldest.min(newest).max(1), newest: newest.max(oldest).max(1) };
        prop_assert_eq!(ClientHello::decode(&hello.encode()).unwrap(), hello);
        let encoded = ServerHello::encode(0, Some(Refusal::Busy), &text);
        let hello = ServerHello::decode(encoded[..SERVER_HELLO_BYTES].try_into().unwrap()).unwrap();
        prop_assert_eq!((hello.refusal, hello.text_bytes), (Some(Refusal::Busy), text.len()));
        prop_assert_eq!(&encoded[SERVER_HELLO_BYTES..], text.as_bytes());
    }
}

#[test]
fn what_is_too_long() {
    for bytes in [MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
        assert_eq!(wire::frame_len(bytes.to_le_bytes()), Err(WireError::TooLong { bytes: u64::from(bytes) }));
    }
    assert_eq!(wire::frame_len((MESSAGE_BYTES_MAX as u32).to_le_bytes()), Ok(MESSAGE_BYTES_MAX));
    let value = vec![0; MESSAGE_BYTES_MAX];
    let request = Request::CellStore { name: "", value: &value, is_durable: false };
    assert!(matches!(wire::encode(&request), Err(WireError::TooLong { .. })));
    let keys = List(vec![&b""[..]; wire::LIST_ITEMS_MAX + 1]);
    let frame = wire::encode(&Request::MultiGet { keyspace: "", keys }).unwrap();
    assert!(matches!(wire::decode::<Request<'_>>(&frame[FRAME_HEADER_BYTES..]), Err(WireError::Malformed { .. })));
}

/// The bytes of version 4, as `docs/protocol.md` draws them.
#[test]
fn the_bytes_of_version_4() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&ClientHello { oldest: 4, newest: 4 }.encode()), "756e746f726e0d0a0400040000000000");
    assert_eq!(hex(&ServerHello::encode(4, None, "")), "756e746f726e0d0a040004000400000000000000");
    let get = Request::Get { keyspace: "users", key: b"alice" };
    assert_eq!(
        hex(&wire::encode(&get).unwrap()),
        concat!("1e000000", "00000000", "0500000000000000", "7573657273", "0500000000000000", "616c696365")
    );
    let put = Request::Put { keyspace: "k", key: b"a", value: b"1", durability: Durability::Visible };
    assert_eq!(
        hex(&wire::encode(&put).unwrap()),
        concat!(
            "23000000",
            "02000000",
            "0100000000000000",
            "6b",
            "0100000000000000",
            "61",
            "0100000000000000",
            "31",
            "01000000"
        )
    );
    let value = Reply::Value(Some(FoundValue { version: 7, value: b"1" }));
    assert_eq!(
        hex(&wire::encode(&value).unwrap()),
        concat!("16000000", "02000000", "01", "0700000000000000", "0100000000000000", "31")
    );
    let keys = Request::MultiGet { keyspace: "k", keys: List(vec![b"a"]) };
    assert_eq!(
        hex(&wire::encode(&keys).unwrap()),
        concat!("1e000000", "01000000", "0100000000000000", "6b", "0100000000000000", "0100000000000000", "61")
    );
    let (lower, upper) = (Edge::With(b"a"), Edge::Open);
    let delete = Request::DeleteRange { keyspace: "k", lower, upper, durability: Durability::Durable };
    assert_eq!(
        hex(&wire::encode(&delete).unwrap()),
        concat!(
            "22000000",
            "13000000",
            "0100000000000000",
            "6b",
            "01000000",
            "0100000000000000",
            "61",
            "00000000",
            "00000000"
        )
    );
    let failed = Reply::Failed(Failure { text: "no", error: b"e" });
    assert_eq!(
        hex(&wire::encode(&failed).unwrap()),
        concat!("17000000", "00000000", "0200000000000000", "6e6f", "0100000000000000", "65")
    );
    let what = Happened::DeleteRange { end: Some(b"c") };
    let change = ChangeItem { txn: 7, keyspace: "k", key: b"a", what, is_last_in_txn: true };
    let changes = Reply::Changes { through: 7, changes: List(vec![change]) };
    assert_eq!(
        hex(&wire::encode(&changes).unwrap()),
        concat!(
            "3d000000",
            "0c000000",
            "0700000000000000",
            "0100000000000000",
            "0700000000000000",
            "0100000000000000",
            "6b",
            "0100000000000000",
            "61",
            "03000000",
            "01",
            "0100000000000000",
            "63",
            "01"
        )
    );
}

/// A frame that is encoded in pieces has the same bytes as a whole frame. Long values are not
/// copied. A sink that refuses a piece gets no further piece.
#[test]
fn a_frame_in_pieces() {
    for (key, value) in [(1, 0), (10, 70_000), (65_500, 65_535), (70_000, 1 << 20), (3, (64 << 10) - 60), (3, 64 << 10)]
    {
        let (key, value) = (vec![1; key], vec![2; value]);
        let request = Request::Put { keyspace: "k", key: &key, value: &value, durability: Durability::Visible };
        let mut pieces = Vec::new();
        let mut whole = Vec::new();
        wire::encode_in_pieces(&request, |piece| {
            pieces.push((piece.as_ptr(), piece.len()));
            whole.extend_from_slice(piece);
            Ok::<(), ()>(())
        })
        .unwrap();
        assert!(whole == wire::encode(&request).unwrap());
        assert!(whole.len() > 64 << 10 || pieces.len() == 1, "a short frame in {} pieces", pieces.len());
        if value.len() > 64 << 10 {
            assert!(pieces.contains(&(value.as_ptr(), value.len())), "the value was copied");
        }
        for refused in 0..pieces.len() {
            let mut asked = 0;
            let failed = wire::encode_in_pieces(&request, |_| {
                asked += 1;
                if asked == refused + 1 { Err(refused) } else { Ok(()) }
            });
            assert_eq!((failed, asked), (Err(refused), refused + 1));
        }
    }
    let key = vec![1; MESSAGE_BYTES_MAX];
    let too_long = wire::encoded_len(&Request::Get { keyspace: "k", key: &key });
    assert!(matches!(too_long, Err(WireError::TooLong { .. })));
}
