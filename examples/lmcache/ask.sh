#!/bin/sh
# "Usage": the request of LMCache's page, sent to the proxy's port. The receiver contains the proxy, so there is no third process.
set -eu

curl --silent --show-error --fail-with-body "http://localhost:${PORT:-9000}/v1/completions" \
    -H "Content-Type: application/json" \
    -d '{
        "prompt": "Tell me a story",
        "max_tokens": 100
    }'
echo
