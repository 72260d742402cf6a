from __future__ import annotations

import pytest
import torch

from autopar.calibration.kernels import Kernels
from autopar.calibration.points import (
    ATTENTION,
    ATTENTION_LAUNCH,
    GEMM_LAUNCH,
    LAYOUTS,
    OPTIMIZERS,
    TRAFFIC,
    TRAFFIC_LAUNCH,
    UPDATE_LAUNCH,
    Point,
)

POINTS = [
    *(Point("gemm", f"{dtype}/{layout}", shape)
      for dtype in ("float32", "bfloat16") for layout in LAYOUTS
      for shape in (GEMM_LAUNCH, (32, 48, 64))),
    *(Point("attention", f"float32/{part}", shape)
      for part in ATTENTION for shape in (ATTENTION_LAUNCH, (4, 16, 8))),
    *(Point("elementwise", kind, shape)
      for kind in TRAFFIC for shape in (TRAFFIC_LAUNCH, (65536,))),
    *(Point("optimizer", kind, shape) for kind in OPTIMIZERS for shape in (UPDATE_LAUNCH, (512,))),
    *(Point("host_link", "copy", shape) for shape in (TRAFFIC_LAUNCH, (65536,))),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernels():
    return Kernels("cpu")


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.variant}-{p.shape}")
def test_times_every_kind(kernels, point):
    assert 1e-8 < kernels.seconds(point) < 1


def test_slots_do_not_share_memory(kernels):
    first = kernels.tensor(0, (4, 4), torch.float32, grad=False)
    second = kernels.tensor(1, (4, 4), torch.float32, grad=True)
    assert first.data_ptr() != second.data_ptr()
    assert second.requires_grad
    assert second.is_leaf
    assert kernels.tensor(0, (2, 2), torch.float32, False).data_ptr() == first.data_ptr()
