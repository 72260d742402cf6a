"""Models on meta start the same under every plan; what cannot start is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from autopar.emit.chassis import render
from examples.gpt import GPT
from tests.emit.gpt_program import CONFIG, gpt_program
from tests.multiprocess.pool import RankError
from tests.multiprocess.programs import batch, build, full_gradients, load_program, share, train

pytestmark = pytest.mark.multiprocess
PLANS = [
    {},
    {"pp": 2},
    {"tp": 2},
    {"dp": 2, "zero": (3,) * 4},
    {"pp": 2, "dp": 2, "tp": 2},
    {"dp": 4, "dp_shard": 2, "zero": (3,) * 4, "ends_zero": 3},
]


def write(folder, options):
    path = folder / "program.py"
    path.write_text(render(gpt_program(**options)), encoding="utf-8")
    return str(path)


def size_of(options):
    return options.get("pp", 1) * options.get("dp", 1) * options.get("tp", 1)


def meta_model():
    with torch.device("meta"):
        return GPT(CONFIG)


def start(path):
    return load_program(path).parallelize(meta_model()).full_state_dict()


def test_meta_model_starts_the_same_under_every_plan(ranks, tmp_path):
    states = []
    for options in PLANS:
        states.append(ranks(size_of(options)).run(start, write(tmp_path, options))[0])
    for state in states:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    weight = states[0]["transformer.h.0.mlp.c_fc.weight"]
    assert weight.std().item() == pytest.approx(0.02, rel=0.1), "the model's own initialisation"
    assert not torch.equal(weight, states[0]["transformer.h.1.mlp.c_fc.weight"])
    assert torch.equal(states[0]["lm_head.weight"], states[0]["transformer.wte.weight"])


def train_from_meta(path):
    return train(path, model=meta_model())["losses"]


def test_tied_parameters_stay_equal_when_trained(ranks, tmp_path):
    one, two = (ranks(size_of(o)).run(train_from_meta, write(tmp_path, o)) for o in PLANS[:2])
    assert two[0] == two[1] == pytest.approx(one[0], rel=1e-5)


def initialise(path, change):
    model = meta_model()
    if change == "parameter":
        with torch.device("meta"):
            model.transformer.h[1].mlp.c_fc = Bare(32, 128)
    elif change == "buffer":
        model.transformer.register_buffer("table", torch.empty(4, device="meta"))
    else:
        model.transformer.register_buffer("mask", torch.empty(4, dtype=bool, device="meta"))
    load_program(path).parallelize(model)


class Bare(nn.Module):
    """A linear layer that nothing knows how to initialise."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("parameter", r"transformer\.h\.1\.mlp\.c_fc \(Bare\) on meta"),
        ("buffer", r"transformer \(ModuleDict\) on meta"),
        ("mask", "transformer .ModuleDict. on meta"),
    ],
)
def test_module_without_initialisation_is_named(ranks, tmp_path, change, message):
    with pytest.raises(RankError, match=message):
        ranks(1).run(initialise, write(tmp_path, {}), change)


def other_model(path, change):
    model = build()
    if change == "shape":
        model.transformer.ln_f = nn.LayerNorm(33)
    elif change == "seed":
        model = build(seed=torch.distributed.get_rank())
    elif change == "missing":
        del model.transformer.ln_f
    load_program(path).parallelize(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"found 52 parameters with hash \w+, expected \(52, '"),
        ("missing", r"found 50 parameters with hash \w+, expected \(52, '"),
        ("seed", "differ between ranks"),
    ],
)
def test_other_model_is_refused(ranks, tmp_path, change, message):
    with pytest.raises(RankError, match=message):
        ranks(2).run(other_model, write(tmp_path, {"pp": 2}), change)


def wrong_world(path):
    load_program(path).parallelize(build())


def test_wrong_world_size(ranks, tmp_path):
    with pytest.raises(RankError, match=r"found WORLD_SIZE=2, expected 4 \(pp 2 x dp 2 x tp 1\)"):
        ranks(2).run(wrong_world, write(tmp_path, {"pp": 2, "dp": 2}))


def use(path):
    """Inputs of each accepted form; gradients add up over calls; errors name what is wrong."""
    parallel = load_program(path).parallelize(build())
    inputs, target = (share(t, parallel) for t in batch(0))
    assert (parallel.dp_rank, parallel.dp_size) == (torch.distributed.get_rank() % 4 // 2, 2)
    losses = [parallel.forward_backward(i, target) for i in ((inputs,), inputs, {"idx": inputs})]
    assert len({loss.item() for loss in losses}) == 1
    thrice = full_gradients(parallel)
    for parameter in parallel.parameters():
        parameter.grad = None
    parallel.forward_backward((inputs,), target)
    for name, once in full_gradients(parallel).items():
        torch.testing.assert_close(thrice[name], 3 * once)
    parallel.eval()
    assert not parallel.stage.training
    assert parallel.train().stage.training
    messages = []
    for wrong in ((inputs[:3],), {"ids": inputs}, (inputs, inputs)):
        try:
            parallel.forward_backward(wrong, target)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_use(ranks, tmp_path):
    messages = ranks(8).run(use, write(tmp_path, {"pp": 2, "dp": 2, "tp": 2}))[0]
    assert messages[0].startswith("found 3 samples in idx, expected 4")
    assert messages[1] == "found inputs ['ids'], expected ['idx']"
    assert len(messages) == 3
