#!/bin/sh
# Two launches: a receiver, which decodes and runs the frontend on port 9000, and a sender, which prefills and puts
# the KV pages into the receiver's memory. Serves until Ctrl-C. `cargo xtask demo` does the same and asks a question.
set -eu
cd "$(dirname "$0")/.."

cargo xtask fetch
cargo build --release --locked --package runtime
runtime=${CARGO_TARGET_DIR:-target}/release/runtime

"$runtime" --role receiver --config configs/receiver.yaml &
receiver=$!
"$runtime" --role sender --config configs/sender.yaml &
sender=$!

# Whatever ends this script ends both, and the script ends when both have.
trap 'kill "$receiver" "$sender" 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
wait "$receiver" "$sender"
