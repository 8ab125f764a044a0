#!/usr/bin/env bash
# Pre-trains on every GPU of this machine (on the CPU where there is none).
#   launch/one_machine.sh
#   GPUS=4 WORKDIR=/scratch/run1 launch/one_machine.sh --gin_bindings='pretrain.batch_size=512'
set -euo pipefail

# Processes, one a GPU; by default as many as nvidia-smi lists, or 1.
GPUS=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if ((GPUS < 1)); then GPUS=1; fi
# What to train; a path from the root of the repository or an absolute one.
GIN_FILE=${GIN_FILE:-gin/pretrain_r50.gin}
# Checkpoints, logs and configuration; the same folder again resumes the run.
WORKDIR=${WORKDIR:-runs/$(basename "$GIN_FILE" .gin)}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Where no environment is active, the one of `make install`.
export PATH="$PATH:$PWD/.venv/bin"
exec torchrun --standalone --nproc-per-node="$GPUS" -m jigclu.launch \
  --gin_file="$GIN_FILE" --workdir="$WORKDIR" "$@"
