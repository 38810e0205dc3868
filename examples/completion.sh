#!/bin/sh
# A completion with the whole answer in one JSON object. The argument replaces the prompt.
# PORT=8200 sends the request to the receiver alone, PORT=8100 to the sender alone. Port 9000, the frontend, uses both.
set -eu

prompt=${1:-Once upon a time, in a small village by the sea,}

# Python writes the JSON, so that the prompt may contain any character.
python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1], "max_tokens": 32, "temperature": 0}))' "$prompt" |
    curl --silent --show-error --fail-with-body "http://127.0.0.1:${PORT:-9000}/v1/completions" \
        --header 'content-type: application/json' --data-binary @-
echo
