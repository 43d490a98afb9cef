#!/usr/bin/env bash
# The smoke experiment through a real one-node Slurm, in a clone of its own. Without root or the
# packages there can be no Slurm: then this says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
packages="slurmctld slurmd slurm-client munge"

install_slurm() {
  command -v slurmctld slurmd sbatch munged >/dev/null && return 0
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # a list of packages
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

if ! install_slurm; then
  echo "SKIPPED: no Slurm here (needs root and the packages $packages)"
  exit 0
fi
work=$(mktemp -d)
chmod 755 "$work"
cleanup() {
  workflow/slurm_node/stop.sh "$work/slurm" || true
  rm -rf "$work"
}
trap cleanup EXIT
workflow/slurm_node/start.sh "$work/slurm"
git clone --quiet --local . "$work/clone"
export PATH="$PWD/.venv/bin:$PATH"
cd "$work/clone"
snakemake --cores all --profile slurm --config experiment=laptop_smoke
test -s results/laptop_smoke/report/index.html
echo "the smoke experiment passed through Slurm"
