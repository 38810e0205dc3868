//! The chat template of a model. Renders a conversation to the prompt text like transformers.

mod python;

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::Offset;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::model_text::{ModelText, TextError};
use super::strftime::strftime;

/// Name of the template in its environment.
const NAME: &str = "chat";

/// Name of the template for conversations with tools, in its environment and in a model's list of templates.
pub(super) const TOOL_USE: &str = "tool_use";

/// The input of a chat template.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// The messages: objects with `role`, `content` and more, in the order of their keys.
    pub messages: &'a [Json],
    /// The tools of the request.
    pub tools: Option<&'a [Json]>,
    /// Further variables of the template. They override the others.
    pub variables: Option<&'a serde_json::Map<String, Json>>,
    /// The prompt ends with the start of the assistant's turn.
    pub reply: bool,
    /// The prompt ends inside the last message, which the answer continues.
    pub continues: bool,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    source: String,
    has_tool_use: bool,
}

impl ChatTemplate {
    /// Compiles the template of a model; `None` if the model has none.
    ///
    /// # Errors
    /// [`TextError::Template`] if it is not a Jinja template.
    pub fn new(text: &ModelText) -> Result<Option<Self>, TextError> {
        let Some(source) = text.chat_template.clone() else { return Ok(None) };
        let token =
            |id: Option<u32>| id.and_then(|id| text.tokens.get(id as usize)).cloned().unwrap_or_default();
        Self::compile(source, text.tool_template.clone(), token(text.bos), token(text.eos)).map(Some)
    }

    /// Compiles a template, and the model's other template for conversations with tools. `bos` and `eos` are the texts of the
    /// begin-of-sequence and end-of-sequence tokens.
    ///
    /// # Errors
    /// [`TextError::Template`] if it is not a Jinja template.
    pub fn compile(
        source: String,
        tool_use: Option<String>,
        bos: String,
        eos: String,
    ) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // transformers uses these settings.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TextError::Template(error.to_string()))?);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_filter("tojson", python::tojson);
        environment.add_test("iterable", python::is_iterable);
        // UTC, so that processes in different time zones render the same prompt.
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            strftime(&format, Offset::UTC.to_datetime(Timestamp::now()))
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        let has_tool_use = tool_use.is_some();
        for (name, source) in [(NAME, Some(&source)), (TOOL_USE, tool_use.as_ref())] {
            let Some(source) = source else { continue };
            let compiled = environment.add_template_owned(name, without_generation_tags(source));
            compiled.map_err(|error| TextError::Template(error.to_string()))?;
        }
        let source = source + tool_use.as_deref().unwrap_or_default();
        Ok(Self { environment, bos, eos, source, has_tool_use })
    }

    /// The text of the template, with that of the template for tools.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The prompt text of a conversation.
    ///
    /// # Errors
    /// The reason why the template refuses the conversation.
    pub fn render(&self, conversation: Conversation<'_>) -> Result<String, String> {
        let Conversation { messages, tools, variables, reply, continues } = conversation;
        let mut messages = Cow::Borrowed(messages);
        if continues {
            mark_last(messages.to_mut())?;
        }
        let mut context = BTreeMap::from([
            ("messages", Value::from(Serde(&*messages))),
            ("tools", Value::from(Serde(tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(reply)),
            ("bos_token", Value::from(&*self.bos)),
            ("eos_token", Value::from(&*self.eos)),
        ]);
        context
            .extend(variables.into_iter().flatten().map(|(name, json)| (&**name, Value::from(Serde(json)))));
        let name = if tools.is_some() && self.has_tool_use { TOOL_USE } else { NAME };
        let render = || self.environment.get_template(name)?.render(Value::from(context));
        let text =
            render().map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))?;
        if continues { cut_at_mark(text) } else { Ok(text) }
    }
}

/// Stands behind the last message while the template is rendered. The space at its end tells whether the template trims messages.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Appends [`MARK`] to the content of the last message.
fn mark_last(messages: &mut [Json]) -> Result<(), String> {
    match messages.last_mut().and_then(|last| last.get_mut("content")) {
        Some(Json::String(content)) => {
            content.push_str(MARK);
            Ok(())
        }
        _ => Err("continue_final_message needs a last message with text".to_owned()),
    }
}

