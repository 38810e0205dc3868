#!/usr/bin/env python3
"""Sends requests at rising rates to one or more servers and prints, for each rate, the share of requests that met both latency limits.

    pip install vllm aiohttp        # or a folder with vllm/benchmarks/lib/endpoint_request_func.py and what it imports, in PYTHONPATH
    goodput.py --urls http://localhost:9000,http://localhost:9001 --load 5000/200:20 --rates 4,5,6

The client is vLLM's request function over kept connections. Requests arrive as a Poisson process and go to the servers in turn, or with
--spread random to one at random. `--load` is a list of phases, `IN/OUT:SECONDS`, each with its own lengths; the lengths of a request are drawn
evenly from 0.8 to 1.2 times those. Prompts are random token ids, so that no two share a prefix, also not those of two rates. Of
two rates, the higher one has the same gaps between arrivals, made shorter, and requests of the same lengths. A request is good if its first token came within
--ttft seconds and the 99th percentile of its own gaps is at most --gap milliseconds. Goodput is the highest rate at which 90 % of the requests
are good.

--burst N sends N requests at once instead, at most --concurrency at a time, and prints the tokens per second.
"""

import argparse
import asyncio
import random
import time

import aiohttp
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(percent / 100 * len(values)))] if values else float("nan")


class Clients:
    def __init__(self, options, session):
        self.options, self.session, self.sent = options, session, 0

    def ask(self, rng, ids, tokens_in, tokens_out):
        tokens_in, tokens_out = (round(length * rng.uniform(0.8, 1.2)) for length in (tokens_in, tokens_out))
        urls = self.options.urls.split(",")
        url = (rng.choice(urls) if self.options.spread == "random" else urls[self.sent % len(urls)]) + "/v1/completions"
        self.sent += 1
        asked = RequestFuncInput(
            prompt=[ids.randrange(10, self.options.vocabulary) for _ in range(tokens_in)],
            api_url=url,
            prompt_len=tokens_in,
            output_len=tokens_out,
            model=self.options.model,
            ignore_eos=True,
        )
        return async_request_openai_completions(asked, self.session)

    async def at_rate(self, rate):
        rng, ids = random.Random(f"{self.options.load} {self.options.seed}"), random.Random(f"{rate} {self.options.seed}")
        began, at, asked = time.perf_counter(), 0.0, []
        for phase in self.options.load.split(","):
            lengths, seconds = phase.split(":")
            tokens_in, tokens_out = map(int, lengths.split("/"))
            end = at + float(seconds)
            while at < end:
                await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
                asked.append(asyncio.create_task(self.ask(rng, ids, tokens_in, tokens_out)))
                at += rng.expovariate(rate)
        self.show(f"{rate:5.2f}/s", await asyncio.gather(*asked), time.perf_counter() - began)

    async def burst(self, count):
        rng, began, places = random.Random(f"burst {self.options.seed}"), time.perf_counter(), asyncio.Semaphore(self.options.concurrency)
        tokens_in, tokens_out = map(int, self.options.load.split(":")[0].split("/"))

        async def one():
            async with places:
                return await self.ask(rng, rng, tokens_in, tokens_out)

        outputs = await asyncio.gather(*(one() for _ in range(count)))
        self.show(f"{count} at once", outputs, time.perf_counter() - began)

    def show(self, name, outputs, took):
        answered = [output for output in outputs if output.success]
        limits = self.options
        good = [out for out in answered if out.ttft <= limits.ttft and percentile(out.itl, 99) * 1e3 <= limits.gap]
        first = [output.ttft * 1e3 for output in answered]
        gaps = [gap * 1e3 for output in answered for gap in output.itl]
        each = [sum(output.itl) / max(1, len(output.itl)) * 1e3 for output in answered]
        tokens = sum(output.output_tokens for output in answered) / took
        print(
            f"{limits.label:16} {name}  requests {len(outputs):4}  failed {len(outputs) - len(answered)}  good {100 * len(good) / len(outputs):5.1f} %  "
            f"TTFT p50 {percentile(first, 50):5.0f} p90 {percentile(first, 90):5.0f}  TPOT {percentile(each, 50):5.1f}  "
            f"gap p50 {percentile(gaps, 50):5.1f} p99 {percentile(gaps, 99):5.1f} max {max(gaps, default=0):6.1f} ms  {tokens:6.0f} tokens/s",
            flush=True,
        )
        for failed in [output for output in outputs if not output.success][:1]:
            print("  first failed request:", failed.error[-300:])


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", default="http://localhost:9000", help="servers, separated by commas")
    parser.add_argument("--load", default="5000/200:20", help="phases IN/OUT:SECONDS, separated by commas")
    parser.add_argument("--rates", default="", help="requests per second, separated by commas")
    parser.add_argument("--burst", type=int, default=0, help="requests that are sent at once instead")
    parser.add_argument("--concurrency", type=int, default=1 << 20, help="requests in flight during --burst")
    parser.add_argument("--ttft", type=float, default=1.0, help="limit of the time to first token in seconds")
    parser.add_argument("--gap", type=float, default=25.0, help="limit of the 99th percentile of a request's gaps in milliseconds")
    parser.add_argument("--vocabulary", type=int, default=128_000, help="token ids are below this number")
    parser.add_argument("--model", default="", help="the model; the default is the first one that the first server lists")
    parser.add_argument("--spread", default="turn", choices=["turn", "random"], help="how requests are spread over the servers")
    parser.add_argument("--seed", type=int, default=0, help="another number sends other prompts at other times")
    parser.add_argument("--label", default="", help="first column of each line")
    options = parser.parse_args()
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        if not options.model:
            async with session.get(options.urls.split(",")[0] + "/v1/models") as reply:
                options.model = (await reply.json())["data"][0]["id"]
        clients = Clients(options, session)
        for rate in filter(None, options.rates.split(",")):
            await clients.at_rate(float(rate))
        if options.burst:
            await clients.burst(options.burst)


asyncio.run(main())
