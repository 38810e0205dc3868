//! Paged attention: FlashInfer's FlashAttention 3 (FA3) for prompts, and a kernel of our own for decode rows.
//!
//! The host makes one FA3 plan per step. It assigns work to thread blocks, and all layers use it. The kernel for decode rows needs no plan; it reads
//! the step's lists.
//!
//! That kernel also reads pages in FP8. For FA3 they are [copied to bf16](super::expanded) first, layer by layer. If the pages of a step's prompts do not fit into
//! that memory, groups of prompts are computed one after the other. Each needs another plan in each layer, and the host waits for the stream before
//! it writes one. This takes milliseconds. This happens only if the contexts of a step's prompts exceed the copy together: 128 Ki tokens, or one full context if that is longer.

use std::sync::Arc;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use super::expanded::ExpandedKv;
use super::kernels::{Flash, baton_decode_run, launch};
use super::lists::{Lists, Uploaded};
use crate::gpu::arguments::{DecodeRun, Fa3Plan, Fa3Run};
use crate::gpu::plan::{PromptGroup, groups};
use crate::kv::{KvDtype, KvLayout, KvPool, KvStrides};
use crate::model::spec::AttentionSpec;

/// Bytes of FA3's integer workspace, as FlashInfer recommends.
const INT_BYTES: usize = 16 << 20;
/// Words of an FA3 plan. `kernels/attention.cuh` has the same number.
const PLAN_WORDS: usize = 32;
/// Maximum number of query heads that share a KV head. The kernels were tested with up to this many.
pub(super) const GROUP_MAX: usize = 16;

/// The FA3 plan of a group of prompts: offsets in the workspace, in FlashInfer's format.
struct GroupPlan([i64; PLAN_WORDS]);

/// How FA3 computes a step's prompts.
pub(super) struct PrefillPlan {
    groups: Vec<PromptGroup>,
    /// The plan of the only group. With several, each is planned before it runs.
    plan: Option<GroupPlan>,
}

/// Kernels and workspaces for one model's heads.
pub(super) struct Attention {
    flash: Flash,
    /// FA3's integer workspace on the device.
    ints: Buffer,
    /// Host copies of the integer workspace. Steps alternate between the two.
    pinned: [Pinned<u8>; 2],
    /// The output for each split-KV piece: `[pieces][heads][head_dim]`, bf16.
    partial_out: Buffer,
    /// The softmax sums for each piece: `[pieces][heads]`, f32.
    partial_sums: Buffer,
    /// Maximum number of split-KV pieces in a step.
    pieces: usize,
    heads: u32,
    kv_heads: u32,
    head_dim: usize,
    page_tokens: u32,
    kv_strides: KvStrides,
    dtype: KvDtype,
    /// The memory for pages in bf16, if those of the pool are in FP8.
    expanded: Option<ExpandedKv>,
}

/// The inputs and the output of one layer's attention.
pub(super) struct Heads<'a> {
    /// `[rows][heads][head_dim]`.
    pub(super) query: &'a Buffer,
    pub(super) pool: &'a KvPool,
    /// The offset of the layer's keys of KV head 0 in a page, in bytes.
    pub(super) keys: usize,
    /// The offset of the layer's values of KV head 0 in a page, in bytes.
    pub(super) values: usize,
    /// `[rows][heads][head_dim]`.
    pub(super) out: &'a Buffer,
}

impl Heads<'_> {
    /// The address of byte `offset` in page 0 of the pool.
    fn in_pool(&self, offset: usize) -> *mut u8 {
        self.pool.base().as_ptr().wrapping_add(offset)
    }
}

