mod fleet;
mod placement;
mod property;
mod several;

use super::*;

const PAGE: u32 = 16;

/// A member that does everything.
pub(super) fn node(name: u64, pool_pages: u32) -> Joining {
    Joining { name, capabilities: Capabilities { prefill: true, decode: true }, pool_pages }
}

/// A member that only prefills.
pub(super) fn prefiller(name: u64) -> Joining {
    Joining { name, capabilities: Capabilities { prefill: true, decode: false }, pool_pages: 10_000 }
}

/// A request that the member 0 decodes.
pub(super) fn ask(prompt: &[u32]) -> Ask<'_, u32> {
    Ask {
        prompt,
        salt: None,
        hashes: None,
        reads_cache: true,
        max_tokens: 1,
        decode_on: Some(0),
        local: LocalPrefill::Auto,
        context_tokens: 0,
        not_on: &[],
    }
}

/// A prompt that shares no page with a prompt of another number.
pub(super) fn prompt(number: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|token| number * 10_000 + token).collect()
}

/// A router in which member 0 decodes and members 1 to `count` prefill at 1 ms per token.
pub(super) fn router(count: u32, config: RoutingConfig) -> Routing<u32> {
    let mut routing = Routing::new(PAGE, config);
    routing.joined(0, node(0, 10_000));
    for id in 1..=count {
        routing.joined(id, prefiller(u64::from(id)));
        routing.reported(Instant::now(), id, &load(0));
    }
    routing
}

/// The load of a member that computes 1,000 tokens per second.
pub(super) fn load(waiting_tokens: u64) -> LoadReport {
    LoadReport {
        waiting_tokens,
        begun_tokens: 0,
        nanos_per_token: Some(1_000_000),
        decoding: 0,
        decode: None,
    }
}

pub(super) fn computed(placed: &Placed<u32>) -> PrefillOutcome {
    PrefillOutcome::Computed {
        tokens: placed.prefill_tokens,
        micros: u64::from(placed.prefill_tokens) * 1000,
    }
}

/// Places a request, and reports its prefill as computed.
pub(super) fn run(routing: &mut Routing<u32>, now: Instant, ask: &Ask<'_, u32>) -> Placed<u32> {
    let placed = routing.place(now, ask).unwrap();
    routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &computed(&placed));
    routing.decoded(placed.decode_on, placed.decode);
    placed
}
