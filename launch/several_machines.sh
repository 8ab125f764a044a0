#!/usr/bin/env bash
# Pre-trains on several machines: run it on each of them, with the same values.
#   NODES=2 HEAD=10.0.0.1 WORKDIR=/shared/run1 launch/several_machines.sh
set -euo pipefail

# Machines that take part.
NODES=${NODES:-2}
# Name or address of the first of them, which all can reach, and a free port there.
HEAD=${HEAD:?set HEAD to the name or address of the first machine}
PORT=${PORT:-29400}
# Any name, the same on all machines and of this run alone.
RUN_ID=${RUN_ID:-jigclu}
# Processes on this machine, one a GPU; by default as many as nvidia-smi lists, or 1.
GPUS=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if ((GPUS < 1)); then GPUS=1; fi
# What to train; a path from the root of the repository or an absolute one.
GIN_FILE=${GIN_FILE:-gin/pretrain_r50.gin}
# A folder that all machines share; the same folder again resumes the run.
WORKDIR=${WORKDIR:-runs/$(basename "$GIN_FILE" .gin)}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Where no environment is active, the one of `make install`.
export PATH="$PATH:$PWD/.venv/bin"
exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$RUN_ID" \
  -m jigclu.launch --gin_file="$GIN_FILE" --workdir="$WORKDIR" "$@"
