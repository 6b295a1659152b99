# Every target sets up .venv first (scripts/setup_env.py), which takes a moment when nothing has changed.
.DEFAULT_GOAL := help
.NOTPARALLEL:

PY := .venv/bin/python

# Where a branch without a test is an error; the rest of the package is reported only.
comma := ,
space := $(subst ,, )
ENGINE := $(subst $(space),$(comma),$(strip \
	cqrs_sync/dispatcher/* \
	cqrs_sync/mediator.py \
	cqrs_sync/invocation.py \
	cqrs_sync/scoping.py \
	cqrs_sync/codegen.py \
	cqrs_sync/checks.py \
	cqrs_sync/executors.py \
	cqrs_sync/background.py \
	cqrs_sync/backoff.py \
	cqrs_sync/reasons.py \
	cqrs_sync/tracing.py \
	cqrs_sync/sql.py \
	cqrs_sync/sql_errors.py \
	cqrs_sync/producer.py \
	cqrs_sync/outbox/* \
	cqrs_sync/events/event_emitter.py \
	cqrs_sync/events/event_processor.py \
	cqrs_sync/events/bootstrap.py \
	cqrs_sync/requests/bootstrap.py \
	cqrs_sync/saga/* \
	cqrs_sync/saga/storage/* \
	cqrs_sync/unit_of_work/* \
	cqrs_sync/container/protocol.py \
	cqrs_sync/container/scope.py \
	cqrs_sync/container/plans.py \
	cqrs_sync/container/punq.py \
	cqrs_sync/middlewares/*))

# Any Python that runs will do to start the script, which then looks for a fit one. A version manager's shim may
# be on PATH and not run.
define setup
@for python in "$$PYTHON" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c "" 2>/dev/null || continue; \
	"$$python" scripts/setup_env.py $(1); exit; \
done; \
echo "setup: no Python found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1
endef

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: ## run the example shop
	$(call setup,examples)
	@$(PY) -m examples.shop

.PHONY: test
test: ## run every test, doctests and snippets included; the engine's branches must all be covered
	$(call setup,examples lint test)
	@$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report
	@$(PY) -m coverage report --include='$(ENGINE)' --fail-under=100

.PHONY: soak
soak: ## run the long stress tests
	$(call setup,examples test)
	@$(PY) -m pytest tests -m soak || { [ $$? -eq 5 ] && echo "no soak tests yet"; }

.PHONY: lint
lint: ## check style, types and layers
	$(call setup,examples lint test)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)
	.venv/bin/lint-imports --no-logo

.PHONY: format
format: ## rewrite the code in the project's style
	$(call setup,examples lint test)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

.PHONY: kafka
kafka: ## run a real Apache Kafka in the foreground (Java 17 and Maven; it is fetched once)
	$(call setup,examples test)
	@$(PY) -m tests.kafka

.PHONY: bench
bench: ## measure against the peers
	$(call setup,bench examples)
	@$(PY) -m benchmarks

.PHONY: matrix
matrix: ## test every Python and SQLAlchemy that is supported and present
	$(call setup,dev)
	.venv/bin/tox

.PHONY: wheel
wheel: ## build the wheel and check it in an empty environment
	$(call setup,examples)
	@$(PY) scripts/check_wheel.py

.PHONY: clean
clean: ## remove what the other targets made, .venv included
	rm -rf .venv .tox .kafka build dist ./*.egg-info .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
