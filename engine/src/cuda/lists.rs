//! A step's lists in memory: laid out on the host, then on the device by one copy.

use std::ops::Range;
use std::sync::Arc;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use crate::gpu::plan::{Plan, Room};
use crate::step::Chunk;

/// One step's lists.
pub(super) struct Lists {
    plan: Plan,
    /// Two, in turns: a step may be laid out while the copy of the one before has not run.
    host: [Pinned<i32>; 2],
    turn: usize,
    device: Buffer,
}

impl Lists {
    /// Room for steps of up to so much.
    pub(super) fn new(device: &Arc<CudaDevice>, room: Room, page_tokens: usize) -> Result<Self> {
        let plan = Plan::new(room, page_tokens);
        let words = plan.words_max();
        Ok(Self {
            host: [Pinned::new(device, words)?, Pinned::new(device, words)?],
            turn: 0,
            device: Buffer::zeroed(device, words * size_of::<i32>())?,
            plan,
        })
    }

    /// What the lists say.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Which of the host's two copies has the step.
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// As [`Plan::lay_out`], in the host's copy `turn`.
    ///
    /// # Safety
    /// [`batch::check`](crate::batch::check) has accepted the batch, for the model and the pool that kernels compute with, and `followed` names rows that the
    /// step before samples. The copy of the step that had `turn` last has run.
    pub(super) unsafe fn lay_out(
        &mut self,
        batch: &[Chunk<'_>],
        followed: &[usize],
        turn: usize,
        decode_rows: usize,
    ) {
        self.turn = turn;
        // SAFETY: the only work that reads them is their copy, which has run.
        let words = unsafe { self.host[turn].values_mut() };
        self.plan.lay_out(batch, followed, decode_rows, words);
    }

    /// A list of the host's copy.
    pub(super) fn host_list(&self, list: Range<usize>) -> &[i32] {
        // SAFETY: only the host writes the words, through `&mut self`.
        unsafe { &self.host[self.turn].values()[list] }
    }

    /// Copies the lists to the device, in the stream's order.
    pub(super) fn upload<'a>(&'a self, stream: &'a Stream) -> Result<Uploaded<'a>> {
        // SAFETY: who lays the next step out in this copy waits for this one to run, by the contract of `lay_out`, and `CudaEngine` waits for the
        // stream before it frees it.
        unsafe { stream.upload(&self.device, &self.host[self.turn], self.plan.words())? };
        Ok(Uploaded { lists: self, stream })
    }
}

/// A step whose lists are on the device for all that is submitted to the stream from now on.
#[derive(Clone, Copy)]
pub(super) struct Uploaded<'a> {
    lists: &'a Lists,
    pub(super) stream: &'a Stream,
}

impl<'a> Uploaded<'a> {
    /// What the lists say.
    pub(super) fn plan(&self) -> &'a Plan {
        &self.lists.plan
    }

    /// A list, as kernels take it.
    ///
    /// # Panics
    /// If it is not among those that were copied.
    pub(super) fn list<T>(&self, list: Range<usize>) -> *mut T {
        assert!(list.end <= self.lists.plan.words(), "list {list:?} ends after the step");
        self.lists.device.numbers::<i32>(list.start, list.len()).cast()
    }
}
