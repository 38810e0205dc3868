"""Checks that the first gap between tokens of an answer is not longer than later gaps: first_gap.py BASE_URL [ANSWERS].

Streams ANSWERS (20) completions over one kept connection, as vLLM's bench client and OpenAI's client do. Prints the median of the first gaps and
the median of all gaps, in milliseconds. Exits with 1 if the first median is more than twice the second.
"""

import http.client
import json
import statistics
import sys
import time
import urllib.parse

TOKENS = 32


def answer(connection, prompt):
    """The time of each token in milliseconds."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    times = []
    for line in reply:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            times.append(time.perf_counter() * 1e3)
    assert len(times) == TOKENS, f"{len(times)} events for {TOKENS} tokens"
    return times


def main():
    connection = http.client.HTTPConnection(urllib.parse.urlparse(sys.argv[1]).netloc, timeout=120)
    answers = [answer(connection, f"{n} ships left the harbour") for n in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20)]
    gaps = [[after - before for before, after in zip(times, times[1:])] for times in answers]
    first = statistics.median(of[0] for of in gaps)
    every = statistics.median(gap for of in gaps for gap in of)
    print(f"{len(answers)} answers over one connection: median first gap {first:.2f} ms, median gap {every:.2f} ms")
    sys.exit(first > 2 * every)


if __name__ == "__main__":
    main()
