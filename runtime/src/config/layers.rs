//! The layers of a configuration. Each layer is checked by itself; figment merges them.

use std::fmt;
use std::fs;
use std::path::Path;

use figment::providers::YamlExtended;
use figment::value::{Dict, Empty, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::lmcache;
use super::renamed;
use super::surroundings::PREFIX;
use super::{ConfigKey, Flag, Role, Surroundings, keys};

/// The value of a key that is not set.
pub(super) const NOTHING: Empty = Empty::None;

/// The origin of a default value.
const DEFAULT: &str = "default";

/// One problem of the configuration. Displays as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, variable or flag that has the problem.
    pub origin: String,
    /// Dotted path of the key; empty if the problem concerns no key.
    pub key: String,
    /// The rest of the sentence, after the key.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.key.is_empty() { "" } else { " " };
        write!(f, "{}: {}{space}{}", self.origin, self.key, self.reason)
    }
}

/// All problems of the configuration. Displays one problem per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The value of one key in one layer. It is a figment provider of its own, so that figment knows the origin of each value.
struct Setting {
    origin: String,
    key: &'static str,
    value: Value,
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let nested = figment::util::nest(self.key, self.value.clone());
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}

/// The merged layers.
pub(super) struct Layers {
    merged: Figment,
    /// Notes for the log, one sentence each.
    pub(super) notes: Vec<String>,
}

