"""Whether a configuration has room for its layers, before their options are priced.

Where a model nearly fills its devices most configurations have none: large micro-batches, state
that is divided among few ranks. To price all of their options would take longer than all the rest.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product

from autopar.cost.data_parallel import backward_bytes, state_bytes
from autopar.cost.reserve import beside_bytes
from autopar.solve.chain import relaxed_chain
from autopar.solve.heterogeneous import HeterogeneousPricer
from autopar.solve.menus import Pricer
from autopar.solve.placements import Demand
from autopar.solve.pooled import may_reach
from autopar.solve.problem import Candidate, Configuration, Menus, Option


def priced(pricer: Pricer, config: Configuration) -> Candidate:
    """A configuration with its bound and with a test of its room.

    Where devices are of several kinds their options alone can tell what is fullest.
    """
    found = pricer.candidate(config)
    if isinstance(pricer, HeterogeneousPricer):
        return found
    return replace(found, has_room=partial(has_room, pricer, config))


def has_room(pricer: Pricer, config: Configuration) -> bool:
    """Whether the ranks may hold all layers, each at its leanest in every kind of memory.

    A "no" is a proof that no plan fits; a "yes" says nothing.
    """
    menus = _leanest(pricer, replace(config, virtual_stages=1).of_layers)
    if not all(menus):  # a layer without any option: the problem tells why
        return True
    # Each layer holds one micro-batch at the least; the order of all ranks is not needed for that.
    numbers = Counter(pricer.alike[0])
    least = sum(n * _held_once(menus[kind][0]) for kind, n in numbers.items())
    if least > config.pp * (pricer.memory_limit_bytes - pricer.reserve_bytes(config)):
        return False
    return may_reach(relaxed_chain(pricer.outline(config, menus)))


def _held_once(option: Option) -> int:
    return option.state_bytes + option.activation_bytes


def _leanest(pricer: Pricer, config: Configuration) -> Menus:
    """One option of each kind of layer, or none where there is none.

    ``config`` is as layers see it, with one stage per rank: more of them take the same room.
    """
    if config not in pricer.leanest:
        kinds = pricer.alike[1]
        pricer.leanest[config] = tuple(_least(pricer, config, *kind) for kind in kinds)
    return pricer.leanest[config]


def _least(
    pricer: Pricer, config: Configuration, member: str, layer: str, demand: Demand | None
) -> tuple[Option, ...]:
    """What a layer of one kind holds at least, of each kind of bytes, and no time at all."""
    zeros, modes = pricer.modes(member, config, layer)
    if not (zeros and modes):
        return ()
    setting = pricer.setting(config)
    costs = [pricer.layer(member, config, k) for k in pricer.useful(member, config, demand)]
    # A copy of partial gradients takes the place of activations: none if these are endless.
    states = [state_bytes(cost, setting, zero, sys.maxsize) for cost, zero in product(costs, zeros)]
    kept = [
        (cost, pricer.between(member, cost, config, mode)) for cost, mode in product(costs, modes)
    ]
    held = min(again.held_bytes for _, again in kept)
    beside = beside_bytes(pricer.cluster, held)
    running = min(backward_bytes(cost, setting) + own.transient_bytes for cost, own in kept)
    split = config.splits_backward
    return (Option(
        key="", tp_option=0, zero=0, recompute="",
        forward_seconds=0.0, backward_seconds=0.0, step_seconds=0.0,
        state_bytes=min(s.total for s in states) + pricer.classes.buffer_bytes.get(member, 0),
        activation_bytes=held + beside,
        transient_bytes=min(s.transient for s in states) + running,
        waiting_bytes=min(cost.waiting_bytes for cost in costs) if split else 0,
        reserve_bytes=beside,
    ),)  # fmt: skip
