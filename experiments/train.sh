#!/usr/bin/env bash
# Train every configuration of the questions, seed by seed: experiments/train.sh DATA_ROOT OUT SEEDS...
# DATA_ROOT has ROCO's layout. A run that is done is left alone; one that was interrupted goes on.
# EPOCHS, IMAGE_SIZE and CONFIGURATIONS (separated by commas) may be set in the environment.
set -euo pipefail
root=$1 out=$2
shift 2
common="--root $root --arch resnet10t --text-model tiny --pretrained none --image-size ${IMAGE_SIZE:-96} --ssl-mlp-dim 512
	--epochs ${EPOCHS:-8} --batch-size 64 --lr 1e-3 --workers 1 --cache runs/cache --print-freq 1000"
IFS=, read -r -a configurations <<<"${CONFIGURATIONS:-clip,simclr,slip 1,slip 0.5,slip 2}"
for seed in "${@:-0}"; do
	for configuration in "${configurations[@]}"; do
		read -r objective scale <<<"$configuration"
		# shellcheck disable=SC2086
		${PYTHON:-python} main.py $common --objective "$objective" --ssl-scale "${scale:-1}" --seed "$seed" \
			--output-dir "$out/$objective${scale:+_$scale}_seed$seed"
	done
done
