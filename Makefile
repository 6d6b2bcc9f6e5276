# make demo, make test: each sets up .venv first; VENV=/path/to/env uses an environment that is there.
# make gpu installs nothing: .venv's Python or $(PYTHON), or another with BIN=/usr/bin; GPU="--only step" passes words on.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OUT ?= runs/demo
# A small encoder on 96-pixel views, so that two CPU cores are enough.
TRAIN = --root phantoms/roco --arch resnet10t --text-model tiny --pretrained none --image-size 96 --ssl-mlp-dim 512 \
	--epochs 6 --batch-size 64 --lr 2e-3 --workers 1 --seed 0
PROBE = --root phantoms/cbis --arch resnet10t --image-size 96 --features pooled --workers 2

.PHONY: setup demo test lint gpu clean

setup: $(VENV)/.medslip

$(VENV)/.medslip: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

demo: setup
	$(BIN)/python tools/make_phantoms.py --out phantoms
	$(BIN)/python main.py $(TRAIN) --output-dir $(OUT)/slip
	@for task in calc mass; do \
		echo "== CBIS phantoms: $$task"; \
		$(BIN)/python main_linear.py $(PROBE) --dataset cbis_$$task --pretrained none \
			--name "untrained" --output-dir $(OUT)/probe_$${task}_untrained || exit 1; \
		$(BIN)/python main_linear.py $(PROBE) --dataset cbis_$$task --pretrained $(OUT)/slip/checkpoint_best.pt \
			--name "fine-tuned on phantoms" --output-dir $(OUT)/probe_$${task}_finetuned || exit 1; \
	done
	$(BIN)/python main.py $(TRAIN) --output-dir $(OUT)/slip --evaluate
	@$(BIN)/python tools/table.py $(OUT)/probe_*
	@$(BIN)/python tools/report.py $(OUT)/slip $(OUT)/probe_* --out $(OUT)/report.html

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gpu:
	$(firstword $(wildcard $(BIN)/python $(BIN)/python3) $(PYTHON)) benchmarks/gpu.py $(GPU)

clean:
	rm -rf phantoms runs jobs
