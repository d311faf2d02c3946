# Both commands set up what they need in .venv, and are safe to run again.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test studies setup clean

demo: $(READY)
	$(VENV)/bin/qgf demo

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTEST) -m "$(if $(ARGS),,not bit_exact)" $(ARGS)
	$(if $(ARGS),,QGF_TESTS_OPTIMIZED=1 $(PYTEST) -m bit_exact)

# So small, programs compile for longer than they run, and processes would each compile anew.
studies: $(READY)
	XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false" \
		$(VENV)/bin/qgf study all --preset smoke --jobs 0 --out out/studies

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "qgf needs Python 3.11 or newer; name one with make PYTHON=..."; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) demo out
