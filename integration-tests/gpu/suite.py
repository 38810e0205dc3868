#!/usr/bin/env python3
"""The GPU suite: checks Baton's results and measures its speed on two GPUs in a few minutes. On one GPU: `--only engine,alone,logits,memory`.

    python3 suite.py RUNTIME GPU_ENGINE LIBUCP MODEL_FOLDER [--out FOLDER] [--model FILE.gguf] [--only PART,...]

RUNTIME and GPU_ENGINE are built with the feature `cuda`. MODEL_FOLDER has the shape of the large model (configs/models/llama-3.1-8b), which
gets random weights. FILE.gguf is a real model; without it, answers under load are not checked. LD_LIBRARY_PATH has CUDA 13's libraries. The suite
uses the standard library only. Logits need PyTorch, kernel times need ncu, and memory checks need compute-sanitizer. If one of these is missing,
the suite skips the part and says so. It writes FOLDER/suite.json and FOLDER/suite.md, and exits with 1 if a check or a part fails.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from serving import LANE_TOO_SLOW, Answer, Failed, Fleet, Together, ask, gpu_memory, random_prompt, tokenize

LENGTHS = [1000, 5000, 15000]
ROUNDS = 5
# Two tokens whose log probabilities differ by no more than this count as a tie, because bf16 products have errors of some hundredths.
NEAR_TIE = 0.25
# Sampling settings that many clients use.
DRAWN = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 7}
CHECKED = 200
# How long rows are compared in large batches under memcheck.
COMPANY_SECONDS = 40
WORDS = 32


class Report:
    """The rows of the result table. A row with a bound is met or not met."""

    def __init__(self):
        self.rows, self.notes = [], []

    def add(self, part, what, value, bound_text=None, unit=""):
        met = None
        if bound_text is not None:
            sign, bound = bound_text.split()
            met = {"<=": value <= float(bound), ">=": value >= float(bound), "=": value == float(bound)}[sign]
        self.rows.append({"part": part, "what": what, "value": value, "unit": unit, "wanted": bound_text, "met": met})
        shown = f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"
        print(f"  {what:<74} {shown:>8} {unit:<7} {bound_text or '':<9} {'' if met is None else 'met' if met else 'NOT MET'}", flush=True)

    def note(self, text):
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def markdown(self, title):
        lines = [f"## {title}", "", "| | | wanted | |", "|---|---|---|---|"]
        for row in self.rows:
            value = f"{row['value']:.4g} {row['unit']}".strip()
            lines.append(f"| {row['what']} | {value} | {row['wanted'] or ''} | {'' if row['met'] is None else 'met' if row['met'] else 'not met'} |")
        return "\n".join(lines + [""] + [f"- {note}" for note in self.notes]) + "\n"


def output(command, seconds=180, **environment):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=seconds, env=dict(os.environ, **environment)
    )
    if done.returncode:
        raise Failed(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def lines_like(pattern, said):
    """All matches of a pattern, of which there must be at least one."""
    lines = re.findall(pattern, said, re.M)
    if not lines:
        raise Failed(f"no line matches {pattern}")
    return lines


def engine(suite):
    """The engine alone: small models against the CPU engine, times, bytes read per step, kernel times."""
    said = output([suite.gpu_engine, suite.folder])
    print(said)
    for name, error, same, rows, draws in lines_like(r"^(\S+) +\d+ +([\d.]+) +(\d+/\d+) +(\d+) +(\d+)$", said):
        suite.add(f"{name}: logits' RMS error against the CPU engine", float(error), "<= 0.03")
        # The program fails at the first row that differs.
        suite.add(f"{name}: rows with bit-identical logits alone and in a batch, all of", int(rows))
        suite.add(f"{name}: tokens that the GPU and the host sample alike, all of", int(draws))
        right, all_of_them = map(int, same.split("/"))
        suite.add(f"{name}: greedy tokens that differ from the CPU engine's", all_of_them - right, "= 0")
    # With rows in FP8, the last bit of a number in bf16 can change its code, and so a sixteenth to an eighth of it.
    for mode, what, bound in (("fp8_weights", "FP8 weights", "<= 0.03"), ("fp8", "weights and rows in FP8", "<= 0.2")):
        # The program fails at the first row that differs.
        in_fp8 = output([suite.gpu_engine, mode])
        for name, error, rows in lines_like(r"^(\S+) +\d+ +([\d.]+) +\d+/\d+ +(\d+) +\d+$", in_fp8):
            suite.add(f"{name} with {what}: logits' RMS error against the CPU engine", float(error), bound)
            suite.add(f"{name} with {what}: rows with bit-identical logits alone and in a batch, all of", int(rows))
    fp8_pages(suite)
    rows = int(re.search(r"^(\d+) rows have the same logits", said, re.M)[1])
    suite.add("large model: rows with bit-identical logits alone and in a batch, all of", rows)
    draws = int(re.search(r"^(\d+) tokens drawn", said, re.M)[1])
    suite.add("large model: tokens that the GPU and the host sample alike, all of", draws)
    suite.read_rate = float(re.search(r"page hash: ([\d.]+) TB/s", said)[1])
    suite.add("read bandwidth, by the page hash", suite.read_rate, unit="TB/s")
    columns = r"^ +(\d+) +(\d+) +([\d.]+) +([\d.]+) +[\d.]+ +([\d.]+) +([\d.]+)$"
    for rows, context, each, of_floor, drawn, of_greedy in lines_like(columns, said):
        suite.add(f"decode step of {rows} rows behind {context} tokens", float(each), unit="ms")
        suite.add(f"decode step of {rows} rows behind {context} tokens, relative to its floor", float(of_floor))
        suite.add(f"decode step of {rows} rows behind {context} tokens, sampled with top_k and top_p", float(drawn), unit="ms")
        suite.add(f"decode step of {rows} rows behind {context} tokens, with penalties, biases and logprobs too, relative to greedy", float(of_greedy))
    # The program fails if a step succeeds after the GPU has failed, or if the error does not report the whole engine as failed.
    print(output([suite.gpu_engine, "failure"]))
    if shutil.which("ncu"):
        for length in LENGTHS:
            suite.kernels[length] = kernel_times(suite, length)
            suite.add(f"kernels of a prefill of {length} tokens, summed", suite.kernels[length], unit="ms")
    else:
        suite.note("kernel times are skipped: ncu is not installed")


def fp8_pages(suite):
    """The engine with KV pages in FP8. The program fails if a code, a row in company or a prompt in a group differs."""
    said = output([suite.gpu_engine, "fp8_kv"])
    print(said)
    for name, error, rows in lines_like(r"^(\S+) +\d+ +([\d.]+) +\d+/\d+ +(\d+) +\d+$", said):
        # A number near the middle of two codes may get the other one, which is a sixteenth to an eighth away.
        suite.add(f"{name} with FP8 pages: logits' RMS error against the CPU engine", float(error), "<= 0.1")
        suite.add(f"{name} with FP8 pages: rows with bit-identical logits alone and in a batch, all of", int(rows))
    for name, share, error in lines_like(r"^(\S+): ([\d.]+) % of the prompt's codes differ from the CPU's, by ([\d.]+) ", said):
        suite.add(f"{name}: codes of the first layer in the prompt's pages that differ from the CPU's", float(share), unit="%")
        suite.add(f"{name}: keys and values of this layer, RMS error against the CPU's", float(error), "<= 0.04")
    grouped = sum(int(count) for count in lines_like(r"^\S+: (\d+) prompts in groups", said))
    suite.add("prompts with FP8 pages that have bit-identical logits alone and in groups, all of", grouped, ">= 1")


def kernel_times(suite, length):
    """Milliseconds of all kernels of one prefill without those that make the weights."""
    metric = "gpu__time_duration.sum"
    profiled = ["ncu", "--metrics", metric, "--clock-control", "none", "--csv", "--kernel-name", "regex:^(?!fill)"]
    said = output([*profiled, suite.gpu_engine, suite.folder, "prefill", length], CUDA_VISIBLE_DEVICES="0")
    rows = csv.DictReader(said[said.index('"ID"') :].splitlines())
    units = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0}
    return sum(float(row["Metric Value"].replace(",", "")) * units[row["Metric Unit"]] for row in rows if row["Metric Name"] == metric)


def hand_over(suite):
    """83 pages of 8 MiB: the time from the first put to the first decode step of the receiver, against one contiguous copy."""
    for name, more, bound_text in (("in runs", [], ">= 0.90"), ("scattered", ["--scattered"], ">= 0.80")):
        settings = ["--set", "engine.device=cuda", "--set", f"transport.ucx_library={suite.libucp}", "--cycles", "7"]
        said = output([suite.runtime, "bench", "transfer", *settings, *more])
        lane = re.search(r"([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)  medians", said)
        without, with_hash = re.search(r"([\d.]+) without the hash, ([\d.]+) with it", said).groups()
        suite.add(f"peer copy of the same bytes, pages {name}", float(lane[1]), unit="GB/s")
        suite.add(f"speed of the hand-over of pages {name}, hash on, relative to the peer copy", float(with_hash), bound_text)
        suite.add(f"speed of the hand-over of pages {name}, hash off, relative to the peer copy", float(without))


def one_at_a_time(suite, port, who):
    """Medians over requests of each length, without the first, which warms up."""
    rows = {}
    for length in LENGTHS:
        answers = [ask(port, random_prompt(length * 1000 + turn, length), 16) for turn in range(ROUNDS)]
        suite.words[who, length] = [answer.ids for answer in answers]
        middle = lambda of: statistics.median(of(answer) for answer in answers[1:])
        rows[length] = {
            "ttft": middle(lambda answer: answer.ttft),
            "gap": middle(lambda answer: answer.gaps[0]),
            "inter": middle(lambda answer: statistics.median(answer.gaps[1:])),
            "exposed": middle(lambda answer: answer.timings.get("exposed_ms") or 0.0),
        }
    return rows


def alone(suite):
    """One process on the GPU of the sender, because two equal GPUs differ by a few percent."""
    process = suite.large.local(suite.last_gpu)
    suite.single = one_at_a_time(suite, process.port(), "single")
    for length, bound in zip(LENGTHS, (40, 150, 505)):
        row = suite.single[length]
        suite.add(f"one GPU, {length} tokens: TTFT over HTTP", row["ttft"], f"<= {bound}", "ms")
        if length in suite.kernels:
            suite.add(f"one GPU, {length} tokens: TTFT relative to the sum of its kernels", row["ttft"] / suite.kernels[length], "<= 1.25")
        suite.add(f"one GPU, {length} tokens: inter-token time over HTTP", row["inter"], "<= 6.0" if length == 1000 else None, "ms")
    if suite.read_rate:
        floor = suite.weights / suite.read_rate / 1e9
        suite.add("decode time of one row relative to reading the weights", suite.single[1000]["inter"] / floor, "<= 1.15")


def pair(suite):
    """A sender and a receiver: the cost of the hand-over, the tokens, and a load of one request per second."""
    receiver, sender, _ = suite.large.pair()
    port = receiver.port()
    rows = one_at_a_time(suite, port, "pair")
    for length, row in rows.items():
        for what, key in [("TTFT over HTTP", "ttft"), ("gap to token 2", "gap"), ("inter-token time over HTTP", "inter")]:
            suite.add(f"pair, {length} tokens: {what}", row[key], unit="ms")
    for length in LENGTHS[1:]:
        row = rows[length]
        suite.add(f"pair, {length} tokens: exposed time", row["exposed"], "<= 3", "ms")
        suite.add(f"pair, {length} tokens: TTFT minus that of one GPU", row["ttft"] - suite.single[length]["ttft"], "<= 3", "ms")
        suite.add(f"pair, {length} tokens: gap to token 2 over the inter-token time", row["gap"] / row["inter"], "<= 2")
    differ = sum(
        one != two for length in LENGTHS for one, two in zip(suite.words["single", length], suite.words["pair", length])
    )
    suite.add(f"pair, one request at a time: answers of {len(LENGTHS) * ROUNDS} that differ from those of one GPU", differ, "= 0")
    results, threads = [], []
    began = time.monotonic()
    for turn in range(50):
        time.sleep(max(0, began + turn - time.monotonic()))
        work = lambda turn=turn: results.append(ask(port, random_prompt(turn, 5000), 200))
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    gaps = sorted(gap for answer in results for gap in answer.gaps)
    load = "pair, 50 x 5000/200 at one per second"
    suite.add(f"{load}: answers", len(results), "= 50")
    suite.add(f"{load}: TTFT median", statistics.median(answer.ttft for answer in results), "<= 160", "ms")
    suite.add(f"{load}: TPOT median", statistics.median(statistics.mean(answer.gaps) for answer in results), "<= 6.8", "ms")
    suite.add(f"{load}: inter-token p99", gaps[int(len(gaps) * 0.99)], "<= 9", "ms")


def fp8_pair(suite):
    """A pair whose KV pages are in FP8, against one GPU with such pages."""
    prompts = [random_prompt(length + turn, length) for length in LENGTHS for turn in range(ROUNDS)]
    single = suite.fp8.local(suite.last_gpu)
    expected = [ask(single.port(), prompt, WORDS) for prompt in prompts]
    single.stop()
    receiver, _, _ = suite.fp8.pair()
    found = [ask(receiver.port(), prompt, WORDS) for prompt in prompts]
    differ = sum(one.ids != other.ids for one, other in zip(expected, found))
    suite.add(f"pair with FP8 pages: answers of {len(prompts)} that differ from those of one GPU", differ, "= 0")
    handed_over = sum(bool(answer.timings["disaggregated"]) for answer in found)
    suite.add("  answers that were handed over, all of", handed_over, f"= {len(prompts)}")
    for length in LENGTHS:
        of_length = [(one, other) for one, other, prompt in zip(expected, found, prompts) if len(prompt) == length][1:]
        for who, place in (("one GPU", 0), ("pair", 1)):
            suite.add(f"  {who}, {length} tokens: TTFT over HTTP", statistics.median(both[place].ttft for both in of_length), unit="ms")
            inter = statistics.median(gap for both in of_length for gap in both[place].gaps[1:])
            suite.add(f"  {who}, {length} tokens: inter-token time over HTTP", inter, unit="ms")


def pages(suite):
    """The bytes of the pages of a prompt on each GPU. Transferred pages are checked by their hashes."""
    digests = [output([suite.gpu_engine, suite.folder, "pages", 5000], CUDA_VISIBLE_DEVICES=str(gpu)).split()[-1] for gpu in (0, 1)]
    suite.add("pages of 5000 tokens: digests that differ between GPUs", int(digests[0] != digests[1]), "= 0")


def logits(suite):
    """The logits of the large shape from Baton and from PyTorch in bf16, against float32."""
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode:
        return suite.note("logits at the large shape are skipped: PyTorch is not installed")
    with tempfile.NamedTemporaryFile() as file:
        output([suite.gpu_engine, suite.folder, "logits", 1000, file.name])
        said = output([sys.executable, pathlib.Path(__file__).with_name("logits.py"), suite.folder, 1000, file.name])
    print(said)
    suite.add("large shape: RMS error of the logits relative to that of PyTorch in bf16", float(re.search(r"ratio ([\d.]+)", said)[1]), "<= 1.5")


def texts():
    """Pieces of the documentation, of 80 to 6,000 characters."""
    root = pathlib.Path(__file__).resolve().parents[1]
    root = root if (root / "docs").is_dir() else root.parent
    prose = "\n".join(path.read_text() for path in sorted((root / "docs").rglob("*.md")))
    lengths = (80, 300, 900, 2500, 6000)
    step = (len(prose) - max(lengths)) // CHECKED
    return [prose[place * step :][: lengths[place % len(lengths)]] for place in range(CHECKED)]


def divergence(one, other):
    return next((place for place, (a, b) in enumerate(zip(one.ids, other.ids)) if a != b), None)


def gap(reference, other, place):
    """The log probability of the reference's own token minus that of the other answer's token, by the reference. A token that the reference does not list is not a near-tie."""
    top = reference.tops[place]
    return top[reference.texts[place]] - top.get(other.texts[place], min(top.values()) - 2 * NEAR_TIE)


def real(suite):
    """A real model: a pair against the CPU engine, and many requests at once against one at a time."""
    if not suite.model:
        return suite.note("the real model is skipped: there is no --model")
    cpu = suite.small.local(0, device="cpu")
    prompts = [tokenize(cpu.port(), text) for text in texts()]
    some = prompts[::12]
    right = [ask(cpu.port(), prompt, WORDS, logprobs=20) for prompt in some]
    cpu.stop()
    receiver, sender, _ = suite.small.pair()
    port = receiver.port()
    told = [ask(port, prompt, WORDS, logprobs=20) for prompt in some]
    differences, gaps = [], []
    for reference, answer in zip(right, told):
        place = divergence(reference, answer)
        for before in range(WORDS if place is None else place):
            common = reference.tops[before].keys() & answer.tops[before].keys()
            differences += [reference.tops[before][text] - answer.tops[before][text] for text in common]
        if place is not None:
            gaps.append(gap(reference, answer, place))
    rms = statistics.fmean(difference**2 for difference in differences) ** 0.5
    suite.add(f"real model, pair against the CPU engine, {len(some)} answers: RMS difference of logprobs", rms, "<= 0.1")
    suite.add("  the largest difference", max(map(abs, differences)))
    report_divergence(suite, gaps)
    plain = [ask(port, prompt, WORDS) for prompt in some]
    suite.add("  answers that differ with and without log probabilities", sum(a.ids != b.ids for a, b in zip(plain, told)), "= 0")
    drawn = [ask(port, prompt, WORDS, **DRAWN) for prompt in some]
    reported = [ask(port, prompt, WORDS, **DRAWN, logprobs=1) for prompt in some]
    suite.add("  the same, sampled with a seed", sum(a.ids != b.ids for a, b in zip(drawn, reported)), "= 0")
    # This process shares a GPU with the sender, so both together must fit in its memory.
    single = suite.small.local(1, "engine.gpu_memory_utilization=0.8")
    expected = [ask(single.port(), prompt, WORDS) for prompt in prompts]
    found = Together(port, prompts, WORDS, 32).wait()
    judge(suite, single.port(), prompts, expected, found, f"{len(prompts)} answers through the pair, 32 at once")
    suite.add("  the share of them that is equal for 32 tokens", equal(expected, found), ">= 0.99")
    suite.expected = list(zip(prompts, expected))
    expected = [ask(single.port(), prompt, WORDS, **DRAWN) for prompt in prompts]
    found = Together(port, prompts, WORDS, 32, **DRAWN).wait()
    suite.add("  the same share, sampled with a seed", equal(expected, found), ">= 0.99")


def report_divergence(suite, gaps):
    suite.add("  answers that diverge", len(gaps))
    suite.add(f"    not at a near-tie (logprobs differ by more than {NEAR_TIE})", sum(gap > NEAR_TIE for gap in gaps), "= 0")
    suite.add("    the largest of these differences", max(gaps, default=0.0))


def equal(expected, found):
    return sum(b is not None and a.ids == b.ids for a, b in zip(expected, found)) / len(expected)


def judge(suite, port, prompts, expected, found, title):
    """Reports failed answers, and where answers diverge from the expected ones."""
    gaps = []
    for prompt, one, other in zip(prompts, expected, found):
        place = None if other is None else divergence(one, other)
        if place is not None:
            # The text of the other answer's token: ask with the same prefix and force that token.
            reference = ask(port, prompt, place + 1, logprobs=20)
            chosen = ask(port, prompt + other.ids[:place], 1, logprobs=20, logit_bias={str(other.ids[place]): 100})
            witness = Answer()
            witness.texts = reference.texts[:-1] + chosen.texts
            gaps.append(gap(reference, witness, place))
    suite.add(f"{title}: failed", found.count(None), "= 0")
    report_divergence(suite, gaps)


def refusal(suite):
    """Without cuda_ipc: no hand-over, a warning with advice, and answers nevertheless."""
    without = {"UCX_TLS": "tcp,cuda_copy"}
    receiver, link = suite.large.receiver(**without)
    sender = suite.large.sender(link, **without)
    reason = sender.line(LANE_TOO_SLOW, "WARN")
    suite.note(f"without cuda_ipc the sender logs: {reason.split('WARN', 1)[1].strip()}")
    answer = ask(receiver.port(), random_prompt(1, 1000), 8)
    suite.add("without cuda_ipc: answers that were handed over", int(bool(answer.timings["disaggregated"])), "= 0")


def wait_for_memory(gpu, began):
    while gpu_memory(gpu) > 2000 and time.monotonic() - began < 20:
        time.sleep(0.02)
    return time.monotonic() - began


def kills(suite):
    """Each process is killed under load. The other one continues and accepts a new peer."""
    fleet = suite.small if suite.expected else suite.large
    if not suite.expected:
        suite.note("answers after a kill are not checked: random weights have near-ties everywhere, and there is no --model")
        suite.expected = [(random_prompt(turn, 3000), None) for turn in range(24)]
    prompts, expected = (list(column) for column in zip(*suite.expected))
    receiver, sender, link = fleet.pair()
    under_load = Together(receiver.port(), prompts, WORDS, 32)
    time.sleep(0.2)
    sender.kill()
    suite.add("sender killed under load: its memory is free after", wait_for_memory(1, time.monotonic()), "<= 1", "s")
    found = under_load.wait()
    sender = fleet.sender(link)
    sender.wait_peers()
    deadline = time.monotonic() + 30
    while not (first := ask(receiver.port(), random_prompt(9, 1000), 8)).timings["disaggregated"] and time.monotonic() < deadline:
        time.sleep(0.1)
    suite.add("  a new sender serves", int(bool(first.timings["disaggregated"])), "= 1")
    if expected[0]:
        judge(suite, receiver.port("http.port"), prompts, expected, found, "  answers while the sender died")
    else:
        suite.add("  answers that failed", found.count(None), "= 0")
    under_load = Together(receiver.port(), prompts, WORDS, 32)
    # Requests to the sender itself do not depend on the receiver.
    beside = Together(sender.port("http.port"), prompts[:8], WORDS)
    time.sleep(0.2)
    receiver.kill()
    suite.add("receiver killed under load: its memory is free after", wait_for_memory(0, time.monotonic()), "<= 1", "s")
    under_load.wait()
    found = beside.wait()
    if expected[0]:
        judge(suite, sender.port("http.port"), prompts[:8], expected[:8], found, "  answers of the sender itself meanwhile")
    receiver, _ = fleet.receiver(link)
    deadline = time.monotonic() + 30
    while not (first := ask(receiver.port(), random_prompt(9, 1000), 8)).timings["disaggregated"] and time.monotonic() < deadline:
        time.sleep(0.1)
    suite.add("  the same sender serves a new receiver", int(bool(first.timings["disaggregated"])), "= 1")


def memory(suite):
    """compute-sanitizer with the small models: every kernel of the engine, and the page hash."""
    checker = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(checker).exists():
        return suite.note("memory checks are skipped: compute-sanitizer is not installed")
    # Kernels have another timing under the tool. The last run compares rows repeatedly to find results that depend on timing.
    errors, wrong = 0, 0
    for arguments in [[], ["fp8", "fp8_kv"], ["fp8_weights"], ["company", COMPANY_SECONDS]]:
        command = [checker, "--tool", "memcheck", suite.gpu_engine, *map(str, arguments)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
        run = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        errors += int(re.search(r"ERROR SUMMARY: (\d+) error", run.stdout)[1])
        if run.returncode:
            wrong += 1
            print(run.stdout[-1000:], run.stderr[-1000:])
    suite.add("memcheck: errors", errors, "= 0")
    suite.add("  runs under it with other rows in a batch, or other sampled tokens", wrong, "= 0")
    rows = re.search(r"(\d+) rows in \d+ comparisons", run.stdout)
    suite.add("  rows compared alone and in a batch under it", int(rows[1]) if rows else 0, ">= 1")


PARTS = [engine, hand_over, alone, pair, fp8_pair, pages, logits, real, refusal, kills, memory]


class Suite(Report):
    def __init__(self, options):
        super().__init__()
        self.runtime, self.gpu_engine = options.runtime.resolve(), options.gpu_engine.resolve()
        self.libucp, self.folder, self.model = options.libucp.resolve(), options.folder.resolve(), options.model
        self.large = Fleet(self.runtime, self.libucp, self.folder)
        self.fp8 = Fleet(self.runtime, self.libucp, self.folder, "engine.kv_dtype=fp8")
        self.small = Fleet(self.runtime, self.libucp, self.model, "engine.gpu_memory_utilization=0.4")
        self.part = ""
        self.kernels, self.words, self.single, self.read_rate, self.expected = {}, {}, {}, None, None
        shape = json.loads((self.folder / "config.json").read_text())
        hidden, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
        layer = hidden * shape["head_dim"] * 2 * (heads + kv_heads) + 3 * hidden * shape["intermediate_size"]
        # Bytes that a decode step reads: all matrices except the embedding, of which it reads one row.
        self.weights = 2 * (layer * shape["num_hidden_layers"] + hidden * shape["vocab_size"])

    def add(self, what, value, bound_text=None, unit=""):
        super().add(self.part, what, value, bound_text, unit)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", type=pathlib.Path)
    parser.add_argument("gpu_engine", type=pathlib.Path)
    parser.add_argument("libucp", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-suite"))
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--only", default=",".join(part.__name__ for part in PARTS))
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - {part.__name__ for part in PARTS}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; the parts are {', '.join(part.__name__ for part in PARTS)}")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpus = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    suite, failures = Suite(options), []
    suite.last_gpu = min(1, len(gpus) - 1)
    print("\n".join(gpus))
    for part in PARTS:
        if part.__name__ not in wanted:
            continue
        suite.part, began = part.__name__, time.monotonic()
        print(f"\n{part.__name__}: {part.__doc__.splitlines()[0]}", flush=True)
        try:
            part(suite)
        except (Failed, OSError, subprocess.SubprocessError, KeyError, TypeError) as error:
            failures.append(f"{part.__name__} failed: {type(error).__name__}: {error}")
            print(f"  {failures[-1]}")
        for fleet in (suite.large, suite.fp8, suite.small):
            fleet.stop()
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    title = f"{len(gpus)} x {gpus[0] if gpus else 'no GPU'}"
    suite.notes += failures
    record = {"gpus": gpus, "rows": suite.rows, "notes": suite.notes}
    (options.out / "suite.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "suite.md").write_text(suite.markdown(title))
    missed = [row["what"].strip() for row in suite.rows if row["met"] is False]
    print(f"\n{sum(row['met'] is True for row in suite.rows)} met, {len(missed)} not met, {len(failures)} parts failed")
    sys.exit(bool(missed or failures))


if __name__ == "__main__":
    main()
