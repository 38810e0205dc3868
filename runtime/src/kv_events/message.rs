//! Batches of KV events as MessagePack, as vLLM 0.33 encodes them (`vllm/distributed/kv_events.py`): a batch is an array, and an event is a
//! map with the name of its type.

use std::time::UNIX_EPOCH;

use actors::devices::kv_events::CacheBatch;
use actors::messages::{CacheEvent, PrefixHash};
use rmp::encode::{
    ByteBuf, ValueWriteError, write_array_len, write_f64, write_map_len, write_nil, write_str, write_uint,
};

/// The memory of the pages: in vLLM the name of the memory that the engine computes with.
const MEDIUM: &str = "GPU";
/// vLLM's data-parallel rank. A Baton process is one rank.
const RANK: u64 = 0;

type Written = Result<(), ValueWriteError<<ByteBuf as rmp::encode::RmpWrite>::Error>>;

/// The payload of a batch.
pub(super) fn encode(batch: &CacheBatch, page_tokens: u32) -> Vec<u8> {
    let mut out = ByteBuf::new();
    write_batch(&mut out, batch, page_tokens).expect("memory can always be written");
    out.into_vec()
}

fn write_batch(out: &mut ByteBuf, batch: &CacheBatch, page_tokens: u32) -> Written {
    write_array_len(out, 3)?;
    // A clock before 1970 counts as 1970.
    write_f64(out, batch.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())?;
    write_array_len(out, batch.events.len() as u32)?;
    batch.events.iter().try_for_each(|event| write_event(out, event, page_tokens))?;
    write_uint(out, RANK).map(drop)
}

fn write_event(out: &mut ByteBuf, event: &CacheEvent, page_tokens: u32) -> Written {
    let begin = |out: &mut ByteBuf, name: &str, fields: u32| -> Written {
        write_map_len(out, fields + 1)?;
        write_str(out, "type")?;
        write_str(out, name)
    };
    match event {
        CacheEvent::Cleared => begin(out, "AllBlocksCleared", 0),
        CacheEvent::Stored { parent, hashes, tokens } => {
            begin(out, "BlockStored", 7)?;
            write_hashes(out, hashes)?;
            write_str(out, "parent_block_hash")?;
            match parent {
                Some(parent) => write_uint(out, parent.0).map(drop)?,
                None => write_none(out)?,
            }
            write_str(out, "token_ids")?;
            write_array_len(out, tokens.len() as u32)?;
            tokens.iter().try_for_each(|token| write_uint(out, u64::from(*token)).map(drop))?;
            write_str(out, "block_size")?;
            write_uint(out, u64::from(page_tokens))?;
            write_str(out, "lora_id")?;
            write_none(out)?;
            write_medium(out)?;
            write_str(out, "lora_name")?;
            write_none(out)
        }
        CacheEvent::Removed { hashes } => {
            begin(out, "BlockRemoved", 2)?;
            write_hashes(out, hashes)?;
            write_medium(out)
        }
    }
}

fn write_hashes(out: &mut ByteBuf, hashes: &[PrefixHash]) -> Written {
    write_str(out, "block_hashes")?;
    write_array_len(out, hashes.len() as u32)?;
    hashes.iter().try_for_each(|hash| write_uint(out, hash.0).map(drop))
}

fn write_medium(out: &mut ByteBuf) -> Written {
    write_str(out, "medium")?;
    write_str(out, MEDIUM)
}

fn write_none(out: &mut ByteBuf) -> Written {
    write_nil(out).map_err(ValueWriteError::InvalidMarkerWrite)
}