impl Attention {
    /// Allocates the workspaces for steps of up to `pieces` pieces, and memory for `expanded` pages in bf16. `None` if there is no kernel for the head
    /// size.
    pub(super) fn new(
        device: &Arc<CudaDevice>,
        spec: &AttentionSpec,
        layout: &KvLayout,
        pieces: usize,
        expanded: u32,
    ) -> Result<Option<Self>> {
        let is_fp8 = layout.dtype == KvDtype::Fp8;
        let Some(flash) = Flash::of(spec.head_dim) else { return Ok(None) };
        let heads = pieces * spec.heads;
        Ok(Some(Self {
            flash,
            ints: Buffer::zeroed(device, INT_BYTES)?,
            pinned: [Pinned::new(device, INT_BYTES)?, Pinned::new(device, INT_BYTES)?],
            partial_out: Buffer::new(device, heads * spec.head_dim * 2)?,
            partial_sums: Buffer::new(device, heads * size_of::<f32>())?,
            pieces,
            heads: spec.heads as u32,
            kv_heads: spec.kv_heads as u32,
            head_dim: spec.head_dim,
            page_tokens: layout.page_tokens,
            kv_strides: layout.strides(),
            dtype: layout.dtype,
            expanded: is_fp8.then(|| ExpandedKv::new(device, layout, expanded)).transpose()?,
        }))
    }

    /// Plans the prompts of a step. The plan's data is copied to the device in stream order.
    ///
    /// # Safety
    /// The copy of the last step that used the same host buffers has finished.
    pub(super) unsafe fn plan_prefill(&self, lists: &Lists, stream: &Stream) -> Result<PrefillPlan> {
        let pages_max = self.expanded.as_ref().map_or(usize::MAX, ExpandedKv::pages);
        let groups = groups(&lists.plan().prompts.page_starts, pages_max);
        let plan = match &groups[..] {
            // SAFETY: the caller's contract.
            [only] => Some(unsafe { self.plan_group(lists, only, stream)? }),
            _ => None,
        };
        Ok(PrefillPlan { groups, plan })
    }

    /// Plans a group of a step's prompts.
    ///
    /// # Safety
    /// The last copy from the same host buffers has finished.
    unsafe fn plan_group(&self, lists: &Lists, group: &PromptGroup, stream: &Stream) -> Result<GroupPlan> {
        let (prompts, chunks) = (&lists.plan().prompts, &group.chunks);
        let row_starts = &prompts.row_starts[chunks.start..=chunks.end];
        let mut words = [0; PLAN_WORDS];
        let arguments = Fa3Plan {
            int_workspace: self.ints.numbers::<u8>(0, INT_BYTES).cast(),
            host_pinned: self.pinned[lists.turn()].raw().cast(),
            int_bytes: INT_BYTES as u64,
            host_plan: words.as_mut_ptr(),
            host_row_starts: row_starts.as_ptr(),
            host_page_starts: prompts.page_starts[chunks.start..=chunks.end].as_ptr(),
            host_kv_tokens: prompts.kv_tokens[chunks.clone()].as_ptr(),
            rows: (row_starts[chunks.len()] - row_starts[0]).cast_unsigned(),
            chunks: chunks.len() as u32,
            heads: self.heads,
            kv_heads: self.kv_heads,
            page_tokens: self.page_tokens,
        };
        // SAFETY: both workspaces have `int_bytes` bytes, and FlashInfer throws if it needs more. The plan has 32 words. The
        // lists have an entry for each chunk, and the lists of starts have one more. No copy reads the pinned bytes any more,
        // by the caller's contract.
        unsafe { launch("baton_fa3_plan", self.flash.fa3_plan, &arguments, stream)? };
        Ok(GroupPlan(words))
    }

    /// Runs one layer's attention for the prompts, which are the step's first rows. `plan` is the plan of this step.
    pub(super) fn run_prefill(
        &self,
        plan: &PrefillPlan,
        step: &Uploaded<'_>,
        heads: &Heads<'_>,
    ) -> Result<()> {
        for group in &plan.groups {
            if let Some(plan) = &plan.plan {
                self.run_group(plan, group, step, heads)?;
                continue;
            }
            step.stream.wait()?;
            // SAFETY: the stream has finished, and so have all copies.
            let plan = unsafe { self.plan_group(step.lists(), group, step.stream)? };
            self.run_group(&plan, group, step, heads)?;
        }
        Ok(())
    }

