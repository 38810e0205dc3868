#!/bin/sh
# A completion: text in, text out, the whole answer in one JSON object. Another prompt may be given as an argument.
# PORT=8200 asks the receiver alone and PORT=8100 the sender alone; 9000, the frontend, uses both.
set -eu

prompt=${1:-Once upon a time, in a small village by the sea,}

# Python writes the JSON, so that any character may stand in the prompt.
python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1], "max_tokens": 32, "temperature": 0}))' "$prompt" |
    curl --silent --show-error --fail-with-body "http://127.0.0.1:${PORT:-9000}/v1/completions" \
        --header 'content-type: application/json' --data-binary @-
echo
