//! CUDA graphs of decode steps. One call replays all launches of a step up to its logits.

use cudarc::driver::{result, sys};

use super::device::{Named, Result, Stream};
use crate::step::{Chunk, TokenSource};

/// The row counts of the graphs. A decode batch uses the smallest graph with enough rows.
const GRAPH_ROWS: [usize; 12] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, GRAPH_ROWS_MAX];
pub(super) const GRAPH_ROWS_MAX: usize = 256;
/// Maximum number of page table entries in a step that a graph replays.
pub(super) const GRAPH_PAGES: usize = 64 << 10;

/// A captured step.
pub(super) struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: the driver accepts the handles from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures the work that `submit` submits to the stream. The work does not run.
    pub(super) fn capture(stream: &Stream, submit: impl FnOnce() -> Result<()>) -> Result<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        unsafe { result::stream::begin_capture(stream.handle(), mode) }.named("cuStreamBeginCapture")?;
        let submitted = submit();
        // SAFETY: the stream is capturing. This call ends the capture even if `submit` failed.
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
        // SAFETY: created once, in `capture`. If the graph still runs, the driver frees it when it has finished.
        unsafe {
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}

/// The row count of the graph that can replay this step. `None` if the step cannot use a graph.
pub(super) fn graph_rows(batch: &[Chunk<'_>]) -> Option<usize> {
    let decode_only = batch.iter().all(|chunk| chunk.source != TokenSource::Prompt && chunk.sample.is_some());
    let pages: usize = batch.iter().map(|chunk| chunk.pages.len() + 1).sum();
    let rows = GRAPH_ROWS.into_iter().find(|rows| *rows >= batch.len())?;
    (decode_only && !batch.is_empty() && pages + rows <= GRAPH_PAGES).then_some(rows)
}
