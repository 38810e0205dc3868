//! Checks schemas and Lark grammars before the library compiles them. It refuses keywords that the library does not support and names their
//! place. It also bounds the shapes for which the library's time, memory or recursion grows faster than the source. All walks are loops.

use std::collections::HashSet;

use actors::grammar::GrammarError;
use serde_json::{Map, Value};

/// Maximum number of properties of one object. The library's time grows with the square: 3,000 optional properties take 0.9 s.
pub(super) const PROPERTIES_MAX: usize = 2000;

/// Maximum sum, over all objects of a schema, of the squares of their numbers of properties.
const PROPERTY_PAIRS_MAX: usize = PROPERTIES_MAX * PROPERTIES_MAX;

/// Maximum number of `patternProperties` of a schema. The library compares each pair: 300 take 2 s.
const PATTERNS_MAX: usize = 64;

/// Maximum of `multipleOf` without its decimal point. The library has a state for each remainder, and computes them in 32 bits: 1,000,000
/// take 8 s and 400 MB, 100,000,000 more than a minute.
const MULTIPLE_MAX: f64 = 10_000.0;

/// Maximum product of all different values of `multipleOf`.
const MULTIPLES_MAX: f64 = 100_000.0;

/// Maximum number of decimals of `multipleOf`.
const DECIMALS_MAX: i32 = 6;

/// Maximum sum of the depths of a schema and of the schemas that it refers to. The library recurses along references, and takes up to 30 KB
/// of stack for each level. It also copies what a reference with other keywords beside it refers to: 2,000 levels of these take 450 MB.
const LEVELS_MAX: usize = 1000;

/// Maximum number of lines, parentheses and brackets of a Lark grammar. The library recurses along rules that name each other and into
/// parentheses. It repeats an error at each level: 1,000 levels take more than a second.
const LARK_LEVELS_MAX: usize = 1000;

/// Keywords of JSON Schema that the library does not support.
pub const UNSUPPORTED: [&str; 18] = [
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// The formats of strings that the library supports.
pub const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// A schema inside another one. Its path is spelt out only in an error, because paths can be long.
struct Place<'a> {
    schema: &'a Value,
    /// Where the schema is: the index of the place that contains it, the keyword, and the key or index below the keyword.
    inside: Option<(usize, &'a str, Key<'a>)>,
    /// Depth below the schema at which the walk began.
    depth: usize,
}

enum Key<'a> {
    None,
    Name(&'a str),
    Index(usize),
}

/// Checks the number of lines, parentheses and brackets of a grammar in Lark.
///
/// # Errors
/// There are too many.
pub(super) fn check_levels(levels: usize) -> Result<(), GrammarError> {
    if levels <= LARK_LEVELS_MAX {
        return Ok(());
    }
    let message =
        format!("the grammar has {levels} lines, parentheses and brackets; it may have {LARK_LEVELS_MAX}");
    Err(GrammarError::TooLarge(message))
}

/// Counts what the limits bound, over all schemas of one grammar.
#[derive(Default)]
pub(super) struct Shapes {
    levels: usize,
    property_pairs: usize,
    patterns: usize,
    /// The different values of `multipleOf`: their digits without the decimal point, and the number of decimals.
    multiples: Vec<(f64, i32)>,
}

impl Shapes {
    /// Checks a schema.
    ///
    /// # Errors
    /// The schema uses an unsupported keyword or format, or a limit is exceeded.
    pub(super) fn check(&mut self, root: &Value) -> Result<(), GrammarError> {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut targets = vec![("#", root)];
        while let Some((start, schema)) = targets.pop() {
            let mut places = vec![Place { schema, inside: None, depth: 1 }];
            let (mut next, mut deepest) = (0, 0);
            while let Some(place) = places.get(next) {
                let (depth, index) = (place.depth, next);
                deepest = deepest.max(depth);
                next += 1;
                let Value::Object(object) = place.schema else { continue };
                self.object(object).map_err(|refused| refused.at(start, &places, index))?;
                deepest = deepest.max(depth + instance_depth(object));
                children(object, index, depth + 1, &mut places);
                let reference =
                    object.get("$ref").and_then(Value::as_str).filter(|reference| seen.insert(reference));
                // A reference that leads nowhere is refused by the library.
                targets.extend(reference.and_then(|reference| Some((reference, target(root, reference)?))));
            }
            self.levels += deepest;
            bounded("nested schemas and references", self.levels, LEVELS_MAX)?;
        }
        Ok(())
    }

