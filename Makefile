# `make` alone lists the targets. What they do stands in scripts/.

.DEFAULT_GOAL := help
.PHONY: help run test test-quick conformance example soak bench bench-quick bench-clients lint proto docs deny tools image clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and start the server; ARGS="--help" shows what can be set
	@scripts/run.sh $(ARGS)

test: ## Install what the tests need, and run all of them; RUNS="unit 18" runs some
	@scripts/test.sh $(RUNS)

test-quick: ## Run the unit tests, and the integration suite on Postgres 18 only
	@scripts/test.sh unit 18

conformance: ## Run the cases of clients/conformance in every language; LANGUAGES="go rust" runs some
	@scripts/conformance.sh $(LANGUAGES)

example: ## Run the examples beside a server of their own; LANG=go runs one
	@LANG=C.UTF-8 scripts/examples.sh $(filter python typescript go java rust,$(LANG))

soak: ## Disturb servers for MINUTES=n (10 by default), and check that they keep their promises
	@scripts/soak.sh $(MINUTES)

bench: ## Measure against the peers, in 20 minutes; ARGS="--only sends" measures a part
	@scripts/bench.sh $(ARGS)

bench-quick: ## The same in 4 minutes, with less certainty
	@scripts/bench.sh --quick $(ARGS)

bench-clients: ## Measure the clients of all five languages; LANGUAGES="go python" measures some
	@scripts/clients.sh bench $(LANGUAGES)

lint: ## Check format, lints, docs, contract, licences
	@scripts/lint.sh

proto: ## Format and lint the contract, and generate code from it
	@scripts/proto.sh

docs: ## Build the documentation of the code, where warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

deny: ## Check the dependencies, known vulnerabilities included (needs the network)
	@scripts/deny.sh

tools: ## Install every tool that the other targets need
	@scripts/tools.sh

image: ## Build the container image pgmq-grpc with docker
	docker build --tag pgmq-grpc .

clean: ## Remove everything that was built, of the clients too
	cargo clean
	git clean -fdXq clients examples
