"""A small decoder-only transformer over the bytes of any text file, by AdamW.

A sample is a block of context + 1 bytes; blocks begin every `context` bytes, so each byte is predicted once an
epoch. Tied embeddings, weight decay on matrices only, a linear warm-up and a cosine, clipping, accumulation,
and bfloat16 autocast if wanted. Attention is written out: fused kernels differ between devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from polcommit.errors import UsageError
from polcommit.training.randomness import Dropout
from polcommit.training.recipe import LOCAL, Applied, Recipe, Source
from polcommit.training.schedule import warm_up_cosine
from polcommit.training.state import TrainingState

VOCABULARY = 256
_LIMITS = {"layers": 1 << 10, "heads": 1 << 10, "width": 1 << 15, "context": 1 << 17}


class Blocks:
    """Blocks of context + 1 bytes of a text, as uint8 arrays."""

    def __init__(self, text: Path, context: int) -> None:
        try:
            self._bytes = np.fromfile(text, dtype=np.uint8)
        except OSError as error:
            raise UsageError(f"cannot read the text {text} ({error.strerror})", hint="give another file") from error
        if self._bytes.size < context + 1:
            raise UsageError(f"the text {text} has {self._bytes.size} bytes, fewer than context + 1 = {context + 1}")
        self._context = context

    def __len__(self) -> int:
        return (self._bytes.size - 1) // self._context

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self._context
        return self._bytes[start : start + self._context + 1]


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a residual path."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x (N, T, width); mask (T, T), true where attention must not look."""
        x = x + self.dropout(self.projection(self._attend(self.norm1(x), mask)))
        grown: torch.Tensor = x + self.dropout(self.contract(functional.gelu(self.expand(self.norm2(x)))))
        return grown

    def _attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        samples, length, width = x.shape
        heads = self.attention(x).view(samples, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        scores = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
        weights = functional.softmax(scores.float().masked_fill(mask, float("-inf")), dim=-1)
        return (self.dropout(weights).to(value.dtype) @ value).transpose(1, 2).reshape(samples, length, width)


class Transformer(nn.Module):
    """(N, T) int64 bytes to (N, T, 256) logits of the next byte; T <= context."""

    def __init__(
        self, layers: int, heads: int, width: int, context: int, dropout: float, *, tied: bool = True
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        mask = torch.ones(context, context, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        length = tokens.shape[1]
        x = self.dropout(self.embedding(tokens) + self.position.weight[:length])
        for layer in self.layers:
            x = layer(x, self.get_buffer("mask")[:length, :length])
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


@dataclass(frozen=True, kw_only=True)
class Gpt(Recipe):
    """About 0.2 million parameters by default, for a CPU; `text` says where the file lies on this machine."""

    steps: int = 300
    batch: int = 16
    accumulation: int = 2
    layers: int = 4
    heads: int = 4
    width: int = 64
    context: int = 64
    dropout: float = 0.1
    peak: float = 3e-3              # learning rate at the end of the warm-up
    warm_up: int = 20               # steps
    least: float = 0.1              # share of the peak that the cosine ends at
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1       # of matrices and embeddings; of nothing else
    clip: float = 1.0               # norm of the whole gradient
    tied: bool = True               # the last matrix is the embedding's
    autocast: bool = False          # bfloat16 where torch's autocast uses it
    text: str | Path | None = field(default=None, metadata=LOCAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, limit in _LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise UsageError(f"{name} {getattr(self, name)}: from 1 to {limit}")
        if self.width % self.heads:
            raise UsageError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.warm_up < 0:
            raise UsageError(f"a warm-up of {self.warm_up} steps")

    def source(self) -> Source:
        """The blocks of the text."""
        if self.text is None:
            raise UsageError("the recipe 'gpt' needs a text", hint="give a file as 'text'")
        return Blocks(Path(self.text), self.context)

    def transform(self, sample: Any) -> torch.Tensor:
        """(context + 1,) int64."""
        return torch.from_numpy(sample).long()

    def build(self) -> TrainingState:
        """Transformer, AdamW with two groups, and a LambdaLR."""
        model = Transformer(self.layers, self.heads, self.width, self.context, self.dropout, tied=self.tied)
        model = model.to(self.device)
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.peak, betas=(self.beta1, self.beta2))

        def share(updates: int) -> float:
            return warm_up_cosine(updates + 1, self.steps, self.warm_up, self.least)

        return TrainingState(
            model=model, optimizer=optimizer, scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        )

    def loss(self, state: TrainingState, micro_batch: Any, k: int, n: int) -> torch.Tensor:
        """Cross-entropy of the next byte, in nats, over the micro-batch, divided by n."""
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = state.model(micro_batch[:, :-1])
        targets = micro_batch[:, 1:].reshape(-1)
        return functional.cross_entropy(logits.float().reshape(-1, VOCABULARY), targets) / n

    def apply(self, state: TrainingState, t: int) -> Applied:
        """Clip, step, and move the schedule on."""
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.clip)
        state.optimizer.step()
        if state.scheduler is not None:
            state.scheduler.step()
        return Applied(clipped=bool(norm > self.clip))

    def learning_rate(self, t: int) -> float:
        """What the LambdaLR gives: the peak times the share of step t."""
        return self.peak * warm_up_cosine(t, self.steps, self.warm_up, self.least)
