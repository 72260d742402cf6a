"""How ops and moves become lines: what is inlined, named, moved once, and noted."""

from __future__ import annotations

from autopar.emit.body import Body
from autopar.emit.source import Namer, spelled
from autopar.graph import Call, Graph, Op, Ref, Size, Value
from autopar.strategies.sharding import Moved, Sharding
from autopar.strategies.states import MOVES, D, P, R, V, shard
from autopar.strategies.strategy import Strategy

HIDDEN = (Size(1, 1), Size(4), Size(8))
X, W, B, Y, Z = (Ref(name) for name in "xwbyz")


def graph(*ops, **kinds):
    """Activations x, y, z ... and parameters w and b of a module ``up``."""
    values = {n: Value(n, HIDDEN, "float32", requires_grad=True) for n in ("x", "y", "z", "u", "v")}
    values["w"] = Value("w", (Size(8), Size(8)), "float32", "parameter", "blocks.0.up.weight", True)
    values["b"] = Value("b", (Size(8),), "float32", "parameter", "blocks.0.up.bias", True)
    values["n"] = Value("n", (Size(8),), "float32", "buffer", "blocks.0.norm.mean")
    return Graph(values, ops, kinds.get("calls", {}), (), (), {}, "z", kinds.get("tied", ()))


def body(of, sharding=None, names=("x",), **more):
    namer = Namer(("self",))
    for name in names:
        namer.bind(name, name)
    return Body(of, sharding, "self", "blocks.0", namer, **more)


def sharded(strategies, moves=(), parameters=None):
    return Sharding(2, "replicate", strategies, moves, parameters or {"w": shard(0), "b": shard(0)})


def strategy(inputs, *outputs):
    return Strategy(tuple(inputs.items()), outputs)


def test_a_buffer_is_cut_where_a_shard_of_it_is_read():
    moved = Moved("n", R, shard(0), MOVES["R", "S"])
    ops = (Op("aten.mul.Tensor", (X, Ref("n")), {}, ("z",)),)
    states = strategy({"x": shard(2), "n": shard(0)}, shard(2))
    found = body(graph(*ops), sharded({0: states}, (moved, Moved("x", R, shard(2), moved.move))))
    assert found.write([0], ["z", "z"])[0].startswith("x_shard = scatter(x, dim=2)")
    assert found.lines[1] == "mean_shard = scatter(self.norm.mean, dim=0)"
    assert "x_shard * mean_shard" in found.lines[2]


def test_experts_are_shared_out():
    known = graph(Op("transformers.grouped_mm_fallback.default", (X, W, Ref("n")), {}, ("z",)))
    split = Strategy((("x", V), ("w", shard(0)), ("n", R)), (D,), special="sharded_experts")
    found = body(known, sharded({0: split}, (), {"w": shard(0)}))
    found.inline["x", R] = "x"
    text = " ".join(found.write([0], ["z", "z"]))
    assert 'grouped_mm(x, local(self.up.weight), self.norm.mean, MESH.get_local_rank("tp"))' in text
    assert "rows of this rank's experts" in text
    assert "grouped_mm" in found.used
    whole = body(known).write([0], ["z", "z"])
    assert "grouped_mm(x, self.up.weight, self.norm.mean)" in " ".join(whole)


def test_short_arithmetic_is_inlined_and_long_is_named():
    ops = (
        Op("aten.exp.default", (X,), {}, ("y",)),
        Op("aten.mul.Tensor", (Y, 2), {}, ("u",)),
        Op("aten.add.Tensor", (Ref("u"), X), {}, ("z",)),
    )
    assert body(graph(*ops)).write(range(3), ["z", "z"]) == ["add = x.exp() * 2 + x"]
    twice = (ops[0], Op("aten.mul.Tensor", (Y, Y), {}, ("z",)))
    assert body(graph(*twice)).write(range(2), ["z", "z"]) == [
        "exp = x.exp()", "mul = exp * exp",
    ]  # fmt: skip


def test_the_users_variables_are_kept_and_rebound():
    ops = (
        Op("aten.exp.default", (X,), {}, ("y",), labels=("state",)),
        Op("aten.neg.default", (Y,), {}, ("u",), labels=("state",)),
        Op("aten.mul.Tensor", (Ref("u"), X), {}, ("v",), labels=("gate",)),
        Op("aten.unsqueeze.default", (Ref("v"), 0), {}, ("z",)),
    )
    found = body(graph(*ops))
    assert found.write(range(4), ["z", "z", "u"]) == [
        "state = -x.exp()  # (B, 4, 8)", "gate = (state * x).unsqueeze(0)  # (B, 4, 8)",
    ]  # fmt: skip
    assert found.namer.bases == {"x": "x", "state": "state", "gate": "gate"}


def test_an_expression_that_is_too_long_is_taken_apart():
    factors = [Op("aten.exp.default", (X,), {}, (name,)) for name in "yu"]
    ops = (*factors, Op("aten.mul.Tensor", (Y, Ref("u")), {}, ("z",)))
    assert body(graph(*ops), width=60).write(range(3), ["z", "z"]) == [
        "mul = x.exp() * x.exp()  # (B, 4, 8)"
    ]
    assert body(graph(*ops), width=20).write(range(3), ["z", "z"]) == [
        "exp = x.exp()", "mul = exp * x.exp()",
    ]  # fmt: skip


def test_what_nothing_reads_is_left_out():
    ops = (
        Op("aten.exp.default", (X,), {}, ("y",)),
        Op("aten.neg.default", (Y,), {}, ("u",)),
        Op("aten.relu.default", (X,), {}, ("z",)),
    )
    assert body(graph(*ops)).write(range(3), ["z", "z"]) == ["relu = F.relu(x)"]


