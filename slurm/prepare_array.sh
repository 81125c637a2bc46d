#!/bin/bash
# Prepare a dataset in N parts, on up to N nodes: longplay prepare with --pass, --part and --merge.
#
#   PARTS=8 slurm/prepare_array.sh sequences /data/histories --out /scratch/me/plays
#   SBATCH_PARTITION=cpu PARTS=8 slurm/prepare_array.sh lfm1b /data/LFM-1b_LEs.txt --out /scratch/me/lfm1b
#
# Run it where sbatch is; it is no batch script. The arguments are those of `longplay prepare`. --out and --scratch are on
# a file system that all nodes share. It submits three arrays of jobs, each followed by one job that waits for it, and
# prints their numbers. A job that Slurm requeues resumes. After a failure, run the same command again.
set -euo pipefail

PARTS=${PARTS:-4}
CPUS=${CPUS:-8}                        # of each job; prepare uses at most 8
TIME=${TIME:-12:00:00}                 # time limit of each job
LOGS=${LOGS:-$PWD}                     # folder of the jobs' output
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-$home/.venv/bin/python}

fail() {
  echo "longplay: error: $*" >&2
  exit 2
}
(($# > 0)) || fail "pass the arguments of longplay prepare: PARTS=4 $0 FORMAT ... --out DIR"
[[ $PARTS =~ ^[1-9][0-9]*$ ]] || fail "PARTS is '$PARTS'; set it to a number of parts"
[[ -x $PYTHON ]] || fail "PYTHON $PYTHON: is not an executable; run make install, or set PYTHON"
# Slurm fails a job whose output cannot be written, without a message.
mkdir -p "$LOGS" 2> /dev/null || fail "LOGS $LOGS: cannot be created; set it to a folder that all nodes share"

submit() { # NAME WORDS: submit a job that runs longplay prepare with the arguments and WORDS
  local command=("$PYTHON" -m longplay.launch.prepare "${arguments[@]}")
  sbatch --parsable --requeue --job-name="longplay-$1" --cpus-per-task="$CPUS" --time="$TIME" \
    "${options[@]}" --wrap="exec ${command[*]@Q} $2" ||
    fail "sbatch refuses the jobs of $1; set CPUS ($CPUS), TIME ($TIME) or sbatch's variables, such as SBATCH_PARTITION"
}

arguments=("$@")
after=()
for pass in read sort write; do
  options=(--array="1-$PARTS" --output="$LOGS/prepare-$pass-%A_%a.out" "${after[@]}")
  array=$(submit "$pass" "--pass $pass --part \$SLURM_ARRAY_TASK_ID/$PARTS")
  options=(--output="$LOGS/prepare-$pass-merge-%j.out" --kill-on-invalid-dep=yes --dependency="afterok:${array%%;*}")
  merge=$(submit "$pass-merge" "--pass $pass --merge $PARTS")
  after=(--kill-on-invalid-dep=yes --dependency="afterok:${merge%%;*}")
  echo "longplay: $pass: array ${array%%;*}, merge ${merge%%;*}"
done
echo "longplay: the dataset is complete when job ${merge%%;*} is"
