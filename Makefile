.PHONY: help test lint test-unit

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

test: lint test-unit ## Every tier

lint: ## Formatting and clippy, without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

test-unit: ## Pure tests and examples in the documentation
	cargo test --workspace --locked --lib --bins
