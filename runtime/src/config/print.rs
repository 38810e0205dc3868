//! Prints the resolved configuration as YAML that `--config` can read.

use std::fmt::Write as _;

use super::values::MASK;
use super::{Config, Role, keys};

impl Config {
    /// The resolved configuration as YAML. A comment behind each key has the origin of its value, or its documentation if the value is
    /// the default.
    ///
    /// A secret is masked and commented out, so that reading the text does not set the secret to the mask.
    pub fn to_yaml(&self, role: Role) -> String {
        let mut out = format!("# Baton's configuration for --role {role}.\n");
        let mut section = "";
        for (key, value) in self.show() {
            let (parent, name) = key.split_once('.').unwrap_or(("", key));
            if parent != section {
                section = parent;
                let _ = writeln!(out, "\n{section}:");
            }
            let indent = if parent.is_empty() { "" } else { "  " };
            let hidden = value.contains(MASK);
            let (comment, note) =
                if hidden { ("# ", "; not shown, and not read back from this text") } else { ("", "") };
            let line = format!("{indent}{comment}{name}: {value}");
            let _ = writeln!(out, "{line:<40} # {}{note}", self.remark(role, key));
        }
        out
    }

    fn remark(&self, role: Role, key: &str) -> String {
        let origin =
            self.origins.iter().find(|(name, _)| *name == key).map(|(_, origin)| format!("from {origin}"));
        let doc =
            keys().find(|known| known.name == key).map_or("", |known| known.doc.trim()).trim_end_matches('.');
        match origin {
            Some(origin) => origin,
            None if !role.uses(key) => format!("not used by role {role}"),
            None => doc.to_owned(),
        }
    }
}
