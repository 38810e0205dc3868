//! OpenAI's API of responses, `/v1/responses`, without state in the server.
//!
//! A request for a response is read like a chat: [`input_messages`] makes messages of its items. [`ResponseWriter`] makes output items of the
//! parts of the answer, for whole responses and for streams.

mod input;
mod output;
mod repeated;

pub(super) use input::{input_messages, reasoning_effort};
pub(super) use output::{Output, ResponseStart, ResponseWriter};
pub(super) use repeated::RepeatedFields;
