"""When a program's training equals the single device's, and rounding told from mistakes.

Losses agree within 1e-5, every first gradient and every parameter within 1e-4 of its norm. Two
things make rounding errors larger than that in float32 without a mistake anywhere. AdamW divides a
gradient by its size: where it is zero but for rounding (biases of keys, or in front of batch
normalisation) a parameter moves by a whole step in either direction. And an activation that is
zero but for rounding passes its gradient through ReLU, or does not.

So where tensors differ by more, the same program and the single device are run in float64, and
have to agree a hundred times better there. In float32 they may then differ by what the single
device does not determine itself: it is trained from eight starts that differ from the given one
by a millionth of each parameter (8 units in the last place), and the largest distance from float64
of any of them is its rounding error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.multiprocess.programs import load_program

LOSSES, TENSORS, EXACT = 1e-5, 1e-4, 1e-6
NUDGE, STARTS = 1e-6, 8
# Both sides have rounding errors, and those of the few starts may be small by chance.
ROUNDINGS = 3.0
Training = dict[str, Any]


def compare_training(results: list[Training], reference: Training) -> None:
    """Losses within 1e-5, every gradient and parameter within 1e-4 of the single device's."""
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=LOSSES)
    assert not beyond(results[0], reference, TENSORS)
    gradients = results[0]["gradients"]
    assert not any(gradients[key].any() for key in reference.get("unused", ()) if key in gradients)


def compare_in_float64(results: list[Training], exact: Training) -> None:
    """Both sides in float64."""
    for result in results:
        assert result["losses"] == pytest.approx(exact["losses"], rel=EXACT)
    assert not beyond(results[0], exact, EXACT)


def compare_rounded(results: list[Training], exact: Training, starts: list[Training]) -> list[str]:
    """The tensors that rounding alone keeps apart.

    Args:
        results: the program's ranks in float32.
        exact: the single device in float64.
        starts: the single device in float32, from the given start and from some around it.
    """
    for step, wanted in enumerate(exact["losses"]):
        own = max(abs(start["losses"][step] - wanted) for start in starts)
        for result in results:
            assert result["losses"][step] == pytest.approx(wanted, rel=LOSSES, abs=ROUNDINGS * own)
    assert not beyond(results[0], exact, TENSORS, starts)
    return list(beyond(results[0], starts[0], TENSORS))


def compare_beyond_rounding(
    run: Callable[..., list[Training]], results: list[Training], single: Callable[..., Training]
) -> list[str]:
    """``compare_training``, and where that fails the same in float64, as told above.

    Args:
        run: trains on all ranks again, with ``exact=True`` in float64.
        results: the program's ranks in float32.
        single: trains on a single device; takes ``exact`` and ``nudge``, the seed of a start.

    Returns:
        The tensors that rounding alone keeps apart.
    """
    try:
        compare_training(results, single())
    except AssertionError:
        exact = single(exact=True)
        compare_in_float64(run(exact=True), exact)
        return compare_rounded(results, exact, [single(nudge=seed) for seed in range(STARTS + 1)])
    return []


def beyond(
    found: Training, wanted: Training, share: float, starts: list[Training] | None = None
) -> dict[str, float]:
    """The tensors that differ by more than a share of their norm, and by how much of it."""
    far = {}
    for kind in ("gradients", "parameters"):
        for key, tensor in wanted[kind].items():
            size, difference = norm(tensor), norm(found[kind][key] - tensor)
            own = max(norm(start[kind][key] - tensor) for start in starts) if starts else 0.0
            if not difference <= share * size + 1e-7 + ROUNDINGS * own:
                far[f"{kind}: {key}"] = difference / size if size else difference
    return far


def nudged(model: nn.Module, seed: int) -> nn.Module:
    """The model a millionth of each parameter away from where it was; seed 0 leaves it there."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters() if seed else ():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data *= 1 + NUDGE * noise
    return model


def norm(tensor: Tensor) -> float:
    """The Euclidean norm, added up in float64."""
    return tensor.double().norm().item()


def unchanged(value: Any) -> Any:
    """The value itself."""
    return value


def in_float64(value: Any) -> Any:
    """A module, or a nest of tensors, with float64 where it is floating."""
    if isinstance(value, dict):
        return {key: in_float64(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(in_float64, value))
    if isinstance(value, nn.Module):
        return value.double()
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


class Widened(TorchFunctionMode):
    """What asks for float32 gets float64: norms and losses of libraries cast to float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        called = Tensor.double if func is Tensor.float else func
        named = {key: widened(value) for key, value in (kwargs or {}).items()}
        return called(*map(widened, args), **named)


def widened(value: Any) -> Any:
    """float64 for float32, all else as it is."""
    return torch.float64 if value is torch.float32 else value


@contextmanager
def computing_in_float64() -> Iterator[None]:
    """Nothing that runs inside is rounded to float32, neither by name nor by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Widened():
            yield
    finally:
        torch.set_default_dtype(before)


def load_in_float64(path: str) -> ModuleType:
    """The program at ``path`` in float64."""
    text = Path(path).read_text().replace("torch.float32", "torch.float64")
    exact = Path(path).with_name(f"exact_{torch.distributed.get_rank()}.py")
    exact.write_text(text)
    program: Any = load_program(str(exact))
    program.check = unchanged  # it knows the planned model by dtypes too
    return program  # type: ignore[no-any-return]
