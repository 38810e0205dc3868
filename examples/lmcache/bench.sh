#!/bin/sh
# "You can also test the setup with benchmark_serving.py": the same options for `runtime bench serve`. The load is meant for two GPUs. On
# a CPU use fewer and shorter prompts: `sh examples/lmcache/bench.sh --num-prompts 10 --random-input-len 200`.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
. examples/program.sh

exec "$runtime" bench serve --port 9000 --seed "$(date +%s)" \
    --dataset-name random --random-input-len 5000 --random-output-len 200 \
    --num-prompts 50 --burstiness 100 --request-rate 1 "$@"
