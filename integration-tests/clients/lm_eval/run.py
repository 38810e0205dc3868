#!/usr/bin/env python3
"""Compares lm-evaluation-harness with a Baton server and with transformers: run.py BASE_URL.

Runs the tasks of this folder twice: with the backend `local-completions` on BASE_URL (such as http://127.0.0.1:9000), and with the
backend `hf` in float32 on the weights of the same GGUF file. Prints a table of both. Fails if a log-likelihood differs by more than 1e-3
for each token, or if the backends disagree about whether a continuation is the greedy one. The environment:

    python3 -m venv /tmp/lm-eval
    /tmp/lm-eval/bin/pip install "lm-eval[api]==0.4.13" -r ../../fixtures/requirements.txt

The server must serve SmolLM2-135M-Instruct, which is the default.
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

HERE = pathlib.Path(__file__).resolve().parent
TASKS = ["baton_choice", "baton_passages"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 1e-3


def evaluate(lm):
    return simple_evaluate(
        model=lm, tasks=TASKS, task_manager=TaskManager(include_path=str(HERE)), num_fewshot=0, bootstrap_iters=0, log_samples=True
    )


def log_likelihoods(results, task):
    """(continuation, log-likelihood, whether it is greedy or None) of each request of a task."""
    for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
        for arguments, responses in zip(sample["arguments"], sample["resps"]):
            response = responses[0]
            value, greedy = response if isinstance(response, (list, tuple)) else (response, None)
            yield arguments[-1], float(value), greedy


def compare(task, baton, transformers_, tokenizer):
    """Prints the row of a task. Returns whether the task agrees."""
    worst, requests, tokens, flips = 0.0, 0, 0, 0
    pairs = zip(log_likelihoods(baton, task), log_likelihoods(transformers_, task), strict=True)
    for (text, ours, ours_greedy), (other_text, theirs, theirs_greedy) in pairs:
        assert text == other_text, (text, other_text)
        count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        worst = max(worst, abs(ours - theirs) / count)
        flips += ours_greedy != theirs_greedy
        requests, tokens = requests + 1, tokens + count
    metrics = []
    for name, value in baton["results"][task].items():
        if name.endswith(",none") and "stderr" not in name:
            metrics.append(f"{name.removesuffix(',none')} {value:.4f} / {transformers_['results'][task][name]:.4f}")
    print(f"| {task} | {requests} | {tokens} | {worst:.1e} | {flips} | {', '.join(metrics)} |")
    return worst <= TOLERANCE and flips == 0


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("base_url")
    arguments.add_argument("--concurrent", type=int, default=2, help="requests at a time")
    arguments.add_argument("--batch", type=int, default=4, help="prompts in a request")
    arguments.add_argument("--threads", type=int, default=2, help="threads of transformers")
    args = arguments.parse_args()
    os.chdir(HERE)  # The tasks name their data relative to this folder.
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = str(cache / "baton" / "models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        baton = evaluate(
            LocalCompletionsAPI(
                base_url=f"{args.base_url}/v1/completions",
                model="SmolLM2-135M-Instruct",
                tokenizer=saved,
                tokenizer_backend="huggingface",
                num_concurrent=args.concurrent,
                batch_size=args.batch,
            )
        )
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval()
    reference = evaluate(HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", dtype=torch.float32, batch_size=1))
    print("| task | requests | tokens | largest difference for each token | greedy flags that differ | metrics: Baton / transformers |")
    print("|---|---|---|---|---|---|")
    if not all([compare(task, baton, reference, tokenizer) for task in TASKS]):
        sys.exit(f"a log-likelihood differs by more than {TOLERANCE} for each token, or a greedy flag differs")
    print("the log-likelihoods agree")


if __name__ == "__main__":
    main()
