"""The table of parallel training systems: each is a plan of the same planner, asked for by pins.

``run.py`` runs a row, ``table.py`` writes all of them to README.md, and the tests train every one
beside a single device and count what it communicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Counts = Mapping[str, int]


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: what ``run.py`` calls it.
        about: what it is, in a line.
        workload: the file beside this one that has its model and data (``batches``).
        ranks: how many processes run it.
        pins: what makes a plan this system; the solver completes the rest.
        step: collectives of rank 0 in one step, without sums of single numbers (the loss).
        block: collectives in the forward pass of one block, where that says more.
        nodes: torchrun agents that start the ranks.
        precision: "fp32", or "bf16".
        cluster: the cost model that the plan is made with, by name or as a file beside this one.
            Not this host's where a collective that the system is known for never pays on it.
        make: the function in ``workload`` that makes the model.
        learning_rate: of AdamW.
    """

    name: str
    about: str
    workload: str
    ranks: int
    pins: Mapping[str, Any]
    step: Counts = field(default_factory=dict)
    block: Counts = field(default_factory=dict)
    nodes: int = 1
    precision: str = "fp32"
    cluster: str = "cpu"
    make: str = "make"
    learning_rate: float = 3e-3

    @property
    def pin_words(self) -> list[str]:
        """The pins as they are typed behind ``--pin``."""
        words = []
        for key, value in self.pins.items():
            named = value.items() if isinstance(value, Mapping) else ()
            words += [f"{key}@{name}={own}" for name, own in named] or [f"{key}={value}"]
        return words

    @property
    def cost_model(self) -> str:
        """``cluster`` as it is known everywhere: its name, or the path of its file."""
        file = self.cluster.endswith(".json")
        return str(Path(__file__).with_name(self.cluster)) if file else self.cluster


DDP = {"pp": 1, "tp": 1, "zero": 0, "recompute": "none"}
FSDP = {**DDP, "zero": 3}
STAGES = {"pp": 2, "dp": 1, "tp": 1, "recompute": "none"}
TENSOR = {"pp": 1, "dp": 1, "tp": 2, "recompute": "none"}
ALEXNET: dict[str, Any] = {"make": "make_small", "learning_rate": 3e-4}

