"""The chat model suite of langchain-tests against a server: pytest -p no:cacheprovider -o asyncio_mode=auto langchain_suite.py

The environment variable BASE_URL names the server, such as http://127.0.0.1:9000. The suite asks for the model's calls, structured output, streams and
usage through langchain-openai.
"""

import os

import openai
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

BASE_URL = f"{os.environ['BASE_URL']}/v1"
MODEL = openai.OpenAI(base_url=BASE_URL, api_key="none").models.list().data[0].id


class TestBaton(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        # Without a penalty, small models repeat a sentence until the limit.
        settings = {"temperature": 0, "frequency_penalty": 0.5, "max_tokens": 300, "timeout": 300, "stream_usage": True}
        return {"base_url": BASE_URL, "api_key": "none", "model": MODEL, **settings}

    @property
    def supports_json_mode(self):
        return True
