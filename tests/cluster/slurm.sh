#!/bin/sh
# A Slurm cluster of one node on this machine, for tests: munged, slurmctld and slurmd as root.
#   slurm.sh up FOLDER     start it
#   slurm.sh down FOLDER   cancel its jobs and end its daemons, found by their pid files
# Partitions: cpu (default) and gpu. The node's 4 CPUs and 2 GPUs are claimed, not found.
# Needs Debian's slurm-wlm and munge, and root. Everything is written below FOLDER, but for a link,
# /etc/slurm/slurm.conf, which jobs need; where there is a file of that name, nothing is started.
set -eu
action=$1
folder=$(mkdir -p "$2" && cd "$2" && pwd)
conf="$folder/slurm.conf"
link=/etc/slurm/slurm.conf
export SLURM_CONF="$conf"

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

up() {
  if [ -e "$link" ]; then
    echo "slurm.sh: $link exists: this machine has a cluster already" >&2
    exit 1
  fi
  mkdir -p "$(dirname "$link")"
  ln -sfn "$conf" "$link"
  chmod 755 "$folder"
  rm -rf "$folder/state" "$folder/spool"  # of a cluster that was here before
  mkdir "$folder/state" "$folder/spool"
  (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 2>/dev/null)
  host=$(hostname -s)
  cat > "$conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
KillWait=5
ReturnToService=2
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$host MaxTime=INFINITE State=UP
CONF
  touch "$folder/gpu0" "$folder/gpu1"  # what Slurm takes for devices
  echo "Name=gpu File=$folder/gpu[0-1]" > "$folder/gres.conf"
  /usr/sbin/munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log"
  /usr/sbin/slurmctld
  /usr/sbin/slurmd
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null | sort -u)" = idle ] && return
    sleep 0.5
  done
  echo "slurm.sh: the node did not become idle; see $folder/*.log" >&2
  down
  exit 1
}

down() {
  if kill -0 "$(cat "$folder/slurmctld.pid" 2>/dev/null)" 2>/dev/null; then
    scancel --full --me 2>/dev/null || true
    for _ in $(seq 20); do
      [ -z "$(squeue --noheader 2>/dev/null)" ] && break
      sleep 0.5
    done
  fi
  [ "$(readlink "$link")" != "$conf" ] || rm "$link"
  for name in slurmctld slurmd munged; do
    [ -f "$folder/$name.pid" ] || continue
    pid=$(cat "$folder/$name.pid")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 40); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

case $action in
  up | down) "$action" ;;
  *) echo "slurm.sh: up or down, not $action" >&2 && exit 2 ;;
esac
