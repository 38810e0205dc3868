//! The chat template of a model. Renders messages to the prompt text like transformers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::Offset;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::model_text::{ModelText, TextError};
use super::strftime::strftime;

/// Name of the template in its environment.
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The speaker: `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
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
        Self::compile(source, token(text.bos), token(text.eos)).map(Some)
    }

    /// Compiles a template. `bos` and `eos` are the texts of the begin-of-sequence and end-of-sequence tokens.
    ///
    /// # Errors
    /// [`TextError::Template`] if it is not a Jinja template.
    pub fn compile(source: String, bos: String, eos: String) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // transformers uses these settings.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TextError::Template(error.to_string()))?);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TextError::Template(error.to_string()))?;
        // UTC, so that processes in different time zones render the same prompt.
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            strftime(&format, Offset::UTC.to_datetime(Timestamp::now()))
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        Ok(Self { environment, bos, eos })
    }

    /// The prompt text of a conversation. With `reply`, it ends with the start of the assistant's turn.
    ///
    /// # Errors
    /// The reason why the template refuses the messages.
    pub fn render(&self, messages: &[Message], reply: bool) -> Result<String, String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let fields = [("role", &message.role), ("content", &message.content)];
                Value::from(BTreeMap::from(fields.map(|(name, text)| (name, Value::from(text.as_str())))))
            })
            .collect();
        let render = || {
            self.environment.get_template(NAME)?.render(context! {
                messages, add_generation_prompt => reply, bos_token => &*self.bos, eos_token => &*self.eos,
            })
        };
        render().map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::super::model_text::testing::bytes_model;
    use super::*;

    fn render(template: &str, messages: &[(&str, &str)]) -> Result<String, String> {
        let text = ModelText { chat_template: Some(template.to_owned()), ..bytes_model() };
        let message =
            |(role, content): &(&str, &str)| Message { role: (*role).into(), content: (*content).into() };
        let messages: Vec<Message> = messages.iter().map(message).collect();
        ChatTemplate::new(&text).unwrap().unwrap().render(&messages, true)
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
}
