"""The questions of BFCL (Berkeley Function Calling Leaderboard, version 4) and the check of their answers.

The data is in the wheel of the PyPI package `bfcl-eval` (Apache-2.0). The package itself is not installed.
"""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import zipfile

VERSION = "2026.3.23"
WHEEL = f"bfcl_eval-{VERSION}-py3-none-any.whl"
SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


@dataclasses.dataclass
class Question:
    name: str
    messages: list
    tools: list
    functions: dict  # name -> BFCL's description
    truth: dict  # name of the right function -> parameter -> values that are right


def load(folder, simple, multiple):
    """The first questions of both categories. Downloads the wheel into `folder` if it is not there."""
    wheel = folder / WHEEL
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        subprocess.run([*pip, f"bfcl-eval=={VERSION}"], check=True)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel} has sha256 {found}, expected {SHA256}")
    with zipfile.ZipFile(wheel) as data:
        return [*category(data, "simple_python", simple), *category(data, "multiple", multiple)]


def category(data, name, count):
    def lines(folder):
        return map(json.loads, data.read(f"bfcl_eval/data/{folder}BFCL_v4_{name}.json").decode().splitlines()[:count])

    for question, answer in zip(lines(""), lines("possible_answer/"), strict=True):
        assert question["id"] == answer["id"] and len(question["question"]) == len(answer["ground_truth"]) == 1, question["id"]
        functions = {allowed(function["name"]): function for function in question["function"]}
        truth = {allowed(name): values for name, values in answer["ground_truth"][0].items()}
        tools = [{"type": "function", "function": as_openai(function)} for function in question["function"]]
        yield Question(question["id"], question["question"][0], tools, functions, truth)


def allowed(name):
    """OpenAI's names of functions have no dots. bfcl-eval replaces them in the same way."""
    return name.replace(".", "_")


def as_openai(function):
    return {**function, "name": allowed(function["name"]), "parameters": json_types(function["parameters"])}


def json_types(schema):
    """A copy of a schema with the types of JSON Schema instead of those of Python."""
    if isinstance(schema, list):
        return [json_types(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: JSON_TYPES.get(value, value) if key == "type" and isinstance(value, str) else json_types(value) for key, value in schema.items()}


def calls_in(text, functions):
    """The calls of these functions in a model's text: JSON objects with a name and arguments, with or without tags and code blocks around them."""
    calls, names, place, decoder = [], list(functions), 0, json.JSONDecoder()
    while (place := text.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError:
            place += 1
            continue
        if isinstance(value, dict) and value.get("name") in names and isinstance(value.get("arguments"), dict):
            calls.append((value["name"], value["arguments"]))
        place = end
    return calls


def is_right(question, calls):
    """Whether the answer is one call that BFCL's check of simple functions accepts."""
    if len(calls) != 1 or calls[0][0] not in question.truth:
        return False
    name, arguments = calls[0]
    possible, parameters = question.truth[name], question.functions[name]["parameters"]
    if any(required not in arguments for required in parameters["required"]):
        return False
    if any("" not in values for key, values in possible.items() if key not in arguments):
        return False
    return all(key in possible and is_possible(parameters["properties"][key]["type"], value, possible[key]) for key, value in arguments.items())


def is_possible(kind, value, possible):
    """Whether a value has the type and is one of the possible values. A dictionary has a list of possible values for each key."""
    if kind == "float" and type(value) is int:
        value = float(value)
    types = {"integer": int, "float": float, "string": str, "boolean": bool, "array": list, "tuple": list, "dict": dict}
    return type(value) is types[kind] and any(is_equal(value, right) for right in possible)


def is_equal(value, right):
    if isinstance(right, str):
        return isinstance(value, str) and plain(value) == plain(right)
    if isinstance(right, list):
        return isinstance(value, list) and len(value) == len(right) and all(map(is_equal, value, right))
    if isinstance(right, dict):
        known = isinstance(value, dict) and value.keys() <= right.keys()
        return known and all(any(is_equal(value.get(key, ""), one) for one in values) for key, values in right.items())
    return isinstance(value, bool) == isinstance(right, bool) and value == right


def plain(text):
    """A text without spaces, punctuation and case, as bfcl-eval compares texts."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
