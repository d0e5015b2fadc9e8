# Every target installs first; once installed, that costs nothing until pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test faults check fix clean install

demo: install  ## one default run on the embedded model
	$(BIN)/factdpo

test: install  ## the default suite: offline, on the CPU, in minutes; a process per core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile

# FAULTS_TIMES=3 tries three times as much; a line `FAULTS | what | tried | as promised | not` per figure
faults: install  ## attacks on what is stored: kills, signals, damage, full disks, a soak, longer fuzzing
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -s -m slow tests/faults/test_fault_damage.py & \
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -s -m slow tests/faults/test_fault_interruptions.py tests/faults/test_fault_soak.py; \
	code=$$?; wait $$! && exit $$code
	OMP_NUM_THREADS=1 FUZZ_TIMES=10 $(BIN)/pytest -q tests/data/test_fuzz_facts.py tests/store/test_fuzz_store.py

check: install  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

fix: install  ## what lint and format can repair by themselves
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## everything that can be made again, except outputs/
	rm -rf .venv dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)
