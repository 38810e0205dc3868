#!/usr/bin/env python3
"""The GPU suite: checks Baton's results and measures its speed on two GPUs in a few minutes. On one GPU: `--only engine,alone,logits,memory`.

    python3 suite.py RUNTIME GPU_ENGINE LIBUCP MODEL_FOLDER [--out FOLDER] [--model FILE.gguf] [--only PART,...]

RUNTIME and GPU_ENGINE are built with the feature `cuda`. MODEL_FOLDER has the shape of the large model (configs/models/llama-3.1-8b), which
gets random weights. FILE.gguf is a real model; without it, answers under load are not checked. LD_LIBRARY_PATH has CUDA 13's libraries. The suite
uses the standard library only. Logits need PyTorch, kernel times need ncu, and memory checks need compute-sanitizer. If one of these is missing,
the suite skips the part and says so. It writes FOLDER/suite.json and FOLDER/suite.md, and exits with 1 if a check or a part fails.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

from engine_checks import LENGTHS, engine, logits, memory, output, pages
from serving import LANE_TOO_SLOW, Answer, Failed, Fleet, Together, ask, gpu_memory, random_prompt, tokenize

ROUNDS = 5
# Two tokens whose log probabilities differ by no more than this count as a tie, because bf16 products have errors of some hundredths.
NEAR_TIE = 0.25
# Sampling settings that many clients use.
DRAWN = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 7}
CHECKED = 200
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


def hand_over(suite):
    """About 5,000 tokens in pages of 8 MiB: the time from the first put to the first decode step of the receiver, against one contiguous copy."""
    for dtype, count, bounds in (("bf16", 83, (0.90, 0.80)), ("FP8", 40, (0.85, 0.78))):
        for order, more, bound in (("in runs", [], bounds[0]), ("scattered", ["--scattered"], bounds[1])):
            settings = ["--set", "engine.device=cuda", "--set", f"transport.ucx_library={suite.libucp}", "--cycles", "7", "--pages", count]
            said = output([suite.runtime, "bench", "transfer", *settings, *more])
            lane = re.search(r"([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)  medians", said)
            without, with_hash = re.search(r"([\d.]+) without the hash, ([\d.]+) with it", said).groups()
            title = f"{count} pages in {dtype}, {order}"
            suite.add(f"{title}: peer copy of the same bytes", float(lane[1]), unit="GB/s")
            suite.add(f"{title}: speed of the hand-over, hash on, relative to the peer copy", float(with_hash), f">= {bound}")
            suite.add(f"{title}: speed of the hand-over, hash off, relative to the peer copy", float(without))


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
    """Pairs whose KV pages are in FP8, with heads of 128 and of 64, against one GPU with such pages."""
    same_as_one_gpu(suite, suite.fp8, "heads of 128")
    suite.fp8.stop()
    same_as_one_gpu(suite, suite.narrow, "heads of 64")


def same_as_one_gpu(suite, fleet, heads):
    prompts = [random_prompt(length + turn, length) for length in LENGTHS for turn in range(ROUNDS)]
    single = fleet.local(suite.last_gpu)
    expected = [ask(single.port(), prompt, WORDS) for prompt in prompts]
    single.stop()
    receiver, _, _ = fleet.pair()
    found = [ask(receiver.port(), prompt, WORDS) for prompt in prompts]
    differ = sum(one.ids != other.ids for one, other in zip(expected, found))
    suite.add(f"pair with FP8 pages, {heads}: answers of {len(prompts)} that differ from those of one GPU", differ, "= 0")
    handed_over = sum(bool(answer.timings["disaggregated"]) for answer in found)
    suite.add("  answers that were handed over, all of", handed_over, f"= {len(prompts)}")
    for length in LENGTHS:
        of_length = [(one, other) for one, other, prompt in zip(expected, found, prompts) if len(prompt) == length][1:]
        for who, place in (("one GPU", 0), ("pair", 1)):
            suite.add(f"  {who}, {length} tokens: TTFT over HTTP", statistics.median(both[place].ttft for both in of_length), unit="ms")
            inter = statistics.median(gap for both in of_length for gap in both[place].gaps[1:])
            suite.add(f"  {who}, {length} tokens: inter-token time over HTTP", inter, unit="ms")


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


PARTS = [engine, hand_over, alone, pair, fp8_pair, pages, logits, real, refusal, kills, memory]


def narrow(folder, out):
    """A folder with the shape of a smaller model, whose heads have 64 numbers (Llama-3.2-1B's)."""
    shape = json.loads((folder / "config.json").read_text())
    shape |= {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    smaller = out / "heads-of-64"
    smaller.mkdir(parents=True, exist_ok=True)
    (smaller / "config.json").write_text(json.dumps(shape))
    return smaller


class Suite(Report):
    def __init__(self, options):
        super().__init__()
        self.runtime, self.gpu_engine = options.runtime.resolve(), options.gpu_engine.resolve()
        self.libucp, self.folder, self.model = options.libucp.resolve(), options.folder.resolve(), options.model
        self.large = Fleet(self.runtime, self.libucp, self.folder)
        self.fp8 = Fleet(self.runtime, self.libucp, self.folder, "engine.kv_dtype=fp8")
        self.narrow = Fleet(self.runtime, self.libucp, narrow(self.folder, options.out), "engine.kv_dtype=fp8")
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
        for fleet in (suite.large, suite.fp8, suite.narrow, suite.small):
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
