#!/usr/bin/env bash
# Pre-trains on several machines; run it on each of them with the same variables.
#   NODES=2 HEAD=10.0.0.1 WORKDIR=/shared/run1 launch/several_machines.sh
set -euo pipefail

# Number of machines.
NODES=${NODES:-2}
# Name or address of the first machine, which all others can reach, and a free port on it.
HEAD=${HEAD:?set HEAD to the name or address of the first machine}
PORT=${PORT:-29400}
# Name of this run, unique and the same on all machines.
RUN_ID=${RUN_ID:-jigclu}
# Number of processes on this machine, one per GPU; by default the GPUs listed by nvidia-smi, or 1.
GPUS=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if ((GPUS < 1)); then GPUS=1; fi
# gin file; a path from the current folder, or the name of a file of the repository.
GIN_FILE=${GIN_FILE:-gin/pretrain_r50.gin}
# Folder that all machines share; the same folder resumes the run.
WORKDIR=${WORKDIR:-runs/$(basename "$GIN_FILE" .gin)}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# If no environment is active, use the one of `make install`.
export PATH="$PATH:$repository/.venv/bin" PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$RUN_ID" \
  -m jigclu.launch --gin_file="$GIN_FILE" --workdir="$WORKDIR" "$@"
