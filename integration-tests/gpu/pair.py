"""One GPU alone, then a sender and a receiver on two: the same prompts, one at a time; times, and whether the words are the same.

    python3 integration-tests/gpu/pair.py RUNTIME LIBUCP MODEL [--set KEY=VALUE ...]

RUNTIME is the binary with the feature `cuda`, MODEL a folder (configs/models/llama-3.1-8b makes random weights). Prompts are token
ids, so no tokenizer is needed. Standard library only. PARTS, a list with commas in between, says what else is done: `load` (the seed's
load), `kills` (each side is killed under load), or `single` (one GPU, and no pair).
"""

import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time

LENGTHS = [1000, 5000, 15000]
ROUNDS = 5
TOKENS = 8


class Process:
    """A `runtime`, its log, and where it listens."""

    def __init__(self, name, gpu, arguments):
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=str(gpu))
        self.name, self.lines = name, []
        self.child = subprocess.Popen(
            [RUNTIME, *arguments], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.grown = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stderr:
            with self.grown:
                self.lines.append(line.rstrip())
                self.grown.notify_all()

    def wait(self, *words, seconds=90):
        """The first line with all these words."""
        until = time.monotonic() + seconds
        with self.grown:
            while True:
                for line in self.lines:
                    if all(word in line for word in words):
                        return line
                left = until - time.monotonic()
                if left <= 0 or self.child.poll() is not None:
                    sys.exit(f"{self.name} does not say {words}:\n" + "\n".join(self.lines[-25:]))
                self.grown.wait(min(left, 0.5))

    def port(self, key):
        line = self.wait("listening", f'key="{key}"')
        return int(re.search(r":(\d+)(?=[\" ]|$)", line).group(1))

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def ask(port, prompt, tokens=TOKENS):
    """Time to the first token, gaps to each next one (ms), token ids, timings."""
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "return_timings": True,
            "stream_options": {"include_usage": True},
        }
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(answer.read().decode())
    times, ids, timings = [], [], {}
    for line in answer:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "choices" not in event:
            sys.exit(f"the answer broke off: {event}")
        timings = event.get("timings") or timings
        for choice in event["choices"]:
            if choice.get("token_ids"):
                ids += choice["token_ids"]
                times.append((time.perf_counter() - began) * 1e3)
    connection.close()
    gaps = [b - a for a, b in zip(times, times[1:])]
    return times[0], gaps, ids, timings


def measure(port, title):
    print(f"\n{title}\n{'prompt':>7} {'TTFT ms':>9} {'(min)':>8} {'2nd gap':>8} {'ITL':>7} {'prefill':>8} {'exposed':>8} {'transfer':>9} {'GB/s':>6}")
    words = {}
    for length in LENGTHS:
        rows = []
        for turn in range(ROUNDS):
            prompt = random.Random(length * 1000 + turn).choices(range(1000, 120000), k=length)
            ttft, gaps, ids, timings = ask(port, prompt)
            words[length, turn] = ids
            rows.append((ttft, gaps[0], statistics.median(gaps[1:]), timings))
        rows = rows[1:]
        middle = lambda of: statistics.median(of(row) for row in rows)
        said = lambda key: middle(lambda row: row[3].get(key, 0))
        rate = middle(lambda row: row[3]["bytes"] / row[3]["transfer_ms"] / 1e6 if row[3].get("transfer_ms") else 0)
        print(
            f"{length:>7} {middle(lambda row: row[0]):>9.1f} {min(row[0] for row in rows):>8.1f} {middle(lambda row: row[1]):>8.2f} "
            f"{middle(lambda row: row[2]):>7.2f} {said('prefill_ms'):>8.1f} {said('exposed_ms'):>8.2f} {said('transfer_ms'):>9.2f} {rate:>6.0f}"
        )
    return words


