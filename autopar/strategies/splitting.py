"""Whether backward may run in two parts: first the gradients of inputs, later those of parameters.

torch (``pipelining/_backward.py``, 2.11 to 2.13) starts the second part, for each group of
parameters, from the operations at which they meet what a stage received. A group that meets it at
several operations can be on the way of another one: its operations would then run twice, which
autograd refuses, or count twice. One that meets it on a later stage, or not at all, gets no
gradient without a word.

Operations of torch that are several inside do the same where their parameters meet it several
times, as in every step of a recurrence, or where gradients of several results are one there (an
LSTM's outputs and last states): on torch 2.11 parameters have wrong gradients, without a word.
"""

from __future__ import annotations

from collections import Counter

from autopar.graph import Graph, Op
from autopar.strategies.patterns import Classes
from autopar.strategies.sharding import Pattern
from autopar.trace.opaque import OPAQUE
from autopar.trace.saved import RECURRENT

SEVERAL = RECURRENT | {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "kl_div"}


def splits_backward(graph: Graph, classes: Classes) -> bool:
    """Whether every parameter behind the first layer meets what is received at one operation.

    The first stage, which receives nothing, makes all gradients together. Operations whose insides
    are not known do not count as one, and runs of one module on a stage read its parameters each.
    """
    if classes.runs:
        return False
    later = dict.fromkeys(classes.members[1:])
    return all(_meets_once(graph, classes.priced(member)) for member in later)


def _meets_once(graph: Graph, pattern: Pattern) -> bool:
    """Whether all that is learned and does not depend on what is received is read once, here.

    Only what has a gradient is received in this sense. Parts of a parameter, as ``nn.Transformer``
    cuts a weight in for queries and for memory, meet it at one operation each.
    """
    ops = [graph.ops[i] for i in pattern.ops]
    met, own = {n for n in pattern.received if graph.values[n].requires_grad}, set[str]()
    readers = Counter(name for op in ops for name in op.inputs())
    for op in ops:
        learned = {n for n in (*op.inputs(), *op.outputs) if graph.values[n].requires_grad}
        own.update(n for n in learned if graph.values[n].kind == "parameter")
        made = learned.intersection(op.outputs)
        if met.isdisjoint(op.inputs()) and len(made) > 1:
            return False
        (own if met.isdisjoint(op.inputs()) else met).update(made)
    once = all(readers[name] == 1 for name in own) and own.isdisjoint(pattern.sent)
    return once and all(map(_is_one, ops))


def _is_one(op: Op) -> bool:
    """Whether what is learned meets what is received once inside, as far as is known."""
    return op.target != OPAQUE and op.target.split(".")[1] not in SEVERAL
