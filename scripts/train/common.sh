# Sourced by the scripts of this folder: where the project and its python are, and LAUNCH, the words that start a training.
# The one place that reads how a run is spread:
#   GPUS_PER_NODE   processes on this machine; not set: one process, on whatever this machine has
#   n_node, CURRENT_RANK, MASTER_ADDR, MASTER_PORT   several machines; NNODES and NODE_RANK mean the same as the first two
# Inside an `srun` with one task per machine and none of these set, SLURM's own values are taken; vila-run sets them.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PATH="$ROOT/.venv/bin:$PATH" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${LLAVA_PYTHON:-python}"
NODES="${n_node:-${NNODES:-}}"
if [ -z "$NODES" ] && [ -n "${SLURM_STEP_NUM_NODES:-}" ]; then
    NODES="$SLURM_STEP_NUM_NODES" CURRENT_RANK="$SLURM_NODEID" MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
    [ "$NODES" = 1 ] || MASTER_ADDR="$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)"
fi
NODES="${NODES:-1}" NODE="${CURRENT_RANK:-${NODE_RANK:-}}" PORT="${MASTER_PORT:-25001}"
if [ "$NODES" -gt 1 ] && [ -n "${GPUS_PER_NODE:-}" ] && { [ -z "$NODE" ] || [ -z "${MASTER_ADDR:-}" ]; }; then
    echo "n_node is $NODES; set MASTER_ADDR to the first machine and CURRENT_RANK to the number of this one, from 0" >&2
    exit 2
fi
is_taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
if [ -n "${GPUS_PER_NODE:-}" ] && [ "${NODE:-0}" = 0 ] && is_taken "$PORT"; then
    if [ -n "${MASTER_PORT:-}" ] || [ "$NODES" -gt 1 ]; then
        echo "port $PORT of this machine is taken by another program; set MASTER_PORT to a free one on all machines" >&2
        exit 2
    fi
    while is_taken "$PORT"; do PORT=$((PORT + 1)); done
fi
LAUNCH=("$PYTHON" -m llava.train.train)
if [ -n "${GPUS_PER_NODE:-}" ]; then
    LAUNCH=("$PYTHON" -m torch.distributed.run --nnodes "$NODES" --nproc_per_node "$GPUS_PER_NODE"
        --node_rank "${NODE:-0}" --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$PORT" "$ROOT/llava/train/train_mem.py")
elif [ "$NODES" -gt 1 ]; then
    echo "n_node is $NODES and GPUS_PER_NODE is not set; say how many processes each machine starts" >&2
    exit 2
fi

# batch_of GLOBAL EACH: the flags of a step of GLOBAL samples over all processes, EACH at a time on one of them.
# GLOBAL_TRAIN_BATCH_SIZE and PER_DEVICE_TRAIN_BATCH_SIZE win over the two.
batch_of() {
    local global="${GLOBAL_TRAIN_BATCH_SIZE:-$1}" each="${PER_DEVICE_TRAIN_BATCH_SIZE:-$2}" at_once
    at_once=$((each * NODES * ${GPUS_PER_NODE:-1}))
    if [ $((global % at_once)) -ne 0 ]; then
        echo "a step of $global samples is no multiple of $at_once = $each x $NODES x ${GPUS_PER_NODE:-1} (samples x machines" \
            "x processes); set GLOBAL_TRAIN_BATCH_SIZE or PER_DEVICE_TRAIN_BATCH_SIZE" >&2
        exit 2
    fi
    BATCH=(--per_device_train_batch_size "$each" --gradient_accumulation_steps $((global / at_once)))
}