def load(port, title):
    """The seed's load: 50 requests of 5000 tokens in and 200 out, one a second."""
    results, threads = [], []

    def one(turn):
        prompt = random.Random(turn).choices(range(1000, 120000), k=5000)
        results.append(ask(port, prompt, 200))

    began = time.monotonic()
    for turn in range(50):
        time.sleep(max(0, began + turn - time.monotonic()))
        threads.append(threading.Thread(target=one, args=(turn,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    gaps = sorted(gap for _, gaps, _, _ in results for gap in gaps)
    tpots = [statistics.mean(gaps) for _, gaps, _, _ in results]
    ttfts = [ttft for ttft, _, _, _ in results]
    print(
        f"\n{title}, 50 x 5000/200 at 1 a second: TTFT median {statistics.median(ttfts):.1f} ms, max {max(ttfts):.1f}; TPOT median "
        f"{statistics.median(tpots):.2f} ms; inter-token p99 {gaps[int(len(gaps) * 0.99)]:.2f} ms, max {gaps[-1]:.1f}"
    )


def used(gpu):
    """MiB in use on a GPU."""
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True).stdout)


def together(port, prompts, tokens):
    """Answers of all prompts, asked at once; None for one that failed."""
    answers = [None] * len(prompts)

    def one(place):
        try:
            answers[place] = ask(port, prompts[place], tokens)[2]
        except (OSError, http.client.HTTPException, SystemExit, IndexError):
            pass

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    return threads, answers


def kills(start_receiver, start_sender, expected):
    """Kills each side under load; the other one goes on, and takes a new peer of full size."""
    prompts = [list(key[2]) for key in expected]
    words = list(expected.values())
    receiver, port, link = start_receiver()
    sender = start_sender(link)
    before = used(1)
    threads, answers = together(port, prompts, len(words[0]))
    time.sleep(0.25)
    sender.child.kill()
    sender.child.wait()
    gone = time.monotonic()
    while used(1) > 2000 and time.monotonic() - gone < 20:
        time.sleep(0.05)
    print(f"\nsender killed: its GPU had {before} MiB in use and has {used(1)} after {time.monotonic() - gone:.2f} s")
    for thread in threads:
        thread.join()
    print(f"  {sum(a == b for a, b in zip(answers, words))} of {len(words)} answers as expected, {answers.count(None)} failed")
    sender = start_sender(link)
    timings = ask(port, prompts[0])[3]
    print(f"  a new sender joined: {sender.wait('receiver ready').split('INFO ')[1]}; disaggregated {timings['disaggregated']}")
    threads, answers = together(port, prompts, len(words[0]))
    time.sleep(0.25)
    receiver.child.kill()
    receiver.child.wait()
    gone = time.monotonic()
    while used(0) > 2000 and time.monotonic() - gone < 20:
        time.sleep(0.05)
    print(f"receiver killed: its GPU has {used(0)} MiB in use after {time.monotonic() - gone:.2f} s")
    for thread in threads:
        thread.join()
    receiver, port, _ = start_receiver(link)
    deadline = time.monotonic() + 30
    timings = {}
    while not timings.get("disaggregated") and time.monotonic() < deadline:
        time.sleep(0.2)
        timings = ask(port, prompts[1])[3]
    again = ask(port, prompts[2], len(words[2]))[2] == words[2]
    print(f"  a new receiver took the same sender: disaggregated {timings['disaggregated']}, words right: {again}")
    for process in (sender, receiver):
        process.stop()


def main():
    common = ["--model", MODEL, "--set", f"transport.ucx_library={LIBUCP}", "--set", "engine.device=cuda"]
    common += ["--set", "engine.load_format=dummy", "--set", "engine.prefix_cache=false", *EXTRA]
    ports = ["--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"]
    # On the sender's GPU: two of a kind differ by a few percent.
    alone = Process("local", 0 if "single" in PARTS else 1, ["--role", "local", *common, *ports])
    alone.wait("ready in")
    print(alone.wait("model on the GPU"))
    single = measure(alone.port("frontend.port"), "one GPU")
    longer = {}
    for turn in range(8 if "kills" in PARTS else 0):
        prompt = tuple(random.Random(turn).choices(range(1000, 120000), k=3000))
        longer[0, turn, prompt] = ask(alone.port("frontend.port"), list(prompt), 64)[2]
    if "load" in PARTS:
        load(alone.port("frontend.port"), "one GPU")
    alone.stop()
    if "single" in PARTS:
        return

    def start_receiver(link="127.0.0.1:0"):
        port = link.rsplit(":", 1)[1]
        receiver = Process("receiver", 0, ["--role", "receiver", *common, *ports, "--set", f"link.port={port}"])
        address = re.search(r"address=([\d.:]+)", receiver.wait("listening for senders")).group(1)
        receiver.wait("ready in")
        return receiver, receiver.port("frontend.port"), address

    def start_sender(link):
        dial = ["--set", "http.port=0", "--set", f"link.peers={link}"]
        sender = Process("sender", 1, ["--role", "sender", *common, *dial])
        sender.wait("receiver ready")
        return sender

    receiver, port, link = start_receiver()
    sender = start_sender(link)
    print(sender.wait("receiver ready"))
    pair = measure(port, "sender and receiver")
    same = sum(single[key] == pair[key] for key in single)
    print(f"\nwords: {same} of {len(single)} answers are the same")
    if "load" in PARTS:
        load(port, "sender and receiver")
    for process in (sender, receiver):
        process.stop()
    warnings = [line for process in (sender, receiver) for line in process.lines if " WARN " in line or " ERROR " in line]
    print("\n".join(warnings[:20]))
    if "kills" in PARTS:
        kills(start_receiver, start_sender, longer)


if __name__ == "__main__":
    PARTS = os.environ.get("PARTS", "load,kills").split(",")
    RUNTIME, LIBUCP, MODEL, *EXTRA = sys.argv[1:]
    main()
