# make course      set everything up, make the images, run lessons 00 to 08, print the scoreboard; ALL=1: all lessons
# make lab         open the lessons in JupyterLab
# make test        set everything up and test it, the lessons included
# make test-depth  run what `make test` leaves out: the lessons in in_depth/, the exercises, and their wrong answers
# make test-all    both, with every case of the long tests, which `make test` samples
# make check       the static part of the tests, in seconds
# make fuzz        look for bytes, tables and folders that the readers do not survive; 15 minutes
# make compat      run the lessons with the versions that Colab has, in an environment of its own; PYTHON=python3.13
# make export      write helpers/pipelines/ and notebooks/exercises/ from the notebooks
# make guide       write the second half of teaching/guide.md from the lessons
# make site        make web pages of the lessons as they are committed, in build/site; open its index.html, with no network
# make slides      make the slides of the lessons, one HTML file each, in build/slides
# make offline     write an archive from which make course needs no network; PLATFORMS="linux windows macos" PYTHONS="3.12"
# make lock        write the requirements*.txt from the requirements*.in
# make bench       print the figures that the helpers promise, side by side
# make gpu-bench   measure all pipelines beside ResNet-50 on this machine's GPU; MINUTES=25 at most, goes on where it was
# make reference   measure all pipelines for results/, where lessons look for machines to compare with
#
# Every target makes .venv when it is missing, and installs anew when the lock has changed or this folder was moved.
# Another Python: make course PYTHON=python3.12

VENV := .venv
COMPAT := build/compat-venv
PY := $(VENV)/bin/python
READER := $(VENV)/installed-requirements
MAINTAINER := $(VENV)/installed-requirements-dev
SITE := $(VENV)/installed-requirements-site
# What is installed knows this folder's path; its scripts do, too, so none is called but through `python -m`.
$(shell for stamp in $(READER) $(MAINTAINER); do \
    [ ! -s $$stamp ] || [ "$$(cat $$stamp)" = "$$(pwd -P)" ] || rm -f $$stamp; done)
LESSONS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
IN_DEPTH := $(sort $(wildcard notebooks/in_depth/[0-9]*.ipynb))
SOLUTIONS := $(sort $(wildcard notebooks/solutions/*.ipynb))

PYTEST := $(PY) -m pytest -p no:cacheprovider --durations=10 -n 2
# A cell has 300 s; what starts and ends its kernel has a limit, too.
NBVAL := $(PYTEST) --dist loadfile --timeout=420 --nbval --nbval-cell-timeout=300
export TEST_ALL

# What nbval and the tests see: few images, and no trace in the reader's own results.
export_test_settings = export COURSE_IMAGES=240 COURSE_RESULTS="$$PWD/build/test-results" COURSE_PACKED="$$PWD/build/test-packed"

.PHONY: course lab test test-depth test-all check compat fuzz export guide site slides offline lock bench gpu-bench reference clean same-python
.DELETE_ON_ERROR:
.NOTPARALLEL:

course: $(READER)
	@$(PY) tools/run_course.py $(if $(ALL),--all) $(if $(AGAIN),--again)

lab: $(READER)
	$(PY) -m jupyterlab notebooks

test: check
	rm -rf build/test-results build/test-packed
	$(export_test_settings) && $(PYTEST) --dist worksteal tests
	$(export_test_settings) && $(NBVAL) $(LESSONS)

test-depth: $(MAINTAINER)
	rm -rf build/test-results build/test-packed
	$(export_test_settings) && $(NBVAL) $(IN_DEPTH) $(SOLUTIONS)
	$(export_test_settings) && TEST_ALL=1 $(PYTEST) tests/notebooks

test-all:
	$(MAKE) test test-depth TEST_ALL=1

check: $(MAINTAINER)
	$(PY) -m ruff check -q .
	$(PY) -m ruff format -q --check --exclude '*.ipynb' .
	$(PY) tools/setup_cell.py --check
	$(PY) tools/export.py --check
	$(PY) tools/check_notebooks.py
	$(PY) tools/guide.py --check

compat:
	@sh tools/set_up.sh "$(or $(PYTHON),python3.12)" $(COMPAT) requirements-compat.txt
	rm -rf build/test-results build/test-packed
	$(export_test_settings) && $(COMPAT)/bin/python -m pytest -p no:cacheprovider --nbval --nbval-cell-timeout=300 $(LESSONS) $(IN_DEPTH)

fuzz: $(MAINTAINER)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),10000) $(PY) -m pytest tests/test_fuzz.py -n 2 --timeout=0

export: $(MAINTAINER)
	$(PY) tools/setup_cell.py
	$(PY) tools/export.py

guide: $(MAINTAINER)
	$(PY) tools/guide.py

site: $(SITE)
	$(PY) tools/make_site.py

slides: $(READER)
	$(PY) tools/make_slides.py

offline: $(MAINTAINER)
	$(PY) tools/offline.py $(if $(PLATFORMS),--platforms $(PLATFORMS)) $(if $(PYTHONS),--pythons $(PYTHONS))

lock: $(MAINTAINER)
	$(PY) tools/lock.py

bench: $(MAINTAINER)
	$(PY) benchmarks/watching.py
	$(PY) benchmarks/pipelines.py

gpu-bench: $(READER)
	$(PY) benchmarks/gpu.py --minutes $(or $(MINUTES),25)

reference: $(READER)
	$(PY) -m helpers.benchmark --reference --repeats 5

clean:
	rm -rf build $(VENV)

$(READER): requirements.txt pyproject.toml | same-python
	@sh tools/set_up.sh "$(PYTHON)" $(VENV) requirements.txt
	@pwd -P >$@

$(MAINTAINER): requirements-dev.txt pyproject.toml | same-python
	@sh tools/set_up.sh "$(PYTHON)" $(VENV) requirements-dev.txt
	@pwd -P >$@

$(SITE): requirements-site.txt $(READER)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-site.txt
	@pwd -P >$@

same-python:
	@sh tools/set_up.sh "$(PYTHON)" $(VENV)
