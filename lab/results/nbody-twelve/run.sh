#!/usr/bin/env bash
# Make the data and the runs of prereg.yaml: run.sh FOLDER, or run.sh FOLDER --small for a trial on a CPU. Started again, it goes on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="$1"
shift
seeds="$(seq 60 71)"
test=10000
if [ "${1:-}" = --small ]; then
  seeds="60 61"
  test=20
fi
mkdir -p "$out"
for seed in 0 $seeds; do
  if [ ! -e "$out/data/nbody/charged-component-seed$seed" ]; then
    equirelax data make nbody --data "$out/data" --seed "$seed" --train 3000 --val 1000 --test "$([ "$seed" = 0 ] && echo "$test" || echo 16)"
  fi
done
equirelax study run "$here/prereg.yaml" --data "$out/data" --out "$out/runs" --stack 12 "$@"
equirelax archive "$out/runs" --out "$out/results"
