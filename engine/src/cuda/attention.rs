//! FlashInfer's paged attention: FA3 for prefill chunks where the device and the head size allow it, FA2 for the rest.
//!
//! A plan, made on the host once a step, says which block of threads computes what; all layers run by it.

use std::ffi::c_void;
use std::sync::Arc;

use super::device::{Buffer, Device, Pinned, Result, Stream};
use super::kernels::{Fa2Plan, Fa2Run, baton_fa3_plan_128, baton_fa3_run_128, fa2, launched};
use super::plan::{Part, Plan};
use crate::model::Shape;

/// FlashInfer's own advice is 128 MiB; long tables of many sequences take more.
const FLOAT_BYTES: usize = 256 << 20;
const INT_BYTES: usize = 16 << 20;
const PLAN_WORDS: usize = 32;

/// What a planned part of a step runs by.
pub(super) type PartPlan = [i64; PLAN_WORDS];

/// A kernel's own memory: what its plan says on the device, and the host's copies of that, which are used in turns.
struct Workspace {
    ints: Buffer,
    pinned: [Pinned<u8>; 2],
}

impl Workspace {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let pinned = [Pinned::new(device, INT_BYTES)?, Pinned::new(device, INT_BYTES)?];
        Ok(Self { ints: Buffer::zeroed(device, INT_BYTES)?, pinned })
    }
}

/// Kernels and workspaces for one model's heads.
pub(super) struct Attention {
    fa2: (Fa2Plan, Fa2Run),
    has_fa3: bool,
    floats: Buffer,
    prefill: Workspace,
    decode: Workspace,
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
    /// `None` if there is no kernel for the shape's head size.
    pub(super) fn new(
        device: &Arc<Device>,
        shape: &Shape,
        page_tokens: u32,
        page_stride: i64,
    ) -> Result<Option<Self>> {
        let Some(fa2) = fa2(shape.head_dim) else { return Ok(None) };
        Ok(Some(Self {
            fa2,
            has_fa3: shape.head_dim == 128 && device.capability()? == (9, 0),
            floats: Buffer::zeroed(device, FLOAT_BYTES)?,
            prefill: Workspace::new(device)?,
            decode: Workspace::new(device)?,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim,
            page_tokens,
            page_stride,
        }))
    }

    /// True if one kernel takes prefill chunks and decode rows alike.
    pub(super) fn is_one_kernel(&self) -> bool {
        !self.has_fa3
    }

    /// Plans the prefill part. What the plan says is copied to the device in the stream's order.
    pub(super) fn plan_prefill(&self, plan: &mut Plan, stream: &Stream) -> Result<PartPlan> {
        let part = plan.prefill.clone();
        if !self.has_fa3 {
            return self.plan_fa2(&self.prefill, plan, &part, false, stream);
        }
        let (mut words, turn) = ([0; PLAN_WORDS], plan.turn());
        let (rows, pages, tokens) = plan.host_lists(&part);
        // SAFETY: workspaces are as long as said; the lists are as long as the part has chunks, and one more.
        let status = unsafe {
            baton_fa3_plan_128(
                self.floats.start(),
                FLOAT_BYTES,
                self.prefill.ints.start(),
                self.prefill.pinned[turn].raw(),
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
                0,
                stream.raw(),
            )
        };
        launched("baton_fa3_plan", status)?;
        Ok(words)
    }

    /// Plans the decode part; with `graph` so that a captured graph can run by it.
    pub(super) fn plan_decode(&self, plan: &mut Plan, graph: bool, stream: &Stream) -> Result<PartPlan> {
        let part = plan.decode.clone();
        self.plan_fa2(&self.decode, plan, &part, graph, stream)
    }

    fn plan_fa2(
        &self,
        workspace: &Workspace,
        plan: &mut Plan,
        part: &Part,
        graph: bool,
        stream: &Stream,
    ) -> Result<PartPlan> {
        let (mut words, turn) = ([0; PLAN_WORDS], plan.turn());
        let (rows, pages, _) = plan.host_lists(part);
        // SAFETY: as in `plan_prefill`.
        let status = unsafe {
            (self.fa2.0)(
                self.floats.start(),
                FLOAT_BYTES,
                workspace.ints.start(),
                workspace.pinned[turn].raw(),
                INT_BYTES,
                words.as_mut_ptr(),
                rows,
                pages,
                part.rows.len() as u32,
                part.chunks.len() as u32,
                self.heads,
                self.kv_heads,
                self.page_tokens,
                i32::from(graph),
                stream.raw(),
            )
        };
        launched("baton_fa2_plan", status)?;
        Ok(words)
    }

    /// One layer's attention of the prefill part.
    pub(super) fn run_prefill(
        &self,
        words: &PartPlan,
        plan: &Plan,
        heads: &Heads,
        stream: &Stream,
    ) -> Result<()> {
        let part = &plan.prefill;
        if !self.has_fa3 {
            return self.run_fa2(&self.prefill, words, plan, part, heads, stream);
        }
        // SAFETY: the pointers name this device's memory of the shape's sizes; the plan is this step's.
        let status = unsafe {
            baton_fa3_run_128(
                self.prefill.ints.start(),
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

    /// One layer's attention of the decode part.
    pub(super) fn run_decode(
        &self,
        words: &PartPlan,
        plan: &Plan,
        heads: &Heads,
        stream: &Stream,
    ) -> Result<()> {
        self.run_fa2(&self.decode, words, plan, &plan.decode, heads, stream)
    }

    fn run_fa2(
        &self,
        workspace: &Workspace,
        words: &PartPlan,
        plan: &Plan,
        part: &Part,
        heads: &Heads,
        stream: &Stream,
    ) -> Result<()> {
        let skipped = part.rows.start * self.heads as usize * self.head_dim * 2;
        // SAFETY: as in `run_prefill`; the part's rows begin so many bytes further.
        let status = unsafe {
            (self.fa2.1)(
                self.floats.start(),
                workspace.ints.start(),
                words.as_ptr(),
                heads.query.byte_add(skipped),
                heads.keys,
                heads.values,
                self.page_stride,
                self.page_tokens,
                self.heads,
                self.kv_heads,
                part.chunks.len() as u32,
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
