# make quickstart   installs into .venv and runs the first experiment, about a minute
# make test         installs into .venv and runs the test suite on the CPU
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The CUDA build of jax where an NVIDIA driver answers.
ACCELERATOR := $(shell nvidia-smi >/dev/null 2>&1 && echo ,cuda12)

# uv installs in seconds where pip needs a minute; both take the versions of constraints.txt.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'; \
	fi
	touch $@
endef

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed-run
	$(BIN)/python -m launch.sweep --config=configs/quickstart.py --workdir=runs/quickstart
	$(BIN)/python -m launch.report --workdir=runs/quickstart

test: $(VENV)/installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/installed-run: pyproject.toml constraints.txt
	$(call install,report$(ACCELERATOR))

$(VENV)/installed-test: pyproject.toml constraints.txt
	$(call install,report$(comma)test)

comma := ,

clean:
	rm -rf $(VENV) build *.egg-info