    fn object(&mut self, object: &Map<String, Value>) -> Result<(), Refused> {
        if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| object.contains_key(**keyword)) {
            return Err(Refused::Unsupported(format!("the keyword {keyword}"), String::new()));
        }
        if let Some(Value::String(format)) = object.get("format")
            && !FORMATS.contains(&&**format)
        {
            let supported = format!("; supported are {}", FORMATS.join(", "));
            return Err(Refused::Unsupported(format!("the format {:?}", cut(format)), supported));
        }
        if let Some(step) = object.get("multipleOf") {
            // The library refuses a value that is not a number.
            self.multiple(step.as_f64().unwrap_or(1.0), step)?;
        }
        let entries = |keyword: &str| object.get(keyword).and_then(Value::as_object).map_or(0, Map::len);
        let properties = entries("properties");
        self.property_pairs += properties * properties;
        self.patterns += entries("patternProperties");
        if self.property_pairs > PROPERTY_PAIRS_MAX {
            let message =
                format!("the JSON schema has too many properties; an object may have {PROPERTIES_MAX}");
            return Err(Refused::Limit(GrammarError::TooLarge(message)));
        }
        bounded("patternProperties", self.patterns, PATTERNS_MAX).map_err(Refused::Limit)
    }

    /// Notes a `multipleOf`. Two of them that apply to the same number become their product.
    fn multiple(&mut self, step: f64, text: &Value) -> Result<(), Refused> {
        let digits = (0..=DECIMALS_MAX).map(|decimals| (step * 10f64.powi(decimals), decimals));
        let whole = digits.into_iter().find(|(digits, _)| digits.fract() == 0.0);
        let Some((digits, decimals)) = whole.filter(|(digits, _)| (0.0..=MULTIPLE_MAX).contains(digits))
        else {
            let remedy = format!("; without its point it may be at most {MULTIPLE_MAX}");
            return Err(Refused::Unsupported(format!("multipleOf {text}"), remedy));
        };
        if !self.multiples.contains(&(digits, decimals)) {
            self.multiples.push((digits, decimals));
        }
        let product: f64 = self.multiples.iter().map(|(digits, _)| digits.max(1.0)).product();
        let decimals = |(_, decimals): &(f64, i32)| *decimals;
        let most = self.multiples.iter().map(decimals).max().unwrap_or(0);
        let least = self.multiples.iter().map(decimals).min().unwrap_or(0);
        if product * 10f64.powi(most - least) > MULTIPLES_MAX {
            let message =
                "the JSON schema has too many different values of multipleOf; use fewer or smaller ones";
            return Err(Refused::Limit(GrammarError::TooLarge(message.to_owned())));
        }
        Ok(())
    }
}

/// Why a schema is refused.
enum Refused {
    /// An unsupported keyword or format, and what is supported.
    Unsupported(String, String),
    Limit(GrammarError),
}

impl Refused {
    /// The error for the place with this index. `start` is the reference at which the walk began.
    fn at(self, start: &str, places: &[Place<'_>], index: usize) -> GrammarError {
        let (keyword, remedy) = match self {
            Self::Unsupported(keyword, remedy) => (keyword, remedy),
            Self::Limit(error) => return error,
        };
        let mut steps = Vec::new();
        let mut inside = &places[index].inside;
        while let Some((parent, keyword, key)) = inside {
            match key {
                Key::None => {}
                Key::Name(name) => steps.push(cut(name)),
                Key::Index(index) => steps.push(index.to_string()),
            }
            steps.push((*keyword).to_owned());
            inside = &places[*parent].inside;
        }
        steps.push(cut(start));
        steps.reverse();
        GrammarError::Invalid(format!("{keyword} at {} is not supported{remedy}", steps.join("/")))
    }
}

/// A name as it appears in a message.
fn cut(name: &str) -> String {
    let mut rest = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut cut: String = rest.by_ref().take(40).collect();
    cut.extend(rest.next().map(|_| '…'));
    cut
}

/// The schema to which a reference points, as the library finds it: it decodes no escapes.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if matches!(reference, "#" | "#/") {
        return Some(root);
    }
    reference.strip_prefix("#/")?.split('/').try_fold(root, |place, step| match place {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        place => place.get(step),
    })
}

/// Adds the schemas directly inside `object`, which is the schema of the place `parent`.
fn children<'a>(object: &'a Map<String, Value>, parent: usize, depth: usize, places: &mut Vec<Place<'a>>) {
    for (keyword, value) in object {
        let place = |key, schema| Place { schema, inside: Some((parent, &**keyword, key)), depth };
        match (&**keyword, value) {
            ("properties" | "patternProperties", Value::Object(schemas)) => {
                places.extend(schemas.iter().map(|(key, schema)| place(Key::Name(key), schema)));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                places.extend(
                    schemas.iter().enumerate().map(|(index, schema)| place(Key::Index(index), schema)),
                );
            }
            ("additionalProperties" | "additionalItems" | "items", Value::Object(_)) => {
                places.push(place(Key::None, value));
            }
            _ => {}
        }
    }
}

/// Depth of the instances in `const` and `enum`. The library recurses into them too.
fn instance_depth(object: &Map<String, Value>) -> usize {
    ["const", "enum"].into_iter().filter_map(|keyword| object.get(keyword)).map(depth).max().unwrap_or(0)
}

/// Number of nested lists and objects. The parser of JSON bounds it to 128.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn bounded(name: &str, count: usize, most: usize) -> Result<(), GrammarError> {
    if count <= most {
        return Ok(());
    }
    Err(GrammarError::TooLarge(format!("the JSON schema has more than {most} {name}; use fewer")))
}

#[cfg(test)]
mod tests;
