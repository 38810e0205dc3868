"""Hooks of schemathesis: SCHEMATHESIS_HOOKS=schemathesis_hooks schemathesis run BASE_URL/openapi.json --checks not_a_server_error

Most generated bodies have no limit of tokens or a large one, and their answers go on to the end of the context. These hooks lower the limit. A limit that
the server has to refuse stays as it is.
"""

import schemathesis

MOST = 4
LIMITS = {
    "/v1/completions": ["max_tokens"],
    "/v1/chat/completions": ["max_tokens", "max_completion_tokens"],
    "/v1/responses": ["max_output_tokens"],
}


@schemathesis.hook
def before_call(context, case, kwargs):
    limits = LIMITS.get(case.operation.path, [])
    if not isinstance(case.body, dict):
        return
    for name in limits:
        value = case.body.get(name)
        if type(value) is int and value > MOST:
            case.body[name] = MOST
    if limits and all(case.body.get(name) is None for name in limits):
        case.body[limits[0]] = MOST
