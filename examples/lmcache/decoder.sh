#!/bin/sh
# "Launch Decoder": the variables and flags of LMCache's page, with `runtime` in place of `vllm serve`.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
. examples/program.sh

UCX_TLS=cuda_ipc,cuda_copy,tcp \
    LMCACHE_CONFIG_FILE=configs/lmcache-decoder-config.yaml \
    LMCACHE_USE_EXPERIMENTAL=True \
    CUDA_VISIBLE_DEVICES=1 \
    exec "$runtime" ${MODEL:+--model "$MODEL"} \
    --port 8200 \
    --disable-log-requests \
    --kv-transfer-config \
    '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_consumer","kv_connector_extra_config": {"discard_partial_chunks": false, "lmcache_rpc_port": "consumer1"}}'
