#!/bin/sh
# A streamed chat: one event for each decoded token, then the usage and the timings. The timings (`return_timings`) say which process
# prefilled, how many pages it put, and which process decoded. The stream ends with [DONE].
set -eu

curl --silent --show-error --fail-with-body --no-buffer "http://127.0.0.1:${PORT:-9000}/v1/chat/completions" \
    --header 'content-type: application/json' \
    --data-binary '{
        "messages": [{"role": "user", "content": "Name three rivers in Europe."}],
        "max_tokens": 64,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
        "return_timings": true
    }'
