# Every target sets up what it needs first; see README.md.
.PHONY: setup run test demo bench drill fmt lint
# nft and dockerd are where `su` and plain users do not look.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin
release := $(or $(CARGO_TARGET_DIR),target)/release
# The platform needs root for Docker and nftables; data and kubeconfig are the caller's all the same.
as_root := $(if $(filter-out 0,$(shell id -u)),sudo -E env HOME="$(HOME)" PATH="$(PATH)")

setup:
	@scripts/setup run

# Builds and starts everything on embedded defaults, in the foreground. ARGS="--listen 0.0.0.0:6443" adds flags.
run: setup
	cargo build --release --locked -p scaleup
	exec $(as_root) $(release)/scaleup up $(ARGS)

# Deploys examples/web on the running platform and asks it through the load balancer.
demo: setup
	@scripts/demo

# Everything that must hold before a change lands; .ci/run calls exactly this.
test:
	@scripts/setup test
	@scripts/test

# One line per figure: name value unit (peer value, ratio).
bench:
	@scripts/setup bench
	cargo build --release --locked -p scaleup -p scaleup-benches
	$(as_root) $(release)/scaleup-benches $(ARGS)

# The fault drills at their full counts.
drill:
	@scripts/setup test
	@scripts/drill

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo run -q --locked -p xtask -- tidy

fmt:
	cargo fmt --all
