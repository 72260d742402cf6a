"""Constants of the emitted program as a formatter would lay them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from autopar.emit.lines import lay_out, wrap

LINE = 100
Tensor = tuple[tuple[str, ...], str]
Items = tuple[str, Sequence[str], str]


def constant(name: str, value: str | Items, note: str = "", indent: int = 0) -> str:
    """``NAME = value``, one item per line where it does not fit on one."""
    pad = " " * indent
    opening, items, closing = ("", [value], "") if isinstance(value, str) else value
    inline = ", ".join(items) + ("," if opening == "(" and len(items) == 1 else "")
    line = f"{pad}{name} = {opening}{inline}{closing}"
    comment = f"  # {note}" if note else ""
    if len(line) > LINE and isinstance(value, str) and value.startswith("("):
        above = f"{pad}# {note}\n" if note else ""
        first, *rest = lay_out(value, LINE - len(pad) - len(f"{name} = "))
        return above + "\n".join([f"{pad}{name} = {first}", *(pad + part for part in rest)])
    if len(line) <= LINE or isinstance(value, str):
        above = f"{pad}# {note}\n" if comment and len(line + comment) > LINE else ""
        return above + line if above else line + comment
    above = f"{pad}# {note}\n" if note else ""
    inner = "".join(f"{pad}    {item},\n" for item in items)
    return f"{above}{pad}{name} = {opening}\n{inner}{pad}{closing}"


def words(values: Iterable[str]) -> Items:
    """A tuple of strings."""
    return "(", [f'"{value}"' for value in values], ")"


def groups(values: Iterable[Sequence[str]]) -> Items:
    """A tuple of tuples of strings."""
    return "(", [_inner_tuple([f'"{n}"' for n in group]) for group in values], ")"


def _inner_tuple(items: Sequence[str]) -> str:
    """A tuple among the items of a constant, over several lines where it is long."""
    inline = _inline_tuple(items)
    if len(inline) <= LINE - 5:
        return inline
    return "(\n" + "".join(f"        {item},\n" for item in items) + "    )"


def mapping(values: dict[str, str]) -> Items:
    """A dict from strings to expressions."""
    return "{", [f'"{key}": {value}' for key, value in values.items()], "}"


def ranges(values: Iterable[tuple[int, int]]) -> Items:
    """A tuple of ranges."""
    return "(", [f"range({start}, {stop})" for start, stop in values], ")"


def runs(values: Sequence[int | str | None]) -> str:
    """Run lengths: ``(0,) * 4 + (3, 0)``. Strings are quoted unless they name a class."""
    return _run_lengths(map(_atom, values))


def _run_lengths(texts: Iterable[str]) -> str:
    """A tuple in which what stands several times in a row is multiplied."""
    terms: list[tuple[list[str], int]] = []
    for text, run in groupby(texts):
        times = len(list(run))
        if times == 1 and terms and terms[-1][1] == 1:
            terms[-1][0].append(text)
        else:
            terms.append(([text], times))
    tuples = (_inline_tuple(items) + f" * {times}" * (times > 1) for items, times in terms)
    return " + ".join(tuples) or "()"


def _atom(value: int | str | None) -> str:
    quoted = isinstance(value, str) and value in ("none", "selective", "full")
    return f'"{value}"' if quoted else str(value)


def names(values: Sequence[str]) -> str | Items:
    """Module paths: a comprehension for each numbered list of them."""
    runs: list[tuple[str, int, int]] = []
    for value in values:
        head, _, tail = value.rpartition(".")
        number = int(tail) if head and tail.isdigit() else -1
        if runs and runs[-1][0] == head and runs[-1][2] == number > 0:
            runs[-1] = (head, runs[-1][1], number + 1)
        else:
            runs.append((head, number, number + 1) if number >= 0 else (value, 0, 0))
    if len(runs) == 1 and runs[0][1] == 0 and runs[0][2] > 2:
        return f'tuple(f"{runs[0][0]}.{{i}}" for i in range({runs[0][2]}))'
    items = []
    for head, start, stop in runs:
        if stop - start > 2:
            span = f"{start}, {stop}" if start else f"{stop}"
            items.append(f'*(f"{head}.{{i}}" for i in range({span}))')
        else:
            items += [f'"{head}.{i}"' for i in range(start, stop)] or [f'"{head}"']
    return "(", items, ")"


def hidden(cuts: Sequence[Sequence[Tensor]]) -> str:
    """Shapes and dtypes per cut, equal cuts as run lengths."""
    return _run_lengths(
        _inline_tuple([f"({_inline_tuple(shape)}, torch.{dtype})" for shape, dtype in cut])
        for cut in cuts
    )


def _inline_tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def numbers(values: Iterable[int]) -> Items:
    """A tuple of numbers."""
    return "(", [str(value) for value in values], ")"


def cut_names(cuts: Sequence[Sequence[str]]) -> str:
    """Variables per cut, equal cuts as run lengths."""
    return _run_lengths(_inline_tuple([f'"{name}"' for name in cut]) for cut in cuts)


def statement(text: str, indent: int) -> str:
    """A statement behind ``indent`` blanks that stand already."""
    return f"\n{' ' * indent}".join(wrap(text, LINE - indent))


FORMATS = {
    "statement": statement,
    "constant": constant,
    "words": words,
    "groups": groups,
    "cut_names": cut_names,
    "numbers": numbers,
    "mapping": mapping,
    "ranges": ranges,
    "runs": runs,
    "names": names,
    "hidden": hidden,
}
