"""The same training step in PyTorch: its fastest mode is what the engine is measured against.

Reads one JSON line a request from standard input and answers each with one JSON line, so that a caller can alternate
steps of both in one run (engineChild.mjs is our side of the same protocol):

    {"open": {"config": {...}, "rank": 128, "alpha": 128, "batch": 8, "time": 256, "precision": "float32", "compile": false}}
    {"step": {}}       -> {"seconds": 1.23, "loss": 10.4, "peakBytes": 2.1e9}
    {"step": {"inputs": [...], "targets": [...], "learningRate": 1e-3}}
    {"load": {"path": "model.safetensors"}}                 weights of Hugging Face's names in float32, in place of random ones
    {"evaluate": {"inputs": [...], "targets": [...]}}       -> {"sum": 5678.9, "count": 2048}; a target of -1 does not count
    {"openHead": {"rows": 2048, "dim": 512, "vocabulary": 32000, "precision": "float32", "compile": false}}

rank 0 trains full-rank. Precisions: float32; bfloat16 (weights, gradients and moments); autocast (float32 weights,
products in bfloat16). Attention is scaled_dot_product_attention, the optimizer the fused AdamW, the gradient norm is
clipped at 1. Needs torch; nothing else.
"""

import json
import math
import os
import resource
import struct
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class LoraLinear(nn.Module):
    """y = x W + s (x A) B; W is frozen when there is an adapter."""

    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * 0.02, requires_grad=rank == 0)
        self.rank = rank
        if rank > 0:
            self.scale = alpha / rank
            bound = 1 / math.sqrt(in_features)
            self.a = nn.Parameter(torch.empty(rank, in_features).uniform_(-bound, bound))
            self.b = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x):
        y = F.linear(x, self.weight)
        return y if self.rank == 0 else y + self.scale * F.linear(F.linear(x, self.a), self.b)


class Block(nn.Module):
    def __init__(self, hidden, intermediate, heads, eps, rank, alpha):
        super().__init__()
        self.heads, self.eps = heads, eps
        self.norm1, self.norm2 = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        linear = lambda i, o: LoraLinear(i, o, rank, alpha)
        self.q, self.k, self.v, self.o = (linear(hidden, hidden) for _ in range(4))
        self.gate, self.up, self.down = linear(hidden, intermediate), linear(hidden, intermediate), linear(intermediate, hidden)

    def forward(self, x, cos, sin):
        batch, time_steps, hidden = x.shape
        h = F.rms_norm(x, (hidden,), self.norm1, self.eps)
        split = lambda t: t.view(batch, time_steps, self.heads, -1).transpose(1, 2)
        q, k, v = split(self.q(h)), split(self.k(h)), split(self.v(h))
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(batch, time_steps, hidden))
        h = F.rms_norm(x, (hidden,), self.norm2, self.eps)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Llama(nn.Module):
    def __init__(self, c, rank, alpha):
        super().__init__()
        hidden, heads = c["hiddenSize"], c["numAttentionHeads"]
        self.eps = c["rmsNormEps"]
        self.embedding = nn.Embedding(c["vocabSize"], hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(hidden, c["intermediateSize"], heads, self.eps, rank, alpha) for _ in range(c["numHiddenLayers"])
        )
        self.norm = nn.Parameter(torch.ones(hidden))
        self.head = nn.Parameter(torch.randn(c["vocabSize"], hidden) * 0.02)
        half = hidden // heads // 2
        angles = torch.outer(torch.arange(c["maxPositionEmbeddings"]), c["ropeTheta"] ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def named(self):
        """Weights by the names that Hugging Face gives them."""
        yield from (("model.embed_tokens.weight", self.embedding.weight), ("model.norm.weight", self.norm), ("lm_head.weight", self.head))
        for index, block in enumerate(self.blocks):
            prefix = f"model.layers.{index}"
            yield f"{prefix}.input_layernorm.weight", block.norm1
            yield f"{prefix}.post_attention_layernorm.weight", block.norm2
            for parent, parts in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
                for part in parts:
                    yield f"{prefix}.{parent}.{part}_proj.weight", getattr(block, part).weight

    def forward(self, ids, targets):
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.eps), self.head)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=-1)


