# make demo and make test need Python 3.11+ and nothing else; each makes its own environment.

PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-gpu test-browser clean

demo: .venv-demo/done
	.venv-demo/bin/dit-trace run digits-flux -n 16 -o demo/digits-flux.trace
	.venv-demo/bin/dit-analyze summary demo/digits-flux.trace
	.venv-demo/bin/dit-analyze figures demo/digits-flux.trace -o demo/figures --force
	@echo "trace: demo/digits-flux.trace    figures: demo/figures"

test: .venv-test/done
	.venv-test/bin/python -m pytest -m "not gpu and not triton and not browser and not slow"

test-all: .venv-test/done
	.venv-test/bin/python -m pytest -m "not gpu and not triton and not browser"

test-gpu: .venv-test/done
	.venv-test/bin/python -m pytest -m gpu

test-browser: .venv-test/done
	.venv-test/bin/python $(PIP_INSTALL) -e ".[browser]"
	.venv-test/bin/python -m pytest -m browser tests/analyzer

.venv-demo/done: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP_INSTALL) torch -e ".[trace]"
	@touch $@

.venv-test/done: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP_INSTALL) torch -e ".[trace,test]"
	@touch $@

clean:
	rm -rf .venv-demo .venv-test build dist demo *.egg-info
