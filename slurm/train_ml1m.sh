#!/bin/bash
# Train on MovieLens-1M.
#
#   sbatch slurm/train_ml1m.sh
#   RUN=/scratch/me/run sbatch --nodes=8 --partition=gpu slurm/train_ml1m.sh --train.lr 0.001
#
# Options of sbatch before the script's name override those below; settings of the run follow the name.
#SBATCH --job-name=longplay-ml1m
#SBATCH --nodes=2
#SBATCH --time=01:00:00
#SBATCH --exclusive --mem=0 --requeue --signal=B:USR1@300 --open-mode=append --output=%x-%j.out

[[ -n ${SLURM_JOB_ID:-} ]] || { echo "longplay: error: $0 is a batch script; submit it: sbatch $0" >&2; exit 2; }
# Slurm runs a copy of this script. The job's command names the original, which is in the checkout.
checkout=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/slurm/train_.*|\1|p')
LONGPLAY_HOME=${LONGPLAY_HOME:-${checkout:-$SLURM_SUBMIT_DIR}}
[[ -f $LONGPLAY_HOME/slurm/train.sh ]] ||
  { echo "longplay: error: LONGPLAY_HOME $LONGPLAY_HOME: has no slurm/train.sh; set it to the checkout" >&2; exit 2; }
source "$LONGPLAY_HOME/slurm/train.sh" ml1m ml1m "$@" # recipe, folder in data/, settings
