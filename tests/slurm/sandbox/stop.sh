#!/bin/bash
# Ends the cluster of start.sh: only processes whose pids are recorded below the state dir.
# With --purge the state dir goes too.
set -uo pipefail
S=$(realpath -m "${SLURM_SANDBOX:?}")
BR=${SLURM_SANDBOX_BRIDGE:-slbr0}
export PATH=$PATH:/usr/sbin:/sbin
[ -d "$S" ] || exit 0
# a recorded pid counts only while it is still the program that it was (a zombie's cmdline is empty)
is() { [ -s "$1" ] && grep -aq "$2" "/proc/$(cat "$1")/cmdline" 2>/dev/null; }
for d in "$S"/nodes/*/; do
  n=$(basename "$d")
  is "$d/init.pid" "slurm-$n" && kill -9 "$(cat "$d/init.pid")"   # the kernel ends the whole node
  rm -f "$d/init.pid"; ip link del "$BR-$n" 2>/dev/null
done
for p in slurmctld munged; do
  f=$S/run/$p.pid
  if is "$f" $p; then
    pid=$(cat "$f"); [ "${1:-}" = --purge ] && kill -9 "$pid" || kill "$pid"
    for _ in $(seq 200); do is "$f" $p || break; sleep 0.05; done
    is "$f" $p && kill -9 "$pid"
  fi
  rm -f "$f"
done
ip link del "$BR" 2>/dev/null
[ "${1:-}" = --purge ] && rm -rf "$S"
exit 0
