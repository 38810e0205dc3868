"""Calls a server through frameworks that wrap the OpenAI API: frameworks.py BASE_URL, such as http://127.0.0.1:9000.

    python3 -m venv /tmp/frameworks
    /tmp/frameworks/bin/pip install litellm==1.110.2 instructor==1.17.0 "pydantic-ai-slim[openai]==2.38.0" openai-agents==0.24.0
    /tmp/frameworks/bin/python integration-tests/clients/frameworks.py http://127.0.0.1:9000

Each call has to return an answer of its type: text, the call of a tool, or an instance of a model of pydantic. The text may be anything, so a small
model is enough. The program prints a line for each call, and fails if one fails.
"""

import asyncio
import os
import sys
import time

BASE = f"{sys.argv[1].rstrip('/')}/v1"
os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": BASE, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

import agents  # noqa: E402
import instructor  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402
from pydantic_ai import Agent, NativeOutput, ToolOutput  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

CLIENT = openai.OpenAI()
MODEL = CLIENT.models.list().data[0].id
QUESTION = "Paris has two million inhabitants. What is its name?"
CHAT = [{"role": "user", "content": QUESTION}]
CALL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}}
TOOLS = {"tools": [{"type": "function", "function": CALL}], "tool_choice": "required"}


class City(BaseModel):
    # The bounds keep the answers of small models short.
    name: str = Field(max_length=20)
    millions: int = Field(ge=0, le=99)


def completion(provider="openai", tokens=60, **settings):
    return litellm.completion(model=f"{provider}/{MODEL}", api_base=BASE, api_key="none", messages=CHAT, max_tokens=tokens, **settings)


def streamed(**settings):
    return litellm.stream_chunk_builder(list(completion(stream=True, **settings))).choices[0].message


def structured(mode):
    client = instructor.from_openai(CLIENT, mode=mode)
    return client.create(model=MODEL, response_model=City, messages=CHAT, max_tokens=120, max_retries=0)


def agent(model=OpenAIChatModel, **settings):
    return Agent(model(MODEL, provider=OpenAIProvider(base_url=BASE, api_key="none")), model_settings={"max_tokens": 120}, retries=0, **settings)


async def agent_streams():
    async with agent().run_stream(QUESTION) as run:
        return "".join([text async for text in run.stream_text(delta=True)])


def openai_agent():
    agents.set_tracing_disabled(True)
    model = agents.OpenAIChatCompletionsModel(MODEL, openai.AsyncOpenAI())
    asked = agents.Agent(name="a", instructions="Be brief.", model=model, model_settings=agents.ModelSettings(max_tokens=60))
    return agents.Runner.run_sync(asked, QUESTION).final_output


CALLS = {
    "LiteLLM": lambda: completion().choices[0].message.content,
    "LiteLLM, stream": lambda: streamed().content,
    "LiteLLM as hosted_vllm": lambda: completion("hosted_vllm").choices[0].message.content,
    "LiteLLM, tool": lambda: completion(**TOOLS).choices[0].message.tool_calls[0].function.arguments,
    "LiteLLM, tool, stream": lambda: streamed(**TOOLS).tool_calls[0].function.arguments,
    "LiteLLM, responses": lambda: litellm.responses(model=f"openai/{MODEL}", api_base=BASE, api_key="none", input=QUESTION, max_output_tokens=60).output[0].content[0].text,
    "Instructor, tools": lambda: structured(instructor.Mode.TOOLS),
    "Instructor, JSON schema": lambda: structured(instructor.Mode.JSON_SCHEMA),
    "Pydantic AI": lambda: agent().run_sync(QUESTION).output,
    "Pydantic AI, stream": lambda: asyncio.run(agent_streams()),
    "Pydantic AI, tool output": lambda: agent(output_type=ToolOutput(City)).run_sync(QUESTION).output,
    "Pydantic AI, native output": lambda: agent(output_type=NativeOutput(City)).run_sync(QUESTION).output,
    "Pydantic AI, responses": lambda: agent(OpenAIResponsesModel).run_sync(QUESTION).output,
    "OpenAI Agents": openai_agent,
}


def main():
    failed = 0
    for name, call in CALLS.items():
        began = time.monotonic()
        try:
            said = call()
            shown, wrong = repr(said)[:80], not isinstance(said, (str, City)) or said == ""
        except Exception as error:
            shown, wrong = f"{type(error).__name__}: {error}"[:300], True
        failed += wrong
        print(f"{'FAILED' if wrong else 'ok':<7} {name:<28} {time.monotonic() - began:5.1f} s  {shown}", flush=True)
    sys.exit(f"{failed} of {len(CALLS)} calls failed" if failed else 0)


if __name__ == "__main__":
    main()
