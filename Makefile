# make demo: see the trap on a real model.  make test: everything.  make check: before a commit.
PYTHON ?= python3
BIN := .venv/bin
MODEL := smollm2-135m-instruct-q4

.PHONY: demo test thorough check lint format generate docs bench truth verify mutation clean

demo: .venv/installed
	$(BIN)/finetrap models get $(MODEL)
	$(BIN)/finetrap demo

test: .venv/installed
	$(BIN)/finetrap models get $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not thorough" -n 2 --dist loadfile
	$(BIN)/pytest -m "slow and not thorough"

# Every case of what `make test` has a sample of; types and shapes are checked as they run. CI does this as well.
thorough: .venv/installed
	$(BIN)/finetrap models get $(MODEL)
	CHECK_SHAPES=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile
	$(BIN)/pytest -m "slow and thorough"

check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not thorough" -n 2 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What comes out of code or records: the README's table, the JSON Schema of results.json, most pages of docs/.
generate: .venv/installed
	$(BIN)/python docs/generate.py

# The documentation, into site/. It is read from there, without a server or a network.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

# Whether the engine gives the answers of Transformers, PEFT and TRL; what is in the file is not computed again.
verify: .venv/installed
	$(BIN)/finetrap models get $(MODEL)
	PYTHONPATH=bench:tests $(BIN)/python -m same_answers

# Whether the statistics hold, in simulated studies where the truth is known; some 8 minutes of 2 cores. What is in
# bench/results/truth.json is not simulated again.
truth: .venv/installed
	OMP_NUM_THREADS=1 PYTHONPATH=bench $(BIN)/python -m truth

# Whether the tests notice when what decides a verdict is wrong: an hour or two. It goes on where it was stopped. With
# MUTATION=--digits=3 a tenth of it.
mutation: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/python bench/mutation.py $(MUTATION)

# Hours: every figure of docs/performance.md, three runs each. MODELS is a folder with further GGUF files; what is already
# in bench/results is measured again unless BENCH is --missing.
bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/finetrap models get $(MODEL)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/engine.py $(if $(MODELS),--models $(MODELS)) $(BENCH)
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/compiled.py
	$(BIN)/python bench/fits.py $(if $(MODELS),--models $(MODELS))
	$(BIN)/python docs/generate.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache mutants site
