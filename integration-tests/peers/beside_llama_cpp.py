#!/usr/bin/env python3
"""Compares Baton's CPU engine with llama.cpp: the same model file, threads and machine, in turns in one run.

    python3 -m venv /tmp/peer && CMAKE_ARGS="-DGGML_NATIVE=ON" /tmp/peer/bin/pip install llama-cpp-python   # builds llama.cpp, 10 minutes
    cargo xtask fetch && cargo build --release -p engine --example rounds && cargo build --release -p runtime
    /tmp/peer/bin/python integration-tests/peers/beside_llama_cpp.py [ROUNDS] [THREADS]

prefill      a prompt of 934 tokens, 512 per step, in tokens per second
decode       64 tokens after the prompt, in tokens per second
short        64 tokens after a prompt of 10 tokens
decode of 8  64 tokens of eight sequences at once after prompts of 100 tokens, in tokens per second of all sequences

Baton is measured twice: its engine alone (the example `rounds`), and over HTTP with kept connections, by the timings in its answers, from the
first token to the last. llama.cpp is called in this process and takes the largest logit. A ratio above 1 means that Baton is faster. The program ends
with the medians of the rounds. On a machine with other work, start it with real-time priority (`chrt -f 5`). Otherwise the
ratios mostly measure how each thread pool reacts to interruptions.
"""

import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import llama_cpp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "integration-tests/gpu"))
from serving import Process, posted  # noqa: E402

PROMPT, FEW, DECODED, SHORT, BATCH = 934, 10, 64, 100, 8
NAMES = ("prefill", "decode", "short", f"decode of {BATCH}")


def model_path():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "baton/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def prompt_ids():
    prompts = json.loads((ROOT / "integration-tests/fixtures/reference.json").read_text())["prompts"]
    ids = [token for prompt in sorted(prompts, key=lambda p: -len(p["prompt_ids"])) for token in prompt["prompt_ids"]]
    return ids[:PROMPT]


def eight_prompts(ids):
    return [[100 + n, *ids[1:SHORT]] for n in range(BATCH)]


class Engine:
    """Baton's engine in a process of its own, which computes a round for each line."""

    def __init__(self, threads):
        command = [str(ROOT / "target/release/examples/rounds"), str(model_path()), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, prompts):
        self.process.stdin.write(";".join(",".join(map(str, ids)) for ids in prompts) + "\n")
        self.process.stdin.flush()
        return tuple(float(figure) for figure in self.process.stdout.readline().split())

    def one(self, ids):
        return self.round([ids])

    def eight(self, ids):
        return self.round(eight_prompts(ids))[1]

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Baton:
    def __init__(self, threads):
        settings = [f"engine.threads={threads}", "frontend.port=0", "engine.prefill_chunk_tokens=512", "engine.prefix_cache=false"]
        command = [str(ROOT / "target/release/runtime"), "--role", "local", "--model", str(model_path())]
        command += [part for setting in settings for part in ("--set", setting)]
        self.process = Process(command, gpu="")
        self.process.wait_healthy()
        self.port, self.pool = self.process.port(), concurrent.futures.ThreadPoolExecutor(BATCH)

    def ask(self, ids):
        body = {"prompt": ids, "max_tokens": DECODED + 1, "temperature": 0, "ignore_eos": True, "return_timings": True}
        with posted(self.port, "/v1/completions", body) as reply:
            return json.loads(reply.read())["timings"]

    def one(self, ids):
        timings = self.ask(ids)
        return len(ids) / timings["prefill_ms"] * 1e3, DECODED / timings["decode_ms"] * 1e3

    def eight(self, ids):
        timings = list(self.pool.map(self.ask, eight_prompts(ids)))
        # The sequence that was prefilled last has the shortest time. From its first token on, each step has eight rows. The other sequences were
        # prefilled one step earlier and decode one more token outside of that time.
        return BATCH * DECODED / min(t["decode_ms"] for t in timings) * 1e3

    def end(self):
        self.process.stop()


class LlamaCpp:
    def __init__(self, threads):
        self.llama = llama_cpp.Llama(
            str(model_path()), n_ctx=8192, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False,
            logits_all=False,
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 8192, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = BATCH
        model = self.llama._model.model
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.vocabulary = self.llama.n_vocab()
        self.batch = llama_cpp.llama_batch_init(512, 0, BATCH)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def step(self, rows):
        """Computes rows of (token, position, sequence, wants logits). Returns the token with the largest logit for each row that wants logits."""
        self.batch.n_tokens = len(rows)
        for n, (token, position, sequence, wants) in enumerate(rows):
            self.batch.token[n], self.batch.pos[n] = token, position
            self.batch.n_seq_id[n], self.batch.seq_id[n][0] = 1, sequence
            self.batch.logits[n] = wants
        assert llama_cpp.llama_decode(self.context, self.batch) == 0
        best = []
        for n, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self.context, n)
                best.append(int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax()))
        return best

    def prefill(self, ids, sequence=0):
        for first in range(0, len(ids), 512):
            part = ids[first : first + 512]
            last = first + len(part) == len(ids)
            rows = [(token, first + n, sequence, last and n == len(part) - 1) for n, token in enumerate(part)]
            best = self.step(rows)
        return best[0]

    def one(self, ids):
        self.clear()
        began = time.perf_counter()
        token = self.prefill(ids)
        prefilled = time.perf_counter()
        for n in range(DECODED):
            (token,) = self.step([(token, len(ids) + n, 0, True)])
        return len(ids) / (prefilled - began), DECODED / (time.perf_counter() - prefilled)

    def eight(self, ids):
        self.clear()
        tokens = [self.prefill(prompt, n) for n, prompt in enumerate(eight_prompts(ids))]
        began = time.perf_counter()
        for n in range(DECODED):
            tokens = self.step([(token, SHORT + n, sequence, True) for sequence, token in enumerate(tokens)])
        return BATCH * DECODED / (time.perf_counter() - began)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    ids = prompt_ids()
    peer, engine, http = LlamaCpp(threads), Engine(threads), Baton(threads)
    print(f"llama-cpp-python {llama_cpp.__version__}, {threads} threads, {rounds} rounds in turns; tokens per second")
    order, rows = [peer, engine, http], []
    try:
        for n in range(rounds + 1):
            figures = {one: (*one.one(ids), one.one(ids[:FEW])[1], one.eight(ids)) for one in order}
            order.reverse()
            if n:  # The first round warms up all of them.
                rows.append(figures)
    finally:
        engine.end()
        http.end()
    print(f"{'':12} {'engine':>8} {'HTTP':>8} {'llama.cpp':>10}  engine: ratio, lowest, highest    HTTP: ratio, lowest, highest")
    for at, name in enumerate(NAMES):
        medians = [statistics.median(row[one][at] for row in rows) for one in (engine, http, peer)]
        print(f"{name:12} {medians[0]:8.1f} {medians[1]:8.1f} {medians[2]:10.1f}", end="")
        for one in (engine, http):
            ratios = [row[one][at] / row[peer][at] for row in rows]
            print(f"  {statistics.median(ratios):14.2f} {min(ratios):7.2f} {max(ratios):8.2f}", end="")
        print()


if __name__ == "__main__":
    main()