SYSTEMS = (
    # --- data parallel ---
    System(
        "ddp", "a replica per rank, gradients summed (DistributedDataParallel)",
        "mlp.py", 2, {**DDP, "dp": 2, "microbatch_size": 16}, {"all_reduce": 4},
    ),
    System(
        "ddp-two-nodes", "the same on two nodes, each with a torchrun of its own",
        "mlp.py", 4, {**DDP, "dp": 4, "microbatch_size": 8}, {"all_reduce": 4}, nodes=2,
    ),
    System(
        "accumulation", "gradients of four micro-batches add up before they are summed",
        "mlp.py", 2, {**DDP, "dp": 2, "microbatch_size": 4}, {"all_reduce": 4},
    ),
    System(
        "ddp-rnn", "the same of a recurrent network, whose steps no other axis divides",
        "rnn.py", 2, {**DDP, "dp": 2, "microbatch_size": 8}, {"all_reduce": 3},
        learning_rate=1e-2,
    ),
    System(
        "bf16", "mixed precision: bfloat16 computes, float32 master parameters and sums",
        "llama.py", 2, {**DDP, "dp": 2, "microbatch_size": 4}, {"all_reduce": 5},
        precision="bf16",
    ),
    System(
        "ring", "gradients added up by messages to the next rank alone (ring all-reduce)",
        "mlp.py", 4, {**DDP, "dp": 4, "microbatch_size": 8, "exchange": "ring"},
        {"send": 24, "recv": 24},
    ),
    System(
        "parameter-server-cnn", "gradients to rank 0, which alone updates; parameters back",
        "mnist.py", 2, {**DDP, "dp": 2, "microbatch_size": 8, "exchange": "server"},
        {"reduce": 3, "broadcast": 3},
    ),
    System(
        "parameter-server-rnn", "the same of a recurrent network",
        "rnn.py", 2, {**DDP, "dp": 2, "microbatch_size": 8, "exchange": "server"},
        {"reduce": 3, "broadcast": 3}, learning_rate=1e-2,
    ),
    System(
        "unequal-devices", "a fast device and a slow one, each with as many samples as it can take",
        "mlp.py", 2, {**DDP, "dp": 2}, {"all_reduce": 4}, cluster="unequal.json",
    ),
    # --- sharded data parallel ---
    System(
        "zero-1", "optimizer state sharded, gradients whole until they are reduced once per step",
        "llama.py", 2, {**DDP, "dp": 2, "zero": 1, "microbatch_size": 2},
        {"all_gather": 5, "reduce_scatter": 5},
    ),
    System(
        "zero-2", "gradients sharded too, reduced in each of two micro-batches (DeepSpeed)",
        "llama.py", 2, {**DDP, "dp": 2, "zero": 2, "microbatch_size": 2},
        {"all_gather": 5, "reduce_scatter": 10},
    ),
    System(
        "zero-3", "parameters sharded too, gathered for forward and again for backward",
        "llama.py", 2, {**FSDP, "dp": 2, "microbatch_size": 4},
        {"all_gather": 10, "reduce_scatter": 5},
    ),
    System(
        "fsdp-mnist", "FSDP of the convolutional network of PyTorch's MNIST example",
        "mnist.py", 2, {**FSDP, "dp": 2, "microbatch_size": 8},
        {"all_gather": 6, "reduce_scatter": 3},
    ),
    System(
        "hsdp", "ZeRO-3 within each of two nodes, replicas across: gradients meet once per step",
        "llama.py", 4, {**FSDP, "dp": 4, "dp_shard": 2, "microbatch_size": 1},
        {"all_gather": 20, "reduce_scatter": 10, "all_reduce": 5}, nodes=2,
    ),
    System(
        "offload-optimizer", "optimizer state in host memory, on the device one block's at a time",
        "llama.py", 2,
        {**DDP, "dp": 2, "zero": 2, "microbatch_size": 4, "offload": "optimizer"},
        {"all_gather": 5, "reduce_scatter": 5},
    ),
    System(
        "offload-activations", "what blocks save for backward waits in host memory",
        "llama.py", 2, {**DDP, "dp": 2, "microbatch_size": 4, "offload": "activations"},
        {"all_reduce": 5},
    ),
    # --- pipeline parallel ---
    System(
        "layer-split", "layers on two devices, one works while the other waits",
        "llama.py", 2, {**STAGES, "microbatch_size": 8}, {"send": 1, "recv": 1},
    ),
    System(
        "gpipe", "micro-batches through two stages, all forwards before all backwards",
        "llama.py", 2, {**STAGES, "microbatch_size": 2, "schedule": "gpipe"},
        {"send": 4, "recv": 4},
    ),
    System(
        "gpipe-checkpointing", "GPipe as published: activations are computed again in backward",
        "llama.py", 2,
        {**STAGES, "microbatch_size": 2, "schedule": "gpipe", "recompute": "full"},
        {"send": 4, "recv": 4},
    ),
    System(
        "1f1b", "one forward, one backward: fewer activations at a time (PipeDream-Flush)",
        "llama.py", 2, {**STAGES, "microbatch_size": 2, "schedule": "1f1b"},
        {"send": 4, "recv": 4},
    ),
    System(
        "interleaved", "two stages on each rank halve the bubble (Megatron-LM)",
        "llama.py", 2,
        {**STAGES, "microbatch_size": 2, "schedule": "interleaved_1f1b", "virtual_stages": 2},
        {"send": 12, "recv": 12},
    ),
    System(
        "zero-bubble", "gradients of parameters fill the bubble (ZB-H1)",
        "llama.py", 2,
        {**STAGES, "microbatch_size": 2, "schedule": "zero_bubble", "virtual_stages": 1},
        {"send": 4, "recv": 4},
    ),
    System(
        "pipeline-two-nodes", "1f1b with a stage on each of two nodes",
        "llama.py", 2, {**STAGES, "microbatch_size": 2, "schedule": "1f1b"},
        {"send": 4, "recv": 4}, nodes=2,
    ),
    System(
        "unequal-pipeline", "a fast device and a slow one, each with as many layers as it can take",
        "llama.py", 2, {**STAGES, "microbatch_size": 2, "schedule": "1f1b"},
        {"send": 4, "recv": 4}, cluster="unequal.json",
    ),
    # --- tensor parallel ---
    System(
        "tensor-parallel", "columns, then rows of each pair of products (Megatron-LM)",
        "llama.py", 2, {**TENSOR, "sequence_parallel": False}, block={"all_reduce": 2},
    ),
    System(
        "sequence-parallel", "the same, and shards of the sequence between blocks",
        "llama.py", 2, {**TENSOR, "sequence_parallel": True, "sharding": "lean"},
        block={"all_gather": 2, "reduce_scatter": 2}, cluster="h100-80g",
    ),
    System(
        "expert-parallel", "whole experts of each layer shared out, their results gathered",
        "moe.py", 2,
        {**TENSOR, "sequence_parallel": False,
         "placement": {"*.experts.up": "Shard(0)", "*.experts.down": "Shard(0)",
                       "*.attention.*": "Replicate()"}},
        block={"all_gather": 1},
    ),
    # --- several at once ---
    System(
        "dp-pp", "two pipelines of a transformer, gradients summed between them",
        "llama.py", 4,
        {"pp": 2, "dp": 2, "tp": 1, "zero": 0, "schedule": "1f1b", "microbatch_size": 1},
        {"send": 4, "recv": 4, "all_reduce": 3},
    ),
    System(
        "tp-fsdp", "tensor parallel within, fully sharded across (2-D) on Llama 2",
        "llama.py", 4,
        {"pp": 1, "dp": 2, "tp": 2, "zero": 3, "sequence_parallel": False, "recompute": "none",
         "microbatch_size": 4},
        block={"all_reduce": 2},
    ),
    System(
        "3d", "pipeline x data x tensor parallel",
        "llama.py", 8,
        {"pp": 2, "dp": 2, "tp": 2, "zero": 0, "sequence_parallel": False, "recompute": "none",
         "schedule": "1f1b", "microbatch_size": 2},
        block={"all_reduce": 2},
    ),
    # --- one network, cut in three ways ---
    System(
        "alexnet-data", "AlexNet, its samples divided",
        "alexnet.py", 2, {**DDP, "dp": 2, "microbatch_size": 8}, {"all_reduce": 8}, **ALEXNET,
    ),
    System(
        "alexnet-layers", "AlexNet, its layers divided: convolutions here, the rest there",
        "alexnet.py", 2, {**STAGES, "microbatch_size": 4, "schedule": "1f1b"},
        {"send": 4, "recv": 4}, **ALEXNET,
    ),
    System(
        "alexnet-weights", "AlexNet, the channels and neurons of every layer divided",
        "alexnet.py", 2,
        {**TENSOR, "sequence_parallel": False, "placement": {"classifier.6.weight": "Shard(0)"}},
        {"all_gather": 8, "all_reduce": 7}, **ALEXNET,
    ),
)  # fmt: skip


def find(name: str) -> System:
    """The system of that name.

    Raises:
        KeyError: there is none.
    """
    return {system.name: system for system in SYSTEMS}[name]


# Systems that no plan can be yet, and why.
ABSENT = {
    "tokens sent to experts by all-to-all": "how many go where depends on values, which have no"
    " price: ranks that share experts out see all tokens of their tp group",
}