def test_arguments_that_are_defaults_are_left_out():
    defaults = {"mask": None, "scale": 1.0, "cache": False}
    call = Call("up", "Up", (X, None, 1.0), {"cache": False, "scale": 2.0}, Z,
                ("x", "mask", "scale"), defaults)  # fmt: skip
    assert body(graph()).arguments(call) == "x, scale=2.0"
    other = Call("up", "Up", (X, None, 1), {"cache": None}, Z, ("x", "mask", "scale"), defaults)
    assert body(graph()).arguments(other) == "x, None, 1, cache=None"


def test_product_and_bias_are_one_call():
    ops = (
        Op("aten.linear.default", (X, W), {}, ("y",)),
        Op("aten.add.Tensor", (Y, B), {}, ("z",)),
    )
    lines = body(graph(*ops)).write(range(2), ["z", "z"])
    assert lines == ["up = F.linear(x, self.up.weight, self.up.bias)  # (B, 4, 8)"]


def test_a_partial_product_is_reduced_before_its_bias():
    ops = (
        Op("aten.linear.default", (X, W), {}, ("y",)),
        Op("aten.add.Tensor", (Y, B), {}, ("z",)),
    )
    strategies = {
        0: strategy({"x": shard(2), "w": shard(1)}, P),
        1: strategy({"y": R, "b": R}, R),
    }
    reduction = Moved("y", P, R, MOVES["P", "R"])
    split = sharded(strategies, (Moved("x", R, shard(2), MOVES["R", "S"]), reduction),
                    {"w": shard(1), "b": R})  # fmt: skip
    text = body(graph(*ops), split, notes={("y", "R"): "1 MB"})
    assert text.write(range(2), ["z", "z"]) == [
        "x_shard = scatter(x, dim=2)",
        "up = F.linear(x_shard, local(self.up.weight))  # (B, 4, 8), partial sums",
        "up_full = all_reduce(up)  # 1 MB",
        "up_2 = up_full + local(self.up.bias)",
    ]
    assert text.used == {"scatter", "all_reduce", "local"}


def test_a_move_is_written_once_for_all_that_need_it():
    ops = (
        Op("aten.linear.default", (X, W), {}, ("y",)),
        Op("aten.linear.default", (X, W), {}, ("u",)),
        Op("aten.mul.Tensor", (Y, Ref("u")), {}, ("z",)),
    )
    column = strategy({"x": V, "w": shard(0)}, shard(2))
    strategies = {0: column, 1: column, 2: strategy({"y": shard(2), "u": shard(2)}, shard(2))}
    split = sharded(strategies, (Moved("x", R, V, MOVES["R", "V"]),))
    lines = body(graph(*ops), split).write(range(3), ["z", "z"])
    assert sum("enter(" in line for line in lines) == 1
    assert lines[-2:] == [
        "up_2 = F.linear(x_full, local(self.up.weight))  # (B, 4, 8/TP)", "mul = up * up_2",
    ]  # fmt: skip


def test_replicated_parameters_on_shards_have_partial_gradients():
    op = Op("aten.add.Tensor", (X, B), {}, ("z",))
    strategies = {0: strategy({"x": shard(1), "b": V}, shard(1))}
    split = sharded(strategies, (Moved("x", R, shard(1), MOVES["R", "S"]),), {"b": V})
    lines = body(graph(op), split).write([0], ["z", "z"])
    assert lines[-1] == "up = x_shard + partial(self.up.bias)"


def test_fused_parameters_are_flattened():
    op = Op("aten.linear.default", (X, W), {}, ("z",))
    fused = shard(0, Size(2))
    split = sharded({0: strategy({"x": V, "w": fused}, shard(2, Size(2)))},
                    (Moved("x", R, V, MOVES["R", "V"]),), {"w": fused})  # fmt: skip
    text = "\n".join(body(graph(op), split).write([0], ["z"]))
    assert "local(self.up.weight).flatten(0, 1)" in text


def test_dropout_on_shards_draws_its_own_numbers():
    op = Op("aten.dropout.default", (X, 0.1, True), {}, ("z",))
    split = sharded({0: strategy({"x": shard(1)}, shard(1))},
                    (Moved("x", R, shard(1), MOVES["R", "S"]),))  # fmt: skip
    text = body(graph(op), split)
    assert text.write([0], ["z"])[1:] == [
        "with shard_rng():",
        "    dropout = F.dropout(x_shard, 0.1, training=self.training)",
    ]
    assert "shard_rng" in text.used
    whole = body(graph(op), sharded({0: strategy({"x": R}, R)}))
    assert "shard_rng" not in "\n".join(whole.write([0], ["z", "z"]))


def test_a_units_call_stands_for_its_ops():
    ops = (
        Op("aten.linear.default", (X, W), {}, ("y",), unit="blocks.0.up"),
        Op("aten.add.Tensor", (Y, B), {}, ("z",), unit="blocks.0.up"),
    )
    call = Call("blocks.0.up", "Linear", (X,), {"scale": 2.0}, Z)
    text = body(graph(*ops, calls={call.path: call}), calls={0: call})
    assert text.write(range(2), ["z"]) == ["up = self.up(x, scale=2.0)"]


def test_paths_and_spellings():
    tied = graph(tied=(("a.weight", "b.weight"),))
    assert spelled(tied, "a.weight", "b") == "b.weight"
    assert spelled(tied, "a.weight", "") == "a.weight"
    assert spelled(tied, "c.weight", "b") == "c.weight"
    buffered = body(graph(Op("aten.add.Tensor", (X, Ref("n")), {}, ("z",))))
    assert "self.norm.mean" in buffered.write([0], ["z", "z"])[0]
    numbered = body(graph())
    assert numbered._path("blocks.0.list.3.weight") == "self.list[3].weight"
