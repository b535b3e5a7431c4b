#!/usr/bin/env bash
# Two nodes with eight GPUs each, under SLURM; what follows are a run's flags:
#
#   sbatch tools/slurm.sh --flagfile=configs/imagenet_10pct.cfg --workdir=runs/x
#
# Wants simmatch_tf installed in the environment that sbatch is called in, and a
# workdir that all nodes share. Two minutes before the time is over, or when the
# job is preempted, SIGTERM reaches all workers; they save, end with status 42,
# and the job is queued again, until the run is finished or an error ends it.
#SBATCH --job-name=simmatch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

port=$((12000 + SLURM_JOB_ID % 20000))
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" |
  sed "s/.*/\"&:$port\"/" | paste -sd,)
export SIMMATCH_HOSTS=$hosts

# Each task is a worker; SLURM numbers them.
srun --kill-on-bad-exit=0 bash -c '
  export TF_CONFIG="{\"cluster\": {\"worker\": [$SIMMATCH_HOSTS]},
    \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
  exec python -m simmatch_tf.train "$@"' worker "$@"
status=$?
# 42: stopped and saved; above 128: a worker was killed. Anything else is an
# error that would come again.
if { [ "$status" -eq 42 ] || [ "$status" -gt 128 ]; } &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt 1000 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
