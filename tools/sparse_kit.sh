#!/bin/sh
# Everything the offline phase can say of a naturally sparse model: statistics, report, predictor, placement, benchmarks
# of dense, exact and predict, divergences. For owners of real checkpoints; docs/OFFLINE.md explains each step.
#
#   tools/sparse_kit.sh CHECKPOINT_OR_GGUF TEXT OUT_FOLDER [--type q8_0|q4_0|..]
#
# Environment: TOKENS (200000) to profile; KIND (bit_planes) and BITS (3) of the predictor; MAX_KLD (0.0014);
# VRAM (none) a budget such as 8GiB, and GPU (none) as "GB/s of the GPU,GB/s of PCIe,hand-off in us", for placement.
set -eu

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
source=$1 text=$2 out=$3
shift 3
type=q8_0
while [ $# -gt 0 ]; do
  case $1 in
    --type) [ $# -ge 2 ] || usage; type=$2; shift 2 ;;
    *) usage ;;
  esac
done
mkdir -p "$out"
step() { printf '== %s\n' "$*" >&2; }

model=$out/model.gguf
if [ -d "$source" ]; then
  step "convert to $type, neuron-major"
  hotset convert "$source" -o "$model" --type "$type" --force
else
  model=$source
fi
sidecar=$out/model.hotset.gguf
stats=$out/stats.npz

step "inspect"
hotset inspect -m "$model" >"$out/inspect.txt"
step "profile"
hotset profile -m "$model" -f "$text" -n "${TOKENS:-200000}" --samples 2048 -o "$stats" --json >"$out/profile.json"
step "predictor"
predicts=yes
hotset train-predictor -m "$model" -f "$text" -o "$sidecar" --kind "${KIND:-bit_planes}" --bits "${BITS:-3}" \
  --max-kld "${MAX_KLD:-0.0014}" --json >"$out/predictor.json" || predicts=no
step "machine"
hotset bench --machine -o "$out/machine.json" >/dev/null
if [ -n "${VRAM:-}" ]; then
  step "place for $VRAM"
  gpu=${GPU:?set GPU=GB/s,PCIe GB/s,hand-off us for a placement}
  rest=${gpu#*,}
  hotset place -m "$model" --stats "$stats" --machine "$out/machine.json" --vram-budget "$VRAM" -o "$sidecar" \
    --gpu-gbps "${gpu%%,*}" --pcie-gbps "${rest%%,*}" --handoff-us "${rest##*,}" --json >"$out/placement.json"
fi
step "report"
if [ -n "${VRAM:-}" ]; then
  hotset report --stats "$stats" --sidecar "$sidecar" -o "$out/report"
else
  hotset report --stats "$stats" -o "$out/report"
fi

modes="dense exact"
[ "$predicts" = no ] || modes="$modes predict"
for mode in $modes; do
  step "bench and kld, mode $mode"
  place=none
  [ "$mode" != predict ] || place=$sidecar
  hotset bench -m "$model" --mode "$mode" --sidecar "$place" -p 512 -n 64 -r 5 -o json >"$out/bench-$mode.json"
  hotset kld -m "$model" -f "$text" -c 256 --chunks 32 --mode "$mode" --sidecar "$place" --json >"$out/kld-$mode.json"
  hotset bench -m "$model" --mode "$mode" --sidecar "$place" -p 512 -n 64 -r 5
done
step "done: $out/report/report.html, $out/*.json"
