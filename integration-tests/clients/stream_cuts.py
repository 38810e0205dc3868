"""OpenAI's Python client reads streams that are cut at every byte: stream_cuts.py BASE_URL [EVERY]

Records one stream of the server, which has reasoning, content and two tool calls, and replays it from a server of its own. Each replay cuts the stream
into two pieces, at each byte in turn, or at every EVERYth byte; the last replay sends single bytes. The client's strict accumulator (`chat.completions.stream`) has to give the
same message each time, and the same as the answer without a stream. The server needs the reasoning parser qwen3 and the tool call parser hermes.
"""

import http.client
import http.server
import json
import sys
import threading
import urllib.parse

import openai

MESSAGES = [{"role": "user", "content": "What will the weather be in Paris and in Zürich?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Zürich", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
# The rules `text` and `call` make the grammar apply to the whole answer, so that every model reasons and calls.
GRAMMAR = r"""
start: "<think>\nIs it " text "?\n</think>\n\nIt is “" text "”.\n" call call
text: /[a-z]{2,6}/
call: "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"" city "\", \"days\": " /[1-9]/ "}}\n</tool_call>\n"
city: "Zürich" | "Paris"
"""


def body(model, **more):
    return {"model": model, "messages": MESSAGES, "tools": [TOOL], "structured_outputs": {"grammar": GRAMMAR}, "temperature": 0, **more}


def post(base, request):
    connection = http.client.HTTPConnection(urllib.parse.urlparse(base).netloc, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    assert response.status == 200, (response.status, answer)
    return answer


class Replay(http.server.BaseHTTPRequestHandler):
    """Answers each request with the recorded stream. The client gets each chunk of the transfer encoding as a piece of its own."""

    protocol_version = "HTTP/1.1"
    pieces = []

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        pieces = [piece for piece in Replay.pieces if piece] + [b""]
        self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces))

    def log_message(self, *_):
        pass


def read(message):
    """What the client has understood, without the random ids of calls."""
    calls = [(call.function.name, call.function.arguments, bool(call.id)) for call in message.tool_calls or []]
    return message.role, message.content, getattr(message, "reasoning_content", None), calls


def accumulated(client, model):
    with client.chat.completions.stream(model=model, messages=MESSAGES, tools=[TOOL]) as stream:
        choice = stream.get_final_completion().choices[0]
    return read(choice.message), choice.finish_reason


def main():
    base = sys.argv[1]
    model = openai.OpenAI(base_url=f"{base}/v1", api_key="key").models.list().data[0].id
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="key", max_retries=0, timeout=60)
    whole = openai.types.chat.ChatCompletion.model_validate_json(post(base, body(model))).choices[0]
    expected = (read(whole.message), whole.finish_reason)
    _, content, reasoning, calls = expected[0]
    assert content and reasoning and len(calls) == 2 and whole.finish_reason == "tool_calls", expected
    recorded = post(base, body(model, stream=True))
    cuts = range(0, len(recorded), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    for cut in cuts:
        Replay.pieces = [recorded[:cut], recorded[cut:]]
        found = accumulated(client, model)
        assert found == expected, (cut, found, expected)
    Replay.pieces = [bytes([byte]) for byte in recorded]
    found = accumulated(client, model)
    assert found == expected, ("single bytes", found, expected)
    print(f"{len(cuts)} cuts in {len(recorded)} bytes, each read as {expected}")
    print("all cuts are read alike")


if __name__ == "__main__":
    main()
