"""``nn.SyncBatchNorm`` as a single process runs it."""

from __future__ import annotations

from functools import partial

from torch import nn

from autopar.errors import TraceError


def has_sync_norms(model: nn.Module) -> bool:
    """Whether any module of the model is an ``nn.SyncBatchNorm``."""
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def check_momentum(model: nn.Module) -> None:
    """Refuses cumulative running means, whose weight is read from a tensor.

    Raises:
        TraceError: a batch normalisation has no momentum.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and module.momentum is None and module.track_running_stats:
            raise TraceError(
                f"{type(module).__name__} with momentum=None", expected="a number", where=name,
                hint="pass momentum=0.1, or track_running_stats=False",
            )  # fmt: skip


def call_plain_norms(model: nn.Module) -> None:
    """Lets every ``nn.SyncBatchNorm`` do what other batch normalisations do.

    In a process group it would refuse a CPU, and take statistics over all ranks; the emitted
    program synchronises over data-parallel ones. All torch's batch normalisations share a forward.
    """
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = partial(nn.BatchNorm1d.forward, module)  # type: ignore[method-assign]
