"""Compares the logits of the last token at the shape of a large model: Baton and PyTorch in bf16, each against PyTorch in float32.

    target/release/examples/gpu_engine configs/models/llama-3.1-8b logits 1000 /tmp/logits
    python3 integration-tests/gpu/logits.py configs/models/llama-3.1-8b 1000 /tmp/logits

Other shapes: configs/models/qwen2.5-7b and configs/models/qwen3-8b. Both programs make the same random weights: number i of matrix n is the
(i + 1)-th number of splitmix64 from seed n, as in `baton_fill`. Biases are matrices with one column, and norms are ones. Needs PyTorch and a GPU.
"""

import json
import math
import sys

import numpy
import torch
import torch.nn.functional as F

FOLDER, COUNT, FILE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
CONFIG = json.load(open(f"{FOLDER}/config.json"))
HIDDEN, FEED, LAYERS = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_hidden_layers"]
HEADS, KV_HEADS = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
HEAD = CONFIG.get("head_dim") or HIDDEN // HEADS
BIASED, NORMED = CONFIG["model_type"] == "qwen2", CONFIG["model_type"] == "qwen3"
EPSILON, SCALE = CONFIG["rms_norm_eps"], 0.034641016
torch.backends.cuda.matmul.allow_tf32 = False


def signed(value):
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def shift(z, bits):
    """Shifts signed words to the right without sign extension."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def matrix(seed, outputs, inputs):
    out = torch.empty(outputs * inputs, dtype=torch.bfloat16, device="cuda")
    for start in range(0, out.numel(), 1 << 25):
        end = min(out.numel(), start + (1 << 25))
        z = torch.arange(start + 1, end + 1, dtype=torch.int64, device="cuda") * signed(0x9E3779B97F4A7C15) + seed
        z = (z ^ shift(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shift(z, 27)) * signed(0x94D049BB133111EB)
        unit = shift(z ^ shift(z, 31), 40).float() * 2.0**-24
        out[start:end] = ((2 * unit - 1) * torch.tensor(SCALE, dtype=torch.float32)).bfloat16()
    return out.view(outputs, inputs)


def frequencies():
    base = CONFIG["rope_theta"] ** (torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    inverse = 1 / base
    rope = CONFIG.get("rope_scaling")
    if rope is None:
        return inverse.float().cuda()
    length = 2 * math.pi / inverse
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = ((original / length - low) / (high - low)).clamp(0, 1)
    return ((1 - smooth) * inverse / rope["factor"] + smooth * inverse).float().cuda()


def norm(x):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


def rotate(x, angles):
    """Rotates adjacent pairs."""
    pairs = x.float().unflatten(-1, (-1, 2))
    sine, cosine = angles.sin()[:, None], angles.cos()[:, None]
    a, b = pairs.unbind(-1)
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), -1).flatten(-2).to(x.dtype)


def layer(x, weights, angles):
    qkv_w, bias, o_w, gate_up_w, down_w = [w if w is None else w.to(x.dtype) for w in weights]
    qkv = F.linear(norm(x), qkv_w, bias)
    q, k, v = qkv.split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], -1)
    q, k, v = [t.unflatten(-1, (-1, HEAD)) for t in (q, k, v)]
    if NORMED:
        q, k = norm(q), norm(k)
    q, k = rotate(q, angles), rotate(k, angles)
    q, k, v = [t.transpose(0, 1)[None] for t in (q, k, v)]
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + F.linear(attended[0].transpose(0, 1).flatten(-2), o_w)
    gate, up = F.linear(norm(x), gate_up_w).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down_w)


def main():
    tokens = torch.tensor([(n * 2654435761 & 0xFFFFFFFF) % 128000 for n in range(COUNT)], device="cuda")
    angles = torch.arange(COUNT, device="cuda").float()[:, None] * frequencies()
    embedded = matrix(0, CONFIG["vocab_size"], HIDDEN)[tokens]
    states = [embedded.float(), embedded]
    for index in range(LAYERS):
        first = 2 + (4 + BIASED) * index
        width = (HEADS + 2 * KV_HEADS) * HEAD
        weights = (
            matrix(first, width, HIDDEN),
            matrix(first + 1, width, 1)[:, 0] if BIASED else None,
            matrix(first + BIASED + 1, HIDDEN, HEADS * HEAD),
            matrix(first + BIASED + 2, 2 * FEED, HIDDEN),
            matrix(first + BIASED + 3, HIDDEN, FEED),
        )
        states = [layer(x, weights, angles) for x in states]
    output = matrix(1, CONFIG["vocab_size"], HIDDEN)
    right, torchs = [F.linear(norm(x[-1:]), output.to(x.dtype)).float()[0] for x in states]
    batons = torch.from_numpy(numpy.fromfile(FILE, dtype=numpy.float32)).cuda()
    error = lambda found: ((found - right).norm() / right.norm()).item()
    own, theirs = error(batons), error(torchs)
    print(f"last logits after {COUNT} tokens, RMS error against float32: Baton {own:.5f}, PyTorch bf16 {theirs:.5f}, ratio {own / theirs:.2f}")
    best = right.topk(2)
    print(f"largest: float32 {best.indices[0]}, Baton {batons.argmax()}, PyTorch bf16 {torchs.argmax()}; gap to the second {(best.values[0] - best.values[1]) / right.std():.4f} deviations")


main()
