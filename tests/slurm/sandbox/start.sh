#!/bin/bash
# A real SLURM cluster on this one machine, for tests.  Needs root and:
#   apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2
# Every compute node is its own network+pid+uts+ipc+mount namespace (own address, own
# hostname, own process table, own /dev/shm); controller and login node are where this runs:
# the tests run it inside a network namespace, so that nothing touches the machine's network.
# All state is below $SLURM_SANDBOX; /etc is not touched.
# Idempotent: starts what is not running.  Then: export SLURM_CONF=$SLURM_SANDBOX/slurm.conf
set -euo pipefail
S=$(realpath -m "${SLURM_SANDBOX:?}")
N=${SLURM_SANDBOX_NODES:-2}              # number of nodes
CPUS=${SLURM_SANDBOX_CPUS:-8}            # CPUs each node claims (may exceed the machine's)
GPUS=${SLURM_SANDBOX_GPUS:-2}            # fake GPUs each node claims
NET=${SLURM_SANDBOX_NET:-10.77.0}        # /24 of the cluster; controller is .1, node i is .(10+i)
BR=${SLURM_SANDBOX_BRIDGE:-slbr0}
WAIT=${SLURM_SANDBOX_WAIT:-60}
export SLURM_CONF=$S/slurm.conf PATH=$PATH:/usr/sbin:/sbin
no() { echo "start.sh: $*" >&2; exit 77; }   # 77: this machine cannot do it
[ "$(id -u)" = 0 ] || no "must be root"
for c in slurmctld slurmd sinfo munged ip unshare nsenter; do command -v $c >/dev/null || no "$c is not installed"; done
unshare --net --uts --pid --ipc --mount --fork true 2>/dev/null || no "namespaces are not permitted here"
unshare --net tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1s 2>/dev/null || no "tc cannot slow a link down here (tbf)"
alive() { [ -s "$1" ] && grep -aq . "/proc/$(cat "$1")/cmdline" 2>/dev/null; }   # a zombie's is empty

umask 022
mkdir -p "$S"/{munge,ctld,dev,log,run,nodes}
for ((g = 0; g < GPUS; g++)); do   # must be a device: /dev/null by another name
  [ -e "$S/dev/nvidia$g" ] || mknod -m 666 "$S/dev/nvidia$g" c 1 3
done

# --- configuration (kept as is when it is already there and the controller runs)
if ! alive "$S/run/slurmctld.pid"; then
  cat >"$S/slurm.conf" <<CONF
ClusterName=sandbox
SlurmctldHost=slurmctl($NET.1)
SlurmctldPort=6817
SlurmdPort=6818
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$S/munge/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/nodes/%n/spool
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/nodes/%n/slurmd.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# no cgroups, no affinity: works without systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
# scheduling
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
# times that a busy machine keeps too
SlurmctldTimeout=30
SlurmdTimeout=20
MessageTimeout=20
TCPTimeout=5
KillWait=30
InactiveLimit=0
BatchStartTimeout=60
MinJobAge=600
ReturnToService=2
UnkillableStepTimeout=120
# what finished, without a data base:  sacct -c  or the file itself
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$S/log/jobcomp.txt
GresTypes=gpu
SlurmdParameters=config_overrides
CONF
  echo "CgroupPlugin=cgroup/v1" >"$S/cgroup.conf"   # slurmd loads one even where nothing uses it
  : >"$S/gres.conf"
  names=
  for ((i = 1; i <= N; i++)); do
    echo "NodeName=node$i NodeAddr=$NET.$((10 + i)) Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=4000 Gres=gpu:$GPUS State=UNKNOWN" >>"$S/slurm.conf"
    ((GPUS > 0)) && echo "NodeName=node$i Name=gpu File=$S/dev/nvidia[0-$((GPUS - 1))]" >>"$S/gres.conf"
    names+=${names:+,}node$i
  done
  cat >>"$S/slurm.conf" <<CONF
PartitionName=main Nodes=$names Default=YES MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low  Nodes=$names MaxTime=60 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
PartitionName=high Nodes=$names MaxTime=60 DefaultTime=10 PriorityTier=20 PreemptMode=OFF State=UP
CONF
  { echo "127.0.0.1 localhost"; echo "$NET.1 slurmctl"
    for ((i = 1; i <= N; i++)); do echo "$NET.$((10 + i)) node$i"; done; } >"$S/hosts"
fi

# --- munge
if ! alive "$S/run/munged.pid"; then
  [ -s "$S/munge/munge.key" ] || { head -c 128 /dev/urandom >"$S/munge/munge.key"; chmod 600 "$S/munge/munge.key"; }
  rm -f "$S/munge/munge.socket"*
  munged --force --key-file="$S/munge/munge.key" --socket="$S/munge/munge.socket" \
    --pid-file="$S/run/munged.pid" --log-file="$S/log/munged.log" --seed-file="$S/munge/seed" --num-threads=4
fi

# --- network
ip link show "$BR" >/dev/null 2>&1 || ip link add "$BR" type bridge
ip addr replace "$NET.1/24" dev "$BR"
ip link set "$BR" up

# controller daemons run with their own hostname and /etc/hosts: so slurmctld binds to $NET.1 only
as_ctl() {
  unshare --uts --mount --propagation private bash -c 'mount --bind "$0/hosts" /etc/hosts; hostname slurmctl
    exec "$@"' "$S" "$@" </dev/null >>"$S/log/daemons.out" 2>&1
}

# --- controller
if ! alive "$S/run/slurmctld.pid"; then
  as_ctl slurmctld -f "$SLURM_CONF"
fi

# --- nodes: the first process of each is a shell that starts slurmd and then only reaps
for ((i = 1; i <= N; i++)); do
  n=node$i d=$S/nodes/node$i
  alive "$d/init.pid" && { "$(dirname "$0")/node.sh" start-slurmd $n; continue; }
  "$(dirname "$0")/node.sh" boot $n
done

# --- wait until all are idle
end=$((SECONDS + WAIT))
scontrol update NodeName=ALL State=RESUME 2>/dev/null || true   # left drained or down by an earlier test
until [ "$(sinfo -h -N -p main -o '%T' 2>/dev/null | grep -cx idle)" = "$N" ]; do
  alive "$S/run/slurmctld.pid" || { echo "start.sh: slurmctld ended" >&2; tail -n 5 "$S/log/slurmctld.log" >&2; exit 1; }
  ((SECONDS < end)) || { echo "start.sh: nodes not idle after $WAIT s" >&2; sinfo -N -l >&2 || true; exit 1; }
  sleep 0.2
done
echo "export SLURM_CONF=$SLURM_CONF"
