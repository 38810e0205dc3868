#!/usr/bin/env python3
"""Runs conversations of several turns and prints the time to first token of the first turn and of later turns.

    pip install vllm aiohttp        # or a folder with vllm/benchmarks/lib/endpoint_request_func.py and what it imports, in PYTHONPATH
    multi_turn.py --urls http://localhost:9000

The client is vLLM's request function over kept connections. Prompts are token ids. Each turn's prompt is the whole conversation so far: the
prompts and answers of earlier turns, and --tokens new random ids. vLLM's function returns text, not ids, so the answers in the conversation are random
ids of the same number; their pages have no KV anywhere. The next turn of a conversation is sent --pause seconds after the answer. With several
URLs, every turn goes to the next one, or with --spread random to one at random, as behind a load balancer that knows nothing of
conversations.
"""

import argparse
import asyncio
import random

import aiohttp
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(percent / 100 * len(values)))] if values else float("nan")


async def conversation(options, session, number, turns):
    rng, urls, ids = random.Random(f"{number} {options.seed}"), options.urls.split(","), []
    await asyncio.sleep(number * options.stagger)
    for turn in range(options.turns):
        ids += [rng.randrange(10, options.vocabulary) for _ in range(options.tokens)]
        url = (rng.choice(urls) if options.spread == "random" else urls[(number + turn) % len(urls)]) + "/v1/completions"
        asked = RequestFuncInput(prompt=ids, api_url=url, prompt_len=len(ids), output_len=options.answer, model=options.model, ignore_eos=True)
        output = await async_request_openai_completions(asked, session)
        turns[turn].append(output)
        ids = ids + [rng.randrange(10, options.vocabulary) for _ in range(options.answer)]
        await asyncio.sleep(options.pause)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", default="http://localhost:9000", help="servers, separated by commas")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=2000, help="new tokens of each turn's prompt")
    parser.add_argument("--answer", type=int, default=200, help="tokens of each answer")
    parser.add_argument("--stagger", type=float, default=0.25, help="seconds between the starts of two conversations")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between an answer and the next turn")
    parser.add_argument("--vocabulary", type=int, default=128_000, help="token ids are below this number")
    parser.add_argument("--model", default="", help="the model; the default is the first one that the first server lists")
    parser.add_argument("--spread", default="turn", choices=["turn", "random"], help="how turns are spread over the servers")
    parser.add_argument("--seed", type=int, default=0, help="another number sends other prompts")
    parser.add_argument("--label", default="", help="start of each line")
    options = parser.parse_args()
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        if not options.model:
            async with session.get(options.urls.split(",")[0] + "/v1/models") as reply:
                options.model = (await reply.json())["data"][0]["id"]
        turns = [[] for _ in range(options.turns)]
        await asyncio.gather(*(conversation(options, session, number, turns) for number in range(options.conversations)))
    for name, outputs in [("first turn", turns[0]), ("later turns", [output for turn in turns[1:] for output in turn])]:
        answered = [output for output in outputs if output.success]
        first = [output.ttft * 1e3 for output in answered]
        gaps = [gap * 1e3 for output in answered for gap in output.itl]
        print(
            f"{options.label} {name}: {len(answered)} of {len(outputs)} answered  TTFT p50 {percentile(first, 50):5.0f} p90 {percentile(first, 90):5.0f}  "
            f"gap p50 {percentile(gaps, 50):5.1f} p99 {percentile(gaps, 99):5.1f} ms",
            flush=True,
        )


asyncio.run(main())
