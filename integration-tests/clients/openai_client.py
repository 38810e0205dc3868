"""Tests a server with OpenAI's Python client, synchronously and asynchronously: openai_client.py BASE_URL.

Makes every call that Baton supports and checks the results against the types of the client and the OpenAI API. Ends with "all calls are right" or
with the first failed assertion.
"""

import asyncio
import json
import sys
from typing import Literal

import openai
import pydantic

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "Once upon a time there was a"


def check_models(client):
    models = client.models.list().data
    assert len(models) == 1 and models[0].object == "model", models
    assert client.models.retrieve(models[0].id).id == models[0].id
    return models[0].id


def check_completion(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-"), whole
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 8, whole
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text, chunks
    assert chunks[-1].usage == whole.usage and len(chunks) == 9, chunks
    return whole


def check_batches(client, model, whole):
    batch = client.completions.create(model=model, prompt=[PROMPT, "The sea is"], n=2, max_tokens=8, temperature=0)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3], batch
    assert batch.choices[0].text == batch.choices[1].text == whole.choices[0].text, batch
    assert batch.choices[2].text != whole.choices[0].text, batch
    ids = [1, 2, 3]
    assert client.completions.create(model=model, prompt=ids, max_tokens=1).usage.prompt_tokens == 3
    echoed = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0, echo=True)
    assert echoed.choices[0].text == PROMPT + whole.choices[0].text, echoed


def check_sampling(client, model):
    def ask(**settings):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=12, **settings).choices[0]

    assert ask(seed=7, temperature=0.9).text == ask(seed=7, temperature=0.9).text
    assert ask(seed=7, temperature=0.9, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5).text
    forced = ask(temperature=0, logit_bias={"100": 100})
    assert forced.text, forced
    told = ask(temperature=0, logprobs=3).logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 12, told
    assert all(len(top) in (3, 4) for top in told.top_logprobs), told
    assert all(logprob <= 0 for logprob in told.token_logprobs), told
    text = ask(temperature=0).text
    stop = text[4:7]
    stopped = ask(temperature=0, stop=stop)
    assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop", (text, stop, stopped)


def check_chat(client, model):
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, temperature=0)
    message = whole.choices[0].message
    assert message.role == "assistant" and "Paris" in message.content, whole
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, max_completion_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == message.content, chunks
    usage = chunks[-1].usage
    counts = [(u.prompt_tokens, u.completion_tokens, u.total_tokens) for u in (whole.usage, usage)]
    assert counts[0] == counts[1], (whole.usage, usage)
    # The second request finds pages of the first. A request with a salt does not.
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens, usage
    salted = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=1, extra_body={"cache_salt": "tenant"}
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0, salted
    told = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    ).choices[0].logprobs.content
    assert len(told) == 4 and all(len(token.top_logprobs) == 2 for token in told), told
    assert bytes(told[0].bytes).decode() == told[0].token, told
    several = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, n=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2], several
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert client.chat.completions.create(model=model, messages=parts, max_tokens=1).choices[0].message.content is not None


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
        },
    }
]


def check_tools(client, model):
    # The model knows no tools: requests with tools are accepted, and the answers are text.
    called = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": MESSAGES[0]["content"]},
    ]
    settings = {"model": model, "messages": history, "tools": TOOLS, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**settings).choices[0]
    assert "Paris" in whole.message.content and whole.message.tool_calls in (None, []), whole
    assert whole.finish_reason == "stop", whole
    assert client.chat.completions.create(**settings, tool_choice="none").choices[0].message == whole.message
    with client.chat.completions.stream(**settings) as stream:
        try:
            stream.until_done()
        except openai.LengthFinishReasonError:
            pass
        assert stream.current_completion_snapshot.choices[0].message.content == whole.message.content
    # A grammar forces the call. The format is that of Hermes, because the template shows none.
    forced = {"model": model, "messages": MESSAGES, "tools": TOOLS, "temperature": 0, "parallel_tool_calls": False}
    for choice, finish in [("required", "tool_calls"), ({"type": "function", "function": {"name": "get_weather"}}, "stop")]:
        whole = client.chat.completions.create(**forced, tool_choice=choice).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.message.content is None and whole.finish_reason == finish, whole
        assert call.function.name == "get_weather" and call.id.startswith("call_"), whole
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), whole
        with client.chat.completions.stream(**forced, tool_choice=choice) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == finish and streamed.message.content is None, streamed
        (same,) = streamed.message.tool_calls
        assert same.function.arguments == call.function.arguments and same.function.name == "get_weather", streamed
    wrong = {"type": "function", "function": {"name": "other"}}
    try:
        client.chat.completions.create(**settings, tool_choice=wrong)
        raise AssertionError("an unknown function was accepted")
    except openai.BadRequestError as error:
        assert error.param == "tool_choice", error


