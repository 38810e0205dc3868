"""Talks to a server with OpenAI's Python client and `/v1/responses`, streamed and not, with a tool: responses.py BASE_URL.

The model has to know tools, such as Qwen2.5. Checks the type of every event. Ends with "all responses are right".
"""

import json
import sys

import openai
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather in a city.",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False,
    },
    "strict": False,
}
EVENT = TypeAdapter(ResponseStreamEvent)


def stream(client, **fields):
    """The response at the end of a stream. Checks each event against the types of the client."""
    for number, event in enumerate(client.responses.create(**fields, stream=True)):
        EVENT.validate_python(event.model_dump(by_alias=True))
        assert event.sequence_number == number, event
    assert event.type == f"response.{event.response.status}", event
    return event.response


def main():
    client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    settings = {"model": model, "tools": [TOOL], "temperature": 0, "max_output_tokens": 100}
    for choice in ("required", {"type": "function", "name": "get_weather"}, "auto"):
        whole = client.responses.create(**settings, input=question, tool_choice=choice)
        streamed = stream(client, **settings, input=question, tool_choice=choice)
        assert whole.output_text == streamed.output_text, (whole, streamed)
        calls = [item for item in whole.output if item.type == "function_call"]
        same = [(call.name, call.arguments) for call in calls]
        assert same == [(item.name, item.arguments) for item in streamed.output if item.type == "function_call"]
        assert calls or choice == "auto", whole
        print(choice, same, repr(whole.output_text))
        if not calls:
            continue
        assert json.loads(calls[0].arguments)["city"], calls
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny."} for call in calls]
        answer = client.responses.create(**settings, input=[*question, *whole.output, *results], tool_choice="none")
        assert answer.output_text, answer
        print(repr(answer.output_text))
    print("all responses are right")


if __name__ == "__main__":
    main()
