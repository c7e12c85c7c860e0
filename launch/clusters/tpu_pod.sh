#!/bin/bash
# A TPU pod slice: every host runs its part of the sweep on its own chips.
#
#   launch/clusters/tpu_pod.sh NAME ZONE --config=configs/table1.py --workdir=/mnt/shared/runs/table1
#
# The repository and its environment (pip install -e '.[tpu]') are on every host, in the folder of
# this command, and the workdir is on storage that all hosts share. The same command again goes on
# from the last checkpoints, after a preemption, too.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd $(printf %q "$(basename "$PWD")") && .venv/bin/python -m launch.sweep --distributed $(printf '%q ' "$@")"
