//! FlashInfer's paged attention: FA3 for prompts, FA2 for decode rows.
//!
//! FA3 has a plan, made on the host once a step, that says which block of threads computes what; all layers run by it. What FA2 does is in the
//! step's own lists.

use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use super::kernels::{Flash, launch};
use super::lists::{Lists, Uploaded};
use crate::gpu::arguments::{Fa2Run, Fa3Plan, Fa3Run};
use crate::kv::KvPool;
use crate::model::ModelShape;

/// FlashInfer's own advice.
const INT_BYTES: usize = 16 << 20;
const PLAN_WORDS: usize = 32;
/// Query heads that may share a key head: rows of FA2's tile.
pub(super) const GROUP_MAX: usize = 16;

/// What the prompts of a step run by: places in the workspace, as FlashInfer lists them.
pub(super) struct PrefillPlan([i64; PLAN_WORDS]);

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
    /// The most pieces of a step.
    pieces: usize,
    heads: u32,
    kv_heads: u32,
    head_dim: usize,
    page_tokens: u32,
    /// Elements from a page to the next.
    page_stride: i64,
}

/// Where a layer's attention reads and writes.
pub(super) struct Heads<'a> {
    /// `[rows][heads][head_dim]`.
    pub(super) query: &'a Buffer,
    pub(super) pool: &'a KvPool,
    /// Where the layer's keys, and its values, begin in a page.
    pub(super) keys: usize,
    pub(super) values: usize,
    /// As `query`.
    pub(super) out: &'a Buffer,
}

impl Heads<'_> {
    /// The numbers at `offset` in page 0 of the pool.
    fn in_pool(&self, offset: usize) -> *mut bf16 {
        self.pool.base().as_ptr().cast::<bf16>().wrapping_add(offset)
    }
}

impl Attention {
    /// For steps of up to `pieces` pieces; `None` if there is no kernel for the shape's heads.
    pub(super) fn new(
        device: &Arc<CudaDevice>,
        shape: &ModelShape,
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
            pieces,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim,
            page_tokens,
            page_stride,
        }))
    }

    /// Plans the prompts of a step. What the plan says is copied to the device in the stream's order.
    ///
    /// # Safety
    /// The copy of the step that had the lists' turn last has run.
    pub(super) unsafe fn plan_prefill(&self, lists: &Lists, stream: &Stream) -> Result<PrefillPlan> {
        let (plan, part) = (lists.plan(), &lists.plan().prefill);
        let mut words = [0; PLAN_WORDS];
        let arguments = Fa3Plan {
            int_workspace: self.ints.numbers::<u8>(0, INT_BYTES).cast(),
            host_pinned: self.pinned[lists.turn()].raw().cast(),
            int_bytes: INT_BYTES as u64,
            host_plan: words.as_mut_ptr(),
            host_row_starts: lists.host_list(plan.row_starts(part)).as_ptr(),
            host_page_starts: lists.host_list(plan.page_starts(part)).as_ptr(),
            host_kv_tokens: plan.kv_tokens(part).as_ptr(),
            rows: part.rows.len() as u32,
            chunks: part.chunks.len() as u32,
            heads: self.heads,
            kv_heads: self.kv_heads,
            page_tokens: self.page_tokens,
        };
        // SAFETY: both workspaces have `int_bytes` bytes, within which FlashInfer stays or throws; the plan has its 32 places; the lists have an entry
        // for each chunk, and starts one more. Nothing reads the pinned bytes any more, by the caller's contract.
        unsafe { launch("baton_fa3_plan", self.flash.fa3_plan, &arguments, stream)? };
        Ok(PrefillPlan(words))
    }

    /// One layer's attention of the prompts, which are the step's first rows. `plan` is the step's.
    pub(super) fn run_prefill(
        &self,
        plan: &PrefillPlan,
        step: &Uploaded<'_>,
        heads: &Heads<'_>,
    ) -> Result<()> {
        let part = &step.plan().prefill;
        let numbers = part.rows.len() * self.row_numbers();
        let arguments = Fa3Run {
            int_workspace: self.ints.numbers::<u8>(0, INT_BYTES).cast(),
            host_plan: plan.0.as_ptr(),
            q: heads.query.numbers(0, numbers),
            k_pool: heads.in_pool(heads.keys),
            v_pool: heads.in_pool(heads.values),
            kv_pages: step.list(step.plan().pages(part)),
            out: heads.out.numbers(0, numbers),
            page_stride: self.page_stride,
            rows: part.rows.len() as i64,
            page_tokens: self.page_tokens.cast_signed(),
            heads: self.heads.cast_signed(),
            kv_heads: self.kv_heads.cast_signed(),
            scale: self.scale(),
        };
        // SAFETY: queries and outputs are as long as the part's rows, as checked; pages are the pool's, by the contract of `Lists::lay_out`; the plan was
        // made of the same lists, and its copy goes before in the stream.
        unsafe { launch("baton_fa3_run", self.flash.fa3_run, &arguments, step.stream) }
    }

    /// One layer's attention of the decode rows.
    pub(super) fn run_decode(&self, step: &Uploaded<'_>, heads: &Heads<'_>) -> Result<()> {
        let (plan, part) = (step.plan(), &step.plan().decode);
        let pieces = plan.pieces();
        assert!(pieces <= self.pieces, "{pieces} pieces, and room for {}", self.pieces);
        let (first, numbers) = (part.rows.start * self.row_numbers(), part.rows.len() * self.row_numbers());
        let arguments = Fa2Run {
            partial_out: self.partial_out.numbers(0, pieces * self.row_numbers()),
            partial_sums: self.partial_sums.numbers(0, pieces * self.heads as usize),
            piece_rows: step.list(plan.piece_rows()),
            piece_places: step.list(plan.piece_places()),
            piece_lengths: step.list(plan.piece_lengths()),
            piece_flags: step.list(plan.piece_flags()),
            zeros: self.zeros.numbers(0, pieces),
            row_pieces: step.list(plan.row_pieces()),
            q: heads.query.numbers(first, numbers),
            k_pool: heads.in_pool(heads.keys),
            v_pool: heads.in_pool(heads.values),
            row_starts: step.list(plan.row_starts(part)),
            page_starts: step.list(plan.page_starts(part)),
            kv_pages: step.list(plan.pages(part)),
            last_page_tokens: step.list(plan.last_page_tokens(part)),
            out: heads.out.numbers(first, numbers),
            page_stride: self.page_stride,
            pieces: pieces as u32,
            rows: part.rows.len() as u32,
            page_tokens: self.page_tokens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: self.scale(),
        };
        // SAFETY: partial results have room for the pieces, queries and outputs for the part's rows, as checked; pages are the pool's, by the contract of
        // `Lists::lay_out`, and rows and places of pieces are those of the part, as `Plan` lays them out.
        unsafe { launch("baton_fa2_run", self.flash.fa2_run, &arguments, step.stream) }
    }

    /// Numbers of a row of queries.
    fn row_numbers(&self) -> usize {
        self.heads as usize * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}
