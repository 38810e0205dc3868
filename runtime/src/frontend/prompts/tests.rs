use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::frontend::model_text::ModelText;
use crate::frontend::model_text::testing::bytes_model;
use crate::frontend::openai::{ApiKind, Ask, RoutedPrompt, routed_prompt};
use crate::frontend::tokenizer::Tokenizer;

const CONTEXT: u32 = 64;

fn model() -> ServedModel {
    let text = ModelText { context_tokens: CONTEXT, ..bytes_model() };
    ServedModel::new(Path::new("m.gguf"), &text, None).unwrap()
}

/// Reads a body with an input budget of `budget` bytes.
fn read_with(model: &ServedModel, kind: ApiKind, body: &str, budget: usize) -> Result<Ask, ApiError> {
    let memory = InputMemory::new(budget, 1);
    let fields = Fields::parse(body.as_bytes())?;
    let ask = Ask::read(kind, &fields, Reader::new(model, &memory, true), 4);
    assert_eq!(
        memory.used(),
        ask.as_ref().map_or(0, Ask::bytes),
        "temporary memory is returned to the budget"
    );
    ask
}

fn read(kind: ApiKind, body: &Value) -> Result<Ask, ApiError> {
    read_with(&model(), kind, &body.to_string(), 16 << 20)
}

fn tokens(prompt: Value) -> Result<Vec<Vec<u32>>, String> {
    let ask = read(ApiKind::Completion, &json!({"prompt": prompt, "max_tokens": 1}));
    let ask = ask.map_err(|error| format!("{}: {}", error.param.unwrap_or_default(), error.message))?;
    Ok(ask.prompts.iter().map(|prompt| prompt.tokens.to_vec()).collect())
}

#[test]
fn prompts_in_every_form() {
    assert_eq!(tokens(json!("ab")), Ok(vec![vec![97, 98]]));
    assert_eq!(tokens(json!("a\"")), Ok(vec![vec![97, 34]]), "with an escape");
    assert_eq!(tokens(json!([97, 98])), Ok(vec![vec![97, 98]]));
    assert_eq!(tokens(json!(["a", [98], "c"])), Ok(vec![vec![97], vec![98], vec![99]]));
    let refused = |prompt: Value, expect: &str| assert_eq!(tokens(prompt), Err(expect.to_owned()));
    let one = "must be a string, a list of token ids, or a list of either, not";
    refused(json!({"a": 1}), &format!("prompt: prompt {one} an object"));
    refused(json!([[1], {}]), &format!("prompt[1]: prompt[1] {one} {{}}"));
    refused(json!([1, "a"]), "prompt[1]: prompt[1] must be a token id, not a string");
    refused(json!([1.0]), "prompt[0]: prompt[0] must be a token id, not 1.0");
    refused(json!([[[1]]]), "prompt[0][0]: prompt[0][0] must be a token id, not a list");
}

#[test]
fn a_list_of_tokens_ends_at_the_context() {
    let long = |tokens: usize| json!(vec![1; tokens]);
    assert!(tokens(long(63)).is_ok());
    let all = "prompt: prompt has 64 tokens, but this model's maximum context length is 64 tokens including the answer; shorten it";
    assert_eq!(tokens(long(64)), Err(all.to_owned()));
    let more = "has more than 64 tokens, but this model's maximum context length is 64 tokens including the answer; shorten it";
    assert_eq!(tokens(long(65)), Err(format!("prompt: prompt {more}")));
    assert_eq!(tokens(json!([[1], long(65)])), Err(format!("prompt[1]: prompt[1] {more}")));
    // The rest of the list is not read.
    let rest = format!("[{},\"x\"]", vec!["1"; 65].join(","));
    assert_eq!(tokens(serde_json::from_str(&rest).unwrap()), Err(format!("prompt: prompt {more}")));
}

