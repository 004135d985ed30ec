# Two commands: `make demo` (run it) and `make test` (test it). Each does all of its own set-up; nothing is installed outside
# this directory but the Copilot runtime, which goes into the user's cache once, and for tests by root, bubblewrap and Chromium (with apt).
PYTHON ?= python3
BIN := .venv/bin
NODE_TESTS := tests/e2e/node

.PHONY: help demo test lint check bench setup clean
help:
	@echo "make demo   run a gateway with a demo model and two programs to try"
	@echo "make test   run the whole test suite on the real runtime"
	@echo "make lint   formatting, lint, types, layers"
	@echo "make bench  run every benchmark; some 40 minutes"

demo: $(BIN)/.runtime
	@$(BIN)/aerodrome demo

# By two processes, a file of tests in one of them: half of the time goes by in waiting. One file alone: pytest FILE.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: setup
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/wake.py
	$(BIN)/python bench/live_sessions.py
	$(BIN)/python bench/density.py
	$(BIN)/python bench/sandbox.py
	$(BIN)/python bench/sandbox.py --entry node
	$(BIN)/python bench/forwarder.py
	$(BIN)/python bench/streams.py
	$(BIN)/python bench/shared_sessions.py

setup: $(BIN)/.node-entry $(NODE_TESTS)/node_modules/.installed bubblewrap chromium

# The tests of the sandbox need it, the product only where agents are sandboxed. Root of a machine with apt gets it; else it is said.
.PHONY: bubblewrap
bubblewrap:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get install --yes --quiet --no-install-recommends bubblewrap >/dev/null 2>&1 \
	    || { apt-get update --quiet >/dev/null 2>&1 && apt-get install --yes --quiet --no-install-recommends bubblewrap >/dev/null; }; }; } \
	  || echo "NOTE: bubblewrap is missing and could not be installed: the tests of the sandbox are skipped, those of its lack are not"

# The tests of the pages need a browser, the product none. Root of a machine with apt gets one, with letters to look at; else it is said.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get install --yes --quiet --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 \
	    || { apt-get update --quiet >/dev/null 2>&1 && apt-get install --yes --quiet --no-install-recommends chromium fonts-dejavu-core >/dev/null; }; }; } \
	  || echo "NOTE: Chromium is missing and could not be installed: the tests of the pages are skipped (apt install chromium)"

$(BIN)/.installed: requirements/dev.lock requirements/uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements/dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

$(BIN)/.runtime: $(BIN)/.installed
	$(BIN)/aerodrome runtime install
	touch $@

# The tests use both entry points of the release; this fetches it once for both.
$(BIN)/.node-entry: $(BIN)/.installed
	$(BIN)/aerodrome runtime install --entry node
	touch $@

$(NODE_TESTS)/node_modules/.installed: $(NODE_TESTS)/package-lock.json
	cd $(NODE_TESTS) && npm ci --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error
	touch $@

clean:
	rm -rf .venv build $(NODE_TESTS)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
