//! The rows of the table.

use super::super::fields::Neutral;
use super::{Endpoints, Row, Support};

const COMPLETIONS: Endpoints = Endpoints::COMPLETIONS;
const CHAT: Endpoints = Endpoints::CHAT;
const RESPONSES: Endpoints = Endpoints::RESPONSES;
const TOKENIZE: Endpoints = Endpoints::TOKENIZE;
const DETOKENIZE: Endpoints = Endpoints::DETOKENIZE;
/// The endpoints with OpenAI's older fields.
const OLDER: Endpoints = COMPLETIONS.and(CHAT);
/// The endpoints that generate answers.
const ANSWERS: Endpoints = OLDER.and(RESPONSES);
/// The endpoints with messages and tools in the form of chats.
const CHATS: Endpoints = CHAT.and(TOKENIZE);

const fn read(name: &'static str, endpoints: Endpoints, schema: &'static str, text: &'static str) -> Row {
    Row { name, endpoints, support: Support::Read { schema, text } }
}

const fn ignored(name: &'static str, endpoints: Endpoints, text: &'static str) -> Row {
    Row { name, endpoints, support: Support::Ignored { text } }
}

const fn refused(name: &'static str, endpoints: Endpoints, neutral: Neutral) -> Row {
    Row { name, endpoints, support: Support::Refused(neutral) }
}

const FLAG_OFF: &str = r#"{"type":"boolean","default":false}"#;
const FLAG_ON: &str = r#"{"type":"boolean","default":true}"#;
const TEXT: &str = r#"{"type":"string"}"#;
const OBJECT: &str = r#"{"type":"object"}"#;
const COUNT: &str = r#"{"type":"integer","minimum":1,"maximum":4294967295}"#;
const PENALTY: &str = r#"{"type":"number","minimum":-2,"maximum":2,"default":0}"#;
const SCHEMA: &str = r#"{"anyOf":[{"type":"object"},{"type":"string"}]}"#;

