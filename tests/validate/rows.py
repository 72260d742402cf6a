"""Rows of published runs for tests: a small GPT as Megatron-DeepSpeed would train it."""

from __future__ import annotations

from autopar.validate.table import REQUIRED, Row

SMALL = dict.fromkeys(REQUIRED, "") | {
    "source": "test", "model": "GPT-small", "layers": "4", "hidden": "256", "heads": "4",
    "ffn": "1024", "vocab": "1024", "seq": "128", "gpu": "A100-SXM-80GB", "gpu_mem_gb": "80",
    "n_gpus": "8", "dp": "2", "tp": "2", "pp": "2", "mbs": "2", "gbs": "16", "recompute": "full",
    "sharding": "zero1", "precision": "fp16", "framework": "Megatron-DeepSpeed",
    "iter_time_s": "0.1", "interconnect": "4x 100Gb",
}  # fmt: skip


def row(line: int = 2, **cells: str) -> Row:
    """The small run with other cells."""
    return Row("test.csv", line, {**SMALL, **cells})
