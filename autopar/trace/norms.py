"""``nn.SyncBatchNorm`` as a single process runs it."""

from __future__ import annotations

from functools import partial

from torch import nn


def has_sync_norms(model: nn.Module) -> bool:
    """Whether any module of the model is an ``nn.SyncBatchNorm``."""
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def call_plain_norms(model: nn.Module) -> None:
    """Lets every ``nn.SyncBatchNorm`` do what other batch normalisations do.

    In a process group it would refuse a CPU, and take statistics over all ranks; the emitted
    program synchronises over data-parallel ones. All torch's batch normalisations share a forward.
    """
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = partial(nn.BatchNorm1d.forward, module)  # type: ignore[method-assign]
