// Tests a server with OpenAI's client for Node.js: node openai_client.mjs FOLDER_OF_THE_PACKAGE BASE_URL
//
// Ends with "all calls are right" or with the first failed assertion.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [folder, base] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(`${folder}/index.mjs`).href);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "key", maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const settings = { model, messages, temperature: 0 };

async function streaming() {
  const whole = await client.chat.completions.create({ ...settings, max_tokens: 12 });
  const { content } = whole.choices[0].message;
  assert.match(content, /Paris/);
  let text = "";
  let usage = null;
  const options = { include_usage: true };
  for await (const chunk of await client.chat.completions.create({ ...settings, max_tokens: 12, stream: true, stream_options: options })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  const runner = client.chat.completions.stream({ ...settings, max_tokens: 12 });
  assert.equal(await runner.finalContent(), content);
  const left = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 200, stream: true });
  for await (const chunk of left) {
    assert.equal(chunk.object, "text_completion");
    break;
  }
}

async function parsing() {
  const properties = { city: { enum: ["Paris", "Rome"] }, letters: { type: "integer", minimum: 1, maximum: 9 } };
  const schema = { type: "object", properties, required: ["city", "letters"], additionalProperties: false };
  const response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  const { parsed } = (await client.chat.completions.parse({ ...settings, response_format })).choices[0].message;
  assert.deepEqual(Object.keys(parsed), ["city", "letters"]);
  assert.ok(properties.city.enum.includes(parsed.city) && parsed.letters >= 1 && parsed.letters <= 9, parsed);
  const streamed = await client.chat.completions.stream({ ...settings, response_format }).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, parsed);
}

async function tools() {
  const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false };
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const forced = { ...settings, tools, tool_choice: "required", parallel_tool_calls: false };
  const whole = (await client.chat.completions.create(forced)).choices[0];
  assert.equal(whole.finish_reason, "tool_calls");
  const [call] = whole.message.tool_calls;
  assert.equal(call.function.name, "weather");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  const streamed = (await client.chat.completions.stream(forced).finalChatCompletion()).choices[0];
  assert.equal(streamed.finish_reason, "tool_calls");
  assert.deepEqual(streamed.message.tool_calls.map((call) => call.function.arguments), [call.function.arguments]);
  const answered = [...messages, whole.message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
  assert.ok((await client.chat.completions.create({ ...settings, messages: answered, max_tokens: 4 })).choices[0].message.content);
}

async function errors() {
  const refused = (fields, kind, param) =>
    assert.rejects(client.chat.completions.create({ ...settings, ...fields }), (error) => {
      assert.ok(error instanceof kind, error);
      assert.equal(error.param, param);
      return true;
    });
  await refused({ max_tokens: 0 }, OpenAI.BadRequestError, "max_tokens");
  await refused({ model: "other" }, OpenAI.NotFoundError, "model");
  await refused({ tool_choice: "required" }, OpenAI.BadRequestError, "tool_choice");
  const response_format = { type: "json_schema", json_schema: { name: "answer", schema: { not: {} } } };
  await refused({ response_format }, OpenAI.BadRequestError, "response_format.json_schema.schema");
  await refused({ response_format, stream: true }, OpenAI.BadRequestError, "response_format.json_schema.schema");
  const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "other", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
}

await streaming();
await parsing();
await tools();
await errors();
console.log("all calls are right");
