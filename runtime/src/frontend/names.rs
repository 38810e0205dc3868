//! Names of requests: the number inside the process, and the id that clients see.

use std::sync::atomic::{AtomicU64, Ordering};

use actors::request::RequestId;
use common::splitmix::random_word;

use super::openai::ApiKind;

/// The number of the next request of the process. Both HTTP ports use it, because they share one table of live streams.
static NEXT_REQUEST: AtomicU64 = AtomicU64::new(1);

/// Maximum length of an id that a client gives a request. Every chunk contains it.
const NAME_BYTES_MAX: usize = 128;

/// A new number for a request.
pub(super) fn next_request() -> RequestId {
    RequestId(NEXT_REQUEST.fetch_add(1, Ordering::Relaxed))
}

/// The id of a request in responses.
pub(super) fn public_id(kind: ApiKind, wanted: Option<&str>) -> String {
    kind.prefix().to_owned() + &request_name(wanted)
}

/// The client's id of a request if that is printable and short, else 32 random hex digits.
pub(super) fn request_name(wanted: Option<&str>) -> String {
    let usable = |name: &&str| {
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    wanted.filter(usable).map_or_else(random_name, str::to_owned)
}

/// 32 random hex digits. They do not have to be hard to guess.
fn random_name() -> String {
    let words = u128::from(random_word()) << 64 | u128::from(random_word());
    format!("{words:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_clients_or_random() {
        assert_eq!(public_id(ApiKind::Completion, Some("bench-1")), "cmpl-bench-1");
        assert_eq!(public_id(ApiKind::Chat, Some("a b")).len(), "chatcmpl-".len() + 32);
        assert_ne!(public_id(ApiKind::Chat, None), public_id(ApiKind::Chat, None));
        assert_eq!(public_id(ApiKind::Completion, Some(&"x".repeat(129))).len(), "cmpl-".len() + 32);
    }
}
