"""Plans a small GPT for 4 ranks of this host, shows the plan, emits it and trains with it.

    python examples/demo.py

Everything that it does can be done with the commands that it prints.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
AUTOPAR = [sys.executable, "-m", "autopar"]


def run(*arguments: str) -> None:
    """Runs one autopar command, after printing it as a user would type it."""
    print(f"\n$ autopar {' '.join(arguments)}", flush=True)
    subprocess.run([*AUTOPAR, *arguments], check=True, cwd=HERE)


def main() -> None:
    """plan, show, emit, run."""
    with tempfile.TemporaryDirectory() as folder:
        plan, program = str(Path(folder) / "plan.json"), str(Path(folder) / "train.py")
        run("plan", "gpt.py:make", "--world-size", "4", "--cluster", "cpu", "--precision", "fp32",
            "-o", plan)  # fmt: skip
        run("emit", plan, "-o", program)
        text = Path(program).read_text(encoding="utf-8")
        start = text.index("class Stage(")
        print(f"\n{program}: {len(text.splitlines())} lines; the part that runs the model:\n")
        print(text[start : text.index("\n\n\n", start)])
        run("run", plan, "--steps", "10", "--data", "gpt.py:batches")


if __name__ == "__main__":
    main()
