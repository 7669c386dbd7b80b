"""The same training step in PyTorch on a card: what bench.mjs is measured against.

Reads one JSON line a request and answers each with one JSON line, as bench/sides/pytorch.py does:

    {"open": {"config": {...}, "kind": "merged", "rank": 128, "batch": 32, "time": 512, "pad": true, "compile": "blocks", "autotune": false}}
    {"steps": {"count": 5, "inputs": [...], "targets": [...]}} -> {"seconds": [...], "loss": 10.4, "peakBytes": 2e10}
    {"close": {}}

Kinds: full (all weights trained), adapters (x W + s (x A) B beside frozen W), merged (W' = W + s A B made once a step, q|k|v and
gate|up as one product, x A from the same product), float8 (full rank by torchao, where it is installed). Everything in bfloat16 but
norms of gradients and the loss; attention is scaled_dot_product_attention, the optimizer the fused AdamW. Compiled are the blocks and the
head, or the model as a whole, or nothing; with "autotune" products are chosen by timing, and a whole model runs as a CUDA graph. With
"pad" the width between gate and down is a multiple of 64.
"""

import gc
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


def linear_weight(out_features, in_features, trained):
    return nn.Parameter(torch.randn(out_features, in_features, device=device, dtype=torch.bfloat16) * 0.02, requires_grad=trained)


class Joined(nn.Module):
    """Products of one input side by side, all weights trained."""

    def __init__(self, in_features, widths):
        super().__init__()
        self.widths = widths
        self.linear = nn.Linear(in_features, sum(widths), bias=False, device=device, dtype=torch.bfloat16)

    def forward(self, x):
        return self.linear(x).split(self.widths, -1)

    def refresh(self):
        pass


class Adapters(nn.Module):
    """x W + s (x A) B for each."""

    def __init__(self, in_features, widths, rank):
        super().__init__()
        self.weights = nn.ParameterList(linear_weight(width, in_features, False) for width in widths)
        bound = 1 / math.sqrt(in_features)
        uniform = lambda: torch.empty(rank, in_features, device=device).uniform_(-bound, bound).to(torch.bfloat16)
        self.a = nn.ParameterList(nn.Parameter(uniform()) for _ in widths)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(width, rank, device=device, dtype=torch.bfloat16)) for width in widths)

    def forward(self, x):
        return [F.linear(x, w) + F.linear(F.linear(x, a), b) for w, a, b in zip(self.weights, self.a, self.b)]

    def refresh(self):
        pass


class MergedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, extended, a, b, widths, rank):
        made = x @ extended.t()
        width = sum(widths)
        ctx.save_for_backward(x, made[:, width:].contiguous(), extended, b)
        ctx.widths, ctx.rank = widths, rank
        return made[:, :width]

    @staticmethod
    def backward(ctx, dy):
        x, xa, extended, b = ctx.saved_tensors
        widths, rank = ctx.widths, ctx.rank
        width = sum(widths)
        dx = dy @ extended[:width]
        parts, db, at = [], [], 0
        for index, own in enumerate(widths):
            part = dy[:, at : at + own]
            parts.append(part @ b[at : at + own])
            db.append(part.t() @ xa[:, index * rank : (index + 1) * rank])
            at += own
        da = torch.cat(parts, 1).t() @ x
        return dx, None, da, torch.cat(db), None, None


class Merged(nn.Module):
    """x W' with W' = W + s A B, made by `refresh` after each update, and A's rows below it."""

    def __init__(self, in_features, widths, rank):
        super().__init__()
        self.widths, self.rank = widths, rank
        bound = 1 / math.sqrt(in_features)
        self.register_buffer("weight", linear_weight(sum(widths), in_features, False).data)
        self.a = nn.Parameter(torch.empty(len(widths) * rank, in_features, device=device).uniform_(-bound, bound).to(torch.bfloat16))
        self.b = nn.Parameter(torch.zeros(sum(widths), rank, device=device, dtype=torch.bfloat16))
        self.register_buffer("extended", torch.cat([self.weight, self.a.data]))

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        made = MergedProduct.apply(rows, self.extended, self.a, self.b, self.widths, self.rank)
        return made.view(*x.shape[:-1], -1).split(self.widths, -1)

    @torch.no_grad()
    def refresh(self):
        at = 0
        for index, own in enumerate(self.widths):
            a = self.a[index * self.rank : (index + 1) * self.rank]
            torch.addmm(self.weight[at : at + own], self.b[at : at + own], a, out=self.extended[at : at + own])
            at += own
        self.extended[at:].copy_(self.a)


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nn.Module):
    def __init__(self, hidden, intermediate, heads, eps, make):
        super().__init__()
        self.heads, self.eps = heads, eps
        one = lambda: nn.Parameter(torch.ones(hidden, device=device, dtype=torch.bfloat16))
        self.norm1, self.norm2 = one(), one()
        self.qkv, self.o = make(hidden, [hidden] * 3), make(hidden, [hidden])
        self.gate_up, self.down = make(hidden, [intermediate] * 2), make(intermediate, [hidden])

    def forward(self, x, cos, sin):
        batch, steps, hidden = x.shape
        split = lambda t: t.view(batch, steps, self.heads, -1).transpose(1, 2)
        q, k, v = (split(t) for t in self.qkv(F.rms_norm(x, (hidden,), self.norm1, self.eps)))
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(batch, steps, hidden))[0]
        gate, up = self.gate_up(F.rms_norm(x, (hidden,), self.norm2, self.eps))
        return x + self.down(F.silu(gate) * up)[0]


