#!/usr/bin/env python3
"""Compares answers with tools between a Baton server and transformers in float32: run.py BASE_URL [--help]

Asks the first questions of BFCL's categories `simple` and `multiple`, with greedy sampling and Qwen2.5-Coder-0.5B-Instruct, three times:
transformers with the weights of the same GGUF file in float32; the server's /v1/completions with the same token ids as the prompt; the server's
/v1/chat/completions with `messages`, `tools` and `tool_choice: auto`.

Prints each answer of the server whose token ids differ from those of transformers, and how many answers are right calls. Fails if

- a difference is not a near tie: the two largest logits in float32 differ by NEAR_TIE or more where the answers part;
- the margin of the first token over the second, where both sides have the same tokens so far, differs by NEAR_TIE or more;
- a chat's prompt is not what transformers makes of the chat template, or its answer is not that of the completion;
- the server does not find a call that is in the text of an answer, or finds another one. Calls whose arguments are not JSON are only listed.

    python3 -m venv /tmp/bfcl && /tmp/bfcl/bin/pip install -r ../../fixtures/requirements.txt
    cargo xtask fetch --qwen
    /tmp/bfcl/bin/python run.py http://127.0.0.1:9000

The wheel with the questions and the answers of transformers are kept in ~/.cache/baton/bfcl. Without BASE_URL, the program only computes the latter.
"""

import argparse
import http.client
import json
import os
import pathlib
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import questions
import reference

# 14 times the largest difference of margins in 7,535 tokens.
NEAR_TIE = 1e-3


def post(base_url, path, body):
    connection = http.client.HTTPConnection(urllib.parse.urlparse(base_url).netloc, timeout=900)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status != 200:
        sys.exit(f"{path}: status {response.status}: {text.decode()}")
    return json.loads(text)


def ask(options, question, prompt):
    """The choice of a completion, the choice of a chat, and the prompt of the chat."""
    common = {"temperature": 0, "max_tokens": options.max_tokens, "return_token_ids": True}
    completion = post(options.base_url, "/v1/completions", {**common, "prompt": prompt, "logprobs": 2})
    tools = {"messages": question.messages, "tools": question.tools, "tool_choice": "auto"}
    chat = post(options.base_url, "/v1/chat/completions", {**common, **tools})
    return completion["choices"][0], chat["choices"][0], chat["prompt_token_ids"]


class Report:
    def __init__(self, decode):
        self.decode, self.failures, self.ties, self.broken, self.tokens, self.worst = decode, [], [], [], 0, 0.0
        self.right = {"transformers": 0, "Baton": 0, "Baton, chat": 0}
        self.calls = dict.fromkeys(self.right, 0)

    def add(self, question, prompt, expected, completion, chat, chat_prompt):
        self.compare(question, expected, completion)
        if chat_prompt != prompt:
            self.failures.append(f"{question.name}: the chat's prompt is not that of transformers")
        if chat["token_ids"] != completion["token_ids"]:
            self.failures.append(f"{question.name}: the chat's answer is not the completion's")
        in_text = questions.calls_in(completion["text"], question.functions)
        found = []
        for call in chat["message"]["tool_calls"] or []:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            try:
                found.append((name, json.loads(arguments)))
            except ValueError:
                self.broken.append(f"{question.name}: {arguments!r} of {completion['text']!r}")
        if found != in_text:
            self.failures.append(f"{question.name}: the text {completion['text']!r} became the calls {found}")
        text = self.decode([token for token, _, _ in expected])
        self.count(question, "transformers", questions.calls_in(text, question.functions))
        self.count(question, "Baton", in_text)
        self.count(question, "Baton, chat", found)

    def count(self, question, side, calls):
        self.calls[side] += bool(calls)
        self.right[side] += questions.is_right(question, calls)

    def compare(self, question, expected, completion):
        ids, margins = completion["token_ids"], [margin(top) for top in completion["logprobs"]["top_logprobs"]]
        assert len(ids) == len(margins), (len(ids), len(margins))
        for place, ((token, second, gap), other, other_gap) in enumerate(zip(expected, ids, margins)):
            self.tokens += 1
            if token == other:
                self.worst = max(self.worst, abs(gap - other_gap))
                continue
            # The margins have opposite signs.
            self.worst = max(self.worst, gap + other_gap)
            names = ", ".join(f"{one} {self.decode([one])!r}" for one in (token, other))
            line = f"{question.name}, token {place}: {names}; the two largest logits in float32 differ by {gap:.1e}"
            (self.ties if gap < NEAR_TIE and other == second else self.failures).append(line)
            return
        if len(ids) != len(expected):
            self.failures.append(f"{question.name}: {len(ids)} tokens, transformers {len(expected)}")

    def print(self, asked):
        if self.worst >= NEAR_TIE:
            self.failures.append(f"a margin differs by {self.worst:.1e}")
        print(f"{asked} questions, {self.tokens} tokens compared. The margin of the first token over the second differs by {self.worst:.1e} or less.")
        print(f"{len(self.ties)} answers differ after a near tie (below {NEAR_TIE}):", *self.ties, sep="\n  ")
        print(f"{len(self.broken)} calls have arguments that are not JSON:", *self.broken, sep="\n  ")
        for side in self.right:
            print(f"{side}: {self.calls[side]} answers with calls, {self.right[side]} right ({100 * self.right[side] / asked:.1f} %)")
        for failure in self.failures:
            print("FAILED:", failure)
        return not self.failures


def margin(top):
    first, second = sorted(top.values(), reverse=True)[:2]
    return first - second


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", nargs="?")
    parser.add_argument("--simple", type=int, default=100)
    parser.add_argument("--multiple", type=int, default=50)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of transformers")
    options = parser.parse_args()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "baton"
    folder = cache / "bfcl"
    folder.mkdir(parents=True, exist_ok=True)
    asked = questions.load(folder, options.simple, options.multiple)
    tokenizer = reference.tokenizer(cache / "models")
    prompts = []
    for question in asked:
        text = tokenizer.apply_chat_template(question.messages, tools=question.tools, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids(reference.END)
    saved = folder / f"transformers-{options.max_tokens}.jsonl"
    answers = []
    if options.base_url:
        with ThreadPoolExecutor(options.concurrency) as pool:
            for answer in pool.map(lambda pair: ask(options, *pair), zip(asked, prompts)):
                answers.append(answer)
                print(f"server: {len(answers)} of {len(asked)}", file=sys.stderr)
    drafts = [completion["token_ids"] for completion, _, _ in answers] or [[]] * len(asked)
    expected = reference.answers(cache / "models", saved, prompts, drafts, end, options.max_tokens, options.threads)
    if not answers:
        return
    report = Report(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    for question, prompt, tokens, answer in zip(asked, prompts, expected, answers, strict=True):
        report.add(question, prompt, tokens, *answer)
    sys.exit(0 if report.print(len(asked)) else 1)


if __name__ == "__main__":
    main()
