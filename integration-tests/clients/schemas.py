"""Answers under JSON schemas, checked with the package jsonschema: schemas.py BASE_URL [--help]

Asks a server for answers under the schemas of schemas.jsonl or, with --suite, of the JSON Schema Test Suite (npm json-schema-test-suite). An answer that
ends by itself has to be an instance of its schema. Of the answers under bounded schemas, 95 % have to end by themselves. A schema is bounded if its
longest instance has at most 1,000 characters. Only the schemas in UNSUPPORTED may be refused, and they have to be. Prints a table, then the failures.
Exits with 1 if one of the rules is broken.
"""

import argparse
import collections
import decimal
import http.client
import json
import math
import pathlib
import re
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import jsonschema

try:
    from re import _parser as sre_parse
except ImportError:  # Python 3.10
    import sre_parse

BOUND = 1000
HERE = pathlib.Path(__file__).parent
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
FORMATS = {"date": 10, "uuid": 36, "ipv4": 15, "ipv6": 45}

# The schemas that the server refuses.
UNSUPPORTED = {
    # References to other documents.
    "suite: definitions: valid definition",
    "suite: definitions: invalid definition",
    "suite: ref: remote ref, containing refs itself",
    "suite: refRemote: remote ref",
    "suite: refRemote: fragment within remote ref",
    "suite: refRemote: ref within remote ref",
    "suite: refRemote: change resolution scope",
    # Unsupported keywords.
    "suite: dependencies: dependencies",
    "suite: dependencies: multiple dependencies",
    "suite: dependencies: multiple dependencies subschema",
    "suite: not: not",
    "suite: not: not multiple types",
    "suite: not: not more complex schema",
    "suite: not: forbidden property",
    "suite: uniqueItems: uniqueItems validation",
    # Patterns of properties that overlap.
    "suite: patternProperties: multiple simultaneous patternProperties are validated",
    "suite: patternProperties: regexes are not anchored by default and are case sensitive",
}


