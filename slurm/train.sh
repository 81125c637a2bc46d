# The body of train_*.sh, sourced by them inside a Slurm job: source train.sh RECIPE DATASET [SETTING VALUE ...].
# docs/guides/cluster.md describes the variables.
#
# Starts one rank per GPU of a node, or one per node without GPUs. Each runs
# `longplay train "$RECIPE" --data "$DATA" --run "$RUN"` with the settings. The ranks print to $RUN/logs/JOB.log; the
# batch script prints a summary to the job's output.

set -uo pipefail
# shellcheck source=launch/sweeps/requeue.sh
source "$LONGPLAY_HOME/launch/sweeps/requeue.sh"

RECIPE=${RECIPE:-$1}                   # see docs/guides/train.md
DATA=${DATA:-$LONGPLAY_HOME/data/$2}   # written by `longplay prepare`; on a file system that all nodes share
RUN=${RUN:-$LONGPLAY_HOME/runs/$1}     # checkpoints, metrics, TensorBoard, logs; shared too
VENV=${VENV:-$LONGPLAY_HOME/.venv}     # created by `make install`
PYTHON=${PYTHON:-$VENV/bin/python}     # on every node
SETUP=${SETUP:-}                       # a file to source first, for example one that runs `module load`
SRUN_ARGS=${SRUN_ARGS:-}               # more options for srun, separated by spaces, for example for a container
RANKS_PER_NODE=${RANKS_PER_NODE:-}     # default: one per GPU, or one
shift 2

training=0
caught=''
# Slurm sends TERM to the ranks itself, but USR1 only to the batch script; srun forwards it.
forward_usr1() {
  caught=1
  info "the time limit is near: saving and stopping"
  ((!training)) || kill -USR1 "$training"
}
trap forward_usr1 USR1
trap 'caught=1; terminated=1' TERM

if [[ -n $SETUP ]]; then
  # shellcheck source=/dev/null
  source "$SETUP" || fail 2 "SETUP $SETUP: failed"
fi
unset RANK LOCAL_RANK WORLD_SIZE # set if the job was submitted from a process under torchrun
export PYTHONUNBUFFERED=1

[[ $RUN == /* ]] || RUN=$PWD/$RUN
[[ $DATA == /* || $DATA == *:* ]] || DATA=$PWD/$DATA
logs=$RUN/logs
log=$logs/$SLURM_JOB_ID.log
mkdir -p "$logs" 2> /dev/null || fail 2 "RUN $RUN: cannot be created; give a folder on a shared file system"
touch "$log" 2> /dev/null || fail 2 "RUN $RUN: cannot be written; give a folder on a shared file system"
start_outcome "$logs"

nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
ranks=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
cpus=$(tr , '\n' <<< "$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1) # of the smallest node
cpus_per_rank=$((cpus / ranks > 0 ? cpus / ranks : 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
read -ra srun_args <<< "$SRUN_ARGS"

# Check on every node what all nodes must share.
check='
[[ -e $2 ]] || why="RUN $1: is not the same folder there; put it on a shared file system"
[[ $3 == *:* || -e $3/manifest.json ]] ||
  why="DATA $3: has no manifest.json; prepare a dataset with longplay prepare, or set DATA"
command -v "$4" > /dev/null || why="PYTHON $4: is not an executable there; run make install, or set VENV or PYTHON"
[[ -z ${why:-} ]] || echo "on $SLURMD_NODENAME, $why"'
problem=$(srun "${srun_args[@]}" --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
  bash -c "$check" check "$RUN" "$log" "$DATA" "$PYTHON" 2>&1)
if [[ -n $problem && -z $caught ]]; then
  found=$(grep '^on ' <<< "$problem" | sort | head -n 1)
  fail 2 "${found:-$(head -n 1 <<< "$problem")}"
fi

info "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $RECIPE on $SLURM_JOB_NODELIST," \
  "$((nodes * ranks)) ranks; log: $log" | tee -a "$log"
begin=$(stat -c %s "$log")
if [[ -z $caught ]]; then
  # Pass the text of rank.sh, because the checkout may be missing in a container.
  srun "${srun_args[@]}" --nodes="$nodes" --ntasks="$((nodes * ranks))" --ntasks-per-node="$ranks" \
    --cpus-per-task="$cpus_per_rank" --kill-on-bad-exit=1 \
    bash -c "$(< "$LONGPLAY_HOME/launch/sweeps/rank.sh")" rank \
    "$PYTHON" -m longplay.launch.train "$RECIPE" --data "$DATA" --run "$RUN" "$@" >> "$log" 2>&1 &
  training=$!
  while :; do # a signal ends `wait` early
    caught=''
    wait "$training"
    code=$?
    [[ -n $caught ]] || break
  done
else # a signal arrived before the ranks started
  code=75
  echo "$code" > "$LONGPLAY_OUTCOME"
fi

if ((code == 0)) && [[ ! -e $LONGPLAY_OUTCOME ]]; then
  info "finished: $RUN"
  exit 0
fi
if [[ -n $terminated ]]; then
  rm -f "$LONGPLAY_OUTCOME"
  info "stopped by Slurm; resumes when Slurm requeues it or when it is submitted again"
  exit 143
fi
requeue_if_saved
[[ ! -s $LONGPLAY_OUTCOME ]] || code=$(< "$LONGPLAY_OUTCOME") # of the first rank that failed; srun returns the largest code
rm -f "$LONGPLAY_OUTCOME"
reason=$(tail -c "+$((begin + 1))" "$log" | grep -a 'longplay: error\|Error:' | head -n 1)
reason=${reason:-$(tail -n 1 "$log")}
fail "$code" "training ended with exit code $code: ${reason#longplay: error: } (log: $log)"