def head_loss(x, norm, head, targets, eps):
    logits = F.linear(F.rms_norm(x, (x.shape[-1],), norm, eps), head)
    return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))


class Llama(nn.Module):
    def __init__(self, config, make, time, pad):
        super().__init__()
        hidden, heads, vocabulary = config["hiddenSize"], config["numAttentionHeads"], config["vocabSize"]
        self.eps = config["rmsNormEps"]
        intermediate = config["intermediateSize"]
        if pad:
            intermediate = (intermediate + 63) // 64 * 64
        blocks = (Block(hidden, intermediate, heads, self.eps, make) for _ in range(config["numHiddenLayers"]))
        self.blocks = nn.ModuleList(blocks)
        normal = lambda *shape: nn.Parameter(torch.randn(*shape, device=device, dtype=torch.bfloat16) * 0.02)
        self.embedding, self.head = normal(vocabulary, hidden), normal(vocabulary, hidden)
        self.norm = nn.Parameter(torch.ones(hidden, device=device, dtype=torch.bfloat16))
        half = hidden // heads // 2
        angles = torch.outer(torch.arange(time), config["ropeTheta"] ** (-torch.arange(half) / half)).to(device)
        self.register_buffer("cos", angles.cos().to(torch.bfloat16))
        self.register_buffer("sin", angles.sin().to(torch.bfloat16))
        self.loss = head_loss

    def forward(self, inputs, targets):
        x = F.embedding(inputs, self.embedding)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(x, self.norm, self.head, targets, self.eps)


class Trainer:
    def __init__(self, config, kind, rank, batch, time, pad, compile="blocks", autotune=False):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.shape = (batch, time)
        makers = {
            "full": lambda i, widths: Joined(i, widths),
            "float8": lambda i, widths: Joined(i, widths),
            "adapters": lambda i, widths: Adapters(i, widths, rank),
            "merged": lambda i, widths: Merged(i, widths, rank),
        }
        self.model = Llama(config, makers[kind], time, pad)
        if kind == "float8":
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training

            convert_to_float8_training(self.model.blocks, config=Float8LinearConfig.from_recipe_name("rowwise"))
        self.joined = [m for m in self.model.modules() if hasattr(m, "refresh")]
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0, fused=True)
        torch._dynamo.config.recompile_limit = 64
        if compile == "model":
            self.model.compile(mode="max-autotune" if autotune else None)
        elif compile == "blocks":
            mode = "max-autotune-no-cudagraphs" if autotune else None
            for block in self.model.blocks:  # the same code, so that one compilation serves all of them
                block.compile(mode=mode)
            self.model.loss = torch.compile(head_loss, mode=mode)

    def step(self, inputs, targets):
        torch.compiler.cudagraph_mark_step_begin()
        loss = self.model(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for module in self.joined:
            module.refresh()
        return loss.item()

    def steps(self, count, inputs, targets):
        rows = lambda ids: torch.tensor(ids, device=device).view(self.shape)
        inputs, targets = rows(inputs), rows(targets)
        seconds = []
        for _ in range(count):
            synchronize()
            begin = time.perf_counter()
            loss = self.step(inputs, targets)
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds, "loss": loss, "peakBytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0}


def forget():
    """Gives back what the last variant held, so that the peak of the next is its own."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main():
    # Standard output is only for answers: output of libraries goes to standard error.
    answers, sys.stdout = sys.stdout, sys.stderr
    say = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    subject = None
    for line in sys.stdin:
        ((name, argument),) = json.loads(line).items()
        try:
            if name == "steps":
                say(subject.steps(**argument))
                continue
            subject = None
            forget()
            if name == "open":
                subject = Trainer(**argument)
            say({})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    main()
