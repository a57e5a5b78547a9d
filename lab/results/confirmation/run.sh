#!/usr/bin/env bash
# Make the data and the runs of prereg.yaml, smoke.yaml and mocap.yaml: run.sh FOLDER. Started again, it continues.
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
for study in prereg smoke mocap; do
  equirelax study run "$here/$study.yaml" --data "$out/data" --out "$out/runs/$study"
done
equirelax archive "$out/runs/prereg" --out "$out/results"
equirelax archive "$out/runs/smoke" --out "$out/results/smoke"
equirelax archive "$out/runs/mocap" --out "$out/results"
