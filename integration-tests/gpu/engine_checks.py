"""The parts of the GPU suite that run the engine alone, by `gpu_engine`. Uses the standard library only."""

import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from serving import Failed

LENGTHS = [1000, 5000, 15000]
# How long rows are compared in large batches under memcheck.
COMPANY_SECONDS = 40


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
    # The last output is that of `fp8`.
    kept = r"^codes and scales of a checkpoint .*: error ([\d.]+), (\d+) rows alone = in company$"
    for error, rows in lines_like(kept, in_fp8):
        suite.add("a checkpoint's codes and scales: logits' RMS error against the CPU engine", float(error), bound)
        suite.add("a checkpoint's codes and scales: rows with bit-identical logits alone and in a batch, all of", int(rows))
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
