#!/bin/bash
# Runs one rank under srun: bash rank.sh COMMAND [ARGUMENT ...]. See requeue.sh.

trap : TERM USR1 INT # Slurm also sends these signals to the command, which handles them
"$@"
code=$?
((code != 138)) || code=75 # 128 + USR1: killed before it installed a handler, so nothing is lost
((code == 0)) || (set -o noclobber && echo "$code" > "$LONGPLAY_OUTCOME") 2> /dev/null
((code != 75)) || exit 0 # srun kills the other ranks when one fails
# Every rank detects invalid input, but only rank 0 prints it: wait, so that srun does not kill rank 0 first.
((code != 2)) || [[ $SLURM_PROCID == 0 ]] || sleep 10
exit "$code"
