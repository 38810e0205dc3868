#!/bin/sh
# "Launch Prefiller": the variables and flags of LMCache's page, with `runtime` in place of `vllm serve`.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
. examples/program.sh

UCX_TLS=cuda_ipc,cuda_copy,tcp \
    LMCACHE_CONFIG_FILE=configs/lmcache-prefiller-config.yaml \
    LMCACHE_USE_EXPERIMENTAL=True \
    CUDA_VISIBLE_DEVICES=0 \
    exec "$runtime" ${MODEL:+--model "$MODEL"} \
    --port 8100 \
    --disable-log-requests \
    --kv-transfer-config \
    '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_producer","kv_connector_extra_config": {"discard_partial_chunks": false, "lmcache_rpc_port": "producer1"}}'
