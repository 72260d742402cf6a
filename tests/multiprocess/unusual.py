"""Models that are called, that return, that share or that freeze in unusual ways."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Case

WIDTH = 16


class Residual(nn.Module):
    """A residual MLP."""

    def __init__(self, width: int = WIDTH, inner: int = 2 * WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def residuals(count: int = 3) -> nn.ModuleList:
    return nn.ModuleList([Residual() for _ in range(count)])


class Configured(nn.Module):
    """Takes a number, a flag, a text, nothing, and a nest of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(WIDTH, WIDTH), residuals()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(
        self, x: Tensor, scale: float, residual: bool, kind: str, more: Any, nest: Any, rest: Any
    ) -> Tensor:  # fmt: skip
        assert more is None
        assert kind == "mean"
        x = self.embed(x) * scale + nest["first"]["x"] - rest[1]
        for block in self.blocks:
            x = block(x) if residual else block(x) - x
        return self.head(x) * nest["factor"]


def configured(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x, y, z = torch.randn(3, samples, WIDTH, generator=generator)
    nest = {"first": {"x": y}, "factor": 2}
    return (x, 0.5, True, "mean", None, nest, (1, z)), labels(generator, samples)


def labels(generator: torch.Generator, samples: int) -> Tensor:
    return torch.randint(CLASSES, (samples,), generator=generator)


def vectors(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, WIDTH, generator=generator),), labels(generator, samples)


