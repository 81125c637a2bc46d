#!/bin/bash
# Turn a half hour on a GPU into results: tests, a comparison with the CPU, benchmarks, and one note with all output.
#
#   bash benchmarks/gpu/half_hour.sh [--small] [--list] [STEP...]
#
# Without STEP it runs all of them in the order below, the most important first; each has a time limit of its own and
# a failure does not stop the rest. $OUT (default: a new temporary folder) keeps STEP.log of each step and note.md.
# --small uses sizes for any machine, to try the script on a CPU; --list prints the commands.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python} small=() list=false chosen=()
for word in "$@"; do
  case $word in
    --small) small=(--small --repeats 1) ;;
    --list) list=true ;;
    -*) sed -n 2,8p "$0" >&2; exit 2 ;;
    *) chosen+=("$word") ;;
  esac
done
benchmark() { echo "$python -m benchmarks.gpu ${small[*]} $*"; }
pytest="$python -m pytest -q -p no:cacheprovider --durations 5"
kernels="tests/distributed/test_triton_kernels.py tests/unit/models/test_triton_scan.py tests/unit/models/test_step_kernels.py"
kernels+=" tests/unit/models/test_causal_conv_kernel.py"
names=(machine gpu-tests kernels check update rank train models variants baselines trace tiles)
declare -A limit_s=([machine]=60 [gpu-tests]=300 [kernels]=240 [check]=400 [update]=120 [rank]=180 [train]=400
  [models]=240 [variants]=240 [baselines]=240 [trace]=120 [tiles]=120)
declare -A command=(
  [machine]="nvidia-smi; $python -m pip list 2> /dev/null | grep -iE 'torch|triton|deepspeed|numpy|mamba|causal'"
  [gpu-tests]="$pytest -m gpu tests/cli tests/unit/models"
  [kernels]="$pytest -k 'not interpreter and not compiled and not hopper' $kernels"
  [check]="LONGPLAY='$python -m longplay.launch.cli' bash benchmarks/gpu/check.sh"
  [update]=$(benchmark update) [rank]=$(benchmark rank) [train]=$(benchmark train) [models]=$(benchmark models)
  [variants]=$(benchmark variants) [baselines]=$(benchmark baselines) [trace]="$(benchmark trace) --out \"\$OUT\""
  [tiles]="$python -m benchmarks.ranking_tiles ${small[*]:0:1}"
)
for name in "${chosen[@]}"; do
  [[ -v command[$name] ]] || { echo "no step $name; there are: ${names[*]}" >&2; exit 2; }
done
((${#chosen[@]})) || chosen=("${names[@]}")
if $list; then
  for name in "${chosen[@]}"; do echo "$name: ${command[$name]}"; done
  exit
fi

export OUT=${OUT:-$(mktemp -d)} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
{
  echo "# A half hour on a GPU"
  echo
  echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown)."
} > "$OUT/note.md"
failed=0
for name in "${chosen[@]}"; do
  began=$SECONDS
  timeout "${limit_s[$name]}" bash -c "${command[$name]}" > "$OUT/$name.log" 2>&1
  code=$?
  ((code)) && failed=1
  {
    printf '\n## %s\n\nExit code %s after %s s.\n\n```\n%s\n' "$name" $code $((SECONDS - began)) "${command[$name]}"
    tail -n 40 "$OUT/$name.log" | cut -c 1-200
    echo '```'
  } >> "$OUT/note.md"
  echo "$name: exit code $code after $((SECONDS - began)) s"
done
echo "$OUT/note.md"
exit $failed
