CARGO := cargo
PROGRAMS := nats-server etcd kube-apiserver kube-controller-manager kubectl helm prometheus promtool jaeger-all-in-one

.DEFAULT_GOAL := help
.PHONY: help build programs previous-version manifests lint test test-unit test-servers test-e2e audit sbom images demo clean-demo demo-cluster clean-demo-cluster check-dashboards screenshots soak-order soak-cluster soak-scale-down bench-operator bench-scaling bench-runtime bench-aggregates bench-shop bench-cluster time-cold time-warm clean

help: ## Show what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-19s %s\n", $$1, $$2}'

build: ## The workspace's own programs, into target/debug
	$(CARGO) build --workspace --bins --locked

programs: ## The servers that tests run against: found on PATH, or built once (10 minutes) and kept
	@testing/programs/provide $(PROGRAMS)

previous-version: ## Programs and charts of the version that upgrades are tested from (the tag upgrade-from), built once and kept
	@testing/programs/previous-version || [ $$? = 3 ]

# Two folders, since Helm tells at each command of a link in a chart, and a packaged chart needs the files anyhow.
manifests: ## The CustomResourceDefinitions, from the Rust types into crds/manifests, and the same into the chart
	$(CARGO) run -q -p jetwright-crds --locked --example manifests crds/manifests charts/jetwright/files/crds

lint: ## Formatting and clippy, without warnings
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: ## Every tier, as .ci/run does, and what each took; where no cluster can be made, test-e2e is skipped, and its tests are counted
	@JETWRIGHT_CLUSTER_TESTS=$${JETWRIGHT_CLUSTER_TESTS:-if-possible} JETWRIGHT_PYTHON_TESTS=$${JETWRIGHT_PYTHON_TESTS:-if-possible} testing/run-tiers lint test-unit test-servers test-e2e

# The same cases in every run, so that a run fails by a change and not by luck. Plain `cargo test`, without it, looks for new ones.
test-unit: export PROPTEST_RNG_SEED ?= 1
test-unit: ## Pure tests, and the examples in the documentation
	$(CARGO) test --workspace --locked --lib --bins --examples --test simulation
	$(CARGO) test --workspace --locked --doc

# Most tests wait for servers most of the time, so that twice as many run at once as there are cores. These count what the operator asks for, and
# hold it to promises in seconds, so they come after the others, one a core.
MEASURED := costs:: outages::

test-servers: programs previous-version build ## Tests against real servers as child processes
	@find target/test-logs -mindepth 1 -maxdepth 1 -mtime +3 -exec rm -rf {} + 2>/dev/null || true
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$((2 * $$(nproc)))} $(CARGO) test --workspace --locked --test servers -- $(MEASURED:%=--skip %)
	$(CARGO) test --workspace --locked --test servers -- $(MEASURED)

test-e2e: ## What a user does and what breaks at night, on a kind cluster that is made for it and removed
	@e2e/run-tests

audit: ## Licences, bans and sources of all crates, by deny.toml; needs no network, so does not ask for known vulnerabilities (not part of make test)
	$$(testing/programs/cargo-program cargo-deny) --locked check licenses bans sources

sbom: ## A bill of materials of each program (CycloneDX), into target/sbom (not part of make test)
	@images/sbom target/sbom

images: ## The programs' images, in the Docker engine that there is or that e2e/cluster/engine starts; prints their names
	@DOCKER_HOST=$$(e2e/cluster/engine) images/build

demo: ## Operator, NATS and a shop as processes of this machine, and an account of what happens; the servers stay, or FOLLOW=1 until Ctrl-C; with OBSERVE=1, Prometheus and Jaeger look on
	@e2e/demo/local up $(if $(FOLLOW),--follow) $(if $(OBSERVE),--observe)

clean-demo: ## End what the demo left running; programs stay in the cache
	@e2e/demo/local down

demo-cluster: ## The same shop by Helm on a kind cluster of this machine, a user, two orders, and an account of what happened
	@e2e/demo/on-kind up

clean-demo-cluster: ## Remove the cluster of demo-cluster; programs and images stay in the cache
	@e2e/demo/on-kind down

