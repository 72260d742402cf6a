"""What generated code uses of the program's frame, and what classes get for it."""

from __future__ import annotations

import re

from autopar.emit.constants import constant, words

# What each of the program's helper functions calls in turn.
NEEDS = {
    "sharded_cross_entropy": ("all_reduce",),
    "sharded_batch_norm": ("narrow",),
    "run_whole": ("local",),
}
HELPERS = (
    "enter",
    "all_gather",
    "gather",
    "all_reduce",
    "all_reduce_enter",
    "reduce_scatter",
    "scatter",
    "narrow",
    "all_to_all",
    "partial",
    "sharded_embedding",
    "sharded_cross_entropy",
    "rows_cross_entropy",
    "sharded_batch_norm",
    "grouped_mm",
    "run_whole",
    "count_batch",
    "shard_rng",
)
# Helpers that call torch.nn.functional.
FUNCTIONAL_HELPERS = (
    "sharded_embedding", "rows_cross_entropy", "sharded_batch_norm", "grouped_mm",
)  # fmt: skip


def helpers(code: str) -> frozenset[str]:
    """The helper functions that ``code`` calls, and those they call."""
    called = {name for name in HELPERS if re.search(rf"(?<![\w.]){name}\(", code)}
    return frozenset(called.union(*(NEEDS.get(name, ()) for name in called)))


def partial_parameters(code: str, owner: str) -> tuple[str, ...]:
    """Dotted names, relative to ``owner``, of the parameters read through ``partial``.

    A call may have been broken into lines.
    """
    found = re.findall(rf"(?<![\w.])partial\(\s*{owner}((?:\.\w+|\[\d+\])+),?\s*\)", code)
    dotted = (re.sub(r"\[(\d+)\]", r".\1", name).lstrip(".") for name in found)
    return tuple(dict.fromkeys(dotted))


def add_index(text: str) -> str:
    """Adds access to numbered children, as a ``Sequential`` has it, to a class that uses it."""
    if "self[" not in text:
        return text
    return f"""{text}

    def __getitem__(self, index):
        return self.get_submodule(str(index))"""


def add_partial(text: str) -> str:
    """Adds the attribute PARTIAL to a class in front of its first method."""
    names = partial_parameters(text, "self")
    if not names or re.search(r"^    PARTIAL\b", text, re.MULTILINE):
        return text
    head, mark, tail = text.partition("\n    def ")
    line = constant("PARTIAL", words(names), indent=4)
    return f"{head.rstrip()}\n{line}\n{mark}{tail}"
