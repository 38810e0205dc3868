#!/bin/sh
# A chat with a system message. The frontend renders the messages with the model's chat template.
set -eu

curl --silent --show-error --fail-with-body "http://127.0.0.1:${PORT:-9000}/v1/chat/completions" \
    --header 'content-type: application/json' \
    --data-binary '{
        "messages": [
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "Why is the sky blue?"}
        ],
        "max_tokens": 64,
        "temperature": 0
    }'
echo
