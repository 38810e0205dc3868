#!/usr/bin/env python3
"""Compares Baton's FP8 modes with the emulation in PyTorch: the perplexity of SmolLM2-135M-Instruct on fixtures/news_from_nowhere.txt.

    python3 -m venv /tmp/emulation && /tmp/emulation/bin/pip install -r integration-tests/fixtures/requirements.txt
    cargo xtask fetch && cargo build --release -p runtime
    /tmp/emulation/bin/python integration-tests/peers/fp8_perplexity.py --windows 4

On a machine with a GPU, with the build of `cargo xtask cuda` and libcublasLt.so.13 in LD_LIBRARY_PATH, the whole text:

    /tmp/emulation/bin/python integration-tests/peers/fp8_perplexity.py --device cuda

The text is cut into windows of 512 tokens. Each is a prompt of its own, and its first token has no log probability. Baton is asked over HTTP for the log
probabilities of prompts. The emulation (fixtures/fp8_emulation.py) computes those of the same tokens in PyTorch. The CPU engine is compared with the
emulation in float32. With `--device cuda` PyTorch computes on the GPU, and the GPU engine is also compared, with the emulation that makes activations bf16 where the GPU engine does.

If activations are rounded, last bits of sums change codes, and these change the codes of later layers. So the emulation is computed with several orders
of sums. Its perplexity is the geometric mean of theirs, and the RMS of the differences between two orders is what the order of sums alone does. The
error of a difference of perplexities is a standard error over windows, whose tokens depend on each other.

The program prints a table for each engine. It fails if
- a perplexity of Baton differs from that of the emulation by more than 0.2 %, and two standard errors are at most 0.2 %. With fewer tokens the difference says too little;
- a recipe that rounds to FP8 activations differs from the emulation by an RMS of log probabilities that is more than 1.5 times that between two orders, or is not below that of the
  recipe, which compares the emulation with the unquantised model.

With --keep it writes log probabilities to a folder, and takes from there those of an earlier run with the same windows.
With --write it writes fixtures/fp8_perplexity.json: the sums of the emulation's log probabilities for each of the first windows, for the tests.
"""

import argparse
import concurrent.futures
import contextlib
import copy
import json
import math
import os
import pathlib
import sys
import time

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "integration-tests" / folder) for folder in ("gpu", "fixtures")]
from fp8_emulation import RECIPES, emulate, log_probabilities, reordered  # noqa: E402
from serving import Failed, Process, posted  # noqa: E402

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW, LIMIT, RMS_LIMIT = 512, 0.002, 1.5
# Windows in fixtures/fp8_perplexity.json.
WRITTEN = 4
# Windows that are computed together by PyTorch, and those that Baton is asked for at a time.
BATCH = {"cpu": 1, "cuda": 16}
AT_ONCE = {"cpu": 4, "cuda": 64}
# The most threads of a process with the CPU engine. With more cores, several recipes are computed at a time.
THREADS = 8


def folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "baton/models"


def windows(most):
    """The token ids of the windows. The last one is shorter."""
    text = (ROOT / "integration-tests/fixtures/news_from_nowhere.txt").read_text(encoding="utf-8").split("\n\n", 1)[1]
    ids = transformers.AutoTokenizer.from_pretrained(str(folder()), gguf_file=GGUF)(text)["input_ids"]
    return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)][:most]


