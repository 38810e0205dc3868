//! The memory of a step's lists (the input arrays of its kernels). The host writes them, and one copy sends them to the device.

use std::ops::Range;
use std::sync::Arc;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use crate::gpu::plan::{Plan, StepCapacity};
use crate::step::Chunk;

/// The lists of one step.
pub(super) struct Lists {
    plan: Plan,
    /// Steps alternate between two host buffers: the host may write a step before the previous step's copy has finished.
    host: [Pinned<i32>; 2],
    turn: usize,
    device: Buffer,
}

impl Lists {
    /// Allocates lists for steps within `capacity`.
    pub(super) fn new(device: &Arc<CudaDevice>, capacity: StepCapacity, page_tokens: usize) -> Result<Self> {
        let plan = Plan::new(capacity, page_tokens);
        let words = plan.words_max();
        Ok(Self {
            host: [Pinned::new(device, words)?, Pinned::new(device, words)?],
            turn: 0,
            device: Buffer::zeroed(device, words * size_of::<i32>())?,
            plan,
        })
    }

    /// The plan of the lists.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The index of the host buffer that has the step.
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// Writes the lists of a batch to host buffer `turn`, as [`Plan::lay_out`] does.
    ///
    /// # Safety
    /// [`BatchCheck`](crate::batch::BatchCheck) has accepted the batch for the model and the pool that the kernels use. If chunk `i`
    /// takes its token from the previous step, `followed(i)` is the row that samples the token there. The copy of the last step with
    /// the same `turn` has finished.
    pub(super) unsafe fn lay_out(
        &mut self,
        batch: &[Chunk<'_>],
        followed: impl Fn(usize) -> usize,
        turn: usize,
        decode_rows: usize,
    ) {
        self.turn = turn;
        // SAFETY: the only work that reads the words is their copy, which has finished.
        let words = unsafe { self.host[turn].values_mut() };
        self.plan.lay_out(batch, followed, decode_rows, words);
    }

    /// Copies the lists to the device, in stream order.
    pub(super) fn upload<'a>(&'a self, stream: &'a Stream) -> Result<Uploaded<'a>> {
        // SAFETY: by the contract of `lay_out`, this buffer is written again only after the copy has finished. `CudaEngine`
        // waits for the stream before it frees the buffer.
        unsafe { stream.upload(&self.device, &self.host[self.turn], self.plan.words())? };
        Ok(self.uploaded(stream))
    }

    /// The lists of the step that was uploaded last to this stream.
    pub(super) fn uploaded<'a>(&'a self, stream: &'a Stream) -> Uploaded<'a> {
        Uploaded { lists: self, stream }
    }
}

/// A step whose lists are on the device, for all work that is submitted to the stream afterwards.
#[derive(Clone, Copy)]
pub(super) struct Uploaded<'a> {
    lists: &'a Lists,
    pub(super) stream: &'a Stream,
}

impl<'a> Uploaded<'a> {
    /// The plan of the lists.
    pub(super) fn plan(&self) -> &'a Plan {
        &self.lists.plan
    }

    /// The lists, whose host buffer still has the step.
    pub(super) fn lists(&self) -> &'a Lists {
        self.lists
    }

    /// The device address of a list.
    ///
    /// # Panics
    /// If the list is outside the copied words.
    pub(super) fn list<T>(&self, list: Range<usize>) -> *mut T {
        assert!(list.end <= self.lists.plan.words(), "list {list:?} ends after the copied words");
        self.lists.device.numbers::<i32>(list.start, list.len()).cast()
    }
}
