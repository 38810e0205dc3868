//! A subscriber of KV events with its own reader of ZMTP and MessagePack, and the index that it rebuilds from the tokens of the events.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::deadline::STATE_WITHIN;
use serde_json::{Map, Value};

/// A connection to one publisher. A thread reads it until the publisher ends.
pub(crate) struct Subscriber(Arc<Mutex<Index>>);

/// What the publisher has cached.
struct Index {
    page_tokens: usize,
    /// The picker's own hash of each cached block, by the publisher's hash.
    blocks: HashMap<u64, u64>,
    /// The sequence number of the next batch.
    next: Option<u64>,
    error: Option<String>,
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The picker's hash of a block after the block `parent`.
fn chained(parent: u64, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent, tokens).hash(&mut hasher);
    hasher.finish()
}

impl Subscriber {
    /// Connects, and returns once the publisher has the subscription.
    pub(crate) fn connect(address: &str, topic: &str, page_tokens: usize) -> Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(STATE_WITHIN))?;
        // Both greetings are the same: version 3.1 and the mechanism NULL.
        let mut greeting = [0; 64];
        socket.read_exact(&mut greeting)?;
        socket.write_all(&greeting)?;
        socket.write_all(&frame(4, b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"))?;
        ensure!(read_frame(&mut socket)?.1.starts_with(b"\x05READY"));
        socket.write_all(&frame(0, &[b"\x01", topic.as_bytes()].concat()))?;
        socket.write_all(&frame(4, b"\x04PING\0\0subscribed"))?;
        ensure!(read_frame(&mut socket)? == (4, b"\x04PONGsubscribed".to_vec()));
        socket.set_read_timeout(None)?;
        let index = Index { page_tokens, blocks: HashMap::new(), next: None, error: None };
        let index = Arc::new(Mutex::new(index));
        let (ours, topic) = (Arc::clone(&index), topic.to_owned());
        std::thread::spawn(move || {
            // An error here is the end of the publisher.
            while let Ok(frames) = read_message(&mut socket) {
                let mut index = lock(&ours);
                if let Err(error) = index.apply(&topic, &frames) {
                    index.error = Some(format!("{error:#}"));
                }
            }
        });
        Ok(Self(index))
    }

    /// Number of the prompt's first pages that the publisher has cached.
    pub(crate) fn cached_pages(&self, prompt: &[u32]) -> usize {
        let index = lock(&self.0);
        let cached: HashSet<u64> = index.blocks.values().copied().collect();
        let mut parent = 0;
        let is_cached = |tokens: &&[u32]| {
            parent = chained(parent, tokens);
            cached.contains(&parent)
        };
        prompt.chunks_exact(index.page_tokens).take_while(is_cached).count()
    }

    /// # Errors
    /// A batch was not understood or is missing.
    pub(crate) fn check(&self) -> Result<()> {
        match &lock(&self.0).error {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        }
    }
}

impl Index {
    fn apply(&mut self, topic: &str, frames: &[Vec<u8>]) -> Result<()> {
        let [name, sequence, payload] = frames else { bail!("a message of {} frames", frames.len()) };
        ensure!(name == topic.as_bytes(), "topic {}", String::from_utf8_lossy(name));
        let sequence = u64::from_be_bytes(sequence[..].try_into()?);
        ensure!(self.next.is_none_or(|next| next == sequence), "{sequence} came after {:?}", self.next);
        self.next = Some(sequence + 1);
        let batch = value(&mut &payload[..])?;
        for event in batch[1].as_array().with_context(|| batch.to_string())? {
            self.apply_event(event).with_context(|| event.to_string())?;
        }
        Ok(())
    }

    fn apply_event(&mut self, event: &Value) -> Result<()> {
        let hashes = || event["block_hashes"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        match event["type"].as_str() {
            Some("AllBlocksCleared") => self.blocks.clear(),
            Some("BlockRemoved") => hashes().for_each(|hash| {
                self.blocks.remove(&hash);
            }),
            Some("BlockStored") => {
                let mut parent = match event["parent_block_hash"].as_u64() {
                    Some(hash) => *self.blocks.get(&hash).context("the parent is unknown")?,
                    None => 0,
                };
                let tokens: Vec<u32> = serde_json::from_value(event["token_ids"].clone())?;
                ensure!(event["block_size"] == self.page_tokens);
                for (hash, tokens) in hashes().zip(tokens.chunks_exact(self.page_tokens)) {
                    parent = chained(parent, tokens);
                    self.blocks.insert(hash, parent);
                }
            }
            _ => bail!("an unknown event"),
        }
        Ok(())
    }
}

/// A short frame. The flags are 4 for a command and 1 if the message has further frames.
fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    [&[flags, body.len() as u8], body].concat()
}

fn read_frame(socket: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    const LONG: u8 = 2;
    let mut flags = [0];
    socket.read_exact(&mut flags)?;
    let mut length = [0; 8];
    let short = if flags[0] & LONG == 0 { 7 } else { 0 };
    socket.read_exact(&mut length[short..])?;
    let mut body = vec![0; usize::try_from(u64::from_be_bytes(length))?];
    socket.read_exact(&mut body)?;
    Ok((flags[0] & !LONG, body))
}

fn read_message(socket: &mut TcpStream) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = read_frame(socket)?;
        frames.push(body);
        if flags & 1 == 0 {
            return Ok(frames);
        }
    }
}

/// Reads one value of MessagePack, of the types that KV events have.
fn value(bytes: &mut &[u8]) -> Result<Value> {
    let kind = take(bytes, 1)?[0];
    Ok(match kind {
        0x00..=0x7f => kind.into(),
        0x80..=0x8f => map(bytes, u64::from(kind & 0x0f))?,
        0x90..=0x9f => array(bytes, u64::from(kind & 0x0f))?,
        0xa0..=0xbf => text(bytes, u64::from(kind & 0x1f))?,
        0xc0 => Value::Null,
        0xc2 | 0xc3 => (kind == 0xc3).into(),
        0xcb => f64::from_bits(number(bytes, 8)?).into(),
        0xcc..=0xcf => number(bytes, 1 << (kind - 0xcc))?.into(),
        0xd9..=0xdb => number(bytes, 1 << (kind - 0xd9)).and_then(|length| text(bytes, length))?,
        0xdc | 0xdd => number(bytes, 2 << (kind - 0xdc)).and_then(|length| array(bytes, length))?,
        0xde | 0xdf => number(bytes, 2 << (kind - 0xde)).and_then(|length| map(bytes, length))?,
        _ => bail!("a value of kind {kind:#x}"),
    })
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    bytes.split_off(..count).context("the batch ends too early")
}

fn number(bytes: &mut &[u8], count: usize) -> Result<u64> {
    Ok(take(bytes, count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn text(bytes: &mut &[u8], length: u64) -> Result<Value> {
    Ok(std::str::from_utf8(take(bytes, usize::try_from(length)?)?)?.into())
}

fn array(bytes: &mut &[u8], length: u64) -> Result<Value> {
    (0..length).map(|_| value(bytes)).collect()
}

fn map(bytes: &mut &[u8], length: u64) -> Result<Value> {
    let mut fields = Map::new();
    for _ in 0..length {
        let name = value(bytes)?;
        let name = name.as_str().context("a key that is no text")?.to_owned();
        fields.insert(name, value(bytes)?);
    }
    Ok(fields.into())
}
