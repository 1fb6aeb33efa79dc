# `make demo` and `make test` set everything up by themselves. Override with e.g. `make test VENV=$HOME/my-env`.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Widgets are dead text on a page: their outputs are not kept.
WIDGETS := --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags widget
NOTEBOOKS := $(patsubst nbs/%.ipynb,%,$(wildcard nbs/*.ipynb nbs/attacks/*.ipynb nbs/defenses/*.ipynb))

.PHONY: demo test soak gpu lint export refresh docs docs-check lab clean

demo: $(VENV)/ready
	@rm -rf runs/demo && mkdir -p runs
	$(BIN)/papermill nbs/05_attacks.ipynb runs/demo.ipynb -p preset digits -p out runs/demo --log-output --no-progress-bar 2>&1 | awk '/runs: about|clone [0-9.]+%$$|Error/ { print; fflush() }'
	@$(BIN)/python -c "from meco_nb.records import load_records, table; print(table(load_records('runs/demo'), seconds=True))"
	@echo "The whole story, with pictures: runs/demo.ipynb (open it with: $(BIN)/jupyter lab runs/demo.ipynb)"

# One thread each: two processes with a thread per core wait for one another most of the time.
test: export OMP_NUM_THREADS = 1
test: lint
	PATH="$(abspath $(BIN)):$$PATH" MECO_PROGRESS=0 nbdev_test --n_workers 2
	MECO_PROGRESS=0 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The border at length, about an hour on two cores: a short form of it is part of make test.
soak: $(VENV)/ready
	MECO_PROGRESS=0 $(BIN)/python tests/soak.py

# On a machine with a CUDA device: that it computes the same there, and how fast; kept in results/bench-DEVICE.json.
gpu: $(VENV)/ready
	@$(BIN)/python -c "import torch; assert torch.cuda.is_available()" 2>/dev/null || { echo "make gpu needs a CUDA device, and PyTorch sees none" >&2; exit 1; }
	$(BIN)/python -m pytest -q -m gpu tests/test_gpu.py
	$(BIN)/python -c "from meco_nb.paper_size import main; main()"

# Format and rules of the notebooks, the tests and the package's hand-written files: the rest of it is exported.
LINTED := nbs tests setup.py meco_nb/__init__.py meco_nb/attacks/__init__.py meco_nb/defenses/__init__.py

lint: $(VENV)/ready
	$(BIN)/ruff format --check -q $(LINTED)
	$(BIN)/ruff check -q $(LINTED)

$(VENV)/ready: settings.ini setup.py
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

# From the notebooks to the package, and notebooks without anything that differs from run to run; the README's lists from the cards, its findings from the records.
export: $(VENV)/ready
	$(BIN)/ruff format -q $(LINTED)
	PATH="$(abspath $(BIN)):$$PATH" nbdev_export
	PATH="$(abspath $(BIN)):$$PATH" nbdev_clean
	$(BIN)/python -c "from pathlib import Path; from meco_nb.methods import with_lists; p = Path('README.md'); from meco_nb.found import with_findings; p.write_text(with_findings(with_lists(p.read_text())))"

# Run the notebooks again and keep their outputs: make refresh, or make refresh NOTEBOOKS='01_kd attacks/dfme'.
refresh: $(VENV)/ready
	for name in $(NOTEBOOKS); do (cd nbs/$$(dirname $$name) && MECO_PROGRESS=0 $(abspath $(BIN))/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=3600 $$(basename $$name).ipynb) || exit 1; done
	cd nbs && $(abspath $(BIN))/jupyter nbconvert --to notebook --inplace --log-level WARN $(WIDGETS) $(addsuffix .ipynb,$(NOTEBOOKS))
	PATH="$(abspath $(BIN)):$$PATH" nbdev_clean

# The site; needs Quarto (https://quarto.org), which pip cannot install.
docs: $(VENV)/ready
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: see https://quarto.org/docs/get-started" >&2; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" nbdev_docs

# The same pages offline, with smalldocs: links, titles, formulas, the sidebar. Part of make test.
docs-check: $(VENV)/ready
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_notebooks.py -k 'not papermill and not package'

lab: $(VENV)/ready
	$(BIN)/jupyter lab nbs/index.ipynb

clean:
	rm -rf runs _proc _docs build dist *.egg-info
