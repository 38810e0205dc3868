#!/bin/sh
# Two launches: a receiver, which decodes and runs the frontend on port 9000, and a sender, which prefills and puts
# the KV pages into the receiver's memory. Serves until Ctrl-C. `cargo xtask demo` does the same and asks a question.
# Arguments go to both processes, for example `--model FILE`; on GPUs start each by hand, as README.md says, because
# each has its own. Where RUNTIME names the program, or it lies beside this folder, as in the archive of `cargo xtask dist`,
# nothing is fetched or built.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

if [ -z "${RUNTIME:-}" ] && [ ! -x "$root/bin/runtime" ]; then
    (cd "$root" && cargo xtask fetch && cargo build --release --locked --package runtime)
fi
. "$root/examples/program.sh"

"$runtime" --role receiver --config "$root/configs/receiver.yaml" "$@" &
receiver=$!
"$runtime" --role sender --config "$root/configs/sender.yaml" "$@" &
sender=$!

# Whatever ends this script ends both, and the script ends when both have. Ctrl-C reaches them by itself, and a second
# signal would cut their live requests short.
trap 'kill "$receiver" "$sender" 2>/dev/null || true; wait' EXIT
trap 'trap - EXIT; wait; exit 130' INT
trap 'exit 143' TERM
wait "$receiver" "$sender"
