//! An answer that has ended.

use actors::request::RequestId;

use super::begin::Begin;
use super::response::Head;

/// A choice of a request that has ended, for the log, the statistics and the list of requests.
pub(super) struct Ended<'a> {
    pub(super) head: &'a Head,
    pub(super) choice: usize,
    pub(super) request: RequestId,
    /// When the request arrived and its answers began.
    pub(super) begin: &'a Begin,
}
