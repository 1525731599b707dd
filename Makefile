# Two commands to begin with: `make demo` and `make test`. Both make .venv themselves.

PYTHON := .venv/bin/python
BATCHINFER := .venv/bin/batchinfer
JOBS := text-embedding image-classification tabular-scoring text-classification
QUERY ?= wait for several things to happen at the same time
# As typed: make would take a $ in it for a variable of its own.
override export QUERY := $(value QUERY)

.PHONY: help demo jobs test soak soak-kill model lint format constraints schema clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## Embed 10,000 docstrings and search them: make demo QUERY="read a zip file"
	@.ci/bootstrap demo
	@$(PYTHON) jobs/text-embedding/prepare.py
	@$(BATCHINFER) run jobs/text-embedding/job.yaml
	@$(PYTHON) jobs/text-embedding/search.py "$$QUERY"

jobs: ## Prepare and run every example in jobs/
	@.ci/bootstrap demo
	@for job in $(JOBS); do \
	  echo "-- $$job"; \
	  $(PYTHON) jobs/$$job/prepare.py && $(BATCHINFER) run jobs/$$job/job.yaml || exit; \
	done

test: ## Run the whole suite, servers included: make test ARGS="-k onnx"
	@.ci/system-packages
	@.ci/bootstrap dev
	@.ci/servers
	@.ci/suite $(ARGS)

soak: ## A million schedules of the protocol, simulated: make soak SCHEDULES=1000 SEED=7
	@.ci/bootstrap dev
	@$(PYTHON) -m tests.protocol.simulation --schedules $(or $(SCHEDULES),1000000) --seed $(or $(SEED),0)

soak-kill: ## Real kills, of the protocol alone and of whole runs: make soak-kill SCHEDULES=2000
	@.ci/bootstrap dev
	@$(PYTHON) -m tests.protocol.kills --schedules $$((10 * $(or $(SCHEDULES),2000))) --seed $(or $(SEED),0)
	@$(PYTHON) -m tests.protocol.whole --schedules $(or $(SCHEDULES),2000) --seed $(or $(SEED),0)

model: ## Check the model of the protocol, and that every mutant of it is caught
	@.ci/bootstrap dev
	@$(PYTHON) -m tests.model.check

lint: ## Check style and types
	@.ci/bootstrap dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: ## Put style right where a machine can
	@.ci/bootstrap dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

schema: ## Write schemas/job.schema.json anew
	@.ci/bootstrap dev
	$(BATCHINFER) schema > schemas/job.schema.json

constraints: ## Write constraints.txt anew: the versions that CI uses
	@.ci/bootstrap dev
	.ci/constraints

clean: ## Remove what the examples made: models, data, outputs
	rm -rf jobs/*/data jobs/*/model jobs/*/model.partial jobs/*/output