impl Layers {
    /// Reads all layers. Fails with all of their problems.
    pub(super) fn collect(
        role: Role,
        file: Option<&Path>,
        flags: &[Flag],
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigErrors> {
        let mut draft = Draft::default();
        if let Some(file) = file {
            draft.read_file(role, file);
        }
        for (name, value) in &surroundings.variables {
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            draft.offer(name, &key, Value::from(value.as_str()));
        }
        for flag in flags {
            draft.offer(&flag.name, &flag.key, Value::from(flag.value.as_str()));
        }
        if !draft.problems.is_empty() {
            return Err(ConfigErrors(draft.problems));
        }
        // Only a key that is not set needs its default: that of the device asks the driver.
        let defaults = keys().filter(|key| draft.settings.iter().all(|setting| setting.key != key.name));
        let defaults = defaults.map(|key| Setting {
            origin: DEFAULT.to_owned(),
            key: key.name,
            value: (key.default)(role, surroundings),
        });
        let defaults: Vec<Setting> = defaults.collect();
        let merged = defaults.into_iter().chain(draft.settings).fold(Figment::new(), Figment::merge);
        Ok(Self { merged, notes: draft.notes })
    }

    /// The merged value of a key.
    pub(super) fn get<T>(
        &self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<T, Problem> {
        let value = self.merged.find_value(key).map_err(|error| self.problem(key, error.to_string()))?;
        parse(&value).map_err(|reason| self.problem(key, reason))
    }

    /// A problem with the merged value of a key.
    pub(super) fn problem(&self, key: &str, reason: String) -> Problem {
        let origin = self.origin(key).unwrap_or_else(|| DEFAULT.to_owned());
        Problem { origin, key: key.to_owned(), reason }
    }

    /// For each key that is set: the origin of its value.
    pub(super) fn origins(&self) -> Vec<(&'static str, String)> {
        let origin = |key: &ConfigKey| self.origin(key.name).filter(|origin| origin != DEFAULT);
        keys().filter_map(|key| origin(key).map(|origin| (key.name, origin))).collect()
    }

    fn origin(&self, key: &str) -> Option<String> {
        self.merged.find_metadata(key).map(|metadata| metadata.name.to_string())
    }
}

/// The settings and problems found so far.
#[derive(Default)]
struct Draft {
    settings: Vec<Setting>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl Draft {
    /// Adds a value for a key if it is valid, else a problem.
    fn offer(&mut self, origin: &str, name: &str, value: Value) {
        let checked = match keys().find(|key| key.name == name) {
            Some(key) => (key.check)(&value).map(|()| key),
            None => Err(unknown(name)),
        };
        match checked {
            Ok(key) => self.settings.push(Setting { origin: origin.to_owned(), key: key.name, value }),
            Err(reason) => self.refuse(origin, name, reason),
        }
    }

    fn refuse(&mut self, origin: &str, key: &str, reason: String) {
        self.problems.push(Problem { origin: origin.to_owned(), key: key.to_owned(), reason });
    }

    fn read_file(&mut self, role: Role, file: &Path) {
        let origin = file.display().to_string();
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => return self.refuse(&origin, "", format!("cannot be read: {error}")),
        };
        // The plain reader lets a second section of the same name silently replace the first one; the extended reader refuses it.
        match YamlExtended::from_str::<Value>(&text) {
            Ok(Value::Dict(_, sections)) => {
                let own = self.translate(&origin, role, sections);
                self.walk(&origin, "", own);
            }
            // The file has comments only.
            Ok(Value::Empty(..)) => {}
            Ok(_) => self.refuse(
                &origin,
                "",
                "must consist of sections and keys, such as `link: {port: 55555}`".to_owned(),
            ),
            Err(error) => self.refuse(&origin, "", format!("is not YAML: {error}")),
        }
    }

    /// Translates the keys of LMCache in a file. Returns the other entries.
    fn translate(&mut self, origin: &str, role: Role, mut entries: Dict) -> Dict {
        if !lmcache::is_lmcache(&entries) {
            return entries;
        }
        let translated = lmcache::translate(&mut entries, role);
        for (key, value, from) in translated.settings {
            self.offer(&format!("{origin} ({from})"), key, value);
        }
        for (key, reason) in translated.problems {
            self.refuse(origin, &key, reason);
        }
        if !translated.ignored.is_empty() {
            let keys = translated.ignored.join(", ");
            self.notes.push(format!("{origin}: ignored {keys}"));
        }
        entries
    }

    fn walk(&mut self, origin: &str, section: &str, entries: Dict) {
        for (name, value) in entries {
            let path = if section.is_empty() { name } else { format!("{section}.{name}") };
            let is_section =
                keys().any(|key| key.name.strip_prefix(&*path).is_some_and(|rest| rest.starts_with('.')));
            match value {
                Value::Dict(_, entries) if is_section => self.walk(origin, &path, entries),
                // All keys of the section are commented out.
                Value::Empty(..) if is_section => {}
                _ if is_section => {
                    let first = keys().find(|key| key.name.starts_with(&*path)).map_or("", |key| key.name);
                    self.refuse(origin, &path, format!("is a section; set its keys, such as {first}"));
                }
                value => self.offer(origin, &path, value),
            }
        }
    }
}

/// The role that an LMCache file names; `None` for any other file. [`Layers::collect`] reports the problems of a file.
pub(super) fn role_in(file: &Path) -> Option<Role> {
    let text = fs::read_to_string(file).ok()?;
    match YamlExtended::from_str::<Value>(&text).ok()? {
        Value::Dict(_, entries) => lmcache::role(&entries)?.ok(),
        _ => None,
    }
}

/// The reason for refusing a key that does not exist.
fn unknown(name: &str) -> String {
    if let Some(current) = renamed::current(name) {
        return format!("was replaced by {current}; set {current} instead");
    }
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let sections = keys().filter_map(|key| key.name.split_once('.').map(|(section, _)| section));
    let near = keys()
        .map(|key| key.name)
        .chain(sections)
        .map(|known| (strsim::levenshtein(known, name), known))
        .min();
    // The second guess is a key with the same last word in another section: `engine.threads` for `http.threads`.
    let elsewhere = keys().find(|key| last(key.name) == last(name)).map(|key| key.name);
    match near
        .filter(|(edits, known)| *edits <= 2 && *edits < known.len() / 2)
        .map(|(_, known)| known)
        .or(elsewhere)
    {
        Some(key) => format!("is not a key; did you mean {key}?"),
        None => "is not a key; --print-config lists them all".to_owned(),
    }
}
