#!/bin/sh
# Starts a receiver, which decodes and runs the frontend on port 9000, and a sender, which prefills and puts the KV pages into the
# receiver's memory. Serves until Ctrl-C. `cargo xtask demo` does the same and asks a question.
#
# Both processes get the arguments of this script, for example `--model FILE`. They compute on the CPU. On GPUs start them by hand, as
# README.md says, because each process needs its own GPU.
#
# The script fetches UCX and the model and builds the program, unless RUNTIME names the program or the program lies in `bin` beside
# this folder, as in the archive of `cargo xtask dist`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

if [ -z "${RUNTIME:-}" ] && [ ! -x "$root/bin/runtime" ]; then
    (cd "$root" && cargo xtask fetch && cargo build --release --locked --package runtime)
fi
. "$root/examples/program.sh"

"$runtime" --role receiver --config "$root/configs/receiver.yaml" --set engine.device=cpu "$@" &
receiver=$!
"$runtime" --role sender --config "$root/configs/sender.yaml" --set engine.device=cpu "$@" &
sender=$!

# When this script ends, it stops both processes and waits for them. After Ctrl-C it only waits, because the terminal has sent the
# signal to both processes already, and a second signal would abort their live requests.
trap 'kill "$receiver" "$sender" 2>/dev/null || true; wait' EXIT
trap 'trap - EXIT; wait; exit 130' INT
trap 'exit 143' TERM
wait "$receiver" "$sender"
