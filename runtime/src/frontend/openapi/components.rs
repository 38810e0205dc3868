//! The parts of the OpenAPI document that are not made from the table of fields.

/// Endpoints with GET: path, meaning, content type, name of the schema, and whether they need no key.
pub(super) const GETS: &[(&str, &str, &str, &str, bool)] = &[
    ("/v1/models", "The served model.", "application/json", "ModelList", false),
    ("/v1/models/{model}", "A model by its name.", "application/json", "Model", false),
    ("/health", "Whether the process serves.", "application/json", "Health", true),
    ("/ping", "The status of `/health` without a body.", "", "", true),
    ("/live", "Whether the process has to be restarted: 503 after a fault.", "", "", true),
    ("/version", "The version of the server.", "application/json", "Version", true),
    ("/load", "The number of running and waiting answers.", "application/json", "Load", true),
    ("/metrics", "Metrics in Prometheus's format.", "text/plain", "Text", true),
    ("/openapi.json", "This document.", "application/json", "Document", true),
];

/// The schemas of parts of requests, and of responses.
pub(super) const SCHEMAS: &str = r##"{
"Message": {"type": "object", "required": ["role"], "properties": {
    "role": {"type": "string", "minLength": 1},
    "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/components/schemas/TextPart"}}, {"type": "null"}]},
    "name": {"type": "string"},
    "tool_call_id": {"type": "string"},
    "reasoning_content": {"type": "string"},
    "tool_calls": {"type": "array", "maxItems": 128, "items": {"$ref": "#/components/schemas/ToolCall"}}}},
"TextPart": {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
"ToolCall": {"type": "object", "required": ["function"], "properties": {
    "id": {"type": "string"},
    "type": {"const": "function"},
    "function": {"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string"}, "arguments": {"type": "string", "description": "A JSON object."}}}}},
"Tool": {"type": "object", "required": ["type", "function"], "properties": {
    "type": {"const": "function"},
    "function": {"$ref": "#/components/schemas/Function"}}},
"Function": {"type": "object", "required": ["name"], "properties": {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "description": {"type": ["string", "null"]},
    "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
    "strict": {"type": ["boolean", "null"]}}},
"FunctionTool": {"type": "object", "required": ["type", "name"], "properties": {
    "type": {"const": "function"},
    "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "description": {"type": ["string", "null"]},
    "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
    "strict": {"type": ["boolean", "null"]}}},
"ToolChoice": {"anyOf": [
    {"enum": ["none", "auto", "required"]},
    {"type": "object", "required": ["type", "function"], "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}}]},
"FunctionChoice": {"anyOf": [
    {"enum": ["none", "auto", "required"]},
    {"type": "object", "required": ["type", "name"], "properties": {"type": {"const": "function"}, "name": {"type": "string"}}}]},
"ResponseFormat": {"type": "object", "required": ["type"], "properties": {
    "type": {"enum": ["text", "json_object", "json_schema"]},
    "json_schema": {"type": "object", "properties": {"name": {"type": "string"}, "schema": {"type": "object"}}}}},
"TextConfig": {"type": "object", "properties": {
    "verbosity": {"type": "string"},
    "format": {"type": "object", "required": ["type"], "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]}, "name": {"type": "string"}, "schema": {"type": "object"}}}}},
"ReasoningConfig": {"type": "object", "properties": {
    "effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max", null]}}},
"StreamOptions": {"type": "object", "properties": {
    "include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}}},
"InputItem": {"anyOf": [
    {"type": "object", "required": ["role", "content"], "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {"$ref": "#/components/schemas/InputContent"}}},
    {"type": "object", "required": ["type", "call_id", "name", "arguments"], "properties": {
        "type": {"const": "function_call"},
        "call_id": {"type": "string"}, "name": {"type": "string"},
        "arguments": {"type": "string", "description": "A JSON object."}}},
    {"type": "object", "required": ["type", "call_id", "output"], "properties": {
        "type": {"const": "function_call_output"},
        "call_id": {"type": "string"},
        "output": {"$ref": "#/components/schemas/InputContent"}}},
    {"type": "object", "required": ["type"], "properties": {
        "type": {"const": "reasoning"},
        "content": {"anyOf": [{"$ref": "#/components/schemas/InputContent"}, {"type": "null"}]}}}]},
"InputContent": {"anyOf": [
    {"type": "string"},
    {"type": "array", "maxItems": 1024, "items": {"type": "object", "required": ["type", "text"], "properties": {
        "type": {"enum": ["input_text", "output_text", "text", "reasoning_text"]}, "text": {"type": "string"}}}}]},
"Completion": {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
    "id": {"type": "string"}, "object": {"const": "text_completion"}, "created": {"type": "integer"}, "model": {"type": "string"},
    "choices": {"type": "array", "items": {"type": "object", "required": ["index", "text", "finish_reason"], "properties": {
        "index": {"type": "integer"}, "text": {"type": "string"}, "finish_reason": {"enum": ["stop", "length"]},
        "stop_reason": {"type": ["string", "integer", "null"]}, "logprobs": {"type": ["object", "null"]},
        "token_ids": {"type": ["array", "null"]}, "prompt_token_ids": {"type": ["array", "null"]}}}},
    "system_fingerprint": {"type": "null"}, "kv_transfer_params": {"type": "null"},
    "usage": {"$ref": "#/components/schemas/Usage"}, "timings": {"type": "object"}}},
"ChatCompletion": {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
    "id": {"type": "string"}, "object": {"const": "chat.completion"}, "created": {"type": "integer"}, "model": {"type": "string"},
    "choices": {"type": "array", "items": {"type": "object", "required": ["index", "message", "finish_reason"], "properties": {
        "index": {"type": "integer"},
        "message": {"type": "object", "required": ["role", "content"], "properties": {
            "role": {"const": "assistant"}, "content": {"type": ["string", "null"]}, "reasoning_content": {"type": "string"},
            "refusal": {"type": "null"}, "tool_calls": {"type": "array", "items": {"$ref": "#/components/schemas/ToolCall"}}}},
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        "stop_reason": {"type": ["string", "integer", "null"]}, "logprobs": {"type": ["object", "null"]},
        "token_ids": {"type": ["array", "null"]}}}},
    "system_fingerprint": {"type": "null"}, "kv_transfer_params": {"type": "null"},
    "prompt_token_ids": {"type": ["array", "null"]},
    "usage": {"$ref": "#/components/schemas/Usage"}, "timings": {"type": "object"}}},
"Usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"], "properties": {
    "prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"},
    "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": {"type": "integer"}}}}},
