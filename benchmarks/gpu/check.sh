#!/bin/bash
# Train, resume, evaluate and export on this machine's GPU and on its CPU, and compare the results.
#
#   bash benchmarks/gpu/check.sh [DIR]        two minutes; DIR (default: a new temporary folder) keeps the runs
#
# Two runs on the GPU and one that is interrupted and resumed must have bitwise equal checkpoints, and the losses
# on the CPU must agree up to rounding.
set -euo pipefail
dir=${1:-$(mktemp -d)}
longplay=(${LONGPLAY:-longplay})
train() { # RUN STEPS SETTINGS...
  "${longplay[@]}" train mambarec --data "$dir/data" --run "$dir/$1" --context_length 40 --data.rows_per_step 24 \
    --loss.name bce --engine.precision bf16 --train.log_every_steps 1 --train.max_steps "$2" "${@:3}" > "$dir/$1.log" 2>&1
}
"${longplay[@]}" prepare synthetic --users 200 --items 300 --events 6000 --seed 5 --out "$dir/data" > /dev/null
train first 20
train second 20
train resumed 10
train resumed 20
train cpu 20 --train.device cpu
for run in first second resumed cpu; do
  sum=$(cat "$dir/$run"/checkpoints/step-*20/*.safetensors | sha256sum)
  echo "$run: checkpoint ${sum:0:12}, last loss $(grep -h '"train/loss"' "$dir/$run/metrics.jsonl" | tail -n 1)"
done
for device in auto cpu; do
  "${longplay[@]}" evaluate "$dir/first" --split test --device $device > "$dir/evaluated-$device.log"
done
"${longplay[@]}" export "$dir/first" --out "$dir/exported"
grep "full_unseen ndcg@10" "$dir"/evaluated-*.log
