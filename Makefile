# make demo    run the main job on real data, then search its output
# make test    run the whole suite, servers included
# make jobs    run every example job
# make lint    formatting, lint and types
.POSIX:
.PHONY: demo test lint jobs schema clean

QUERY = wait for several things to happen at the same time
RUN = .venv/bin/batchinfer run
EXAMPLES = text-embedding tabular-scoring image-classification text-classification

demo:
	@.ci/bootstrap demo
	@.venv/bin/python jobs/text-embedding/prepare.py
	@$(RUN) jobs/text-embedding/job.yaml
	@.venv/bin/python jobs/text-embedding/search.py "$(QUERY)"

test:
	@.ci/system-packages
	@.ci/bootstrap demo test
	@.venv/bin/python -m pytest -n 2 --dist worksteal

jobs:
	@.ci/bootstrap demo
	@for job in $(EXAMPLES); do \
		.venv/bin/python jobs/$$job/prepare.py && $(RUN) jobs/$$job/job.yaml || exit $$?; \
	done

lint:
	@.ci/bootstrap demo test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

schema:
	@.venv/bin/batchinfer schema > schemas/job.schema.json

clean:
	rm -rf .venv jobs/*/data jobs/*/model jobs/*/model.onnx jobs/*/labels.txt jobs/*/output
