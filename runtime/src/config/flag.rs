//! One setting on the command line.

/// One `key=value` of the command line. It has no `Debug` because the value may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag as it appears in messages: `--model`, `--set link.port`.
    pub name: String,
    /// Dotted path of the key.
    pub key: String,
    /// The value as it was typed.
    pub value: String,
}

impl Flag {
    /// Parses the value of `--set`.
    ///
    /// # Errors
    /// The text is not `key=value`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected key=value, such as link.port=55556")?;
        Ok(Self { name: format!("--set {key}"), key: key.to_owned(), value: value.to_owned() })
    }
}
