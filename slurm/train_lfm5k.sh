#!/bin/bash
# LFM-1b at a context length of 5,000.
#
#   sbatch slurm/train_lfm5k.sh
#   RUN=/scratch/me/run sbatch --nodes=8 --partition=gpu slurm/train_lfm5k.sh --train.lr 0.001
#
# Options of sbatch before the script's name override those below, settings of the run stand after it.
#SBATCH --job-name=longplay-lfm5k
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "longplay: error: $0 is a batch script; submit it: sbatch $0" >&2
  exit 2
fi
# Slurm runs a copy: the checkout is where the script was submitted from, or else the folder of the submission.
if [[ -z ${LONGPLAY_HOME:-} ]]; then
  LONGPLAY_HOME=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | head -n 1)
  LONGPLAY_HOME=${LONGPLAY_HOME%%/slurm/train_*}
  [[ -f $LONGPLAY_HOME/slurm/train.sh ]] || LONGPLAY_HOME=$SLURM_SUBMIT_DIR
fi

RECIPE=${RECIPE:-lfm5k} # see docs/guides/train.md
DATA=${DATA:-$LONGPLAY_HOME/data/lfm1b} # made by `longplay prepare`; on a file system that all nodes share
RUN=${RUN:-$LONGPLAY_HOME/runs/lfm5k}   # checkpoints, metrics, TensorBoard, logs; shared too

if [[ ! -f $LONGPLAY_HOME/slurm/train.sh ]]; then
  echo "longplay: error: LONGPLAY_HOME $LONGPLAY_HOME: has no slurm/train.sh; set it to the checkout" >&2
  exit 2
fi
# shellcheck source=slurm/train.sh
source "$LONGPLAY_HOME/slurm/train.sh"