/// Cuts a rendered prompt at [`MARK`]. If the template trims messages, the end is trimmed.
fn cut_at_mark(mut text: String) -> Result<String, String> {
    let at = text.rfind(MARK.trim_end());
    let at = at.ok_or("the template does not show the last message, so it cannot be continued")?;
    let is_trimmed = !text[at..].starts_with(MARK);
    text.truncate(at);
    if is_trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Replaces the tags `generation` and `endgeneration`, which mark the assistant's text for training, by a condition that is true. The
/// control of white space stays.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inner, after)) = tag.split_once("%}") else { break };
        let replaced = match inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "generation" => inner.replace("generation", "if true"),
            "endgeneration" => inner.replace("endgeneration", "endif"),
            _ => inner.to_owned(),
        };
        for part in [before, "{%", &replaced, "%}"] {
            out.push_str(part);
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::messages::message;
    use super::super::model_text::testing::bytes_model;
    use super::*;

    fn compiled(template: &str) -> ChatTemplate {
        let text = ModelText { chat_template: Some(template.to_owned()), ..bytes_model() };
        ChatTemplate::new(&text).unwrap().unwrap()
    }

    fn render(template: &str, messages: &[(&str, &str)]) -> Result<String, String> {
        let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
        let messages: Vec<Json> = messages.iter().map(message).collect();
        compiled(template).render(Conversation {
            messages: &messages,
            reply: true,
            ..Conversation::default()
        })
    }

    /// The prompts in `chats.json` are those of transformers, byte for byte.
    #[test]
    fn prompts_are_those_of_transformers() {
        let file: Json =
            serde_json::from_str(include_str!("../../../integration-tests/fixtures/chats.json")).unwrap();
        let mut wrong = Vec::new();
        for template in file["templates"].as_array().unwrap() {
            let text = |key: &str| template[key].as_str().unwrap().to_owned();
            let compiled = ChatTemplate::compile(text("template"), None, text("bos"), text("eos")).unwrap();
            let knows_tools = compiled.source().contains("tool_calls");
            let cases = file["cases"].as_array().unwrap();
            let own: Vec<&Json> = cases.iter().filter(|case| case["template"] == template["name"]).collect();
            assert!(own.len() >= 5, "{}", template["name"]);
            for (n, case) in own.into_iter().enumerate() {
                let sent: Vec<String> =
                    case["messages"].as_array().unwrap().iter().map(Json::to_string).collect();
                let read =
                    |text: &String| message(0, serde_json::from_str(text).unwrap(), knows_tools).unwrap();
                let messages: Vec<Json> = sent.iter().map(read).collect();
                let variables = case["variables"].as_object().unwrap();
                let reply = variables.get("add_generation_prompt") != Some(&json!(false));
                let rendered = compiled.render(Conversation {
                    messages: &messages,
                    tools: case["tools"].as_array().map(|tools| &**tools),
                    variables: Some(variables),
                    reply,
                    continues: false,
                });
                if rendered.as_deref().ok() != case["prompt"].as_str() {
                    wrong.push(format!("{} {n}:\n{rendered:?}\nnot\n{}", template["name"], case["prompt"]));
                }
            }
        }
        assert!(wrong.is_empty(), "{} prompts differ\n{}", wrong.len(), wrong.join("\n\n"));
    }

    #[test]
    fn chatml_is_rendered() {
        let template = bytes_model().chat_template.unwrap();
        assert_eq!(
            render(&template, &[("system", "be"), ("user", "hi")]).unwrap(),
            "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn python_methods_blocks_and_tokens_are_as_in_transformers() {
        let template = "{{ bos_token }}\n{% for m in messages %}\n    {%- if m.role.startswith('u') %}\n\
                        {{ m.content.strip() | upper }}\n    {% endif %}\n{% endfor %}\n{{ eos_token }}";
        assert_eq!(render(template, &[("user", " a ")]).unwrap(), "<|im_start|>\nA\n<|im_end|>");
    }

    #[test]
    fn a_date_is_rendered_and_an_unknown_directive_is_an_error() {
        let date = render("{{ strftime_now('%A, %-d %B %Y') }}", &[]).unwrap();
        let (weekday, rest) = date.split_once(", ").unwrap();
        assert!(weekday.ends_with("day") && rest.split(' ').count() == 3 && !date.contains('%'), "{date}");
        let error = render("{{ strftime_now('%d %Q') }}", &[]).unwrap_err();
        assert_eq!(error, "strftime_now has no directive \"%Q\", which is in \"%d %Q\"");
    }

    #[test]
    fn a_template_may_refuse() {
        let template = "{{ raise_exception('roles must alternate') }}";
        assert_eq!(render(template, &[]).unwrap_err(), "roles must alternate");
        let broken = ModelText { chat_template: Some("{% if %}".to_owned()), ..bytes_model() };
        assert!(matches!(ChatTemplate::new(&broken), Err(TextError::Template(_))));
    }

    #[test]
    fn values_print_as_in_python() {
        let template =
            "{{ tools }}|{{ true }} {{ none }} {{ 1.0 }} {{ messages[0].content }}{{ none is iterable }}";
        let tools = [json!({"b": 1, "a": [true, null, "it's", 2.5]})];
        let messages = [json!({"role": "user", "content": "<hi>"})];
        let conversation =
            Conversation { messages: &messages, tools: Some(&tools), ..Conversation::default() };
        assert_eq!(
            compiled(template).render(conversation).unwrap(),
            r#"[{'b': 1, 'a': [True, None, "it's", 2.5]}]|True None 1.0 <hi>False"#
        );
    }

    #[test]
    fn generation_tags_are_ignored() {
        let template = "{% for m in messages %}\n{%- generation -%} {{ m.content }} {%- endgeneration %};\n{% endfor %}!";
        assert_eq!(render(template, &[("user", "a")]).unwrap(), "a;\n!");
    }

    #[test]
    fn a_final_message_is_continued() {
        let continued = |template: &str, content: &str| {
            let messages =
                [json!({"role": "user", "content": "a"}), json!({"content": content, "role": "assistant"})];
            let conversation =
                Conversation { messages: &messages, continues: true, ..Conversation::default() };
            compiled(template).render(conversation)
        };
        let chatml = bytes_model().chat_template.unwrap();
        let before = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(continued(&chatml, "It is ").unwrap(), format!("{before}It is "));
        let trims = "{% for m in messages %}{{ m.content | trim }};{% endfor %}";
        assert_eq!(continued(trims, "It is ").unwrap(), "a;It is");
        assert!(continued("{{ messages[0].content }}", "b").unwrap_err().contains("cannot be continued"));
    }

    #[test]
    fn a_conversation_with_tools_uses_the_template_for_tools() {
        let text = ModelText {
            chat_template: Some("plain".to_owned()),
            tool_template: Some("{{ tools | length }} tools".to_owned()),
            ..bytes_model()
        };
        let template = ChatTemplate::new(&text).unwrap().unwrap();
        let rendered = |tools| template.render(Conversation { tools, ..Conversation::default() }).unwrap();
        assert_eq!((rendered(None), rendered(Some(&[json!({})][..]))), ("plain".into(), "1 tools".into()));
    }
}
