# mikv: set-up, build, tests and demo, each with one word. All of them can be repeated; nothing is done twice.
#
# CMake does the work; the presets in CMakePresets.json are the same builds without make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

JOBS ?= $(shell nproc)
MIKV := build/bin/mikv
FETCH := python3 scripts/fetch_package.py
DEMO_MODEL := qwen2.5-coder-0.5b
TEST_MODEL := smollm2-135m
DEMO_KV := full,h2o,rtn4,mikv-paper,mikv,llama:f16,llama:q8_0,llama:q4_0
CMAKE_ARGS ?=
FUZZ_SECONDS ?= 300
PREFIX ?= /usr/local

# Each step is its own make target for readability, but they must run in the order written.
.NOTPARALLEL:
.PHONY: help setup build test test-long test-sanitizers test-arm test-llama-cpp test-llama-server fuzz format install package demo bench clean

help: ## show this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-18s %s\n' "$$name" "$$what"; done
	@echo "CMAKE_ARGS=... is passed to CMake, for example CMAKE_ARGS=-DMIKV_LLAMA_SOURCE=DIR; JOBS=N sets the number of compilers; PREFIX=DIR is where install installs."

setup: ## install the system packages the build needs, where permitted
	@scripts/setup.sh

build: setup ## release build (the default): leaves the command at build/bin/mikv
	@cmake --preset release --log-level=WARNING $(CMAKE_ARGS)
	@cmake --build --preset release --parallel $(JOBS)

test: setup ## the tests of the release build, with llama.cpp, SmolLM2 and Transformers (6 minutes); MIKV_NO_PYTHON=1 leaves Python out
	@made=true; \
	[ -n "$${MIKV_NO_PYTHON:-}" ] || { scripts/python_env.sh >/dev/null & made="wait $$!"; }; \
	$(call run_tests,release,build/ctest.log,$$made)

test-long: setup ## those that take longest: soaks, long prompts, all kinds of caches (8 minutes)
	@$(call run_tests,long,build/ctest-long.log,true)

# Builds the release and its tests, and runs those of a test preset: $(1), with its log $(2). The command $(3) waits for
# what is made beside the build.
define run_tests
cmake --preset release --log-level=WARNING -DMIKV_BUILD_TESTS=ON $(CMAKE_ARGS); \
cmake --build --preset release --parallel $(JOBS); \
$(FETCH) get $(TEST_MODEL) >build/test-model.txt; \
$(3); \
MIKV_TEST_MODEL="$$(cat build/test-model.txt)" ctest --preset $(1) --parallel $(JOBS) --output-log $(2)
endef

test-sanitizers: setup ## the unit tests under the address and undefined-behaviour sanitizers, those with threads under the thread sanitizer
	@for preset in asan tsan; do \
	  echo "--- $$preset"; \
	  cmake --preset $$preset --log-level=WARNING $(CMAKE_ARGS); \
	  cmake --build --preset $$preset --parallel $(JOBS); \
	  ctest --preset $$preset --parallel $(JOBS) --output-log build/$$preset/ctest.log; \
	done

# Emulation is slow: the test preset takes one spec for each kernel of a format, and leaves threads to the other builds.
test-arm: setup ## attention and codecs on 64-bit ARM, under emulation
	@if [ "$$(uname -m)" = aarch64 ]; then echo "test-arm: this machine is one; make test runs its tests"; exit 0; fi; \
	scripts/setup.sh aarch64; \
	cmake --preset aarch64 --log-level=WARNING $(CMAKE_ARGS); \
	cmake --build --preset aarch64 --parallel $(JOBS); \
	ctest --preset aarch64 --parallel $(JOBS) --output-log build/aarch64/ctest.log

fuzz: setup ## libFuzzer on what reads saved caches, FUZZ_SECONDS long (default 300)
	@scripts/setup.sh fuzz
	@cmake --preset fuzz --log-level=WARNING $(CMAKE_ARGS)
	@cmake --build --preset fuzz --parallel $(JOBS) --target mikv_fuzz_session
	@mkdir -p build/fuzz/found
	@build/fuzz/bin/mikv_fuzz_session -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 -artifact_prefix=build/fuzz/found/ build/fuzz/found tests/fuzz/corpus

test-llama-cpp: build ## llama.cpp's own C++ tests of states and threads, stock and with mikv preloaded (3 minutes)
	@$(FETCH) get $(TEST_MODEL) >build/test-model.txt
	@python3 tests/llama_cpp/run.py --model "$$(cat build/test-model.txt)" --build build -o build/llama-cpp-tests/results.json

test-llama-server: build ## llama.cpp's own server tests: those that stock llama-server passes, on mikv server (10 minutes)
	@$(FETCH) get $(TEST_MODEL) >build/test-model.txt
	@python3 tests/llama_server/run.py --model "$$(cat build/test-model.txt)" --mikv $(MIKV)

format: ## format all C and C++ sources (pip provides the formatter)
	@scripts/format.sh

install: ## install what `make` has built into PREFIX (default /usr/local); DESTDIR is put before it
	@[ -f build/cmake_install.cmake ] || { echo "mikv: nothing is built yet; run make, then make install" >&2; exit 2; }
	@cmake --install build --prefix "$(abspath $(PREFIX))"

package: build ## Debian packages of the library, its development files and the command, in build/packages/
	@cpack --config build/CPackConfig.cmake -G DEB -B build/packages

demo: build ## a real model answers from a small cache where eviction and 4-bit caches fail
	@$(FETCH) get $(DEMO_MODEL) >/dev/null
	@$(MIKV) eval lines -m $(DEMO_MODEL) --lines 20 --prompts 20 --seed 7 --kv $(DEMO_KV) -o build/demo.json --plot build/demo.svg

bench: build ## run the benchmarks
	@$(FETCH) get $(DEMO_MODEL) >/dev/null
	@$(MIKV) bench attention
	@$(MIKV) bench decode -m $(DEMO_MODEL) --depth 0,4096 --kv full,mikv,llama:f16,llama:q4_0
	@$(MIKV) bench prefill -m $(DEMO_MODEL) --depth 4096 --kv full,mikv,llama:f16,llama:q4_0

clean: ## remove the build folder; models and llama.cpp stay in the cache
	@rm -rf build
