"""Prices of layers that were worked out once, for all configurations that share them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from autopar.cost.layer import LayerCost, LayerTimes, OpCosts, layer_cost, layer_times
from autopar.solve.problem import Configuration
from autopar.solve.shardings import Shardings


class Key(NamedTuple):
    """What the price of a layer depends on, besides the model and the devices."""

    member: str
    tp: int
    layout: str
    tp_option: int
    microbatch_size: int

    @classmethod
    def of(cls, member: str, config: Configuration, tp_option: int) -> Key:
        """That of a class of layers with one of its shardings under a configuration."""
        return cls(member, config.tp, config.layout, tp_option, config.microbatch_size)


@dataclass
class LayerPrices:
    """Seconds alone, which most bounds need, and all figures, of which memory takes longest."""

    _times: dict[Key, LayerTimes] = field(default_factory=dict)
    _costs: dict[tuple[Key, bool], LayerCost] = field(default_factory=dict)
    _ops: OpCosts = field(default_factory=dict)

    def times(self, shardings: Shardings, key: Key) -> LayerTimes:
        """The seconds of a layer."""
        if key not in self._times:
            pattern, own = shardings.classes.priced(key.member), shardings.share(*key[:4])
            of = shardings.graph, pattern, own, shardings.cluster
            self._times[key] = layer_times(*of, key.microbatch_size, self._ops)
        return self._times[key]

    def cost(self, shardings: Shardings, key: Key, away: bool) -> LayerCost:
        """All figures of a layer; where its activations are ``away``, in host memory, those too."""
        if (key, away) not in self._costs:
            pattern, own = shardings.classes.priced(key.member), shardings.share(*key[:4])
            of = shardings.graph, pattern, own, shardings.cluster
            self._costs[key, away] = layer_cost(*of, key.microbatch_size, away, self._ops)
        return self._costs[key, away]

    def of_operations(self) -> LayerPrices:
        """The prices of operations alone, for other shardings of the same model."""
        return LayerPrices(_ops=self._ops)
