#!/bin/sh
# A streamed chat: one event a token as it is decoded, then the usage and, asked for by `return_timings`, where the time
# went: which process prefilled, how many pages it put, which process decoded. Ends with [DONE].
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