check-dashboards: programs build ## Of make test, what a real Prometheus and Jaeger show of the demo: alerts, traces, and every panel of the chart's dashboards (3 minutes at most)
	$(CARGO) test --locked -p jetwright-e2e --test servers observed::

screenshots: ## The pictures of docs/pictures, by Chromium from a demo that runs (make demo OBSERVE=1); not part of make test
	@e2e/demo/pictures/take

soak-order: programs ## Order per key on three NATS servers under load, while pods come and go, and processes, servers and operators are killed and frozen; ROUNDS=50 takes most of an hour, and MINUTES=20 ends it sooner
	$(CARGO) build --locked -p jetwright-e2e -p jetwright-operator --bins
	JETWRIGHT_SOAK_ROUNDS=$(or $(ROUNDS),50) JETWRIGHT_SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked -p jetwright-e2e --test servers soak:: -- --nocapture

soak-cluster: ## Order per key on a kind cluster under load, while pods come, go, are deleted without grace and killed, and operators are deleted: ROUNDS=10
	JETWRIGHT_SOAK_ROUNDS=$(or $(ROUNDS),10) e2e/run-tests partitions:: --nocapture

soak-scale-down: programs ## Scale-downs of pods that Kubernetes' own controllers remove, under load with order per key; ROUNDS=100 takes a quarter of an hour
	$(CARGO) build --locked -p jetwright-e2e -p jetwright-operator --bins
	JETWRIGHT_SCALE_DOWNS=$(or $(ROUNDS),100) $(CARGO) test --locked -p jetwright-e2e --test servers scale_down:: -- --nocapture

bench-operator: programs ## The operator's figures, of its release build: until Ready, until repaired, requests, memory, many objects; ONLY="speed requests memory many ten-thousand" chooses some
	$(CARGO) build --release --locked -p jetwright-operator
	$(CARGO) bench --locked -p jetwright-e2e --bench operator -- $(ONLY)

bench-scaling: programs ## Figures of order per key and of autoscaling, of release builds: what they cost at rest, throughput over shared partitions, hand-overs, pods from zero and after a backlog; ONLY="first backlog hand-over" chooses some of those with pods
	$(CARGO) build --release --locked -p jetwright-operator
	$(if $(ONLY),,$(CARGO) bench --locked -p jetwright-e2e --bench operator -- scaling)
	$(if $(ONLY),,$(CARGO) bench --locked -p jetwright-runtime --bench sharing)
	$(CARGO) bench --locked -p jetwright-e2e --bench scaling -- $(ONLY)

bench-runtime: programs ## Figures of the runtime beside a bare async-nats loop: consuming, publishing, requests, ordered lanes, latency, memory; ONLY='consume "1 %"' chooses some
	$(CARGO) bench --locked -p jetwright-runtime --bench runtime -- $(ONLY)

bench-aggregates: programs ## Figures of the runtime's aggregates and projections: loads with and without a snapshot, a rebuild
	$(CARGO) bench --locked -p jetwright-runtime --bench aggregates

bench-shop: programs ## Figures of the shop's release programs on one nats-server: orders accepted and ended a second, repeated requests, where the time goes
	$(CARGO) build --release --locked --workspace --bins
	$(CARGO) bench --locked -p jetwright-e2e --bench shop

bench-cluster: ## Figures of the cluster of demo-cluster, which is made where it is not up: until streams and the shop are ready, memory when idle
	@JETWRIGHT_IMAGES_PROFILE=release e2e/demo/on-kind install
	@export JETWRIGHT_CLUSTER=$${JETWRIGHT_CLUSTER:-jetwright-demo} && eval "$$(e2e/cluster/cluster env $$JETWRIGHT_CLUSTER)" && \
	  $(CARGO) bench --profile dev --locked -p jetwright-e2e --bench cluster

time-cold: ## Seconds that `make demo`, `make demo-cluster`, and then `make test`, of the last commit take where nothing has been downloaded or built
	@testing/time-make cold demo clean-demo demo-cluster clean-demo-cluster test

time-warm: ## Seconds that `make demo`, the same again, `make demo-cluster`, the same again, and `make test` take here
	@testing/time-make warm demo demo clean-demo demo-cluster demo-cluster test

clean: ## Remove what Cargo built; the servers for tests stay in the cache, which `testing/programs/provide --cached` names
	$(CARGO) clean
