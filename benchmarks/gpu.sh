#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: benchmarks/gpu.sh [OUTPUT]  (default: runs/gpu)
# Runs in the Python of the environment, or the one named by PYTHON. Each part writes a file to OUTPUT; a part that
# fails does not keep the others from running, and is named at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/gpu}
python=${PYTHON:-python}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$output"
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
failed=()

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" 2>&1 | tee "$output/$name.txt" || failed+=("$name")
}

sizes=(--generator "$models/generator" --precision bf16 --compile)

part machine 10 nvidia-smi
part full_size 50 "$python" benchmarks/full_size.py "$models"
part align_step 140 "$python" benchmarks/align_step.py --recipe paper --semantics "$models/semantics" "${sizes[@]}"
part generate 170 "$python" benchmarks/generate.py --vocabulary imagenet-1k --rank 128 --repeats 2 "${sizes[@]}"
# Eager, as each preset would be compiled anew: they are compared with one another.
part presets 60 "$python" benchmarks/generate.py --vocabulary imagenet-1k --rank 128 --repeats 1 --batch-size 16 \
  --generator "$models/generator" --precision bf16 --presets
part independence 80 "$python" benchmarks/independence_update.py --recipe paper --repeats 3 \
  --generator "$models/generator" --semantics "$models/semantics" --precision bf16
part tests 80 "$python" -m pytest -m gpu

echo "results in $output"
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
