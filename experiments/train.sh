#!/usr/bin/env bash
# Train every configuration of the objectives and ssl_scale questions, seed by seed:
#   experiments/train.sh DATA_ROOT OUT [SEEDS...]
# DATA_ROOT has ROCO's layout. A run that is done is left alone; one that was interrupted goes on.
set -euo pipefail
root=$1 out=$2
shift 2
common="--root $root --arch resnet10t --text-model tiny --pretrained none --image-size 96 --ssl-mlp-dim 512
	--epochs 8 --batch-size 64 --lr 1e-3 --workers 1 --cache runs/cache --print-freq 1000"
for seed in "${@:-0}"; do
	for configuration in "clip" "simclr" "slip 1" "slip 0.5" "slip 2"; do
		read -r objective scale <<<"$configuration"
		name=$objective${scale:+_$scale}
		# shellcheck disable=SC2086
		${PYTHON:-python} main.py $common --objective "$objective" --ssl-scale "${scale:-1}" --seed "$seed" \
			--output-dir "$out/${name}_seed$seed"
	done
done
