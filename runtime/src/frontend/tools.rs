//! Reads the tools of a chat and which of them the answer has to call.

mod call_grammar;

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::answer_parser::CallRule;
use super::api_error::ApiError;
use super::fields::{Fields, Text, elements, parsed, wrong};
use super::tool_parser::ToolFormat;

pub(super) use call_grammar::CallGrammar;
use call_grammar::Tool;

/// Maximum number of tools of a request, as in OpenAI.
const TOOLS_MAX: usize = 128;

/// Maximum length of a tool's name, as in OpenAI.
const NAME_BYTES_MAX: usize = 64;

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ToolAsk {
    /// The tools for the chat template, as the client wrote them.
    pub(super) shown: Vec<Value>,
    tools: Vec<Tool>,
    choice: ToolChoice,
    /// The answer may have several calls.
    parallel: bool,
}

/// Where a request describes a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolShape {
    /// In the field `function` of the tool or the choice, as in chats.
    Nested,
    /// In the tool or the choice itself, as in requests for responses.
    Flat,
}

#[derive(Clone, Debug, PartialEq)]
enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

impl ToolAsk {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`. `None` if the request has no tools.
    ///
    /// # Errors
    /// 400 with a sentence that names the field.
    pub(super) fn read(fields: &Fields<'_>, shape: ToolShape) -> Result<Option<Self>, ApiError> {
        let choice = choice(fields, shape)?;
        let parallel = fields.flag("parallel_tool_calls", true)?;
        let (mut shown, mut tools) = (Vec::new(), Vec::<Tool>::new());
        if let Some(value) = fields.get("tools") {
            let list = elements(value, TOOLS_MAX).ok_or_else(|| wrong("tools", "a list of tools", value))?;
            if list.has_more() {
                let message = format!("tools has {} tools; at most {TOOLS_MAX} are allowed", list.count);
                return Err(ApiError::field("tools", message));
            }
            for (n, value) in list.first.into_iter().enumerate() {
                let tool = tool(n, value, shape)?;
                if tools.iter().any(|other| other.name == tool.name) {
                    let field = format!("tools[{n}]{}.name", shape.path());
                    let message = format!("{field} is {:?}, like that of another tool", tool.name);
                    return Err(ApiError::field(&field, message));
                }
                tools.push(tool);
                shown.extend(parsed::<Value>(value).map(|tool| shape.nested(tool)));
            }
        }
        let is_known = |name: &String| tools.iter().any(|tool| tool.name == *name);
        match &choice {
            ToolChoice::Named(name) if !is_known(name) => {
                let message = format!("tool_choice names the function {name:?}, which is not in tools");
                Err(ApiError::field("tool_choice", message))
            }
            ToolChoice::Required if tools.is_empty() => {
                Err(ApiError::field("tool_choice", "tool_choice is required, but tools has no tool"))
            }
            _ if tools.is_empty() => Ok(None),
            _ => Ok(Some(Self { shown, tools, choice, parallel })),
        }
    }

    /// Whether calls have to match a grammar: a request that names a function, or that requires a call, gets a call in the model's format.
    /// With strict tools, or with a grammar for the rest of the answer (`has_other`), the answer may be a call or not.
    fn is_constrained(&self, has_other: bool) -> bool {
        match self.choice {
            ToolChoice::None => false,
            ToolChoice::Auto => has_other || self.tools.iter().any(|tool| tool.strict),
            ToolChoice::Required | ToolChoice::Named(_) => true,
        }
    }

    /// Which calls the answers may have. `format` is the model's; without one, only forced calls can be told from text. `None` if all text
    /// is content.
    pub(super) fn rule(&self, format: Option<ToolFormat>, has_other: bool) -> Option<CallRule> {
        let format = match self.choice {
            ToolChoice::None => return None,
            ToolChoice::Auto => format?,
            ToolChoice::Required | ToolChoice::Named(_) => format.unwrap_or(ToolFormat::Hermes),
        };
        let names: Arc<[String]> = self.tools.iter().map(|tool| tool.name.clone()).collect();
        let is_named = matches!(self.choice, ToolChoice::Named(_));
        let bare = match format {
            // A grammar allows only the tags.
            ToolFormat::Hermes => !self.is_constrained(has_other),
            ToolFormat::Llama3Json => true,
            ToolFormat::Mistral => false,
        };
        Some(CallRule { format, names, only_one: !self.parallel || is_named, bare, is_named })
    }

    /// The grammar that calls have to match; `None` if there is none.
    pub(super) fn grammar<'a>(&'a self, rule: &CallRule, has_other: bool) -> Option<CallGrammar<'a>> {
        let name = if let ToolChoice::Named(name) = &self.choice { Some(name) } else { None };
        let tools = self.tools.iter().filter(|tool| name.is_none_or(|name| tool.name == *name)).collect();
        let is_forced = self.choice != ToolChoice::Auto;
        let grammar = CallGrammar { format: rule.format, tools, is_forced, only_one: rule.only_one };
        self.is_constrained(has_other).then_some(grammar)
    }
}

impl ToolShape {
    /// The path from a tool to its function.
    fn path(self) -> &'static str {
        match self {
            Self::Nested => ".function",
            Self::Flat => "",
        }
    }

    /// The tool as chat templates expect it.
    fn nested(self, tool: Value) -> Value {
        match (self, tool) {
            (Self::Flat, Value::Object(mut function)) => {
                function.shift_remove("type");
                serde_json::json!({"type": "function", "function": function})
            }
            (_, tool) => tool,
        }
    }
}

fn choice(fields: &Fields<'_>, shape: ToolShape) -> Result<ToolChoice, ApiError> {
    const FIELD: &str = "tool_choice";
    const EXPECT: &str = "none, auto, required, or an object that names a function";
    let Some(value) = fields.get(FIELD) else { return Ok(ToolChoice::Auto) };
    if let Some(word) = parsed::<Text<'_>>(value) {
        return match &*word.0 {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => Err(wrong(FIELD, EXPECT, value)),
        };
    }
    let object = parsed::<Fields<'_>>(value).ok_or_else(|| wrong(FIELD, EXPECT, value))?;
    let kind = object.get("type").filter(|kind| kind.get() != "\"function\"");
    if let Some(kind) = kind {
        return Err(ApiError {
            param: Some(FIELD.to_owned()),
            ..wrong("tool_choice.type", "\"function\"", kind)
        });
    }
    let function = match shape {
        ToolShape::Nested => object.inner("function").ok().flatten(),
        ToolShape::Flat => Some(object),
    };
    let name = function.and_then(|function| function.text("name").ok().flatten());
    let name = name.filter(|name| name.len() <= NAME_BYTES_MAX);
    Ok(ToolChoice::Named(name.ok_or_else(|| wrong(FIELD, EXPECT, value))?.into_owned()))
}

fn tool(n: usize, value: &RawValue, shape: ToolShape) -> Result<Tool, ApiError> {
    let at = |name: &str| format!("tools[{n}]{name}");
    let of_function = |field: &str| at(&format!("{}.{field}", shape.path()));
    let named = |field: &str, error: ApiError| ApiError {
        message: error.message.replacen(field, &of_function(field), 1),
        param: Some(of_function(field)),
        ..error
    };
    let fields = parsed::<Fields<'_>>(value).ok_or_else(|| wrong(&at(""), "an object", value))?;
    let kind = fields.get("type").unwrap_or(RawValue::NULL);
    if parsed::<Text<'_>>(kind).is_none_or(|kind| kind.0 != "function") {
        return Err(wrong(&at(".type"), "\"function\"", kind));
    }
    let function = match shape {
        ToolShape::Nested => fields.get("function").unwrap_or(RawValue::NULL),
        ToolShape::Flat => value,
    };
    let described =
        parsed::<Fields<'_>>(function).ok_or_else(|| wrong(&at(".function"), "an object", function))?;
    let name = described.get("name").unwrap_or(RawValue::NULL);
    let is_word = |name: &str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    let word = parsed::<Text<'_>>(name).filter(|name| is_word(&name.0));
    let expect = "1 to 64 letters, digits, underscores and dashes";
    let word = word.ok_or_else(|| wrong(&of_function("name"), expect, name))?;
    let text = described.text("description");
    text.map_err(|error| named("description", error))?;
    let parameters = described.typed::<Map<String, Value>>("parameters", "an object");
    let parameters = parameters.map_err(|error| named("parameters", error))?.unwrap_or_default();
    if parameters.get("type").is_some_and(|kind| kind != "object") {
        let field = of_function("parameters");
        return Err(ApiError::field(&field, format!("{field} must be the JSON Schema of an object")));
    }
    let strict = described.flag("strict", false).map_err(|error| named("strict", error))?;
    Ok(Tool { name: word.0.into_owned(), parameters, strict })
}

#[cfg(test)]
mod tests;
