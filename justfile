# The daily commands: `just` lists them, `just test feed::` runs one. CONTRIBUTING.md explains them.

set positional-arguments

_list:
    @just --list --unsorted

# Format all sources
format:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml

# Formatting, lints and documentation, as CI checks them
check:
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo clippy --workspace --all-targets --features cli -- -D warnings
    cargo clippy --lib -- --cfg untorn_instrumented -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features cli

# All tests, or those of the suite whose names contain NAME: `just test feed::`
test name="":
    {{ if name == "" { "cargo test" } else { "cargo test --test suite -- " + quote(name) } }}

# All tests but those in the documentation, each in a process of its own
nextest *arguments:
    cargo nextest run "$@"

# Repeat a random test: `just replay 42 model::`
replay seed name:
    UNTORN_SEED={{ seed }} cargo test --test suite -- {{ quote(name) }} --nocapture

# The crash tests: `just crash all`, `just crash kill --only area.what:kill`
crash *arguments:
    cargo run --release -p crash-harness -- "$@"

# Each planted bug must be found
controls *arguments:
    cargo run --release -p crash-harness -- controls "$@"

# Other stores under the same crash tests: `just peers cuts --store sqlite,lmdb`
peers *arguments:
    cargo run --release -p crash-peers -- "$@"

# Count the instructions of the hot paths; `just instructions --record` accepts new counts
instructions *arguments:
    cargo bench --profile counted --bench instructions -- "$@"

# Measure beside other stores: `just bench --stores untorn,lmdb --workloads get`
bench *arguments:
    cargo run --release -p peer-bench -- "$@"

# More mutated inputs for each decoder
fuzz cases="100000":
    UNTORN_FUZZ_CASES={{ cases }} UNTORN_FUZZ_FIRST=1000000 cargo test --release --lib fuzzing

# Several processes index a directory tree, and are killed
tour *arguments:
    cargo run --release --features cli -- tour "$@"

# Build the packages from their archives, and list the files in them
package:
    cargo publish --workspace --dry-run --allow-dirty
    cargo package --list --allow-dirty -p untorn-wal
    cargo package --list --allow-dirty -p untorn

# Licences, sources, bans and advisories of all dependencies; the latter need the network
deny *checks:
    cargo deny --workspace check "$@"

# Everything that a change must pass: about an hour
ci:
    .ci/run
