#!/bin/sh
# Two launches: a receiver, which decodes and runs the frontend on port 9000, and a sender, which prefills and puts
# the KV pages into the receiver's memory. Serves until Ctrl-C. `cargo xtask demo` does the same and asks a question.
# Arguments go to both, for example `--model FILE`. Where there is a program beside this
# folder, as in the archive of `cargo xtask dist`, nothing is fetched or built.
set -eu
cd "$(dirname "$0")/.."

runtime=bin/runtime
if [ ! -x "$runtime" ]; then
    cargo xtask fetch
    cargo build --release --locked --package runtime
    runtime=${CARGO_TARGET_DIR:-target}/release/runtime
fi

"$runtime" --role receiver --config configs/receiver.yaml "$@" &
receiver=$!
"$runtime" --role sender --config configs/sender.yaml "$@" &
sender=$!

# Whatever ends this script ends both, and the script ends when both have.
trap 'kill "$receiver" "$sender" 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
wait "$receiver" "$sender"
