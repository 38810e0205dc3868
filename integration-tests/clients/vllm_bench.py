"""Replays the requests of vLLM's bench client, in a new and an old version, against a server: vllm_bench.py BASE_URL INPUT_LEN OUTPUT_LEN COUNT.

The requests have the same fields as those of vLLM, and the streams are read by vLLM's rules: bytes are decoded as they come, messages end at blank
lines (\\n\\n), comments are skipped, the first event with a choice is the first token, and usage comes from events without choices. All requests use
one connection. An assertion fails if these rules would misread a stream. Prints one JSON object with the counts of the client.
"""

import functools
import http.client
import json
import sys
import urllib.parse


@functools.cache
def connect(base):
    return http.client.HTTPConnection(urllib.parse.urlparse(base).netloc, timeout=120)


def call(base, method, path, body=None):
    connection = connect(base)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, (path, response.status, response.read())
    return json.loads(response.read())


def stream(base, path, body, request_id, token_of):
    """Reads a stream as endpoint_request_func.py does."""
    connection = connect(base)
    headers = {"Content-Type": "application/json", "x-request-id": request_id}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    assert response.status == 200, (response.status, response.read())
    assert response.getheader("content-type").startswith("text/event-stream"), response.getheader("content-type")
    buffer, tokens, text, usage, done = "", 0, "", None, False
    while chunk := response.read1(65536):
        buffer += chunk.decode("utf-8")
        assert "\r\n" not in buffer, "CRLF framing is not recognised"
        while "\n\n" in buffer:
            message, buffer = buffer.split("\n\n", 1)
            message = message.strip()
            if not message or message.startswith(":"):
                continue
            assert message.startswith("data: ") and not done, message
            data = message.removeprefix("data: ")
            if data == "[DONE]":
                done = True
                continue
            event = json.loads(data)
            if choices := event.get("choices"):
                piece = token_of(choices[0])
                if piece is not None:
                    tokens, text = tokens + 1, text + piece
            elif event.get("usage"):
                usage = event["usage"]
    assert done and not buffer.strip(), buffer
    return tokens, text, usage


def chat_token(choice):
    delta = choice["delta"]
    content = delta.get("content")
    return content if content or (content == "" and "role" not in delta) else None


def main():
    base, input_len, output_len, count = sys.argv[1], *map(int, sys.argv[2:5])
    listed = call(base, "GET", "/v1/models")["data"][0]
    model = listed["id"]
    assert listed["root"], listed
    words = "the sea is wide and the ship was old so they sang until the morning came over the hills again "
    totals = {"completed": 0, "input_tokens": 0, "output_tokens": 0}
    for n in range(count):
        text = f"{n} " + words * (input_len // 10 + 1)
        # The random dataset uses these two calls to get prompts of an exact length.
        ids = call(base, "POST", "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})["tokens"][:input_len]
        prompt = call(base, "POST", "/detokenize", {"model": model, "tokens": ids})["prompt"]
        again = call(base, "POST", "/tokenize", {"model": model, "prompt": prompt, "add_special_tokens": False})
        assert again["count"] == input_len and again["max_model_len"] > 0, again
        newer = {
            "model": model, "prompt": prompt, "repetition_penalty": 1.0, "max_tokens": output_len, "logprobs": None,
            "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
        }
        older = {**newer, "temperature": 0.0, "best_of": 1}
        for body in (newer, older):
            tokens, _, usage = stream(base, "/v1/completions", body, f"bench-{n}", lambda choice: choice["text"])
            assert tokens == output_len, f"{tokens} token events for {output_len} tokens: the inter-token latencies would be wrong"
            cached = usage.pop("prompt_tokens_details")["cached_tokens"]
            assert 0 <= cached < input_len, cached
            assert usage == {
                "prompt_tokens": input_len, "total_tokens": input_len + output_len, "completion_tokens": output_len
            }, usage
        totals["completed"] += 1
        totals["input_tokens"] += input_len
        totals["output_tokens"] += output_len
        chat = {
            "model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            "max_completion_tokens": output_len, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
        }
        tokens, _, usage = stream(base, "/v1/chat/completions", chat, f"chat-{n}", chat_token)
        assert tokens == output_len == usage["completion_tokens"], (tokens, usage)
    connection = connect(base)
    connection.request("GET", "/metrics")
    reply = connection.getresponse()
    assert reply.status == 200 and reply.read(), reply.status
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