class Trainer:
    def __init__(self, config, rank, alpha, batch, time, precision, compile, learningRate=1e-4, seed=0):
        torch.manual_seed(seed)
        self.shape, self.precision = (batch, time), precision
        self.model = Llama(config, rank, alpha)
        if precision == "bfloat16":
            self.model.to(torch.bfloat16)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learningRate, weight_decay=0, fused=True)
        self.vocabulary = config["vocabSize"]
        self.loss = torch.compile(self.model) if compile else self.model

    def step(self, inputs=None, targets=None, learningRate=None):
        if inputs is None:
            tokens = torch.randint(self.vocabulary, (self.shape[0], self.shape[1] + 1))
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
        else:
            inputs, targets = self.rows(inputs), self.rows(targets)
        if learningRate is not None:
            self.optimizer.param_groups[0]["lr"] = learningRate
        start = time.perf_counter()
        with autocast(self.precision):
            loss = self.loss(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        return {"seconds": time.perf_counter() - start, "loss": value, "peakBytes": peak_bytes()}

    def load(self, path):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors, data = json.loads(file.read(length)), bytearray(file.read())
        with torch.no_grad():
            for name, weight in self.model.named():
                (begin, end), shape = tensors[name]["data_offsets"], tensors[name]["shape"]
                weight.copy_(torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=begin).view(shape))
        return {}

    def evaluate(self, inputs, targets):
        count = sum(target != -1 for target in targets)
        with torch.no_grad(), autocast(self.precision):
            mean = self.model(self.rows(inputs), self.rows(targets)).item()
        return {"sum": mean * count, "count": count}

    def rows(self, tokens):
        return torch.tensor(tokens).view(-1, self.shape[1])

    def description(self):
        return {"parameterCount": sum(p.numel() for p in self.model.parameters())}


class HeadCase:
    """The loss over a vocabulary with both gradients, alone."""

    def __init__(self, rows, dim, vocabulary, precision, compile):
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.precision = precision
        self.x = torch.randn(rows, dim, dtype=kind, requires_grad=True)
        self.head = torch.randn(vocabulary, dim, dtype=kind).mul_(0.02).requires_grad_()
        self.targets = torch.randint(vocabulary, (rows,))
        loss = lambda x, head, targets: F.cross_entropy(F.linear(x, head).float(), targets)
        self.loss = torch.compile(loss) if compile else loss

    def step(self):
        start = time.perf_counter()
        with autocast(self.precision):
            loss = self.loss(self.x, self.head, self.targets)
        loss.backward()
        seconds = time.perf_counter() - start
        self.x.grad = self.head.grad = None
        return {"seconds": seconds, "loss": loss.item(), "peakBytes": peak_bytes()}

    def description(self):
        return {}


def autocast(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")


def peak_bytes():
    """The most memory held resident; maxrss also covers what the process was before it became Python."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    torch.set_num_threads(int(os.environ.get("RELORA_BENCH_THREADS", torch.get_num_threads())))
    # Standard output is only for answers: output of libraries goes to standard error.
    answers, sys.stdout = sys.stdout, sys.stderr
    tell = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    tell({"name": "PyTorch", "version": torch.__version__, "threads": torch.get_num_threads()})
    subject = None
    for line in sys.stdin:
        ((name, argument),) = json.loads(line).items()
        try:
            if name in ("open", "openHead"):
                subject = (Trainer if name == "open" else HeadCase)(**argument)
                tell(subject.description())
            else:
                tell(getattr(subject, name)(**argument))
        except Exception as error:
            tell({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    main()
