"""``nn.SyncBatchNorm`` as one process runs it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopar.errors import TraceError
from autopar.trace.norms import call_plain_norms, check_momentum, has_sync_norms


def test_sync_batch_norm_does_what_batch_norm_does():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    assert has_sync_norms(synchronised)
    x = torch.randn(2, 3, 4, 4)
    expected = synchronised(x)
    call_plain_norms(synchronised)
    torch.testing.assert_close(synchronised(x), expected)
    assert synchronised[1].num_batches_tracked == 2
    assert synchronised[1].forward.func is nn.BatchNorm2d.forward


def test_cumulative_means_are_refused():
    with pytest.raises(TraceError, match="momentum=None"):
        check_momentum(nn.Sequential(nn.BatchNorm2d(4, momentum=None)))
    check_momentum(nn.Sequential(nn.BatchNorm2d(4, momentum=None, track_running_stats=False)))


def test_other_norms_are_left_alone():
    plain = nn.Sequential(nn.BatchNorm2d(4))
    assert not has_sync_norms(plain)
    call_plain_norms(plain)
    assert "forward" not in vars(plain[0])
