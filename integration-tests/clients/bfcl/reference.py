"""The greedy answers of transformers in float32 to prompts of token ids, kept in a file because they take seconds each.

The server's answer is the draft of speculative decoding: one forward pass of prompt and draft checks all its tokens, instead of one pass for each.
The result does not depend on the draft, because a token counts only if it has the largest logit.
"""

import hashlib
import json
import sys
import time

import tokenizers
import torch
import transformers

GGUF = "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
END = ["<|im_end|>", "<|endoftext|>"]


def tokenizer(folder):
    with open(folder / GGUF, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{GGUF} has sha256 {found}, expected {SHA256}")
    result = transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=GGUF)
    # As Qwen2Tokenizer and Qwen's tokenizer.json have it. The GGUF reader of transformers drops it.
    result.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    return result


def answers(folder, saved, prompts, drafts, end, max_tokens, threads):
    """The answer to each prompt: a list of (token, second token, difference of the logits of both). Reads and extends the file `saved`."""
    header = {"sha256": SHA256, "transformers": transformers.__version__, "torch": torch.__version__, "max_tokens": max_tokens}
    known = {}
    if saved.exists():
        first, *rest = map(json.loads, saved.read_text().splitlines())
        if first != header:
            sys.exit(f"{saved} was made with {first}, not with {header}: delete it")
        known = {tuple(entry["prompt"]): entry["answer"] for entry in rest}
    missing = [(prompt, draft) for prompt, draft in zip(prompts, drafts, strict=True) if tuple(prompt) not in known]
    if missing:
        torch.set_num_threads(threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=GGUF, dtype=torch.float32).eval()
        with open(saved, "a") as file, torch.inference_mode():
            if not known:
                print(json.dumps(header), file=file)
            for number, (prompt, draft) in enumerate(missing, 1):
                begin = time.monotonic()
                known[tuple(prompt)] = greedy(model, prompt, draft, end, max_tokens)
                print(json.dumps({"prompt": prompt, "answer": known[tuple(prompt)]}), file=file, flush=True)
                seconds = time.monotonic() - begin
                print(f"transformers: {number} of {len(missing)}, {len(known[tuple(prompt)])} tokens, {seconds:.1f} s", file=sys.stderr)
    return [known[tuple(prompt)] for prompt in prompts]


def greedy(model, prompt, draft, end, max_tokens):
    answer, cache, step = [], None, torch.tensor([prompt + draft[: max_tokens - 1]])
    while True:
        kept = step.shape[1] - (0 if answer else len(prompt) - 1)
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=kept)
        drafted = [*step[0, step.shape[1] - kept + 1 :].tolist(), None]
        for best, expected in zip(map(lambda logits: logits.topk(2), out.logits[0]), drafted, strict=True):
            token = int(best.indices[0])
            answer.append((token, int(best.indices[1]), float(best.values[0] - best.values[1])))
            if len(answer) == max_tokens or token in end:
                return answer
            if token != expected:
                break
        cache = out.past_key_values
        cache.crop(len(prompt) + len(answer) - 1)
        step = torch.tensor([[token]])