#[test]
fn a_chat_has_at_most_as_many_messages_as_the_context_has_tokens() {
    let say = |count: usize| json!({"messages": vec![json!({"role": "user", "content": ""}); count]});
    let message = read(ApiKind::Chat, &say(65)).unwrap_err().message;
    assert!(
        message.starts_with("messages has 65 messages, but this model's maximum context length is 64"),
        "{message}"
    );
    let message = read(ApiKind::Chat, &say(64)).unwrap_err().message;
    assert!(
        message.ends_with("more than fit the model's context of 64 tokens"),
        "the messages are rendered: {message}"
    );
    let wrong = |message: Value| read(ApiKind::Chat, &json!({"messages": [message]})).unwrap_err();
    let error = wrong(json!("a"));
    assert_eq!(
        (error.param.as_deref(), &*error.message),
        (Some("messages[0]"), "messages[0] must be an object, not a string")
    );
    assert_eq!(wrong(json!({"role": "user"})).param.as_deref(), Some("messages[0].content"));
    assert_eq!(wrong(json!({"role": 1, "content": "a"})).param.as_deref(), Some("messages[0].role"));
    let part = json!({"role": "user", "content": [{"text": "a"}, {"type": "text"}]});
    assert_eq!(wrong(part).param.as_deref(), Some("messages[0].content"));
}

/// The multiplication of the text's length must not overflow; a debug build checks it.
#[test]
fn a_text_for_a_model_without_a_tokenizer_is_refused() {
    let model = ServedModel { tokenizer: Arc::new(Tokenizer::none(100)), ..model() };
    let error = read_with(&model, ApiKind::Completion, r#"{"prompt": "a"}"#, 16 << 20).unwrap_err();
    assert!(error.message.contains("this model has no tokenizer; send token ids"), "{}", error.message);
    assert!(read_with(&model, ApiKind::Completion, r#"{"prompt": [1]}"#, 16 << 20).is_ok());
}

#[test]
fn the_memory_of_a_request_is_taken_from_the_budget() {
    let model = model();
    let body = json!({"prompt": vec!["a"; 4]}).to_string();
    let bytes = read_with(&model, ApiKind::Completion, &body, 16 << 20).unwrap().bytes();
    assert!((4096..8192).contains(&bytes), "{bytes}");
    assert!(read_with(&model, ApiKind::Completion, &body, bytes).is_ok());
    let error = read_with(&model, ApiKind::Completion, &body, bytes - 1).unwrap_err();
    assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE, "{}", error.message);
    // Tokenising 60 bytes may take 80 times as much memory, which is more than this budget.
    let body = json!({"prompt": "a".repeat(60)}).to_string();
    let error = read_with(&model, ApiKind::Completion, &body, 4000).unwrap_err();
    assert_eq!((error.status, error.param.as_deref()), (StatusCode::PAYLOAD_TOO_LARGE, Some("prompt")));
}

/// Random JSON with up to three levels.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u32..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z\"\\\\\u{1}é]{0,6}".prop_map(Value::from),
        "(text|none|auto|user|message|function_call|function_call_output|reasoning|input_text)"
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let name = "(role|content|type|text|include_usage|format|effort|call_id|output|[0-9]{1,3}|[a-c])";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn fields_are_those_of_a_tree(fields in proptest::collection::btree_map("[a-d\"\n]{0,3}", any_json(), 0..6)) {
        let tree = Value::Object(fields.into_iter().collect());
        let text = serde_json::to_string_pretty(&tree).unwrap();
        let fields = Fields::parse(text.as_bytes()).unwrap();
        // The tree is parsed from the same text, because not all numbers are written exactly.
        let tree: Value = serde_json::from_str(&text).unwrap();
        for (name, value) in tree.as_object().unwrap() {
            let found = fields.get(name).map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap());
            prop_assert_eq!(found.unwrap_or_default(), value.clone());
        }
    }

    /// A random body is either read or refused with 400 (404 for another model) and a short sentence.
    #[test]
    fn any_body_is_read_or_refused(
        kind in prop_oneof![Just(ApiKind::Completion), Just(ApiKind::Chat), Just(ApiKind::Response)],
        fields in proptest::collection::btree_map(
            "(prompt|messages|model|n|max_tokens|max_completion_tokens|temperature|top_p|top_k|min_p|seed|stop|stop_token_ids|logprobs|\\
              top_logprobs|logit_bias|stream|stream_options|echo|ignore_eos|request_id|suffix|tools|tool_choice|parallel_tool_calls|chat_template_kwargs|continue_final_message|response_format|input|instructions|reasoning|text|metadata|max_output_tokens|user|x)",
            any_json(),
            0..6,
        ),
        cut in 0usize..200,
    ) {
        let text = Value::Object(fields.into_iter().collect()).to_string();
        for body in [&*text, text.get(..cut).unwrap_or("")] {
            if let Err(error) = read_with(&model(), kind, body, 16 << 20) {
                prop_assert!([StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND].contains(&error.status), "{error:?}");
                prop_assert!(error.message.chars().count() < 300, "{error:?}");
            }
        }
    }
}

