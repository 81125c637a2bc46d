# The common part of train_*.sh, sourced by them inside a Slurm job. docs/guides/cluster.md describes the variables.
#
# Needs LONGPLAY_HOME, RECIPE, DATA and RUN. One task per GPU of a node, or one per node where there is none, runs
# `longplay train "$RECIPE" --data "$DATA" --run "$RUN"` with the words after the script's name; the ranks meet by
# Slurm's own variables. What they print goes to $RUN/logs/JOB.log, a summary to the job's own output.

set -uo pipefail

VENV=${VENV:-$LONGPLAY_HOME/.venv}     # made by `make install`
PYTHON=${PYTHON:-$VENV/bin/python}     # on every node
SETUP=${SETUP:-}                       # a file to source first, for example with `module load` in it
SRUN_ARGS=${SRUN_ARGS:-}               # more options for srun, separated by spaces, for example of a container
RANKS_PER_NODE=${RANKS_PER_NODE:-}     # default: one per GPU, or one
MAX_REQUEUES=${MAX_REQUEUES:-1000}     # give up after so many

say() { echo "longplay: $*"; }
fail() {
  local code=$1
  shift
  echo "longplay: error: $*" >&2
  exit "$code"
}

stopped='' # the signal that told the job to stop: USR1 before the time limit, TERM from scancel or preemption
caught=0
training=0
# Slurm sends TERM to the ranks itself, but USR1 only here; srun hands it on.
ask() {
  stopped=USR1
  caught=1
  say "the time is nearly up: asked to save and stop"
  ((!training)) || kill -USR1 "$training"
}
trap ask USR1
trap 'stopped=TERM; caught=1' TERM

if [[ -n $SETUP ]]; then
  # shellcheck source=/dev/null
  source "$SETUP" || fail 2 "SETUP $SETUP: failed"
fi
unset RANK LOCAL_RANK WORLD_SIZE # of a torchrun that the job was submitted from
export PYTHONUNBUFFERED=1

[[ $RUN == /* ]] || RUN=$PWD/$RUN
[[ $DATA == /* || $DATA == *:* ]] || DATA=$PWD/$DATA
logs=$RUN/logs
log=$logs/$SLURM_JOB_ID.log
saved=$logs/.saved-$SLURM_JOB_ID   # rank 0 saved and is to be resumed
failed=$logs/.failed-$SLURM_JOB_ID # the exit code of the first rank that failed: srun has the largest of all
mkdir -p "$logs" 2> /dev/null || fail 2 "RUN $RUN: cannot be made; give a folder on a shared file system"
rm -f "$saved" "$failed"
touch "$log" 2> /dev/null || fail 2 "RUN $RUN: cannot be written; give a folder on a shared file system"

nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
ranks=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
cpus=$(tr , '\n' <<< "$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1) # of the smallest node
cpus_per_rank=$((cpus / ranks > 0 ? cpus / ranks : 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
read -ra srun_args <<< "$SRUN_ARGS"

# What every node must see, said by the first that does not.
check='
[[ -e $2 ]] || why="RUN $1: is another folder there; put it on a shared file system"
[[ $3 == *:* || -e $3/manifest.json ]] ||
  why="DATA $3: has no manifest.json; prepare a dataset with longplay prepare, or set DATA"
command -v "$4" > /dev/null || why="PYTHON $4: is no program there; run make install, or set VENV or PYTHON"
[[ -z ${why:-} ]] || echo "on $SLURMD_NODENAME, $why"'
problem=$(srun "${srun_args[@]}" --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 \
  bash -c "$check" check "$RUN" "$log" "$DATA" "$PYTHON" 2>&1)
if [[ -n $problem && -z $stopped ]]; then
  found=$(grep '^on ' <<< "$problem" | sort | head -n 1)
  fail 2 "${found:-$(head -n 1 <<< "$problem")}"
fi

# srun ends all ranks when one fails. A rank that saved and is to be resumed has not failed: it leaves with 0.
rank='
trap : TERM USR1 INT
saved=$1 failed=$2
shift 2
"$@"
code=$?
if ((code == 75)); then
  [[ $SLURM_PROCID != 0 ]] || : > "$saved"
  code=0
fi
((code == 0)) || (set -o noclobber && echo "$code" > "$failed") 2> /dev/null
# All ranks find wrong input, rank 0 says so, and the first to exit has Slurm end the others: not before it spoke.
((code != 2)) || [[ $SLURM_PROCID == 0 ]] || sleep 10
exit "$code"'
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $RECIPE on $SLURM_JOB_NODELIST," \
  "$((nodes * ranks)) ranks; log: $log" | tee -a "$log"
begin=$(stat -c %s "$log")
code=143
if [[ -z $stopped ]]; then
  srun "${srun_args[@]}" --nodes="$nodes" --ntasks="$((nodes * ranks))" --ntasks-per-node="$ranks" \
    --cpus-per-task="$cpus_per_rank" --kill-on-bad-exit=1 \
    bash -c "$rank" rank "$saved" "$failed" \
    "$PYTHON" -m longplay.launch.train "$RECIPE" --data "$DATA" --run "$RUN" "$@" >> "$log" 2>&1 &
  training=$!
  while :; do # a signal ends `wait` early
    caught=0
    wait "$training"
    code=$?
    ((caught)) || break
  done
fi

if ((code == 0)) && [[ ! -e $saved ]]; then
  say "finished: $RUN"
  exit 0
fi
if [[ $stopped == TERM ]]; then # whether the job comes again is Slurm's to say, which sent the signal
  say "stopped by Slurm; submitted again, the run resumes"
  exit 143
fi
# Killed by the signal before it could save, as in its first seconds, it has lost nothing either.
if { ((code == 0)) && [[ -e $saved ]]; } || { ((code > 128)) && [[ $stopped == USR1 ]]; }; then
  rm -f "$saved"
  ((${SLURM_RESTART_COUNT:-0} < MAX_REQUEUES)) || fail 75 "was requeued ${SLURM_RESTART_COUNT:-0} times; submit again to go on"
  say "stopped to be resumed; back into the queue"
  answer=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) || {
    code=$?
    ((code > 128)) && exit 0 # the requeue has ended this job's processes, scontrol among them
    fail 75 "cannot be requeued (${answer//$'\n'/ }); submit again, and the run resumes"
  }
  exit 0
fi
[[ ! -s $failed ]] || code=$(< "$failed")
rm -f "$saved" "$failed"
reason=$(tail -c "+$((begin + 1))" "$log" | grep -a 'longplay: error\|Error:' | head -n 1)
reason=${reason:-$(tail -n 1 "$log")}
fail "$code" "training ended with exit code $code: ${reason#longplay: error: } (log: $log)"
