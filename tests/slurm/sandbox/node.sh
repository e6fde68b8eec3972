#!/bin/bash
# node.sh ACTION NODE [COMMAND...]   acts on one node of the cluster of start.sh
#   boot          power on: namespaces, network, slurmd
#   kill          power off at once: every process of the node dies (SIGKILL by the kernel)
#   cut | heal    take the node's network link down | up again
#   stop-slurmd | start-slurmd | kill-slurmd     the daemon only; the jobs on the node go on
#   exec CMD...   run a command on the node
set -euo pipefail
S=$(realpath -m "${SLURM_SANDBOX:?}")
NET=${SLURM_SANDBOX_NET:-10.77.0}
BR=${SLURM_SANDBOX_BRIDGE:-slbr0}
export SLURM_CONF=$S/slurm.conf PATH=$PATH:/usr/sbin:/sbin
act=$1 n=$2; shift 2
d=$S/nodes/$n i=${n#node} v=$BR-$n
alive() { [ -s "$d/init.pid" ] && grep -aq "slurm-$n" "/proc/$(cat "$d/init.pid")/cmdline" 2>/dev/null; }
on() { nsenter -t "$(cat "$d/init.pid")" --net --uts --pid --ipc --mount --wdns="$PWD" -- "$@"; }
case $act in
boot)
  alive && { echo "$n is up" >&2; exit 0; }
  mkdir -p "$d/spool"; rm -f "$d/init.pid" "$d/net-ready" "$d/slurmd.pid"
  ip link del "$v" 2>/dev/null || true
  # setsid + closed descriptors: outlives the terminal or the test that started it
  setsid unshare --net --uts --pid --ipc --mount --propagation private --fork --kill-child bash -c '
    S=$1 d=$2 n=$3 i=$4
    mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /dev/shm
    mount --bind "$S/hosts" /etc/hosts
    hostname "$n"
    until [ -e "$d/net-ready" ]; do sleep 0.05; done
    slurmd -f "$SLURM_CONF" -N "$n"
    while :; do sleep 86400; done' slurm-$n "$S" "$d" "$n" "$i" \
    </dev/null >>"$S/log/$n.out" 2>&1 &
  outer=$!
  for _ in $(seq 100); do
    init=$(cat /proc/$outer/task/$outer/children 2>/dev/null | awk '{print $1}') || true
    [ -n "${init:-}" ] && [ "$(readlink /proc/$init/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break
    sleep 0.05
  done
  echo "$init" >"$d/init.pid"
  ip link add "$v" type veth peer name eth0 netns "$init"
  ip link set "$v" master "$BR" up
  nsenter -t "$init" --net ip link set lo up
  nsenter -t "$init" --net ip addr add "$NET.$((10 + i))/24" dev eth0
  nsenter -t "$init" --net ip link set eth0 up
  : >"$d/net-ready" ;;
kill) alive && kill -9 "$(cat "$d/init.pid")"; rm -f "$d/init.pid" ;;
cut)  ip link set "$v" down ;;
heal) ip link set "$v" up ;;
stop-slurmd) on sh -c 'kill $(cat '"$d"'/slurmd.pid)' ;;
kill-slurmd) on sh -c 'kill -9 $(cat '"$d"'/slurmd.pid)' ;;
start-slurmd)
  on sh -c '[ -s '"$d"'/slurmd.pid ] && kill -0 $(cat '"$d"'/slurmd.pid) 2>/dev/null' ||
    on slurmd -f "$SLURM_CONF" -N "$n" </dev/null >>"$S/log/$n.out" 2>&1 ;;
exec) on "$@" ;;
*) echo "node.sh: unknown action $act" >&2; exit 2 ;;
esac
