#!/bin/bash
# One training on several machines of a Slurm cluster:
#   sbatch slurm.sh pretrain --config gpt2_small --accelerate multi_node_ddp --resume auto
# (a copy to edit: hfscale copy launch). The words after the script are hfscale's; `hfscale plan` names good ones.
# A job that is preempted, reaches its time limit or loses a machine goes back into the queue, and --resume auto goes on
# from its last checkpoint. Before the time limit the recipe is told to save one and end; scancel --signal=USR1 JOB lets
# it save one and go on.
#SBATCH --job-name=hfscale
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch $0 RECIPE [arguments], such as: pretrain --config gpt2_small --resume auto" >&2
    exit 2
fi
# Where hfscale comes from, if not from the shell that submits. A module, or an environment of yours:
#   module load cuda python; source "$HOME/hfscale/bin/activate"
# A container (made with the Dockerfile), where Slurm has Pyxis: give srun below
#   --container-image=registry.example.com#hfscale:latest --container-mounts="$PWD:/work" --container-workdir=/work
processes_per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${machines%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a machine get different ones

# One task on each machine; its rank is Slurm's number of the machine, so that rank 0 is where the others look for it.
# One that fails ends all.
status=0
# shellcheck disable=SC2016  # $SLURM_NODEID is the task's own
srun --kill-on-bad-exit=1 bash -c 'exec hfscale "$@" --machine_rank "$SLURM_NODEID"' hfscale "$@" \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * processes_per_node))" \
    --main_process_ip "$first" --main_process_port "$port" || status=$?

if [[ $status -eq 143 ]]; then # stopped by the signal, with a checkpoint
    echo "stopped by a signal after saving a checkpoint; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