/// Reads a body as a proxy whose nodes have this context.
fn routed(kind: ApiKind, body: &Value, context_tokens: u32) -> Result<RoutedPrompt, ApiError> {
    let (model, memory) = (model(), InputMemory::new(16 << 20, 1));
    let reader = Reader { context_tokens, ..Reader::new(&model, &memory, true) };
    routed_prompt(kind, body.to_string().as_bytes(), reader)
}

#[test]
fn a_proxy_reads_the_limit_of_the_answer_as_a_node_does() {
    let check = |kind, fields: Value, expect: Option<u32>| {
        let mut body = match kind {
            ApiKind::Completion => json!({"prompt": "abcd"}),
            ApiKind::Chat => json!({"messages": [{"role": "user", "content": "a"}]}),
            ApiKind::Response => json!({"input": "a"}),
        };
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(routed(kind, &body, CONTEXT).unwrap().max_tokens, expect, "{body}");
    };
    check(ApiKind::Completion, json!({}), Some(16));
    check(ApiKind::Completion, json!({"max_tokens": 5, "max_completion_tokens": 6}), Some(5));
    check(ApiKind::Completion, json!({"max_completion_tokens": 6}), Some(16));
    check(ApiKind::Chat, json!({}), None);
    check(ApiKind::Chat, json!({"max_tokens": 5, "max_completion_tokens": 6}), Some(6));
    check(ApiKind::Chat, json!({"max_tokens": 5}), Some(5));
    check(ApiKind::Response, json!({"max_output_tokens": 7}), Some(7));
    check(ApiKind::Response, json!({}), None);
    let short = routed(ApiKind::Completion, &json!({"prompt": "abcd"}), 6).unwrap();
    assert_eq!(short.max_tokens, Some(2), "the context has room for no more");
}

#[test]
fn a_proxy_refuses_a_prompt_that_is_too_long_for_its_nodes_as_a_node_does() {
    let ids = |count: u32| json!({"prompt": vec![97; count as usize]});
    for body in [
        ids(CONTEXT),
        ids(CONTEXT + 1),
        json!({"prompt": "a".repeat(70)}),
        json!({"prompt": "a".repeat(700)}),
    ] {
        let node = read(ApiKind::Completion, &body).unwrap_err();
        assert_eq!(routed(ApiKind::Completion, &body, CONTEXT).err(), Some(node), "{body}");
        // The nodes have a larger context than the model's file says.
        assert!(routed(ApiKind::Completion, &body, 1000).is_ok());
    }
    let chat = json!({"messages": [{"role": "user", "content": "a".repeat(80)}]});
    let node = read(ApiKind::Chat, &chat).unwrap_err();
    assert_eq!(routed(ApiKind::Chat, &chat, CONTEXT).err(), Some(node));
}