def sequences(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x = torch.randn(samples, TOKENS, WIDTH, generator=generator)
    return (x,), labels(generator, samples)


def two_vectors(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x, y = torch.randn(2, samples, WIDTH, generator=generator)
    return (x, y), torch.randn(samples, generator=generator)


def next_tokens(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    tokens = torch.randint(VOCABULARY, (samples, TOKENS + 1), generator=generator)
    return (tokens[:, :-1],), tokens[:, 1:]


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Tasks(nn.Module):
    """Several heads, returned as a dict, a dataclass and a named tuple."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.blocks = residuals()
        self.heads = nn.ModuleDict({n: nn.Linear(WIDTH, CLASSES) for n in ("a", "b")})

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        a, b = (head(x) for head in self.heads.values())
        if self.kind == "dict":
            return {"a": a, "b": b, "depth": len(self.blocks)}
        if self.kind == "dataclass":
            return Result(a, b)
        return Pair(a, b) if self.kind == "named" else OrderedDict(a=a, b=b)


def tasks_loss(output: Any, target: Tensor) -> Tensor:
    if isinstance(output, Result):
        output = {"a": output.logits, "b": output.hidden}
    elif isinstance(output, Pair):
        output = output._asdict()
    return F.cross_entropy(output["a"], target) + 0.5 * F.cross_entropy(output["b"], target)


class OwnLoss(nn.Module):
    """Returns its loss as the first of a tuple, in a dict or alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, target: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        loss = F.cross_entropy(logits, target)
        if self.kind == "tuple":
            return loss, logits
        return {"loss": loss, "logits": logits} if self.kind == "dict" else loss


def with_labels(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), target = vectors(generator, samples)
    return (x, target), None


class Adapted(nn.Module):
    """Frozen weights with adapters of low rank beside them."""

    class Linear(nn.Module):
        def __init__(self, width: int, rank: int = 2) -> None:
            super().__init__()
            self.base = nn.Linear(width, width)
            self.base.requires_grad_(requires_grad=False)
            self.a = nn.Parameter(torch.randn(rank, width) / 4)
            self.b = nn.Parameter(torch.randn(width, rank) / 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + F.linear(F.linear(x, self.a), self.b)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed.requires_grad_(requires_grad=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), Adapted.Linear(WIDTH), nn.GELU()) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class FrozenTrunk(nn.Module):
    """All blocks frozen; the head alone is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)
        self.blocks.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Siamese(nn.Module):
    """One trunk for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*residuals())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(self.trunk(x), self.trunk(y))


class Recurring(nn.Module):
    """One block applied again and again, as in ALBERT and universal transformers."""

    def __init__(self, times: int = 4) -> None:
        super().__init__()
        self.embed, self.block, self.times = nn.Linear(WIDTH, WIDTH), Residual(), times
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(self.times):
            x = self.block(x)
        return self.head(x)


class Target(nn.Module):
    """An online and a target network that gets no gradient, as in BYOL."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(*residuals())
        self.predict = nn.Linear(WIDTH, WIDTH)
        self.target = nn.Sequential(*residuals())
        self.target.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        predicted = F.normalize(self.predict(self.online(x)), dim=-1)
        with torch.no_grad():
            wanted = F.normalize(self.target(y), dim=-1)
        return (2 - 2 * (predicted * wanted).sum(-1)).mean()


def itself(output: Tensor, target: Any) -> Tensor:
    return output


class Averaged(nn.Module):
    """Keeps a moving average of a parameter in a buffer, which it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("average", torch.zeros(CLASSES, WIDTH))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.training:
            with torch.no_grad():
                self.average.lerp_(self.head.weight, 0.1)
                self.steps += 1
        return self.head(x) + F.linear(x.detach(), self.average)


class Lists(nn.Module):
    """Parameters in lists and dicts, one used directly, one scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(WIDTH, WIDTH) / 4 for _ in range(3)])
        self.named = nn.ParameterDict({"bias": torch.zeros(WIDTH), "gain": torch.ones(WIDTH)})
        self.query = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + torch.tanh(x @ weight + self.named["bias"]) * self.named["gain"]
        weights = (self.query.expand(len(x), -1, -1) @ x.unsqueeze(-1)).squeeze(-1).softmax(-1)
        pooled = (weights.unsqueeze(-1) * self.query).sum(1)
        return self.head(x + pooled * self.scale)


class Checkpointed(nn.Module):
    """Recomputes its blocks itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


class Sign(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


class Binary(nn.Module):
    """Activations of one bit, through an autograd function; weights are read outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = Signs()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + F.linear(self.signs(x), block.up.weight[:WIDTH])
            x = block(x)
        return self.head(x)


class Cache:
    """Keys that earlier blocks have made."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []

    def update(self, key: Tensor) -> Tensor:
        self.keys.append(key)
        return torch.stack(self.keys).mean(0)


class Caching(nn.Module):
    """Blocks that write into an object that is passed on."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.mlp = nn.Linear(WIDTH, WIDTH), Residual()

        def forward(self, x: Tensor, cache: Cache) -> Tensor:
            return self.mlp(x + cache.update(self.key(x)))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Caching.Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        for block in self.blocks:
            x = block(x, cache)
        return self.head(x)


class Stopping(nn.Module):
    """Gradients that are stopped between blocks, and another loss in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = residuals(4)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks[:2]:
            x = block(x)
        first = self.heads[0](x)
        x = x.detach()
        for block in self.blocks[2:]:
            x = block(x)
        return first, self.heads[1](x)


def both_losses(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return sum(F.cross_entropy(logits, target) for logits in output)  # type: ignore[return-value]


class Counting(nn.Module):
    """Asks for the number of samples with ``len``."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.zeros(len(x), 0)], -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Unused(nn.Module):
    """Parameters that no forward reads, and blocks that are skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(5), nn.Linear(WIDTH, CLASSES)
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[:4]:
            x = block(x)
        return self.head(x)


class Contrastive(nn.Module):
    """Compares every sample with every other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Sequential(*residuals()), nn.Sequential(*residuals())
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(self.left(x), dim=-1), F.normalize(self.right(y), dim=-1)
        return x @ y.T * self.scale.exp()


class Hooked(nn.Module):
    """Takes values out of its blocks by hooks, for a term at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = residuals(), nn.Linear(WIDTH, CLASSES)
        self.kept: list[Tensor] = []
        for block in self.blocks:
            block.up.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        for block in self.blocks:
            x = block(x)
        return self.head(x) * torch.stack(self.kept).mean((0, 2)).unsqueeze(1)


def contrastive_loss(scores: Tensor, target: Any) -> Tensor:
    own = torch.arange(scores.shape[0], device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def loss_in_float64(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores.double(), target)


def summed_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target, reduction="sum") + 0.1 * output.abs().sum()


CASES = {
    "configured": Case(Configured, configured, F.cross_entropy),
    "tasks-dict": Case(lambda: Tasks("dict"), vectors, tasks_loss),
    "tasks-dataclass": Case(lambda: Tasks("dataclass"), vectors, tasks_loss),
    "tasks-named": Case(lambda: Tasks("named"), vectors, tasks_loss),
    "tasks-ordered": Case(lambda: Tasks("ordered"), vectors, tasks_loss),
    "loss-tuple": Case(lambda: OwnLoss("tuple"), with_labels),
    "loss-dict": Case(lambda: OwnLoss("dict"), with_labels),
    "loss-alone": Case(lambda: OwnLoss("alone"), with_labels),
    "lora": Case(Adapted, next_tokens, token_loss),
    "frozen-trunk": Case(FrozenTrunk, vectors, F.cross_entropy),
    "siamese": Case(Siamese, two_vectors, F.mse_loss),
    "loss-sum": Case(Siamese, two_vectors, summed_loss),
    "loss-float64": Case(Recurring, vectors, loss_in_float64),
    "recurring": Case(Recurring, vectors, F.cross_entropy),
    "byol": Case(Target, two_vectors, itself),
    "ema": Case(Averaged, vectors, F.cross_entropy, mixes=True),
    "lists": Case(Lists, vectors, F.cross_entropy),
    "checkpointed": Case(Checkpointed, vectors, F.cross_entropy),
    "binary": Case(Binary, vectors, F.cross_entropy),
    "caching": Case(Caching, vectors, F.cross_entropy),
    "stopping": Case(Stopping, vectors, both_losses),
    "counting": Case(Counting, vectors, F.cross_entropy),
    "unused": Case(Unused, vectors, F.cross_entropy),
    "hooked": Case(Hooked, vectors, F.cross_entropy),
    "contrastive": Case(Contrastive, two_vectors, contrastive_loss, mixes=True),
}
