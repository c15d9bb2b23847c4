#!/usr/bin/env bash
# One training on several machines over plain ssh, with hfscale and the data at the same path on each:
#   GPUS=8 ./ssh.sh node-a node-b -- pretrain --config gpt2_small --accelerate multi_node_ddp --resume auto
# GPUS is the number of processes on each machine. The first machine is machine 0; the others must reach its name.
# When one machine ends, fails or stops answering (45 s), all are stopped and it is named.
set -euo pipefail

hosts=()
while [[ $# -gt 0 && $1 != -- ]]; do
    hosts+=("$1")
    shift
done
if [[ ${#hosts[@]} -lt 2 || $# -lt 2 || -z ${GPUS:-} ]]; then
    echo "usage: GPUS=<processes on each machine> $0 HOST0 HOST1 ... -- RECIPE [arguments]" >&2
    exit 2
fi
shift
ssh=(ssh -tt -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=3)
if [[ -n ${SSH:-} ]]; then ssh=("$SSH"); fi # another program that is called as: SSH HOST COMMAND

pids=()
# shellcheck disable=SC2329  # called by the trap
stop() {
    kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap stop INT TERM
for rank in "${!hosts[@]}"; do
    printf -v words '%q ' "${HFSCALE:-hfscale}" "$@" --num_machines "${#hosts[@]}" \
        --num_processes "$((${#hosts[@]} * GPUS))" --machine_rank "$rank" --main_process_ip "${hosts[0]}" \
        --main_process_port "${PORT:-29500}"
    printf -v folder '%q' "${REMOTE_DIR:-$PWD}"
    "${ssh[@]}" "${hosts[rank]}" "cd $folder && exec $words" </dev/null > >(sed -u "s/^/[${hosts[rank]}] /") 2>&1 &
    pids+=($!)
done

status=0
running=("${pids[@]}")
while [[ ${#running[@]} -gt 0 ]]; do
    code=0
    wait -n -p ended "${running[@]}" || code=$?
    if [[ -z ${ended:-} ]]; then continue; fi # a signal came: the machines are ending
    for rank in "${!pids[@]}"; do
        if [[ ${pids[rank]} -eq $ended && $code -ne 0 && $status -eq 0 ]]; then
            echo "error: ${hosts[rank]} ended with exit status $code; stopping the others" >&2
            status=$code
            stop
        fi
    done
    left=()
    for pid in "${running[@]}"; do
        if [[ $pid -ne $ended ]]; then left+=("$pid"); fi
    done
    running=("${left[@]}")
done
exit "$status"
