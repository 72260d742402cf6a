"""Deep models whose blocks are equal, nearly equal, or used unequally."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trace.models import WIDTH, Block, Chain

DEPTH = 9


class Counted(Block):
    """Knows its position and does not use it."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x)) * self.scale + x


class Scaled(Counted):
    """Multiplies by its position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.layer_idx + 1)


class LooksUp(Counted):
    """Chooses by its position from a list that all blocks share."""

    kinds = ("plain",) * 4 + ("special",) + ("plain",) * 4

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.relu() if self.kinds[self.layer_idx] == "special" else y


class Alternating(Counted):
    """Every third block is of another kind."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__(layer_idx)
        self.kind = "special" if layer_idx % 3 == 2 else "plain"
        self.shift = layer_idx % 3

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y.relu() if self.kind == "special" else y) + self.shift


class Dropped(Counted):
    """A rate that differs from block to block."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__(layer_idx)
        self.rate = 0.01 * layer_idx

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), self.rate)


class Wide(Block):
    """The first blocks, and later ones, have another shape."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        hidden = 4 * WIDTH if layer_idx < 2 else 2 * WIDTH
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu()) + x


class Many(Block):
    """Takes and returns several tensors, some of which it only hands on."""

    def forward(self, state: tuple[Tensor, Tensor], scale: Tensor, *, add: float = 1.0) -> Any:
        x, first = state
        return (self.linear(x) * scale + add, first), {"sum": x.sum(-1)}


class Hidden(Block):
    """Leaves a tensor in a list that all blocks share, besides what it returns."""

    def __init__(self, store: list[Tensor]) -> None:
        super().__init__()
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.store.append(y.relu())
        return y


class Deep(Chain):
    """Blocks that know their position."""

    def __init__(self, block: Any) -> None:
        super().__init__(Block, 0)
        self.blocks = nn.ModuleList([block(i) for i in range(DEPTH)])


class InterruptedChain(Deep):
    """Something happens between two blocks that are not traced."""

    def __init__(self) -> None:
        super().__init__(Counted)
        self.extra = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index, block in enumerate(self.blocks):
            x = self.extra(block(x)) if index == 5 else block(x)
        return x


class Shaped(Deep):
    """U-Net: the second half reads what the first half made, last first."""

    def __init__(self) -> None:
        super().__init__(Counted)

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.first(x), []
        for index, block in enumerate(self.blocks):
            if index < DEPTH // 2:
                x = block(x)
                kept.append(x)
            else:
                x = block(x + kept.pop() if kept else x)
        return x


class Calls(Chain):
    """Several tensors, plain arguments and nests go through each block."""

    def __init__(self) -> None:
        super().__init__(Many, DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones_like(x).cumsum(-1)
        state, sums = (self.first(x), x), []
        for index, block in enumerate(self.blocks):
            state, more = block(state, scale if index % 2 else scale + 1, add=2.0)
            sums.append(more["sum"])
        return state[0] + state[1] + sum(sums)[:, None]


class Uneven(Calls):
    """A plain argument differs from call to call."""

    def forward(self, x: Tensor) -> Tensor:
        state = (self.first(x), x)
        for index, block in enumerate(self.blocks):
            state, _ = block(state, x, add=float(index))
        return state[0]


class Leaks(Chain):
    def __init__(self) -> None:
        super().__init__(Block, 0)
        self.store: list[Tensor] = []
        self.blocks = nn.ModuleList([Hidden(self.store) for _ in range(DEPTH)])

    def forward(self, x: Tensor) -> Tensor:
        self.store.clear()
        return super().forward(x) + sum(self.store)


class Twice(Deep):
    """Every block is called twice."""

    def __init__(self) -> None:
        super().__init__(Counted)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Reversed(Deep):
    """The blocks run from the last to the first."""

    def __init__(self) -> None:
        super().__init__(Counted)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Shared(Deep):
    """One buffer is registered in every block."""

    def __init__(self) -> None:
        super().__init__(Counted)
        for block in self.blocks:
            block.scale = self.blocks[0].scale


class Hooked(Deep):
    """A block in the middle has a hook."""

    def __init__(self) -> None:
        super().__init__(Counted)
        self.blocks[5].linear.register_forward_hook(lambda module, args, output: output * 2)


# What can be traced in part, with the number of blocks that are left out, and what cannot.
EXPANDED = {
    "equal": (lambda: Deep(Counted), 6), "alternating": (lambda: Deep(Alternating), 0),
    "wide": (lambda: Deep(Wide), 4), "interrupted": (InterruptedChain, 6),
    "u-net": (Shaped, 6), "nests": (Calls, 6), "hooked": (Hooked, 5),
}  # fmt: skip
REFUSED = {
    "scaled": lambda: Deep(Scaled), "looks up": lambda: Deep(LooksUp), "uneven": Uneven,
    "leaks": Leaks, "twice": Twice, "reversed": Reversed,
}  # fmt: skip
UNEQUAL = {"rates": lambda: Deep(Dropped), "shared": Shared}
