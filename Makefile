# make run: the app. make test: lint, unit, training and browser tests. Both install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint format chromium bench clean

run: $(VENV)/.run
	$(BIN)/python app.py

test: $(VENV)/.test chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not browser and not training"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m training --ignore tests/test_promise.py
	$(BIN)/python -m pytest -m training tests/test_promise.py
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.data

# Stamps: pip runs again only when what it reads has changed.
$(VENV)/.run: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# The browser tests drive Debian's Chromium (or any named by CHROMIUM).
chromium:
	@command -v "$${CHROMIUM:-chromium}" >/dev/null 2>&1 && exit 0; \
	if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else \
		echo "The browser tests need Chromium: run 'sudo apt-get install chromium', or set CHROMIUM to its path."; exit 1; \
	fi

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
