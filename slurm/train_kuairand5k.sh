#!/bin/bash
# Train on KuaiRand-27K at a context length of 5,000.
#
#   sbatch slurm/train_kuairand5k.sh
#   RUN=/scratch/me/run sbatch --nodes=8 --partition=gpu slurm/train_kuairand5k.sh --train.lr 0.001
#
# Options of sbatch before the script's name override those below; settings of the run follow the name.
#SBATCH --job-name=longplay-kuairand5k
#SBATCH --nodes=2
#SBATCH --time=24:00:00
#SBATCH --exclusive --mem=0 --requeue --signal=B:USR1@300 --open-mode=append --output=%x-%j.out

[[ -n ${SLURM_JOB_ID:-} ]] || { echo "longplay: error: $0 is a batch script; submit it: sbatch $0" >&2; exit 2; }
# Slurm runs a copy of this script. The job's command names the original, which is in the checkout.
checkout=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/slurm/train_.*|\1|p')
LONGPLAY_HOME=${LONGPLAY_HOME:-${checkout:-$SLURM_SUBMIT_DIR}}
[[ -f $LONGPLAY_HOME/slurm/train.sh ]] ||
  { echo "longplay: error: LONGPLAY_HOME $LONGPLAY_HOME: has no slurm/train.sh; set it to the checkout" >&2; exit 2; }
source "$LONGPLAY_HOME/slurm/train.sh" kuairand5k kuairand "$@" # recipe, folder in data/, settings
