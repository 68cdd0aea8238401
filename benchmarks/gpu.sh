#!/usr/bin/env bash
# Everything that needs a GPU, in at most ten minutes: benchmarks/gpu.sh [OUTPUT]  (default: runs/gpu)
# Runs in the Python of the environment, or the one named by PYTHON. Each part writes a file to OUTPUT; a part that
# fails or has no time left does not keep the others from running, and is named at the end.
# benchmarks/gpu.sh --rehearse OUTPUT runs the same parts on the CPU at the smallest size: what is broken shows here,
# not in the minutes of a GPU. Its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
rehearse=false
if [[ ${1:-} == --rehearse ]]; then
  rehearse=true
  shift
fi
output=${1:-runs/gpu}
python=${PYTHON:-python}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$output"
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
failed=()
limit=590 # seconds, for all parts

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  if $rehearse; then
    seconds=600
  elif ((seconds > limit - SECONDS)); then
    seconds=$((limit - SECONDS))
  fi
  echo "== $name"
  if ((seconds <= 0)); then
    failed+=("$name (no time left)")
    return
  fi
  timeout -k 5 "$seconds" "$@" 2>&1 | tee "$output/$name.txt" || failed+=("$name")
}

machine=(nvidia-smi)
models_size=() align_size=() generate_size=() presets_size=() independence_size=() feed_size=(--images 16384)
families_size=()
if $rehearse; then
  # torch.compile is called and compiles nothing, which would take minutes.
  export CUDA_VISIBLE_DEVICES="" TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
  machine=(uname -a)
  models_size=(--miniature)
  align_size=(--vocabulary microworld --repeats 1 --batch-size 1 --steps 2 --differentiated-steps 1 --rank 2)
  generate_size=(--vocabulary microworld --repeats 1 --batch-size 1 --steps 2)
  presets_size=("${generate_size[@]}")
  independence_size=("${align_size[@]}" --independence-bank 16 --independence-memory 2)
  feed_size=(--images 16 --repeats 1 --architecture test_resnet --image-size 32 --batch-size 8 --workers 0)
  families_size=(--families pixart-sigma --steps 1 --generated 1 --small)
fi
sizes=(--generator "$models/generator" --precision bf16 --compile)

part machine 10 "${machine[@]}"
part full_size 50 "$python" benchmarks/speed/full_size.py "$models" "${models_size[@]}"
part align_step 140 "$python" benchmarks/speed/align_step.py --recipe paper --checkpointing on \
  --semantics "$models/semantics" "${sizes[@]}" "${align_size[@]}"
part generate 170 "$python" benchmarks/speed/generate.py --vocabulary imagenet-1k --rank 128 --repeats 2 \
  "${sizes[@]}" "${generate_size[@]}"
# Eager, as each preset would be compiled anew: they are compared with one another.
part presets 60 "$python" benchmarks/speed/generate.py --vocabulary imagenet-1k --rank 128 --repeats 1 --batch-size 16 \
  --generator "$models/generator" --precision bf16 --presets "${presets_size[@]}"
part independence 80 "$python" benchmarks/independence/update_cost.py --recipe paper --repeats 3 \
  --generator "$models/generator" --semantics "$models/semantics" --precision bf16 "${independence_size[@]}"
# Workers for all cores: the model waits for images where they are too few.
part feed 100 "$python" benchmarks/speed/feed.py --recipe resnet50 --repeats 1 --workers "$(nproc)" --compile \
  "${feed_size[@]}"
# Only files that have such tests: pytest imports all that it is given.
mapfile -t gpu_tests < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
part tests 80 "$python" -m pytest -m gpu "${gpu_tests[@]}"
part families 120 "$python" benchmarks/speed/memory_of_families.py --measured "${families_size[@]}"

echo "results in $output"
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