"Response": {"type": "object", "required": ["id", "object", "created_at", "model", "status", "output", "usage"], "properties": {
    "id": {"type": "string"}, "object": {"const": "response"}, "created_at": {"type": "integer"}, "model": {"type": "string"},
    "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
    "incomplete_details": {"type": ["object", "null"], "properties": {"reason": {"const": "max_output_tokens"}}},
    "error": {"type": ["object", "null"]},
    "output": {"type": "array", "items": {"$ref": "#/components/schemas/OutputItem"}},
    "background": {"const": false}, "store": {"const": false}, "truncation": {"const": "disabled"},
    "previous_response_id": {"type": "null"},
    "instructions": {"type": ["string", "null"]}, "max_output_tokens": {"type": ["integer", "null"]},
    "metadata": {"type": "object"}, "parallel_tool_calls": {"type": "boolean"}, "reasoning": {"type": "object"},
    "temperature": {"type": "number"}, "top_p": {"type": "number"}, "text": {"type": "object"},
    "tool_choice": {"$ref": "#/components/schemas/FunctionChoice"}, "tools": {"type": "array"},
    "usage": {"type": ["object", "null"], "required": ["input_tokens", "output_tokens", "total_tokens"], "properties": {
        "input_tokens": {"type": "integer"},
        "input_tokens_details": {"type": "object", "properties": {
            "cached_tokens": {"type": "integer"}, "cache_write_tokens": {"type": "integer"}}},
        "output_tokens": {"type": "integer"},
        "output_tokens_details": {"type": "object", "properties": {"reasoning_tokens": {"type": "integer"}}},
        "total_tokens": {"type": "integer"}}}}},
"OutputItem": {"type": "object", "required": ["type", "id", "status"], "properties": {
    "type": {"enum": ["message", "function_call", "reasoning"]}, "id": {"type": "string"},
    "status": {"enum": ["in_progress", "completed", "incomplete"]},
    "role": {"const": "assistant"}, "content": {"type": "array"}, "summary": {"type": "array"},
    "call_id": {"type": "string"}, "name": {"type": "string"}, "arguments": {"type": "string"}}},
"Tokenized": {"type": "object", "required": ["count", "max_model_len", "tokens"], "properties": {
    "count": {"type": "integer"}, "max_model_len": {"type": "integer"}, "tokens": {"type": "array", "items": {"type": "integer"}},
    "token_strs": {"type": ["array", "null"], "items": {"type": "string"}}}},
"Detokenized": {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
"ModelList": {"type": "object", "required": ["object", "data"], "properties": {
    "object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}},
"Model": {"type": "object", "required": ["id", "object", "created", "owned_by"], "properties": {
    "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": {"type": "string"},
    "root": {"type": "string"}, "parent": {"type": "null"}, "max_model_len": {"type": "integer"}, "permission": {"type": "array"}}},
"Health": {"type": "object", "required": ["status"], "properties": {
    "status": {"enum": ["ok", "degraded", "draining", "down"]}, "reason": {"type": "string"}, "role": {"type": "string"},
    "pid": {"type": "integer"}, "peers": {"type": "integer"}, "live_requests": {"type": "integer"}}},
"Version": {"type": "object", "required": ["version"], "properties": {"version": {"type": "string"}}},
"Load": {"type": "object", "required": ["server_load", "running", "waiting"], "properties": {
    "server_load": {"type": "integer"}, "running": {"type": "integer"}, "waiting": {"type": "integer"}}},
"Text": {"type": "string"},
"Document": {"type": "object"},
"Unauthorized": {"type": "object", "required": ["error"], "properties": {"error": {"const": "Unauthorized"}}},
"Error": {"type": "object", "required": ["error"], "properties": {
    "error": {"type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": "integer"}}}}}
}"##;