/// All fields. Of several rows with one name, each endpoint is in at most one.
pub(in super::super) const ROWS: &[Row] = &[
    read(
        "model",
        ANSWERS.and(TOKENIZE).and(DETOKENIZE),
        TEXT,
        "The name of the served model; another name is a 404.",
    ),
    // What the answer follows.
    read(
        "prompt",
        COMPLETIONS,
        r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"integer"}},{"type":"array","items":{"type":"string"}},{"type":"array","items":{"type":"array","items":{"type":"integer"}}}]}"#,
        "Text, token ids, or a list of either.",
    ),
    read(
        "prompt",
        TOKENIZE,
        r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"integer"}}]}"#,
        "The text. Requests without `messages` need it.",
    ),
    read("tokens", DETOKENIZE, r#"{"type":"array","items":{"type":"integer","minimum":0}}"#, "Token ids."),
    read(
        "messages",
        CHATS,
        r##"{"type":"array","items":{"$ref":"#/components/schemas/Message"},"minItems":1}"##,
        "The turns of the chat.",
    ),
    read(
        "input",
        RESPONSES,
        r##"{"anyOf":[{"type":"string"},{"type":"array","items":{"$ref":"#/components/schemas/InputItem"},"minItems":1}]}"##,
        "A text of the user, or the turns of the chat as items. Other types of items are refused.",
    ),
    read("instructions", RESPONSES, TEXT, "A system message in front of the input."),
    read("add_special_tokens", COMPLETIONS, FLAG_ON, "The prompt begins with the model's token for that."),
    read(
        "add_special_tokens",
        CHATS,
        r#"{"type":"boolean"}"#,
        "The same; the default is true for a prompt, false for messages.",
    ),
    read("add_generation_prompt", CHATS, FLAG_ON, "The prompt ends with the start of the assistant's turn."),
    read("continue_final_message", CHATS, FLAG_OFF, "The answer continues the last message."),
    read("chat_template_kwargs", CHATS.and(RESPONSES), OBJECT, "Variables for the chat template."),
    // Tools.
    read(
        "tools",
        CHATS,
        r##"{"type":"array","items":{"$ref":"#/components/schemas/Tool"},"maxItems":128}"##,
        "Functions that the answer may call.",
    ),
    read(
        "tools",
        RESPONSES,
        r##"{"type":"array","items":{"$ref":"#/components/schemas/FunctionTool"},"maxItems":128}"##,
        "Functions that the answer may call. Other types of tools are refused.",
    ),
    read(
        "tool_choice",
        CHATS,
        r##"{"$ref":"#/components/schemas/ToolChoice"}"##,
        "Whether the answer has to call a function, and which.",
    ),
    read(
        "tool_choice",
        RESPONSES,
        r##"{"$ref":"#/components/schemas/FunctionChoice"}"##,
        "Whether the answer has to call a function, and which.",
    ),
    read("parallel_tool_calls", CHATS.and(RESPONSES), FLAG_ON, "The answer may have several calls."),
    // The length of the answer.
    read(
        "max_tokens",
        OLDER,
        COUNT,
        "Maximum number of tokens of an answer. Default: 16 for a completion, the rest of the context for a chat.",
    ),
    read("max_completion_tokens", CHAT, COUNT, "The newer name of `max_tokens`."),
    read(
        "max_output_tokens",
        RESPONSES,
        COUNT,
        "Maximum number of tokens of the answer. Default: the rest of the context.",
    ),
    read("ignore_eos", ANSWERS, FLAG_OFF, "The answer goes on after the model ends it."),
    read(
        "stop",
        ANSWERS,
        r#"{"anyOf":[{"type":"string","minLength":1},{"type":"array","items":{"type":"string","minLength":1},"maxItems":64}]}"#,
        "Strings that end the answer.",
    ),
    read(
        "stop_token_ids",
        ANSWERS,
        r#"{"type":"array","items":{"type":"integer","minimum":0},"maxItems":64}"#,
        "Tokens that end the answer.",
    ),
    read(
        "include_stop_str_in_output",
        ANSWERS,
        FLAG_OFF,
        "The answer ends with the string or token that ended it.",
    ),
    read("n", OLDER, r#"{"type":"integer","minimum":1,"default":1}"#, "Answers to each prompt."),
    // Sampling.
    read(
        "temperature",
        ANSWERS,
        r#"{"type":"number","minimum":0,"default":1}"#,
        "0 takes the most probable token.",
    ),
    read(
        "top_p",
        ANSWERS,
        r#"{"type":"number","exclusiveMinimum":0,"maximum":1,"default":1}"#,
        "Total probability of the tokens that are considered.",
    ),
    read(
        "top_k",
        ANSWERS,
        r#"{"type":"integer","minimum":-1,"maximum":2147483647,"default":0}"#,
        "Number of tokens that are considered; 0 and -1 mean all.",
    ),
    read(
        "min_p",
        ANSWERS,
        r#"{"type":"number","minimum":0,"maximum":1,"default":0}"#,
        "Minimum probability of a token, relative to the most probable one.",
    ),
    read(
        "seed",
        ANSWERS,
        r#"{"type":"integer"}"#,
        "Requests with the same seed have the same answer. The default is random.",
    ),
    read(
        "repetition_penalty",
        ANSWERS,
        r#"{"type":"number","exclusiveMinimum":0.01,"maximum":100,"default":1}"#,
        "Divides the logits of tokens that have occurred.",
    ),
    read("presence_penalty", ANSWERS, PENALTY, "Lowers the logits of tokens that the answer has."),
    read("frequency_penalty", ANSWERS, PENALTY, "The same, for each time that the answer has the token."),
    read(
        "logit_bias",
        ANSWERS,
        r#"{"type":"object","additionalProperties":{"type":"number","minimum":-100,"maximum":100}}"#,
        "Added to the logits of these token ids.",
    ),
    // The format of the answer.
    read(
        "response_format",
        OLDER,
        r##"{"$ref":"#/components/schemas/ResponseFormat"}"##,
        "Text, JSON, or JSON of a schema.",
    ),
    read(
        "text",
        RESPONSES,
        r##"{"$ref":"#/components/schemas/TextConfig"}"##,
        "`format`: text, JSON, or JSON of a schema. `verbosity` is ignored.",
    ),
    read(
        "structured_outputs",
        ANSWERS,
        OBJECT,
        "One of `json`, `json_object`, `regex`, `choice`, `grammar`: what the answer matches.",
    ),
    read("guided_json", ANSWERS, SCHEMA, "The answer matches this JSON Schema."),
    read("guided_json_object", ANSWERS, r#"{"type":"boolean"}"#, "The answer is a JSON object."),
    read("guided_regex", ANSWERS, TEXT, "The answer matches this regular expression."),
    read(
        "guided_choice",
        ANSWERS,
        r#"{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":10000}"#,
        "The answer is one of these strings.",
    ),
    read("guided_grammar", ANSWERS, TEXT, "The answer matches this grammar in Lark."),
    read("guided_decoding_backend", ANSWERS, TEXT, "Accepted if vLLM has had the backend. It has no effect."),
    read(
        "reasoning",
        RESPONSES,
        r##"{"$ref":"#/components/schemas/ReasoningConfig"}"##,
        "`effort` is the variable `reasoning_effort` of the chat template; `none` also sets `enable_thinking` to false. Other fields are ignored.",
    ),
    // What the response contains.
    read("stream", ANSWERS, FLAG_OFF, "The answer comes as server-sent events."),
    read(
        "stream_options",
        OLDER,
        r##"{"$ref":"#/components/schemas/StreamOptions"}"##,
        "Needs `stream`. `include_usage`, `continuous_usage_stats`.",
    ),
    read(
        "logprobs",
        COMPLETIONS,
        r#"{"anyOf":[{"type":"integer","minimum":0,"maximum":20},{"const":false}]}"#,
        "Log probabilities of this many tokens at each place.",
    ),
    read("logprobs", CHAT, FLAG_OFF, "Log probabilities of the tokens of the answer."),
    read(
        "top_logprobs",
        CHAT,
        r#"{"type":"integer","minimum":0,"maximum":20}"#,
        "Log probabilities of this many tokens at each place. Needs `logprobs`.",
    ),
    read(
        "prompt_logprobs",
        OLDER,
        r#"{"type":["integer","boolean"],"minimum":0,"maximum":20}"#,
        "Log probabilities of the tokens of the prompt, and of this many most probable tokens at the place of each.",
    ),
    read("echo", COMPLETIONS, FLAG_OFF, "The answer begins with the prompt."),
    read("skip_special_tokens", ANSWERS, FLAG_ON, "The text has no special tokens."),
    read("return_token_ids", OLDER, FLAG_OFF, "The response has the token ids of prompt and answer."),
    read("return_token_strs", TOKENIZE, FLAG_OFF, "The response has the text of each token."),
    read("return_timings", OLDER, FLAG_OFF, "The response shows which process did what, and for how long."),
    read(
        "metadata",
        RESPONSES,
        r#"{"type":"object","additionalProperties":{"type":"string"},"maxProperties":16}"#,
        "The response repeats it.",
    ),
    // The request itself.
    read(
        "request_id",
        ANSWERS,
        TEXT,
        "Part of the id of the response. The header `x-request-id` comes first.",
    ),
    read(
        "cache_salt",
        ANSWERS,
        r#"{"type":"string","minLength":1}"#,
        "Answers share cached pages only with requests of the same salt.",
    ),
    // Ignored.
    ignored("user", ANSWERS, "The server keeps no records of users."),
    ignored("safety_identifier", ANSWERS, "The server keeps no records of users."),
    ignored("service_tier", ANSWERS, "The server has one tier."),
    ignored("store", ANSWERS, "The server stores no responses. A response says `store: false`."),
    ignored("metadata", OLDER, "The server stores no responses."),
    ignored("prompt_cache_key", ANSWERS, "Prompts are cached by their tokens; see `cache_salt`."),
    ignored("prompt_cache_retention", ANSWERS, "The cache keeps pages as long as there is room."),
    ignored("max_tool_calls", RESPONSES, "It limits tools of the server, and the server has none."),
    ignored("stream_options", RESPONSES, "The server sends no obfuscation."),
    ignored("reasoning_effort", CHAT, "Set variables of the template with `chat_template_kwargs`."),
    ignored("spaces_between_special_tokens", OLDER, "The text is that of the tokens."),
    ignored("priority", OLDER, "Requests run in the order of their arrival."),
    // Refused.
    refused("prompt_logprobs", RESPONSES, Neutral::False),
    refused("best_of", ANSWERS, Neutral::Number(1.0)),
    refused("length_penalty", ANSWERS, Neutral::Number(1.0)),
    refused("min_tokens", ANSWERS, Neutral::Number(0.0)),
    refused("use_beam_search", ANSWERS, Neutral::False),
    refused("bad_words", ANSWERS, Neutral::Empty),
    refused("allowed_token_ids", ANSWERS, Neutral::Empty),
    refused("logits_processors", ANSWERS, Neutral::Empty),
    refused("suffix", ANSWERS, Neutral::Empty),
    refused("truncate_prompt_tokens", ANSWERS, Neutral::Empty),
    refused("prompt_embeds", ANSWERS, Neutral::Empty),
    refused("functions", ANSWERS, Neutral::Empty),
    refused("documents", ANSWERS, Neutral::Empty),
    refused("audio", ANSWERS, Neutral::Empty),
    refused("chat_template", ANSWERS, Neutral::Empty),
    refused("structural_tag", ANSWERS, Neutral::Empty),
    refused("guided_whitespace_pattern", ANSWERS, Neutral::Empty),
    refused("function_call", ANSWERS, Neutral::Word(&["none", "auto"])),
    refused("tools", COMPLETIONS, Neutral::Empty),
    refused("tool_choice", COMPLETIONS, Neutral::Word(&["none", "auto"])),
    refused("chat_template_kwargs", COMPLETIONS, Neutral::Empty),
    refused("continue_final_message", COMPLETIONS, Neutral::False),
    refused("previous_response_id", RESPONSES, Neutral::Empty),
    refused("conversation", RESPONSES, Neutral::Empty),
    refused("background", RESPONSES, Neutral::False),
    refused("include", RESPONSES, Neutral::Empty),
    refused("prompt", RESPONSES, Neutral::Empty),
    refused("top_logprobs", RESPONSES, Neutral::Number(0.0)),
    refused("truncation", RESPONSES, Neutral::Word(&["disabled"])),
    refused("context_management", RESPONSES, Neutral::Empty),
    refused("moderation", RESPONSES, Neutral::Empty),
];
