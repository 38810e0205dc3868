#!/usr/bin/env python3
"""Compares Baton's FP8 modes with the emulation in PyTorch: the perplexity of SmolLM2-135M-Instruct on fixtures/news_from_nowhere.txt.

    python3 -m venv /tmp/emulation && /tmp/emulation/bin/pip install -r integration-tests/fixtures/requirements.txt
    cargo xtask fetch && cargo build -p runtime
    /tmp/emulation/bin/python integration-tests/peers/fp8_perplexity.py [--windows N] [--runtime target/release/runtime]

The text is cut into windows of 512 tokens. Each is a prompt of its own, and its first token has no log probability. Baton is asked over HTTP for the log
probabilities of prompts, on the CPU. The emulation (fixtures/fp8_emulation.py) computes those of the same tokens in float32. `bf16` is the unquantised
model in PyTorch with weights and activations in bf16.

If a recipe rounds activations, last bits of sums change codes, and these change the codes of later layers. So the emulation is also computed in float64: its
difference from float32 is what the order of sums alone does. The error of a difference of perplexities is a standard error over tokens that treats them
as independent. They are not quite: a code that changes at the start of a window changes the whole window.

The program prints a table. It fails if a perplexity of Baton differs from that of the emulation by more than 0.2 %. For recipes that round activations it does
not check the perplexity: it fails if the RMS of Baton's log probabilities is more than 1.5 times that of the emulation in float64, or is not below that of the
recipe, which compares the emulation with the unquantised model.
With --write it writes fixtures/fp8_perplexity.json: the sums of the emulation's log probabilities for each window.
"""

import argparse
import copy
import json
import os
import pathlib
import sys
import time

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "integration-tests" / folder) for folder in ("gpu", "fixtures")]
from fp8_emulation import RECIPES, emulate, log_probabilities  # noqa: E402
from serving import Failed, Process, posted  # noqa: E402

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW, LIMIT, RMS_LIMIT = 512, 0.002, 1.5


def folder():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "baton/models"


def windows(most):
    """The token ids of the windows. The last one is shorter."""
    text = (ROOT / "integration-tests/fixtures/news_from_nowhere.txt").read_text(encoding="utf-8").split("\n\n", 1)[1]
    ids = transformers.AutoTokenizer.from_pretrained(str(folder()), gguf_file=GGUF)(text)["input_ids"]
    return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)][:most]


def of_baton(runtime, recipe, prompts):
    """The log probabilities of Baton."""
    settings = ["frontend.port=0", "engine.device=cpu", *recipe.settings()]
    command = [str(runtime), "--role", "local", "--model", str(folder() / GGUF)]
    process = Process(command + [part for setting in settings for part in ("--set", setting)], gpu="")
    try:
        process.wait_healthy()
        return torch.cat([scored(process.port(), prompt) for prompt in prompts])
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


def of_emulation(model, prompts, dtype):
    """The log probabilities of a model, with sums in a type."""
    model = copy.deepcopy(model).to(dtype)
    return torch.cat([log_probabilities(model, prompt) for prompt in prompts])


def perplexity(logprobs):
    return float(torch.exp(-logprobs.mean()))


def rms(difference):
    return float(difference.square().mean().sqrt())


def row(name, baton, emulated, plain, half):
    """Prints the row of a recipe. Returns whether Baton agrees with the emulation."""
    single, double = emulated
    apart = baton - single
    difference, error = perplexity(baton) / perplexity(single) - 1, float(apart.std()) / len(apart) ** 0.5
    rise = " | ".join(f"{perplexity(baton) / perplexity(other) - 1:+.2%}" for other in (plain, half))
    control = f"{perplexity(double) / perplexity(single) - 1:+.3%} | {rms(double - single):.2g}" if double is not None else " | "
    print(
        f"| {name} | {perplexity(baton):.4f} | {perplexity(single):.4f} | {difference:+.3%} ± {error:.3%} | {rms(apart):.2g} "
        f"| {control} | {rise} | {rms(single - plain):.2g} |",
        flush=True,
    )
    if double is None:
        return abs(difference) <= LIMIT
    return rms(apart) <= RMS_LIMIT * rms(double - single) and rms(apart) < rms(single - plain)


def write(prompts, sums):
    header = {"transformers": transformers.__version__, "torch": torch.__version__, "model": GGUF}
    data = {"header": header, "tokens": [len(prompt) for prompt in prompts], "sums": sums}
    lines = ",\n".join(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in data.items())
    (ROOT / "integration-tests/fixtures/fp8_perplexity.json").write_text(f"{{{lines}}}\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--windows", type=int, help="only the first windows of the text")
    arguments.add_argument("--runtime", type=pathlib.Path, default=ROOT / "target/debug/runtime")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--write", action="store_true", help="write fixtures/fp8_perplexity.json")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    prompts = windows(args.windows)
    print(f"{sum(map(len, prompts))} tokens in {len(prompts)} windows; torch {torch.__version__}, transformers {transformers.__version__}")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder()), gguf_file=GGUF, dtype=torch.float32).eval()
    plain, half = (of_emulation(model, prompts, dtype) for dtype in (torch.float32, torch.bfloat16))
    print(f"bf16: {perplexity(half):.4f}, {perplexity(half) / perplexity(plain) - 1:+.2%} over float32, RMS {rms(half - plain):.2g}\n")
    print("| | Baton | emulation | difference | RMS | emulation in float64 | its RMS | rise over float32 | rise over bf16 | RMS of the recipe |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    agree, sums = True, {}
    for name, recipe in RECIPES.items():
        start = time.monotonic()
        emulated = emulate(copy.deepcopy(model), recipe)
        single = of_emulation(emulated, prompts, torch.float32) if name != "none" else plain
        sums[name] = [round(float(part.sum()), 4) for part in single.split([len(prompt) - 1 for prompt in prompts])]
        double = of_emulation(emulated, prompts, torch.float64) if recipe.rows or recipe.pages else None
        agree &= row(name, of_baton(args.runtime, recipe, prompts), (single, double), plain, half)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if args.write:
            write(prompts, sums)
    if not agree:
        sys.exit(f"a perplexity differs by more than {LIMIT:.1%}, or log probabilities by more than {RMS_LIMIT} times the RMS of float64 or than the recipe changes them")


if __name__ == "__main__":
    main()
