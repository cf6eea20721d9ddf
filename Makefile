# ckpt: build, install, try and test. `make help` lists what there is. Nothing here calls sudo.

PREFIX ?= /usr
DESTDIR ?=
# release, or dev for a quicker build.
PROFILE ?= release
CARGO ?= cargo
# Part of the names of the integration tests to run; empty: all.
FILTER ?=

out := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
stage := $(CURDIR)/target/stage
machine := target/debug/machine
victims := $(patsubst tests/victims/%.c,target/victims/%,$(wildcard tests/victims/*.c)) target/victims/forker
programs := -p ckptd -p ckptctl -p ckpt-restore -p ckpt-preload

.PHONY: help deps build install stage test unit integration fmt clippy lint demo bench clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

deps: ## the Debian packages needed: installs what is missing, and says which
	@./tests/deps

build: deps ## the programs and the library
	$(CARGO) build --profile $(PROFILE) $(programs)

install: build ## everything to its place below DESTDIR and PREFIX
	@./tests/install '$(out)' '$(DESTDIR)' '$(PREFIX)'

stage: build $(victims)
	@rm -rf '$(stage)'
	@./tests/install '$(out)' '$(stage)' /usr
	$(CARGO) build -p ckpt-tests

test: deps ## format, lints, unit tests, then the integration tests in a throwaway machine
	@failed=; for part in fmt clippy lint unit integration; do \
		echo "== $$part"; $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

fmt: ## that the code is formatted
	$(CARGO) fmt --all --check

clippy: ## the compiler's lints
	$(CARGO) clippy --workspace --all-targets -- -D warnings

lint: stage ## units, manual pages and XML
	@./tests/lint '$(stage)'

target/victims/%: tests/victims/%.c $(wildcard tests/victims/*.h)
	@mkdir -p target/victims
	$(CC) -O1 -g -Wall -Wextra -Werror -pthread -o $@ $< -lm

target/victims/forker: tests/victims/forker
	@mkdir -p target/victims
	@install -m 755 $< $@

unit: deps ## tests that need no machine
	$(CARGO) test --workspace --no-fail-fast

integration: stage ## tests of the installed project in a throwaway machine; FILTER=part-of-a-name
	$(CARGO) test -p ckptd --test systemd --no-run
	$(machine) run --stage '$(stage)' --timeout 300 -- env CKPT_MACHINE=1 \
		"$$($(CARGO) test -q -p ckptd --test systemd --no-run --message-format=json | \
		sed -n 's|.*"executable":"\([^"]*/systemd-[^"]*\)".*|\1|p')" --test-threads=1
	$(machine) run --stage '$(stage)' --timeout 3000 -- $(CURDIR)/target/debug/integration $(FILTER)
	case "$(FILTER)" in ''|reboot) ./tests/reboot $(CURDIR)/$(machine) '$(stage)' $(CURDIR)/target/victims ;; esac

demo: stage ## Redis and PostgreSQL under load go back together to the moment of a checkpoint
	@$(machine) run --stage '$(stage)' --timeout 300 -- $(CURDIR)/target/debug/demo

bench: stage ## what it costs, each figure beside its target; also as JSON and plots; FILTER=part-of-a-name
	$(CARGO) build --release -p ckpt-tests
	$(machine) run --memory-disk --stage '$(stage)' -- $(CURDIR)/target/release/bench $(FILTER)

clean: ## removes what was built
	$(CARGO) clean
