# The requeue path of every Slurm job: sourced by slurm/train.sh and by the batch scripts of `longplay sweep`.
#
# rank.sh runs each rank and writes the first exit code that is not 0 to $LONGPLAY_OUTCOME. The code 75 means that the
# run received a signal to stop and has saved. After srun the batch script calls `requeue_if_saved`.

MAX_REQUEUES=${MAX_REQUEUES:-1000}

info() { echo "longplay: $*"; }

fail() { # CODE MESSAGE
  echo "longplay: error: ${*:2}" >&2
  exit "$1"
}

start_outcome() { # FOLDER
  export LONGPLAY_OUTCOME=$1/.outcome-$SLURM_JOB_ID
  rm -f "$LONGPLAY_OUTCOME"
}

# Slurm sends TERM for scancel and for preemption, and requeues a preempted job itself.
terminated=''
trap 'terminated=1' TERM

requeue_if_saved() {
  local answer code job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
  [[ -z $terminated && $(cat "$LONGPLAY_OUTCOME" 2> /dev/null) == 75 ]] || return 0
  rm -f "$LONGPLAY_OUTCOME"
  ((restarts < MAX_REQUEUES)) ||
    fail 75 "requeued $restarts times, the limit MAX_REQUEUES; submit again to resume"
  info "saved; requeuing the job"
  # The job id of one task of an array may be the id of the whole array.
  [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  answer=$(scontrol requeue "$job" 2>&1)
  code=$?
  ((code == 0 || code > 128)) && exit 0 # above 128: the requeue has ended this job's processes, scontrol among them
  fail 75 "cannot be requeued (${answer//$'\n'/ }); submit again to resume"
}
