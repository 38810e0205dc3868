//! A captured step: the launches of decode batches of one size, replayed by one call.

use cudarc::driver::{result, sys};

use super::device::{Named, Result, Stream};
use crate::step::{Chunk, TokenSource};

/// Decode batches of up to these many rows are captured once and replayed.
const GRAPH_ROWS: [usize; 12] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, GRAPH_ROWS_MAX];
pub(super) const GRAPH_ROWS_MAX: usize = 256;
/// Page table entries that a graph's step may have in all.
pub(super) const GRAPH_PAGES: usize = 64 << 10;

/// A step that can be replayed.
pub(super) struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: names that the driver takes from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `submit` gives to the stream; nothing of it runs.
    pub(super) fn capture(stream: &Stream, submit: impl FnOnce() -> Result<()>) -> Result<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        unsafe { result::stream::begin_capture(stream.handle(), mode) }.named("cuStreamBeginCapture")?;
        let submitted = submit();
        // SAFETY: the stream is capturing; this ends it whatever came of `submit`.
        let graph = unsafe { result::stream::end_capture(stream.handle()) }.named("cuStreamEndCapture");
        submitted?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was captured just now.
        let executable = unsafe { result::graph::instantiate(graph, flags) }.named("cuGraphInstantiate")?;
        Ok(Self { graph, executable })
    }

    /// Submits the step.
    pub(super) fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are live.
        unsafe { result::graph::launch(self.executable, stream.handle()) }.named("cuGraphLaunch")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made once, in `capture`. One that still runs is freed by the driver when it is over.
        unsafe {
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}

/// How many rows the graph has that can stand for this step, if one can.
pub(super) fn graph_rows(batch: &[Chunk<'_>]) -> Option<usize> {
    let alike = batch.iter().all(|chunk| chunk.source != TokenSource::Prompt && chunk.sample.is_some());
    let pages: usize = batch.iter().map(|chunk| chunk.pages.len() + 1).sum();
    let rows = GRAPH_ROWS.into_iter().find(|rows| *rows >= batch.len())?;
    (alike && !batch.is_empty() && pages + rows <= GRAPH_PAGES).then_some(rows)
}
