"""Every sample once per epoch, whatever the ranks and restarts; shares are the same on peers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from autopar.data import Loader, Sampler
from autopar.errors import UsageError

# (shares, samples of each, optimizer steps) of one run between two restarts.
RUNS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), RUNS, st.integers(0, 3), st.booleans())
def test_every_sample_once_per_epoch(samples, runs, seed, shuffle):
    seen: list[int] = []
    step, state = 0, None
    for size, batch_size, steps in runs:
        sampler = Sampler(samples, seed=seed, shuffle=shuffle)  # as a new process makes it
        if state is not None:
            sampler.load_state_dict(state)
        for _ in range(steps):
            for rank in range(size):
                seen += sampler.indices(step, batch_size, rank, size).tolist()
            step += 1
        state = sampler.state_dict(step, size * batch_size)
    assert state["position"] == len(seen)
    for start in range(0, len(seen), samples):
        epoch = seen[start : start + samples]
        assert len(set(epoch)) == len(epoch), "no sample twice"
        if len(epoch) == samples:
            assert sorted(epoch) == list(range(samples)), "none lost"


@given(st.integers(1, 40), st.integers(0, 30), st.integers(1, 4), st.sampled_from([1, 2, 3, 6]))
def test_shares_do_not_depend_on_their_number(samples, step, each, size):
    """The same global batch on 1, 2, 3 and 6 shares, without any state."""
    whole = Sampler(samples).indices(step, 6 * each)
    again = Sampler(samples)
    part = 6 * each // size
    shares = [again.indices(step, part, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat(shares), whole)


def test_orders_differ_between_epochs_and_seeds():
    orders = [Sampler(100, seed=seed).indices(epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(Sampler(5, shuffle=False).indices(1, 4), torch.tensor([4, 0, 1, 2]))
    assert torch.equal(Sampler(100).indices(7, 30, 1, 2), Sampler(100).indices(7, 30, 1, 2))


def test_what_is_refused():
    with pytest.raises(UsageError, match="0 samples"):
        Sampler(0)
    with pytest.raises(UsageError, match="share 2 of 2"):
        Sampler(4).indices(0, 1, 2, 2)
    sampler = Sampler(4)
    sampler.load_state_dict(sampler.state_dict(3, 2))
    with pytest.raises(UsageError, match="step 2"):
        sampler.indices(2, 1)
    with pytest.raises(UsageError, match="'seed': 0"):
        Sampler(4, seed=1).load_state_dict(sampler.state_dict(3, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_goes_on_where_it_was(workers):
    data = TensorDataset(torch.arange(10.0), 10 * torch.arange(10))
    reference = Sampler(10)
    loader = Loader(data, workers=workers)
    state = torch.get_rng_state()
    for step in (0, 1, 2, 5, 6):  # a restart from step 5 on among them
        (inputs,), target = loader(step, 3, 1, 2)
        wanted = reference.indices(step, 3, 1, 2)
        assert torch.equal(inputs, wanted.float())
        assert torch.equal(target, 10 * wanted)
    assert torch.equal(torch.get_rng_state(), state), "dropout draws as it would without it"


def test_loader_reads_several_shares_in_turns():
    """As the rank of a fast device does; none of them starts anew in each step."""
    loader = Loader(TensorDataset(torch.arange(10), torch.arange(10)))
    started = []
    start = loader._start
    loader._start = lambda *share: started.append(share) or start(*share)
    read = [[loader(step, 2, rank, 4)[1] for rank in (0, 1, 2)] for step in range(3)]
    wanted = [[loader.sampler.indices(step, 2, rank, 4) for rank in (0, 1, 2)] for step in range(3)]
    assert all(torch.equal(a, b) for x, y in zip(read, wanted, strict=True)
               for a, b in zip(x, y, strict=True))  # fmt: skip
    assert len(started) == 3
