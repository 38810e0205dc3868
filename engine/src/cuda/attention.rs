//! FlashInfer's paged attention: FA3 for prompts, FA2 for decode rows.
//!
//! FA3 has a plan, made on the host once a step, that says which block of threads computes what; all layers run by it. What FA2 does is in the
//! step's own lists.

use std::ffi::c_void;
use std::sync::Arc;

use super::device::{Buffer, Device, Pinned, Result, Stream};
use super::kernels::{Flash, launched};
use super::plan::{Part, Plan};
use crate::model::Shape;

/// FlashInfer's own advice.
const INT_BYTES: usize = 16 << 20;
const PLAN_WORDS: usize = 32;
/// Query heads that may share a key head: rows of FA2's tile.
pub(super) const GROUP_MOST: usize = 16;

/// What the prompts of a step run by.
pub(super) type PrefillPlan = [i64; PLAN_WORDS];

/// Kernels and workspaces for one model's heads.
pub(super) struct Attention {
    flash: Flash,
    /// What FA3's plan says, and the host's copies of that, which are used in turns.
    ints: Buffer,
    pinned: [Pinned<u8>; 2],
    /// What FA2 makes of each piece: `[pieces][heads][head_dim]` of bf16, and `[pieces][heads]` of f32.
    partial_out: Buffer,
    partial_sums: Buffer,
    /// A word of zero for each piece.
    zeros: Buffer,
    heads: u32,
    kv_heads: u32,
    head_dim: usize,
    page_tokens: u32,
    /// Elements from a page to the next.
    page_stride: i64,
}

/// Where a layer's attention reads and writes.
pub(super) struct Heads {
    /// `[rows][heads][head_dim]`.
    pub(super) query: *mut c_void,
    /// The layer's keys, and values, in page 0.
    pub(super) keys: *mut c_void,
    pub(super) values: *mut c_void,
    /// As `query`.
    pub(super) out: *mut c_void,
}

impl Attention {
    /// For steps of up to `pieces` pieces; `None` if there is no kernel for the shape's heads.
    pub(super) fn new(
        device: &Arc<Device>,
        shape: &Shape,
        (page_tokens, page_stride): (u32, i64),
        pieces: usize,
    ) -> Result<Option<Self>> {
        let Some(flash) = Flash::of(shape.head_dim) else { return Ok(None) };
        let heads = pieces * shape.heads;
        Ok(Some(Self {
            flash,
            ints: Buffer::zeroed(device, INT_BYTES)?,
            pinned: [Pinned::new(device, INT_BYTES)?, Pinned::new(device, INT_BYTES)?],
            partial_out: Buffer::new(device, heads * shape.head_dim * 2)?,
            partial_sums: Buffer::new(device, heads * size_of::<f32>())?,
            zeros: Buffer::zeroed(device, pieces * size_of::<i32>())?,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim,
            page_tokens,
            page_stride,
        }))
    }

    /// Plans the prompts of a step. What the plan says is copied to the device in the stream's order.
    pub(super) fn plan_prefill(&self, plan: &mut Plan, stream: &Stream) -> Result<PrefillPlan> {
        let part = plan.prefill.clone();
        let (mut words, turn) = ([0; PLAN_WORDS], plan.turn());
        let (rows, pages, tokens) = plan.host_lists(&part);
        // SAFETY: workspaces are as long as said; the lists are as long as the part has chunks, and one more.
        let status = unsafe {
            (self.flash.fa3_plan)(
                self.ints.start(),
                self.pinned[turn].raw(),
                INT_BYTES,
                words.as_mut_ptr(),
                rows,
                pages,
                tokens,
                part.rows.len() as u32,
                part.chunks.len() as u32,
                self.heads,
                self.kv_heads,
                self.page_tokens,
                stream.raw(),
            )
        };
        launched("baton_fa3_plan", status)?;
        Ok(words)
    }

    /// One layer's attention of the prompts, which are the step's first rows.
    pub(super) fn run_prefill(
        &self,
        words: &PrefillPlan,
        plan: &Plan,
        heads: &Heads,
        stream: &Stream,
    ) -> Result<()> {
        let part = &plan.prefill;
        // SAFETY: the pointers name this device's memory of the shape's sizes; the plan is this step's.
        let status = unsafe {
            (self.flash.fa3_run)(
                self.ints.start(),
                words.as_ptr(),
                heads.query,
                heads.keys,
                heads.values,
                self.page_stride,
                self.page_tokens.cast_signed(),
                self.heads.cast_signed(),
                self.kv_heads.cast_signed(),
                part.rows.len() as i64,
                plan.pages(part),
                heads.out,
                self.scale(),
                stream.raw(),
            )
        };
        launched("baton_fa3_run", status)
    }

    /// One layer's attention of the decode rows.
    pub(super) fn run_decode(&self, plan: &Plan, heads: &Heads, stream: &Stream) -> Result<()> {
        let part: &Part = &plan.decode;
        let skipped = part.rows.start * self.heads as usize * self.head_dim * 2;
        let pieces = plan.pieces();
        // SAFETY: as in `run_prefill`; the part's rows begin so many bytes further, and there is room for as many pieces as a plan has.
        let status = unsafe {
            (self.flash.fa2_run)(
                self.partial_out.start(),
                self.partial_sums.start(),
                pieces.count as u32,
                pieces.rows,
                pieces.places,
                pieces.lengths,
                pieces.are,
                self.zeros.start(),
                pieces.before_row,
                heads.query.byte_add(skipped),
                heads.keys,
                heads.values,
                self.page_stride,
                self.page_tokens,
                self.heads,
                self.kv_heads,
                part.rows.len() as u32,
                plan.row_starts(part),
                plan.page_starts(part),
                plan.pages(part),
                plan.last_page_tokens(part),
                heads.out.byte_add(skipped),
                self.scale(),
                stream.raw(),
            )
        };
        launched("baton_fa2_run", status)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}
