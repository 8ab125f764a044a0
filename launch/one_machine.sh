#!/usr/bin/env bash
# Pre-trains on every GPU of this machine, or on its CPU if it has none.
#   launch/one_machine.sh
#   GPUS=4 WORKDIR=/scratch/run1 launch/one_machine.sh --gin_bindings='pretrain.batch_size=512'
set -euo pipefail

# Number of processes, one per GPU; by default the GPUs listed by nvidia-smi, or 1.
GPUS=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if ((GPUS < 1)); then GPUS=1; fi
# gin file; a path from the current folder, or the name of a file of the repository.
GIN_FILE=${GIN_FILE:-gin/pretrain_r50.gin}
# Folder for checkpoints, logs and configuration; the same folder resumes the run.
WORKDIR=${WORKDIR:-runs/$(basename "$GIN_FILE" .gin)}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# If no environment is active, use the one of `make install`.
export PATH="$PATH:$repository/.venv/bin" PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
# Processes meet in a file and on the loopback interface, which no other machine can reach; the
# servers that torchrun starts otherwise listen on all interfaces.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nproc-per-node="$GPUS" --local-addr=127.0.0.1 \
  --rdzv-backend=c10d --rdzv-conf=store_type=file --rdzv-endpoint="$(mktemp)" \
  -m jigclu.launch --gin_file="$GIN_FILE" --workdir="$WORKDIR" "$@"