def check_responses(client, model):
    # The model knows no tools, so a call has to be forced.
    tool = {"type": "function", "name": "get_weather", "parameters": TOOLS[0]["function"]["parameters"], "strict": False}
    text = {"input": MESSAGES[0]["content"], "instructions": "Answer in a few words.", "max_output_tokens": 12}
    forced = {"input": MESSAGES, "tools": [tool], "tool_choice": "required", "max_output_tokens": 64}
    for fields, kind in ((text, "message"), (forced, "function_call")):
        settings = {"model": model, "temperature": 0, **fields}
        whole = client.responses.create(**settings)
        assert whole.object == "response" and whole.output[0].type == kind, whole
        assert whole.usage.output_tokens <= fields["max_output_tokens"], whole
        events = list(client.responses.create(**settings, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events))), events
        final = events[-1].response
        assert final.status == whole.status and final.usage.output_tokens == whole.usage.output_tokens, (whole, final)
        assert final.output_text == whole.output_text, (whole, final)
        if kind == "function_call":
            assert (final.output[0].name, final.output[0].arguments) == ("get_weather", whole.output[0].arguments)
            deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
            assert "".join(deltas) == whole.output[0].arguments, events
            assert whole.status != "completed" or "city" in json.loads(whole.output[0].arguments), whole
    # The output of a response and the result of its call are the input of the next one.
    result = {"type": "function_call_output", "call_id": whole.output[0].call_id, "output": "sunny"}
    call = {"type": "function_call", "call_id": result["call_id"], "name": "get_weather", "arguments": '{"city": "Paris"}'}
    history = [*MESSAGES, call, result]
    with client.responses.stream(model=model, input=history, tools=[tool], max_output_tokens=8, temperature=0) as stream:
        for event in stream:
            last = event
        assert last.type in ("response.completed", "response.incomplete"), last
    try:
        client.responses.create(model=model, input="a", previous_response_id="resp_1")
        raise AssertionError("a response of before was accepted")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id", error


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]
    letters: int = pydantic.Field(ge=1, le=9)


def check_parse(client, model):
    settings = {"model": model, "messages": MESSAGES, "temperature": 0}
    whole = client.chat.completions.parse(**settings, response_format=City).choices[0]
    assert isinstance(whole.message.parsed, City) and whole.finish_reason == "stop", whole
    with client.chat.completions.stream(**settings, response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == whole.message.parsed
    tool = openai.pydantic_function_tool(City, name="visit")
    (call,) = client.chat.completions.parse(
        **settings, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ).choices[0].message.tool_calls
    assert call.function.name == "visit" and isinstance(call.function.parsed_arguments, City), call
    try:
        client.chat.completions.parse(**settings, response_format=City, max_tokens=2)
        raise AssertionError("an answer that was cut short was parsed")
    except openai.LengthFinishReasonError as error:
        assert error.completion.usage.completion_tokens == 2, error
    unsupported = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"type": "string"}}}}
    for stream in (False, True):
        try:
            client.chat.completions.create(**settings, response_format=unsupported, stream=stream)
            raise AssertionError("an unsupported keyword was accepted")
        except openai.BadRequestError as error:
            assert error.param == "response_format.json_schema.schema" and "not" in error.message, error


def check_errors(client, model):
    def refused(kind, **fields):
        try:
            client.completions.create(**{"model": model, "prompt": PROMPT, "max_tokens": 1, **fields})
        except kind as error:
            return error
        raise AssertionError(f"{fields} was not refused")

    assert refused(openai.BadRequestError, max_tokens=0).param == "max_tokens"
    assert refused(openai.BadRequestError, temperature=-1).status_code == 400
    assert refused(openai.BadRequestError, prompt="").param == "prompt"
    assert refused(openai.NotFoundError, model="other").param == "model"
    assert refused(openai.BadRequestError, suffix="x").param == "suffix"


async def check_async(client, model, whole):
    async def ask():
        return await client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)

    answers = await asyncio.gather(*(ask() for _ in range(8)))
    assert all(answer.choices[0].text == whole.choices[0].text for answer in answers), answers
    stream = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=12, temperature=0, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert "Paris" in text, text
    # A client may close the connection before the end of the stream.
    left = await client.completions.create(model=model, prompt=PROMPT, max_tokens=200, stream=True)
    async for _ in left:
        break
    await left.close()


def main():
    settings = {"base_url": f"{sys.argv[1]}/v1", "api_key": "key", "max_retries": 0, "timeout": 120}
    client = openai.OpenAI(**settings)
    model = check_models(client)
    whole = check_completion(client, model)
    check_batches(client, model, whole)
    check_sampling(client, model)
    check_chat(client, model)
    check_tools(client, model)
    check_responses(client, model)
    check_parse(client, model)
    check_errors(client, model)
    asyncio.run(check_async(openai.AsyncOpenAI(**settings), model, whole))
    try:
        openai.OpenAI(**{**settings, "api_key": "other"}).models.list()
        raise AssertionError("a wrong API key was accepted")
    except openai.AuthenticationError:
        pass
    print("all calls are right")


if __name__ == "__main__":
    main()