class Baton:
    """Asks Baton for log probabilities."""

    def __init__(self, runtime, threads, prompts):
        self.runtime, self.threads, self.prompts = runtime, min(threads, THREADS), prompts
        self.pools = {"cpu": concurrent.futures.ThreadPoolExecutor(max(threads // THREADS, 1)), "cuda": concurrent.futures.ThreadPoolExecutor(1)}

    def submit(self, engine, name, kept):
        """A future of the log probabilities of a recipe."""
        return self.pools[engine].submit(kept.of, f"baton-{engine}-{name}", lambda: self.log_probabilities(engine, RECIPES[name]))

    def close(self):
        for pool in self.pools.values():
            pool.shutdown(cancel_futures=True)

    def log_probabilities(self, engine, recipe):
        settings = ["frontend.port=0", f"engine.device={engine}", "engine.prefix_cache=false", *recipe.settings()]
        settings += [f"engine.threads={self.threads}"] if engine == "cpu" else ["engine.kv_bytes=4GiB"]
        command = [str(self.runtime), "--role", "local", "--model", str(folder() / GGUF)]
        # PyTorch computes on the first GPU.
        gpu = torch.cuda.device_count() - 1 if engine == "cuda" else ""
        process = Process(command + [part for setting in settings for part in ("--set", setting)], gpu=gpu)
        try:
            process.wait_healthy()
            port = process.port()
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE[engine]) as pool:
                return torch.cat(list(pool.map(lambda prompt: scored(port, prompt), self.prompts)))
        finally:
            process.stop()


def scored(port, prompt):
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    with posted(port, "/v1/completions", body) as reply:
        answer = json.loads(reply.read())
    if "choices" not in answer:
        raise Failed(answer)
    listed = answer["choices"][0]["prompt_logprobs"]
    return torch.tensor([of_token[str(token)]["logprob"] for token, of_token in zip(prompt[1:], listed[1:], strict=True)], dtype=torch.float64)


class Emulation:
    """Computes log probabilities with PyTorch."""

    def __init__(self, device, prompts):
        self.device, self.prompts = device, prompts
        self.model = transformers.AutoModelForCausalLM.from_pretrained(str(folder()), gguf_file=GGUF, dtype=torch.float32).eval().to(device)
        torch.set_float32_matmul_precision("highest")
        # The kernel of these that is left computes attention in float32.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)

    def log_probabilities(self, engine, recipe, order):
        """Those of a recipe, as an engine computes it. Order 0 is that of the file."""
        model = emulate(copy.deepcopy(self.model), recipe, halves=engine == "cuda")
        if order > 0:
            model = reordered(model, order)
        # Only the last window may have another length.
        *rest, last = self.prompts
        size = BATCH[self.device]
        batches = [rest[first : first + size] for first in range(0, len(rest), size)] + [[last]]
        return torch.cat([log_probabilities(model, batch).flatten() for batch in batches])


class Kept:
    """Log probabilities by their names, also in files of a folder if there is one."""

    def __init__(self, folder, tokens):
        self.folder, self.tokens, self.found = folder, tokens, {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def of(self, name, compute):
        path = self.folder and self.folder / f"{name}.pt"
        if name not in self.found and path and path.exists():
            self.found[name] = torch.load(path)
        if name not in self.found or len(self.found[name]) != self.tokens:
            start = time.monotonic()
            self.found[name] = compute()
            print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            if path:
                torch.save(self.found[name], path)
        return self.found[name]


def perplexity(logprobs):
    return float(torch.exp(-logprobs.mean()))


def rms(*differences):
    return float(torch.stack(differences).square().mean().sqrt())


def standard_error(differences, lengths):
    """That of the mean of a difference of log probabilities, over windows. With few windows it is no less than over tokens that are independent."""
    parts = (differences - differences.mean()).split(lengths)
    of_windows = math.sqrt(sum(float(part.sum()) ** 2 for part in parts)) / len(differences)
    return max(of_windows, float(differences.std()) / math.sqrt(len(differences)))


class Table:
    """The comparison of an engine."""

    TITLES = ["", "Baton", "emulation", "difference", "RMS", "RMS of two orders", "RMS of the recipe", "rise over float32", "rise over bf16"]

    def __init__(self, lengths, single, half):
        """`single` and `half` are the log probabilities of the unquantised model, in float32 and in bf16."""
        self.lengths, self.single, self.half, self.faults = lengths, single, half, []

    def head(self, engine):
        print(f"\n{engine}\n\n| {' | '.join(self.TITLES)} |\n{'|---' * len(self.TITLES)}|", flush=True)

    def row(self, name, recipe, baton, orders, plain):
        """`plain` is the unquantised model in the type of the engine."""
        mean = torch.stack(orders).mean(0)
        apart = perplexity(baton) / perplexity(mean) - 1
        error = standard_error(baton - mean, self.lengths)
        of_baton = rms(*(baton - order for order in orders))
        pairs = [one - other for place, one in enumerate(orders) for other in orders[:place]]
        of_orders, of_recipe = rms(*pairs) if pairs else math.inf, rms(*(order - plain for order in orders))
        rises = [f"{perplexity(baton) / perplexity(other) - 1:+.2%}" for other in (self.single, self.half)]
        errors = [f"{number:.2g}" if math.isfinite(number) else "" for number in (of_baton, of_orders, of_recipe)]
        cells = [name, f"{perplexity(baton):.4f}", f"{perplexity(mean):.4f}", f"{apart:+.3%} ± {error:.3%}"]
        print(f"| {' | '.join(cells + errors + rises)} |", flush=True)
        if abs(apart) > LIMIT and 2 * error <= LIMIT:
            self.faults.append(f"{name}: the perplexity differs by {apart:+.3%}, and at most {LIMIT:.1%} is allowed")
        if (recipe.rows or recipe.pages) and (of_baton > RMS_LIMIT * of_orders or of_baton >= of_recipe):
            self.faults.append(f"{name}: the RMS {of_baton:.2g} is more than {RMS_LIMIT} times that of two orders, or than the recipe changes")
        if 2 * error > LIMIT:
            print(f"{name}: two standard errors are more than {LIMIT:.1%}, so the perplexity is not checked", file=sys.stderr, flush=True)


def write(lengths, single):
    header = {"transformers": transformers.__version__, "torch": torch.__version__, "model": GGUF}
    sums = {name: [round(float(part.sum()), 4) for part in logprobs.split(lengths)][:WRITTEN] for name, logprobs in single.items()}
    data = {"header": header, "tokens": [length + 1 for length in lengths[:WRITTEN]], "sums": sums}
    lines = ",\n".join(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in data.items())
    (ROOT / "integration-tests/fixtures/fp8_perplexity.json").write_text(f"{{{lines}}}\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where PyTorch computes; cuda compares the GPU engine too")
    parser.add_argument("--windows", type=int, help="only the first windows of the text")
    parser.add_argument("--orders", type=int, default=2, help="orders of sums in which the emulation is computed")
    parser.add_argument("--runtime", type=pathlib.Path, default=ROOT / "target/release/runtime")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER", help="keep log probabilities in files, and use those that are there")
    parser.add_argument("--write", action="store_true", help="write fixtures/fp8_perplexity.json")
    args = parser.parse_args()
    if args.orders < 2:
        parser.error("--orders must be at least 2")
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    prompts = windows(args.windows)
    print(f"{sum(map(len, prompts))} tokens in {len(prompts)} windows; torch {torch.__version__}, transformers {transformers.__version__}")
    kept, baton, emulation = Kept(args.keep, sum(len(prompt) - 1 for prompt in prompts)), Baton(args.runtime, args.threads, prompts), Emulation(args.device, prompts)

    with contextlib.closing(baton):
        faults = compare(args, kept, baton, emulation)
    if faults:
        sys.exit("\n".join(faults))


def compare(args, kept, baton, emulation):
    """Prints the tables. Returns what is wrong."""

    def emulated(engine, name, order=0):
        return kept.of(f"emulation-{engine}-{name}-{order}", lambda: emulation.log_probabilities(engine, RECIPES[name], order))

    engines = ["cuda", "cpu"] if args.device == "cuda" else ["cpu"]
    answers = {(engine, name): baton.submit(engine, name, kept) for engine in engines for name in RECIPES}
    plain = {engine: emulated(engine, "none") for engine in ("cpu", "cuda")}
    single, half = plain["cpu"], plain["cuda"]
    print(f"unquantised: {perplexity(single):.4f} in float32; {perplexity(half):.4f} in bf16, {perplexity(half) / perplexity(single) - 1:+.2%}, RMS {rms(half - single):.2g}")
    table = Table([len(prompt) - 1 for prompt in baton.prompts], single, half)
    for engine in engines:
        table.head(engine)
        for name, recipe in RECIPES.items():
            rounds = recipe.rows or recipe.pages or engine == "cuda"
            orders = [emulated(engine, name, order) for order in range(args.orders if rounds else 1)]
            table.row(name, recipe, answers[engine, name].result(), orders, plain[engine])
    if args.write:
        write(table.lengths, {name: emulated("cpu", name) for name in RECIPES})
    return table.faults


if __name__ == "__main__":
    main()
