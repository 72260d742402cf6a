#!/usr/bin/env bash
# Uses an installed wheel as a user would: from an empty folder, with nothing of the checkout
# but one example. Usage: check_wheel.sh BIN_FOLDER_OF_THE_ENVIRONMENT CHECKOUT
set -euo pipefail

bin="$1"
checkout="$2"
example="${EXAMPLE:-gpt.py}"
function="${FUNCTION:-make}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$checkout/examples/$example" "$work/"
cd "$work"

echo "-- the wheel is what is imported, and has its data"
"$bin/python" - "$checkout" <<'PYTHON'
import sys
from pathlib import Path

import autopar

folder = Path(autopar.__file__).parent
assert not folder.is_relative_to(sys.argv[1]), f"imported from the checkout: {folder}"
for pattern in ("py.typed", "cost_models/*.json", "calibration_data/*", "emit/templates/*.j2"):
    assert list(folder.glob(pattern)), f"the wheel has no {pattern}"
PYTHON

echo "-- clusters, calibrate"
"$bin/autopar" clusters
"$bin/autopar" calibrate -o host.json --budget 20 --ranks 2

echo "-- plan, show, diff, emit"
"$bin/autopar" plan "$example:$function" --world-size 2 --cluster host.json -o plan.json
"$bin/autopar" show plan.json --html plan.html
"$bin/autopar" show plan.json --json | "$bin/python" -m json.tool >copy.json
"$bin/autopar" diff plan.json copy.json
"$bin/autopar" emit plan.json -o train.py

echo "-- run: predicted against measured"
"$bin/autopar" run plan.json --steps 3

echo "-- the program runs where autopar is not installed"
"$bin/python" -m pip uninstall --quiet --yes autopar
if "$bin/python" -c 'import autopar' 2>/dev/null; then
    echo "autopar can still be imported" >&2
    exit 1
fi
"$bin/torchrun" --standalone --nproc-per-node 2 train.py --steps 3