    /// Runs one layer's attention for a group of prompts. `plan` is the last plan that was made, and that of this group.
    fn run_group(
        &self,
        plan: &GroupPlan,
        group: &PromptGroup,
        step: &Uploaded<'_>,
        heads: &Heads<'_>,
    ) -> Result<()> {
        let part = &step.plan().prefill;
        let numbers = part.rows.len() * self.row_numbers();
        let ([k_pool, v_pool], kv_pages, strides) = match &self.expanded {
            Some(expanded) => {
                expanded.fill(heads.pool, heads.keys, group, step)?;
                (expanded.addresses(), expanded.list(group), expanded.strides())
            }
            None => {
                let addresses = [heads.keys, heads.values].map(|offset| heads.in_pool(offset).cast());
                (addresses, step.list(step.plan().pages(part)), self.kv_strides)
            }
        };
        let arguments = Fa3Run {
            int_workspace: self.ints.numbers::<u8>(0, INT_BYTES).cast(),
            host_plan: plan.0.as_ptr(),
            q: heads.query.numbers(0, numbers),
            k_pool,
            v_pool,
            kv_pages,
            out: heads.out.numbers(0, numbers),
            page_stride: strides.page,
            head_stride: strides.head,
            rows: part.rows.len() as i64,
            page_tokens: self.page_tokens.cast_signed(),
            heads: self.heads.cast_signed(),
            kv_heads: self.kv_heads.cast_signed(),
            scale: self.scale(),
        };
        // SAFETY: the lengths of queries and outputs are checked above. The pages are in the pool, by the contract of
        // `Lists::lay_out`, or in the copy, which has all pages of the group. The plan was made from the same lists, and its copy precedes this kernel
        // in the stream.
        unsafe { launch("baton_fa3_run", self.flash.fa3_run, &arguments, step.stream) }
    }

    /// Runs one layer's attention for the decode rows. If `codes` and `scales` are not null, they get the results in FP8, and `heads.out` gets only rows of
    /// one piece.
    ///
    /// # Safety
    /// `codes` and `scales` are null or have room for the decode rows.
    pub(super) unsafe fn run_decode(
        &self,
        step: &Uploaded<'_>,
        heads: &Heads<'_>,
        (codes, scales): (*mut u8, *mut f32),
    ) -> Result<()> {
        let (plan, part) = (step.plan(), &step.plan().decode);
        let pieces = plan.pieces();
        assert!(pieces <= self.pieces, "{pieces} pieces exceed the capacity of {}", self.pieces);
        let (first, numbers) = (part.rows.start * self.row_numbers(), part.rows.len() * self.row_numbers());
        let (line, line_bytes) = (self.head_dim as i64, self.head_dim * self.dtype.bytes() as usize);
        let arguments = DecodeRun {
            partial_out: self.partial_out.numbers(0, pieces * self.row_numbers()),
            partial_sums: self.partial_sums.numbers(0, pieces * self.heads as usize),
            piece_rows: step.list(plan.piece_rows()),
            piece_starts: step.list(plan.piece_starts()),
            piece_lengths: step.list(plan.piece_lengths()),
            row_pieces: step.list(plan.row_pieces()),
            q: heads.query.numbers(first, numbers),
            pool: heads.in_pool(0).cast_const().cast(),
            page_starts: step.list(plan.page_starts()),
            kv_pages: step.list(plan.pages(part)),
            last_page_tokens: step.list(plan.last_page_tokens()),
            out: heads.out.numbers(first, numbers),
            codes,
            scales,
            page_lines: self.kv_strides.page / line,
            head_lines: self.kv_strides.head / line,
            layer_lines: (heads.keys / line_bytes) as i64,
            pool_lines: (heads.pool.bytes() / line_bytes) as i64,
            pieces: pieces as i32,
            rows: part.rows.len() as i32,
            page_tokens: self.page_tokens.cast_signed(),
            heads: self.heads.cast_signed(),
            kv_heads: self.kv_heads.cast_signed(),
            head_dim: self.head_dim as i32,
            scale: self.scale(),
            fp8: i32::from(self.dtype == KvDtype::Fp8),
        };
        // SAFETY: the lengths of partial results, queries and outputs are checked above. The pages are in the pool, by the
        // contract of `Lists::lay_out`. `Plan` writes only pieces of this part's rows, as many as `row_pieces` says. The caller's contract covers the
        // rest.
        unsafe { launch("baton_decode_run", baton_decode_run, &arguments, step.stream) }
    }

    /// Numbers in a row of queries.
    fn row_numbers(&self) -> usize {
        self.heads as usize * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}
