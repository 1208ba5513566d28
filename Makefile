# Everything a newcomer needs: `make demo`, `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find echoir export runtime calibration -type f -not -path '*/__pycache__/*')

.PHONY: demo test lint types unit serving ray resolve packages clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: lint types unit

lint: $(VENV)/.dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not follow the folder mapping of pyproject.toml: check what got installed.
types: $(VENV)/.installed
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p echoir

unit: $(VENV)/.installed
	$(BIN)/pytest

# A real tritonserver, of which PyPI has the Python backend alone; its environment is apart, for numpy before 2. Not on
# Python 3.13, nor where the C library is older than 2.35.
serving: $(VENV)/.installed $(VENV)/.serving
	ECHOIR_SERVING_PYTHON=$(abspath $(VENV)/serving/bin/python) $(BIN)/pytest tests/test_tritonserver.py

$(VENV)/.serving: $(VENV)/.dependencies
	$(PYTHON) -m venv $(VENV)/serving
	$(VENV)/serving/bin/pip install -q nvidia-pytriton==0.7.0 numpy==1.26.4 onnxruntime==1.23.2
	touch $@

# Ray, with workers, drivers and nodes that get killed: minutes, and 300 MB more, so not part of `make test`.
ray: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt 'ray[data]'
	$(BIN)/pytest tests/test_ray.py

# Whether a stranger can install every extra, on every Python and architecture; needs the public index.
resolve: $(VENV)/.dependencies
	$(BIN)/pip install -q -c constraints.txt uv
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python .ci/resolve.py

# Programs and bindings of Debian that the tests of streams use; without them those skip. Needs root.
packages:
	apt-get update -q
	apt-get install -qy --no-install-recommends ffmpeg gstreamer1.0-tools gstreamer1.0-plugins-base \
		gstreamer1.0-plugins-good gstreamer1.0-python3-plugin-loader python3-gi python3-gst-1.0 \
		gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0

# A wheel, not an editable install, so that missing package data shows.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	rm -rf build
	$(BIN)/pip install -q --no-deps --no-build-isolation --force-reinstall .
	touch $@

$(VENV)/.dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q 'setuptools>=77' -c constraints.txt
	$(BIN)/pip install -q -c constraints.txt '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
