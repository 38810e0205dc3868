//! The body of a request. Reads it as it arrives, within the budget of [`InputMemory`].

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::{HttpRequest, web};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::Frontend;
use super::api_error::ApiError;
use super::fields::Fields;
use super::memory::{HeldBytes, InputMemory};
use super::prompts::Reader;

/// Maximum size of a body. A prompt of 128k token ids is about 1 MiB as a JSON list, and less as text.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;

/// Maximum size of a body that is parsed on the HTTP worker. Parsing it takes well under a millisecond.
pub(super) const READ_HERE_BYTES_MAX: usize = 4 << 10;

/// Initial capacity for a body of unknown length. The capacity doubles when it is full.
const FIRST_BYTES: usize = 16 << 10;

/// A body and its share of the memory budget.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) held: HeldBytes,
}

/// Reads a JSON body.
///
/// # Errors
/// 415 for another content type, 413 for a body that is too large, 408 if it does not arrive within `period`, 503 if the memory budget
/// is used up, 400 if the connection breaks.
pub(super) async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    memory: &InputMemory,
    period: Duration,
) -> Result<Body, ApiError> {
    let header = |name| request.headers().get(name)?.to_str().ok();
    if let Some(content_type) = header(CONTENT_TYPE) {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") && !essence.is_empty() {
            let message = format!("content-type must be application/json, not {essence}");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    let late = |_| {
        let message = format!("body did not arrive within {period:?}; send all of it at once");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    };
    timeout(period, collect(payload, length, memory)).await.map_err(late)?
}

async fn collect(
    mut payload: web::Payload,
    length: Option<usize>,
    memory: &InputMemory,
) -> Result<Body, ApiError> {
    let mut body = Body { bytes: Vec::new(), held: memory.hold(0)? };
    let mut received = 0;
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("body could not be read: {error}"))
        })?;
        received += chunk.len();
        if received > BODY_BYTES_MAX {
            return Err(too_large());
        }
        if let Err(error) = body.push(&chunk, length) {
            // Free the memory at once. A client that is still sending does not read the response, so first discard the rest of the body.
            drop(body);
            while let Some(Ok(chunk)) = payload.next().await {
                received += chunk.len();
                if received > BODY_BYTES_MAX {
                    break;
                }
            }
            return Err(error);
        }
    }
    Ok(body)
}

impl Body {
    /// Appends a chunk of a body. `length` is the length of the whole body if the client announced it. The capacity doubles up to that
    /// length, and is taken from the budget before it is allocated. So a client that announces a large body and sends little of it takes
    /// little memory.
    fn push(&mut self, chunk: &[u8], length: Option<usize>) -> Result<(), ApiError> {
        let (room, wanted) = (self.bytes.capacity(), self.bytes.len() + chunk.len());
        if wanted > room {
            let most = length.unwrap_or(BODY_BYTES_MAX);
            let larger = (2 * room).max(FIRST_BYTES).min(most).max(wanted);
            self.held.grow(larger - room)?;
            self.bytes.reserve_exact(larger - self.bytes.len());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// Parses the body and calls `work` with its fields. A long body is parsed on a [thread pool](InputMemory::run_long).
    ///
    /// # Errors
    /// 400 if the body is not a JSON object, and the errors of `work`.
    pub(super) async fn parse<T: Send + 'static>(
        self,
        frontend: &Frontend,
        work: impl FnOnce(&Fields<'_>, Reader<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.bytes.len() <= READ_HERE_BYTES_MAX {
            let reader = Reader::new(&frontend.model, &frontend.memory, false);
            return work(&Fields::parse(&self.bytes)?, reader);
        }
        let (model, memory) = (Arc::clone(&frontend.model), frontend.memory.clone());
        let work = move || {
            let body = self;
            work(&Fields::parse(&body.bytes)?, Reader::new(&model, &memory, true))
        };
        frontend.memory.run_long(work).await?
    }
}

fn too_large() -> ApiError {
    let message = format!("body is larger than {BODY_BYTES_MAX} bytes; send a shorter prompt");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes chunks of 1,000 bytes until the budget is used up. Returns the bytes in the body and the used bytes of the budget.
    fn pushed(chunks: usize, length: Option<usize>, budget: usize) -> (usize, usize) {
        let memory = InputMemory::new(budget, 1);
        let mut body = Body { bytes: Vec::new(), held: memory.hold(0).unwrap() };
        for n in 0..chunks {
            if body.push(&[n as u8; 1000], length).is_err() {
                break;
            }
            assert!(body.bytes.capacity() <= memory.used(), "allocated bytes are taken from the budget");
        }
        (body.bytes.len(), memory.used())
    }

    #[test]
    fn the_capacity_doubles_up_to_the_length() {
        assert_eq!(pushed(1, Some(1000), 1 << 20), (1000, 1000));
        assert_eq!(pushed(1, Some(900_000), 1 << 20), (1000, FIRST_BYTES));
        assert_eq!(pushed(900, Some(900_000), 1 << 20), (900_000, 900_000));
        assert_eq!(pushed(20, None, 1 << 20), (20_000, 2 * FIRST_BYTES));
        // The budget has no room to double 512 KiB.
        assert_eq!(pushed(900, Some(900_000), 800_000), (524_000, 1 << 19));
    }
}
