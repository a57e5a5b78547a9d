#!/usr/bin/env bash
# Make the data and the runs of prereg.yaml, smoke.yaml and mocap.yaml: run.sh FOLDER. Started again, it goes on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="$1"
mkdir -p "$out/data"
if [ ! -e "$out/data/nbody/charged-component-seed0/test.npz" ]; then
  equirelax data make nbody --data "$out/data" --train 3000 --val 1000 --test 10000
fi
for seed in $(seq 30 37); do
  if [ ! -e "$out/data/nbody/charged-component-seed$seed/test.npz" ]; then
    equirelax data make nbody --data "$out/data" --seed "$seed" --train 3000 --val 1000 --test 16
  fi
done
equirelax study run "$here/prereg.yaml" --data "$out/data" --out "$out/runs"
equirelax study run "$here/smoke.yaml" --data "$out/data" --out "$out/runs/smoke"
equirelax study run "$here/mocap.yaml" --data "$out/data" --out "$out/runs"
equirelax archive "$out/runs" --out "$out/results"
