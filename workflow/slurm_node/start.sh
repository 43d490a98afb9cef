#!/usr/bin/env bash
# Bring up a throw-away one-node Slurm on loopback, to run the workflow as on a cluster.
#
#   workflow/slurm_node/start.sh DIR      as root; DIR holds its state, logs and process ids
#   workflow/slurm_node/stop.sh DIR       stops exactly the daemons that this started
#
# Needs the packages slurmctld, slurmd, slurm-client and munge. Writes /etc/slurm, where jobs look for
# the configuration: it refuses where a cluster's own lies.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: start.sh DIR" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "start.sh: must be root (munge and slurmd change users)" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
case $dir in
  *[!A-Za-z0-9._/+=@-]*) # they go into slurm.conf, through sed
    echo "start.sh: $dir: choose a folder with a name of A-Z, a-z, 0-9 and ._/+=@- only" >&2
    exit 1
    ;;
esac
if [ -s /etc/slurm/slurm.conf ] && ! grep -q "^ClusterName=reca$" /etc/slurm/slurm.conf; then
  echo "start.sh: /etc/slurm/slurm.conf is another cluster's; not touched" >&2
  exit 1
fi

# $1 seconds, then the command that must come true
wait_until() {
  local limit=$1
  shift
  for _ in $(seq $((limit * 4))); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.25
  done
  echo "start.sh: not true within $limit s: $*; see $dir/log" >&2
  return 1
}

start_munge() {
  # munged wants a key and folders of its own user, and clients look at the default socket only
  install -d -m 0755 -o munge -g munge "$dir/munge" /run/munge
  head -c 1024 /dev/urandom > "$dir/munge/key"
  chown munge:munge "$dir/munge/key"
  chmod 400 "$dir/munge/key"
  setpriv --reuid munge --regid munge --clear-groups munged --force \
    --key-file "$dir/munge/key" --pid-file "$dir/munge/munged.pid" \
    --log-file "$dir/munge/munged.log" --seed-file "$dir/munge/seed"
  wait_until 10 munge -n
}

configure() {
  local host cpus memory file
  host=$(hostname -s)
  cpus=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # with them nproc counts a process's threads
  memory=$(awk '/MemTotal/ {print int($2 / 1024) - 512}' /proc/meminfo)
  install -d /etc/slurm
  for i in 0 1; do [ -e "$dir/gpu$i" ] || mknod "$dir/gpu$i" c 1 3; done
  for file in slurm.conf gres.conf; do
    # the configuration's default place: the job step forgets SLURM_CONF
    sed -e "s#@DIR@#$dir#g; s#@HOST@#$host#g; s#@CPUS@#$cpus#g; s#@MEMORY@#$memory#g" \
      "$here/$file.in" > "/etc/slurm/$file"
  done
  : > /etc/slurm/cgroup.conf
}

controller_is_up() { timeout 3 scontrol ping | grep -q "is UP"; }
node_is_idle() { timeout 3 sinfo --noheader --format %t | grep -q idle; }

mkdir -p "$dir"/{run,state,spool,log}
start_munge
configure
slurmctld -D -i > "$dir/log/slurmctld.out" 2>&1 &
echo $! > "$dir/run/slurmctld.started"
wait_until 20 controller_is_up
slurmd -D -N "$(hostname -s)" > "$dir/log/slurmd.out" 2>&1 &
echo $! > "$dir/run/slurmd.started"
wait_until 20 node_is_idle
sinfo
