#!/usr/bin/env bash
# Fails unless Snakemake finds every result of an experiment present and up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
plan=$(.venv/bin/python -m snakemake --dry-run --quiet --config experiment="$1" 2>&1)
case $plan in
  *"Nothing to be done"*) echo "experiment $1: nothing left to do" ;;
  *) printf '%s\n' "$plan"; exit 1 ;;
esac