def written_down():
    lines = (HERE / "schemas.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["name"], entry["schema"]) for entry in map(json.loads, lines)]


def test_suite(folder):
    """The schemas of the JSON Schema Test Suite. They are of draft 4 and do not say so."""
    for file in sorted((pathlib.Path(folder) / "tests/draft4").glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            schema = case["schema"]
            yield f"suite: {file.stem}: {case['description']}", {"$schema": DRAFT_4, **schema}


def resolve(root, reference):
    """The schema in `root` that a `$ref` names, or true if it is elsewhere."""
    place = root
    if not re.fullmatch("#(/[^/]+)*", reference):
        return True
    for step in urllib.parse.unquote(reference.removeprefix("#")).split("/")[1:]:
        place = place[int(step) if isinstance(place, list) else step.replace("~1", "/").replace("~0", "~")]
    return place


def longest(schema, root, seen=()):
    """An upper bound of the number of characters of an instance, or infinity."""
    if isinstance(schema, bool):
        return math.inf if schema else 0
    if "enum" in schema or "const" in schema:
        return max(len(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        reference = schema["$ref"]
        return math.inf if reference in seen else longest(resolve(root, reference), root, (*seen, reference))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return max(longest(part, root, seen) for part in schema[key])
    if "allOf" in schema:
        return min(longest(part, root, seen) for part in schema["allOf"])
    types = schema.get("type", "anything")
    return max(longest_of(kind, schema, root, seen) for kind in ([types] if isinstance(types, str) else types))


def longest_of(kind, schema, root, seen):
    match kind:
        case "null" | "boolean":
            return 5
        case "integer" | "number":
            whole = kind == "integer" or "multipleOf" in schema
            ends = [schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))]
            return max(len(str(end)) for end in ends) + 7 if whole and None not in ends else math.inf
        case "string":
            return min(schema.get("maxLength", math.inf), FORMATS.get(schema.get("format"), math.inf), width(schema.get("pattern"))) + 2
        case "array":
            first = [longest(item, root, seen) + 2 for item in schema.get("prefixItems", [])]
            most = max(schema.get("maxItems", math.inf) - len(first), 0) if schema.get("items", True) is not False else 0
            return 2 + sum(first) + (most * (longest(schema.get("items", True), root, seen) + 2) if most else 0)
        case "object":
            known = {json.dumps(key): part for key, part in schema.get("properties", {}).items()}
            total = 2 + sum(len(key) + 4 + longest(part, root, seen) for key, part in known.items())
            if schema.get("additionalProperties", True) is not False:
                return math.inf
            others = [width(key) + 6 + longest(part, root, seen) for key, part in schema.get("patternProperties", {}).items()]
            return total + (schema.get("maxProperties", math.inf) * max(others) if others else 0)
    return math.inf


def width(pattern):
    """The most characters that a pattern matches as a whole, or infinity."""
    if pattern is None or not (pattern.startswith("^") and pattern.endswith("$")):
        return math.inf
    most = sre_parse.parse(pattern).getwidth()[1]
    return math.inf if most >= 100_000 else most


class Answer:
    def __init__(self, name, schema, status, body, seconds):
        self.name, self.schema, self.status, self.seconds = name, schema, status, seconds
        self.text = self.finish = None
        self.tokens, self.problem = 0, None
        if status == 200:
            choice = body["choices"][0]
            self.text, self.finish = choice["message"]["content"], choice["finish_reason"]
            self.tokens = body["usage"]["completion_tokens"]
        else:
            self.problem = body

    def violation(self):
        """What is wrong with an answer that ended by itself."""
        if self.finish != "stop":
            return None
        kind = jsonschema.validators.validator_for(self.schema, jsonschema.Draft202012Validator)
        try:
            # In binary fractions, 2.11 is not a multiple of 0.01.
            schema, instance = (json.loads(text, parse_float=decimal.Decimal) for text in (json.dumps(self.schema), self.text))
            error = next(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(instance), None)
        except ValueError as broken:
            return f"not JSON: {broken}"
        return error and error.message


def ask(options, model, number, name, schema):
    description = re.sub("^suite: [^:]*: ", "", name)
    question = f"Write one short JSON value: {description}. It has to match this schema: {json.dumps(schema, ensure_ascii=False)}"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        # Without a penalty, small models repeat a sentence until the limit.
        "frequency_penalty": 0.5,
        "seed": number,
    }
    begin = time.monotonic()
    connection = http.client.HTTPConnection(urllib.parse.urlparse(options.base_url).netloc, timeout=options.timeout)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        status, body = response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        status, body = 0, repr(error)
    finally:
        connection.close()
    return Answer(name, schema, status, body, time.monotonic() - begin)


def report(answers):
    rows = collections.defaultdict(collections.Counter)
    failures = []
    for answer in answers:
        bounded = longest(answer.schema, answer.schema) <= BOUND
        row = rows["suite" if answer.name.startswith("suite: ") else "written down", "bounded" if bounded else "unbounded"]
        row["answers"] += 1
        violation = answer.violation()
        if answer.status == 400 and answer.name in UNSUPPORTED:
            row["refused"] += 1
        elif answer.status == 200 and answer.name in UNSUPPORTED:
            row["failed"] += 1
            failures.append((answer.name, "is supported; take it from the list of unsupported schemas"))
        elif answer.status != 200:
            row["failed"] += 1
            failures.append((answer.name, answer.status, answer.problem))
        elif violation:
            row["invalid"] += 1
            failures.append((answer.name, violation, answer.text))
        else:
            row["valid" if answer.finish == "stop" else "cut"] += 1
    columns = ["answers", "refused", "failed", "cut", "invalid", "valid"]
    print(f"{'schemas':<24}", *(f"{column:>8}" for column in columns))
    for group, row in sorted(rows.items()):
        print(f"{', '.join(group):<24}", *(f"{row[column]:>8}" for column in columns))
    counted = [row for (_, size), row in rows.items() if size == "bounded"]
    asked = sum(row["answers"] - row["refused"] for row in counted)
    ended = sum(row["valid"] + row["invalid"] for row in counted)
    print(f"under bounded schemas, {ended} of {asked} answers ended by themselves")
    for name in sorted({a.name for a in answers if a.status == 400 and a.name in UNSUPPORTED}):
        print(f"refused, as expected: {name}")
    for name in sorted({a.name for a in answers if a.finish == "length" and longest(a.schema, a.schema) <= BOUND}):
        print(f"cut, although bounded: {name}")
    for failure in failures:
        print("FAILED:", *failure)
    tokens = sum(answer.tokens for answer in answers)
    print(f"{tokens} tokens; the slowest answer took {max(answer.seconds for answer in answers):.1f} s")
    return not failures and ended >= 0.95 * asked


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="use every Nth schema")
    parser.add_argument("--suite", help="folder of the npm package json-schema-test-suite, whose schemas are used instead")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which an answer counts as hanging")
    parser.add_argument("--save", help="file for the answers, one JSON object a line")
    options = parser.parse_args()
    schemas = [*test_suite(options.suite)] if options.suite else written_down()
    schemas = schemas[:: options.every]
    connection = http.client.HTTPConnection(urllib.parse.urlparse(options.base_url).netloc, timeout=60)
    connection.request("GET", "/v1/models")
    model = json.loads(connection.getresponse().read())["data"][0]["id"]
    jobs = [(number, *schemas[number % len(schemas)]) for number in range(options.answers)]
    saved = open(options.save, "w", encoding="utf-8") if options.save else None
    answers = []
    with ThreadPoolExecutor(options.concurrency) as pool:
        for answer in pool.map(lambda job: ask(options, model, *job), jobs):
            answers.append(answer)
            if saved:
                print(json.dumps(vars(answer), ensure_ascii=False), file=saved, flush=True)
    print(f"{model}: {len(answers)} answers under {len(schemas)} schemas")
    sys.exit(0 if report(answers) else 1)


if __name__ == "__main__":
    main()
