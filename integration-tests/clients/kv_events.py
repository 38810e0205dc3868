"""Subscribes to the KV events of a process as a router does, with libzmq, and checks them: kv_events.py HTTP PUBLISH REPLAY TOPIC PAGE_TOKENS.

HTTP, PUBLISH and REPLAY are addresses. The process must have no cached pages and a pool of few pages. The classes have the fields of vLLM 0.33
(vllm/distributed/kv_events.py).
"""

import json
import sys
import urllib.request
from typing import Any

import msgspec
import zmq

http, publish, replay, topic, page_tokens = sys.argv[1:]
page_tokens = int(page_tokens)
SECONDS = 60
END = b"\xff" * 8


class BlockStored(msgspec.Struct, omit_defaults=True, tag=True, forbid_unknown_fields=True):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, omit_defaults=True, tag=True, forbid_unknown_fields=True):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, omit_defaults=True, tag=True, forbid_unknown_fields=True):
    pass


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


decoder = msgspec.msgpack.Decoder(KVEventBatch)
context = zmq.Context()


def socket(kind, address):
    made = context.socket(kind)
    made.setsockopt(zmq.RCVTIMEO, SECONDS * 1000)
    # Heartbeats are answered.
    made.setsockopt(zmq.HEARTBEAT_IVL, 200)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, SECONDS * 1000)
    made.connect(f"tcp://{address}")
    return made


def complete(prompt, salt=None):
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    body |= {"cache_salt": salt} if salt else {}
    request = urllib.request.Request(f"http://{http}/v1/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def replayed(start, kind=zmq.REQ):
    """The batches from this sequence number on: (sequence, payload)."""
    asks = socket(kind, replay)
    number = start.to_bytes(8, "big")
    asks.send(number) if kind == zmq.REQ else asks.send_multipart([b"", number])
    found = []
    while True:
        frames = asks.recv_multipart()
        if kind == zmq.DEALER:
            assert frames.pop(0) == b""
        name, sequence, payload = frames
        if sequence == END:
            assert (name, payload) == (b"", b"")
            return found
        assert name.decode() == topic
        found.append((int.from_bytes(sequence, "big"), payload))
        if kind == zmq.REQ:
            # A REQ socket of libzmq takes one reply for each request.
            return found


class Router:
    """The index of a router: the tokens of all cached prefixes, by their hashes."""

    def __init__(self):
        self.prefixes = {}

    def apply(self, payload):
        batch = decoder.decode(payload)
        assert batch.data_parallel_rank == 0 and batch.ts > 1.7e9, batch
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self.prefixes.clear()
                continue
            assert event.medium == "GPU", event
            if isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    del self.prefixes[block]
                continue
            assert event.block_size == page_tokens and event.extra_keys is None, event
            assert len(event.token_ids) == page_tokens * len(event.block_hashes), event
            before = () if event.parent_block_hash is None else self.prefixes[event.parent_block_hash]
            for place, block in enumerate(event.block_hashes):
                assert block not in self.prefixes and 0 < block < 2**64, event
                before += tuple(event.token_ids[place * page_tokens : (place + 1) * page_tokens])
                self.prefixes[block] = before

    def knows(self, tokens):
        return tuple(tokens) in self.prefixes.values()


router = Router()
# Everything so far is that the cache is empty.
[(first, payload)] = replayed(0, zmq.DEALER)
assert first == 0 and decoder.decode(payload).events == [AllBlocksCleared()]
assert replayed(0) == [(first, payload)]
router.apply(payload)
seen = [(first, payload)]

subscriber = socket(zmq.SUB, publish)
subscriber.setsockopt(zmq.SUBSCRIBE, b"kv@")
stranger = socket(zmq.SUB, publish)
stranger.setsockopt(zmq.SUBSCRIBE, b"kv@another")


def prompt(seed, tokens):
    return [100 + (seed * 7919 + place * 31) % 5000 for place in range(tokens)]


def receive():
    name, sequence, payload = subscriber.recv_multipart()
    assert name.decode() == topic, name
    seen.append((int.from_bytes(sequence, "big"), payload))
    router.apply(payload)


# A PUB socket sends only what comes after the subscription has arrived, so the first events may be missed. They are replayed.
shared = prompt(1, 3 * page_tokens)
answer = complete(shared)
while not router.knows(shared[: 2 * page_tokens]):
    known = seen[-1][0] + 1
    for sequence, payload in replayed(known, zmq.DEALER):
        assert sequence == known, (sequence, known)
        seen.append((sequence, payload))
        router.apply(payload)
        known += 1
while subscriber.poll(500):
    name, sequence, payload = subscriber.recv_multipart()
    if int.from_bytes(sequence, "big") > seen[-1][0]:
        seen.append((int.from_bytes(sequence, "big"), payload))
        router.apply(payload)

# A longer prompt with the same beginning continues it. The last tokens make a page that the router gets when the request has ended.
longer = shared + prompt(2, 2 * page_tokens)
complete(longer)
while not router.knows(longer):
    receive()
assert router.knows(shared)

# A salted request announces nothing: neither its own pages nor those that it does not share.
before = dict(router.prefixes)
salted = prompt(3, 4 * page_tokens)
complete(salted, salt="tenant")
complete(shared + salted, salt="tenant")
last = prompt(4, page_tokens)
complete(last)
while not router.knows(last):
    receive()
assert {hash for hash in before if hash not in router.prefixes} == set()
tokens = {token for prefix in router.prefixes.values() for token in prefix}
assert not any(router.knows(salted[: pages * page_tokens]) for pages in range(1, 5))
assert all(tuple(salted[:page_tokens]) != prefix[start : start + page_tokens] for prefix in router.prefixes.values()
           for start in range(0, len(prefix), page_tokens))

# The pool has few pages: new prompts evict old ones, and each prefix that is left has its beginnings.
seed = 5
while router.knows(shared):
    complete(prompt(seed, 8 * page_tokens))
    while subscriber.poll(200):
        receive()
    seed += 1
    assert seed < 1000, "nothing is evicted"
kept = set(router.prefixes.values())
assert all(prefix[:end] in kept for prefix in kept for end in range(page_tokens, len(prefix), page_tokens))

# The sequence numbers are consecutive, and a replay repeats all batches.
while subscriber.poll(500):
    receive()
assert [sequence for sequence, _ in seen] == list(range(len(seen))), [sequence for sequence, _ in seen]
assert replayed(0, zmq.DEALER) == seen
assert replayed(len(seen) - 3, zmq.DEALER) == seen[-3:]
assert replayed(len(seen), zmq.DEALER) == []
again = Router()
for _, payload in seen:
    again.apply(payload)
assert again.prefixes == router.prefixes
assert not stranger.poll(0)
print(f"all events are right: {len(seen)} batches, {len(router.prefixes)} pages, {seed - 5} prompts evicted the first")
