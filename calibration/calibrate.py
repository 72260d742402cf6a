"""Measures this host: ``python calibration/calibrate.py MODEL.json [SECONDS]``.

The same as ``autopar calibrate -o MODEL.json --budget SECONDS``, for hosts where only the
repository is at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autopar.calibration import calibrate


def main(arguments: list[str]) -> int:
    """Returns the exit code: 2 for a wrong call."""
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    output, seconds = Path(arguments[0]), float(arguments[1]) if arguments[1:] else 180.0
    calibrate(output, budget_seconds=seconds, progress=print)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
