// The chat box.

const MESSAGES_MAX = 20;

const chat = { messages: [], items: [], model: "", hasTemplate: true, abort: null };

/** Adds a message to the log. Forgets the oldest one if there are too many. */
function addMessage(role, text) {
  const item = element("li", { kind: role === "user" ? "question" : "answer", within: byId("chat-log") });
  element("p", { kind: "who", text: role === "user" ? "You" : "Answer", within: item });
  const thought = element("p", { kind: "thought", within: item });
  thought.hidden = true;
  const said = element("p", { within: item });
  said.append(text);
  const times = element("p", { kind: "times", within: item });
  chat.items.push(item);
  if (chat.items.length > MESSAGES_MAX) chat.items.shift().remove();
  return { said, thought, times };
}

function chatRequest(maxTokens) {
  // Without a snapshot, the name of the model is not known. The server then takes its own.
  const common = { ...(chat.model ? { model: chat.model } : {}), stream: true, max_tokens: maxTokens, return_timings: true };
  if (chat.hasTemplate) return ["/v1/chat/completions", { ...common, messages: chat.messages }];
  return ["/v1/completions", { ...common, prompt: chat.messages[chat.messages.length - 1].content }];
}

/** The times of an answer in one sentence. `first` and `last` are the times of its first and last tokens here. */
function timesOf(timings, begun, first) {
  const seen = `First text after ${milliseconds(first - begun)} here`;
  if (!timings) return Number.isFinite(first) ? `${seen}.` : "";
  const { queue_ms, first_token_ms, tokens_per_s, disaggregated, prefill_pid, decode_pid, pages } = timings;
  const where = disaggregated
    ? `Process ${prefill_pid} prefilled and handed over ${count(pages, "page")} (${bytes(timings.bytes)}); process ${decode_pid} decoded`
    : `Process ${decode_pid} prefilled and decoded`;
  const speed = tokens_per_s === null ? "" : `, ${number(tokens_per_s)} tokens/s`;
  return `TTFT ${milliseconds(queue_ms + first_token_ms)}${speed}, ${number(timings.prompt_tokens)} prompt tokens, ` +
    `${count(timings.completion_tokens, "token")}. ${where}. ${seen}.`;
}

/** Reads an answer into the log. Returns its text. */
async function readAnswer(response, shown, begun) {
  let [text, first, timings, reason] = ["", NaN, null, ""];
  const add = (node, piece) => {
    if (Number.isNaN(first)) first = performance.now();
    node.append(piece);
    node.normalize();
  };
  const take = (event) => {
    if (event.error) throw new Error(event.error.message);
    timings = event.timings ?? timings;
    const choice = event.choices?.[0];
    const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
    const said = choice?.delta?.content ?? choice?.text;
    if (thought) {
      setVisible(shown.thought, true);
      add(shown.thought, thought);
    }
    if (said) {
      text += said;
      add(shown.said, said);
    }
    reason = choice?.finish_reason ?? reason;
  };
  await eachLine(response, (line) => {
    if (line.startsWith("data: ") && line !== "data: [DONE]") take(JSON.parse(line.slice(6)));
  });
  setText(shown.times, timesOf(timings, begun, first));
  show("chat-status", reason === "length" ? "The answer has reached its maximum number of tokens." : "The answer is complete.");
  return text;
}

async function sendMessage(text) {
  chat.abort = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  show("chat-status", "Waiting for the answer.");
  addMessage("user", text);
  chat.messages.push({ role: "user", content: text });
  const shown = addMessage("assistant", "");
  const begun = performance.now();
  try {
    const [path, body] = chatRequest(Number(byId("max-tokens").value) || 256);
    const headers = { ...keyHeader(), "content-type": "application/json" };
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal: chat.abort.signal, cache: "no-store" });
    if (!response.ok) {
      if (response.status === 401) askForKey();
      throw new Error(await sentenceOf(response));
    }
    const answer = await readAnswer(response, shown, begun);
    chat.messages.push({ role: "assistant", content: answer });
  } catch (error) {
    chat.messages.pop();
    const stopped = error.name === "AbortError";
    show("chat-status", stopped ? "Stopped." : "The answer failed.");
    setText(shown.times, stopped ? "Stopped. This turn is not sent again." : error.message);
    shown.times.classList.toggle("failure", !stopped);
  } finally {
    chat.abort = null;
    chat.messages.splice(0, Math.max(0, chat.messages.length - MESSAGES_MAX));
    byId("send").disabled = false;
    byId("stop").disabled = true;
  }
}

/** Takes over what a snapshot says of the model. */
function updateChat(snapshot) {
  chat.model = snapshot.model;
  chat.hasTemplate = snapshot.chat;
  setVisible(byId("chat-note"), !snapshot.chat);
}

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("prompt").value;
  if (chat.abort !== null || text.trim() === "") return;
  byId("prompt").value = "";
  sendMessage(text);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("chat-form").requestSubmit();
});
byId("stop").addEventListener("click", () => chat.abort?.abort());
byId("clear").addEventListener("click", () => {
  chat.abort?.abort();
  chat.messages.length = 0;
  while (chat.items.length > 0) chat.items.pop().remove();
  show("chat-status", "The chat is empty.");
});
