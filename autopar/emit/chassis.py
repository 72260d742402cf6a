"""The emitted program's frame: renders the templates around the generated layer code."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from autopar.emit.constants import FORMATS, LINE, Tensor
from autopar.emit.lines import wrapped
from autopar.emit.uses import (
    FUNCTIONAL_HELPERS,
    add_index,
    add_partial,
    helpers,
    partial_parameters,
)

SCHEDULES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved_1f1b": "ScheduleInterleaved1F1B",
    "zero_bubble": "ScheduleInterleavedZeroBubble",
}
# Their classes take a list of stages.
MULTI = ("interleaved_1f1b", "zero_bubble")
# Names of torch.distributed.tensor that generated code may mention.
PLACEMENTS = ("Partial", "Replicate", "Shard")


@dataclass(frozen=True)
class Part:
    """Statements outside the blocks, run by one stage; the last part of a program sets ``loss``.

    ``tensors`` are the names of the parameters that it reads, as ``code`` spells them, and of the
    buffers that it changes.
    """

    code: str
    stage: int
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loop:
    """Blocks ``start`` to ``stop`` (exclusive), one after the other.

    ``call`` are the statements that run block ``index``, through ``self.run(index, ...)``.
    """

    start: int
    stop: int
    call: str


@dataclass(frozen=True)
class Program:
    """All that differs between two emitted programs.

    Code is given as text without indentation; `model` in it is the user's model object.

    Attributes:
        title: first line of the program, e.g. "GPT on 8 ranks: 2 stages x 2 data x 2 tensor".
        summary: lines of the docstring: prediction, cost model, what each part does.
        pp, dp, tp: degrees of the mesh axes.
        dp_shard: neighbouring dp ranks that divide what zero 1, 2 and 3 do; 0: all of dp.
        global_batch: samples per optimizer step.
        microbatch: samples per micro-batch on one dp rank.
        shares: the same for each dp rank, where they differ; pp is 1 then.
        schedule: a key of ``SCHEDULES``; not read where pp is 1.
        virtual_stages: stages of each rank; rank p holds stages p, p + pp, ...
        precision: "fp32" or "bf16".
        seed: of the initialisation and of dropout.
        predicted_step_seconds, predicted_memory_bytes: printed; the bytes of live tensors.
        gloo: whether it is for ranks that share the cores of CPU hosts.
        workload: "module:function" that returns the user's model, "" if there is none.
        inputs: places of the tensors among the model's inputs by variable: "input_ids", or
            "1.mask" in a nest. Where nothing is nested, positional ones go by their variable.
        targets: places of the tensors in the target by variable.
        constants: inputs that are no tensors as source, by their place.
        blocks: module paths of the repeated blocks, in execution order.
        stages: (first, behind the last) index into ``blocks`` of each stage.
        zero, recompute: per block; ``zero``, and ``ends_zero`` for the rest, is 0, 1, 2 or 3.
        layers: per block the name of its class in ``classes``, None for the user's own module.
        idle: indices of blocks that nothing learned stands in or before: they have no backward.
        classes: source of the classes, each a ``nn.Module`` with ``PLACEMENTS``,
            ``FUSED`` and ``forward``. ``PARTIAL`` is added from the calls of ``partial``.
        ends_placements: {parameter outside the blocks: "Shard(0)"}: all that the parts of
            ``flow`` read through ``local`` or ``partial``, under every name they use.
        tied: groups of names of one parameter.
        shared: {first name of a parameter: the pp ranks that hold it} for those on several.
        parameters: (name, shape, dtype) of the planned model.
        unread: names of those outside the blocks that nothing reads; every rank holds them whole.
        cuts: per cut between stages, the variables that cross it.
        apart: whether what crosses cuts has to be apart from what stages make and receive.
        hidden: per cut between stages, (shape, dtype) of each of them on one rank. Sizes are
            source text, so that ``MICROBATCH`` can be among them.
        loss: dtype of what the user's code makes; stages return it in float32 at least.
        sums: whether that is a sum over the samples: it is multiplied, for all else averages.
        context: statements that every stage runs first (masks, rotary tables).
        flow: the blocks and the code around them, in order; the last is a part.
        tokens_per_sample: to print tokens per second; 0 if samples have none.
        sync_norms: whether ranks hold an ``nn.SyncBatchNorm`` of the user's.
        mixes: whether batch normalisation takes statistics over the samples.
        keeps: whether any block changes its buffers, as running statistics do.
        exchange: how replicas add up gradients: "collective", "ring" or "server" (rank 0).
        offload: what is in host memory: "none", "optimizer", "activations" or "all".
        uneven: whether dp may not divide the first dim of what a rank holds of some parameter.
        float_inputs: whether inputs may be of floating point, and so be cast.
        inplace: whether modules of the user's have a flag that lets them change what they receive.
        file_name: as the docstring's torchrun line spells it.
    """

    title: str
    summary: tuple[str, ...]
    pp: int
    dp: int
    tp: int
    global_batch: int
    microbatch: int
    inputs: dict[str, str]
    blocks: tuple[str, ...]
    stages: tuple[tuple[int, int], ...]
    zero: tuple[int, ...]
    recompute: tuple[str, ...]
    layers: tuple[str | None, ...]
    parameters: tuple[tuple[str, tuple[int, ...], str], ...]
    flow: tuple[Part | Loop, ...]
    targets: dict[str, str] = field(default_factory=lambda: {"target": "target"})
    constants: dict[str, str] = field(default_factory=dict)
    ends_zero: int = 0
    idle: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    ends_placements: dict[str, str] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    shared: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    cuts: tuple[tuple[str, ...], ...] = ()
    hidden: tuple[tuple[Tensor, ...], ...] = ()
    apart: bool = False
    loss: str = "float32"
    sums: bool = False
    context: str = ""
    schedule: str = "1f1b"
    virtual_stages: int = 1
    precision: str = "fp32"
    seed: int = 1234
    gloo: bool = False
    predicted_step_seconds: float = 0.0
    predicted_memory_bytes: int = 0
    workload: str = ""
    tokens_per_sample: int = 0
    sync_norms: bool = False
    mixes: bool = False
    keeps: bool = False
    offload: str = "none"
    exchange: str = "collective"
    uneven: bool = True
    inplace: bool = True
    float_inputs: bool = True
    file_name: str = "program.py"
    shares: tuple[int, ...] = ()
    dp_shard: int = 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    @property
    def bf16(self) -> bool:
        """Whether the compute is in bfloat16."""
        return self.precision == "bf16"

    @property
    def summed_loss(self) -> str:
        """Of what dtype losses are added up: the same on every rank, whatever stage it has."""
        return "float64" if self.loss == "float64" else "float32"

    @property
    def nested(self) -> bool:
        """Whether tensors stand deeper than among the inputs, or beside what is none."""
        return bool(self.constants) or any(
            "." in p for p in (*self.inputs.values(), *self.targets.values())
        )

    @property
    def sharded(self) -> bool:
        """Whether ``fully_shard`` is applied, which also keeps the master copy for bf16."""
        return (self.dp > 1 and self.exchange == "collective") or self.bf16

    @property
    def replicates(self) -> bool:
        """Whether any part is in the replicated form of ``fully_shard``."""
        return self.sharded and self.dp > 1 and 0 in (*self.zero, self.ends_zero)

    @property
    def shards(self) -> bool:
        """Whether any part is divided over dp."""
        return self.dp > 1 and any((*self.zero, self.ends_zero))

    @property
    def hybrid(self) -> bool:
        """Whether what is divided is held by several groups of ranks."""
        return self.shards and 1 < self.dp_shard < self.dp

    @property
    def one_zero(self) -> bool:
        """Whether everything is in one mode of ``fully_shard``."""
        return self.dp == 1 or len({*self.zero, self.ends_zero}) == 1

    @property
    def places(self) -> bool:
        """Whether ``fully_shard`` is told which dim it shards."""
        return self.shards and self.uneven

    @property
    def recomputes(self) -> bool:
        """Whether any block is recomputed."""
        return any(mode != "none" for mode in self.recompute)

    @property
    def selective(self) -> bool:
        """Whether any block is recomputed in part."""
        return "selective" in self.recompute

    @property
    def offloads_state(self) -> bool:
        """Whether optimizer state is in host memory."""
        return self.offload in ("optimizer", "all")

    @property
    def offloads_activations(self) -> bool:
        """Whether what blocks save for backward is in host memory."""
        return self.offload in ("activations", "all")

    @property
    def dtensors(self) -> bool:
        """Whether any parameter is a DTensor."""
        return self.tp > 1 or self.sharded

    @property
    def holders(self) -> str | None:
        """How many ranks of a stage hold the same part, if it is so for all parameters."""
        if self.tp > 1:
            return None
        if self.exchange == "server":
            return "1"  # the server alone has gradients
        if self.hybrid:
            return "REPLICAS"
        replicated = [self.dp > 1 and zero == 0 for zero in (*self.zero, self.ends_zero)]
        return "DP" if all(replicated) else None if any(replicated) else "1"

    @property
    def one_loop(self) -> bool:
        """Whether one loop calls all blocks, which needs no index then."""
        loops = [item for item in self.flow if isinstance(item, Loop)]
        return (
            self.one_call and len(loops) == 1 and len(re.findall(r"\bindex\b", loops[0].call)) == 1
        )

    @property
    def led(self) -> bool:
        """Whether a gradient's norm counts on the first of the ranks that hold the same part."""
        return self.holders is None or bool(self.shared)

    @property
    def fuses(self) -> bool:
        """Whether any class divides a parameter that is several stacked ones."""
        return any(re.search(r"^    FUSED = ", text, re.MULTILINE) for text in self.classes)

    @property
    def one_call(self) -> bool:
        """Whether all blocks are called in one way: as they are, or all recomputed as much."""
        return len(set(self.recompute)) == 1 and not self.scratch and not self.offloads_activations

    @property
    def first_block(self) -> int | None:
        """The first block that has parameters and a backward."""
        owned = [name for name, _, _ in self.parameters]
        having = (i for i, block in enumerate(self.blocks) if i not in self.idle
                  and any(name.startswith(f"{block}.") for name in owned))  # fmt: skip
        return next(having, None)

    @property
    def one_mesh(self) -> bool:
        """Whether all parameters are on one mesh, or none is on any."""
        blocks = zip(self.zero, self.layers, strict=True)
        kinds = {(zero == 0, layer is not None) for zero, layer in blocks}
        kinds.add((self.ends_zero == 0, bool(self.ends_placements)))
        sharded = {self.dp > 1 and replicated for replicated, _ in kinds}
        return len(sharded) == 1 and len({self.tp > 1 and split for _, split in kinds}) == 1

    @property
    def schedule_class(self) -> str:
        """The schedule's class in torch."""
        return SCHEDULES[self.schedule]

    @property
    def multi(self) -> bool:
        """Whether the schedule's class takes a list of stages."""
        return self.pp > 1 and self.schedule in MULTI

    @property
    def norms(self) -> bool:
        """Whether batch normalisation is replaced: by one over all dp ranks, or in bf16."""
        return self.mixes and (self.dp > 1 or self.bf16)

    @property
    def scratch(self) -> bool:
        """Whether blocks that are computed again would change their buffers again."""
        return self.recomputes and self.keeps

    @property
    def functional(self) -> bool:
        """Whether ``torch.nn.functional`` is used."""
        return (
            self.norms
            or "F." in self.code
            or any(f"{name}(" in self.code for name in FUNCTIONAL_HELPERS)
        )

    @property
    def code(self) -> str:
        """All generated code."""
        flow = (item.code if isinstance(item, Part) else item.call for item in self.flow)
        return "\n".join((*self.classes, self.context, *flow))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The code outside the blocks."""
        return tuple(item for item in self.flow if isinstance(item, Part))

    @property
    def slots(self) -> tuple[str, ...]:
        """The variables that cross any cut."""
        return tuple(dict.fromkeys(name for cut in self.cuts for name in cut))

    @property
    def uniform(self) -> bool:
        """Whether the same variables cross every cut."""
        return all(cut == self.slots for cut in self.cuts)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, tied ones once."""
        return len(self.parameters)

    @property
    def parameter_hash(self) -> str:
        """The hash by which the program recognises the planned model."""
        import hashlib

        lines = (f"{name} {list(shape)} torch.{dtype}" for name, shape, dtype in self.parameters)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def render(program: Program) -> str:
    """The program's text; equal for equal programs."""
    used = helpers(program.code)
    text = (
        _templates()
        .get_template("program.py.j2")
        .render(
            p=_with_partial(program),
            used=used,
            tensor_imports=", ".join(tensor_imports(program)),
            contexts=", ".join(context_imports(program, used)),
            ends_partial=_ends_partial(program),
            flow=flow_text(program),
            parts=[part.tensors for part in program.parts],
            part_stages=[part.stage for part in program.parts],
            shared_stages={name: str(stages) for name, stages in program.shared.items()},
            unpack=unpack(program),
            context="\n".join(wrapped(program.context.splitlines(), LINE - 8)),
            **FORMATS,
        )
    )
    return text.rstrip("\n") + "\n"


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("autopar.emit"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def flow_text(program: Program) -> str:
    """The statements of ``Stage.forward`` behind the context."""
    lines: list[str] = []
    for number, item in enumerate(program.flow):
        if number == len(program.flow) - 1 and program.pp > 1:
            lines += ["if not self.last:", f"    return {_sent(program)}"]
        lines += _part(program, item) if isinstance(item, Part) else _loop(program, item)
    if program.pp > 1 and program.loss in ("bfloat16", "float16"):
        # Of the dtype that the stage is declared with, also where helpers made it in float32.
        lines.append("loss = loss.float()")
    if program.sums and program.microbatch != program.global_batch:
        lines.append("loss = loss * (GLOBAL_BATCH / MICROBATCH)")
    if program.one_loop:
        lines = [re.sub(r"self\.run\(index,? ?", "block(", line) for line in lines]
    elif program.one_call:
        lines = [re.sub(r"self\.run\((index|\d+),? ?", r"self.blocks[\1](", line) for line in lines]
    return "\n".join(wrapped(_returned(lines), LINE - 8))


def _returned(lines: list[str]) -> list[str]:
    """A last statement ``loss = f(...)`` as ``return f(...)``."""
    last = max(i for i, line in enumerate(lines) if not line.startswith((" ", ")", "]", "}")))
    if not lines[last].startswith("loss = "):
        return [*lines, "return loss"]
    return [*lines[:last], f"return {lines[last].removeprefix('loss = ')}", *lines[last + 1 :]]


def _sent(program: Program) -> str:
    """What a stage returns: contiguous, as the next one expects it (an LSTM's result is not)."""
    names = ", ".join(program.slots)
    if not program.uniform:
        return f"self.sent({names})"
    if program.apart:
        return f"Crossing.apply({names})"
    return ", ".join(f"{name}.contiguous()" for name in program.slots)


def _part(program: Program, part: Part) -> list[str]:
    """The code of a part, guarded by its stage; that of the last stage stands at the end."""
    number = program.parts.index(part)
    if program.pp == 1 or number == len(program.parts) - 1:
        return part.code.splitlines()
    first = number == 0 and part is program.flow[0]
    guard = "if self.index == 0:" if first else f"if self.index == PART_STAGES[{number}]:"
    return [guard, *(f"    {line}" for line in part.code.splitlines())]


def _loop(program: Program, loop: Loop) -> list[str]:
    """Runs the blocks of a loop that this stage holds; a single one without a loop."""
    if (loop.start, loop.stop) == (0, len(program.blocks)):
        blocks = "STAGES[self.index]" if program.pp > 1 else "range(len(BLOCKS))"
        head = "for block in self.blocks:" if program.one_loop else f"for index in {blocks}:"
    elif loop.stop - loop.start > 1:
        span = f"{loop.start}, {loop.stop}"
        within = "range" if program.pp == 1 else "self.among"
        head = f"for index in {within}({span}):"
    else:
        head = f"if {loop.start} in STAGES[self.index]:" if program.pp > 1 else ""
        call = re.sub(r"(self\.run\(\s*)index\b", rf"\g<1>{loop.start}", loop.call)
        loop = replace(loop, call=call)
    body = loop.call.splitlines()
    return [head, *(f"    {line}" for line in body)] if head else body


def tensor_imports(program: Program) -> list[str]:
    """What the program imports from torch.distributed.tensor, sorted."""
    named = program.tp > 1 or program.offload != "none" or not program.one_mesh
    names = {"DTensor"} if program.dtensors and named else set()
    texts = [*program.classes, *program.ends_placements.values()]
    names |= {name for name in PLACEMENTS if any(f"{name}(" in text for text in texts)}
    if program.tp > 1:
        names.add("distribute_tensor")
    if program.classes:
        names.add("Replicate")
    if program.places:
        names.add("Shard")
    return sorted(names)


def context_imports(program: Program, used: frozenset[str]) -> list[str]:
    """What the program imports from contextlib, sorted."""
    manager = "shard_rng" in used or program.norms or program.scratch
    manager = manager or program.offloads_activations
    return [*["contextmanager"] * manager, "nullcontext", "suppress"]


def _ends_partial(program: Program) -> tuple[str, ...]:
    """Partial parameters outside the blocks, under every name that they have."""
    code = "\n".join(part.code for part in program.parts)
    groups = {name: group for group in program.tied for name in group}
    spelled = partial_parameters(code, "model")
    return tuple(dict.fromkeys(n for name in spelled for n in groups.get(name, (name,))))


def _with_partial(program: Program) -> Program:
    return replace(program, classes=tuple(add_partial(add_index(t)) for t in program.classes))


def unpack(program: Program) -> str:
    """The statement that takes the inputs of the next micro-batch."""
    targets = program.targets if program.nested else ("target",)
    names = [
        name if re.search(rf"\b{name}\b", program.code) else "_"
        for name in (*program.inputs, *targets)
    ]
    return f"{', '.join(names)}{',' * (len(names) == 1)} = next(self.feed)"
