#!/usr/bin/env bash
# Stop exactly the daemons that start.sh DIR started, and take its configuration away again.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: stop.sh DIR" >&2; exit 2; }
dir=$(cd "$1" && pwd)
for file in "$dir/run/slurmd.started" "$dir/run/slurmctld.started" "$dir/munge/munged.pid"; do
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$file"
done
if grep -q "^ClusterName=reca$" /etc/slurm/slurm.conf 2>/dev/null; then
  rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf /etc/slurm/cgroup.conf
fi
