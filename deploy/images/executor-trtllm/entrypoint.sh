#!/bin/sh
# Starts the executor with TensorRT-LLM in it: one process for one rank, the vendor's launcher for several.
#
# PACELINE_RANKS: GPUs of this engine (executor.trtllm.tensor_parallel times pipeline_parallel), 1 if not set.
# PACELINE_LAUNCHER: what starts the ranks where a batch system has started this script on all of them, e.g.
# trtllm-llmapi-launch under mpirun or srun; empty: TensorRT-LLM spawns its own workers.
set -eu
ranks="${PACELINE_RANKS:-1}"
if [ "$ranks" -eq 1 ]; then
    # The worker lives in the agent's process: spawning ranks fails in many pods, and plan mode needs it here.
    export TLLM_WORKER_USE_SINGLE_PROCESS="${TLLM_WORKER_USE_SINGLE_PROCESS:-1}"
    exec python3 -m paceline_executor "$@" --set executor.trtllm.tensor_parallel=1
fi
if [ -n "${PACELINE_LAUNCHER:-}" ]; then
    exec "$PACELINE_LAUNCHER" python3 -m paceline_executor "$@"
fi
exec python3 -m paceline_executor "$@"
