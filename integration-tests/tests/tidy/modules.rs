//! Which modules of a crate import which, and where that goes round in a circle.
//!
//! The nodes are files. An edge is a path that begins with `crate`, `super` or `self`, in a `use` or inline, and a `use` that
//! begins with a child module. A name that a module has only imported is resolved to the module that defines it, so that
//! `use super::X` is an edge to the sibling which the parent imports `X` from.
//!
//! - Edges between a module and what lies below it are left out: a file and its folder are one thing to a reader, in which
//!   children use the parent's types and the parent uses the children's functions (an actor and its `state`).
//! - Every other edge counts for the two modules in which the paths part: `frontend::tokenizer::words → config::values` is
//!   `frontend → config`. So a folder with all it holds is one thing to other folders.
//! - A module in braces is read as part of its file.
//! - `#[cfg(test)]` ends a file, and files named `tests.rs` or below `tests/` are left out: tests use what they test.

use std::collections::{BTreeMap, BTreeSet};

use crate::source;

/// A path as it is written or resolved, one segment each.
type Path = Vec<String>;

/// What a file imports.
#[derive(Debug, Default)]
struct Module {
    /// Paths of `use` declarations, by the name they bring in.
    uses: BTreeMap<String, Path>,
    /// All paths: those of `use` declarations and the inline ones.
    paths: Vec<Path>,
}

/// The modules of one crate, by their paths; the crate's root is the empty one.
#[derive(Debug, Default)]
pub(crate) struct Crate(BTreeMap<Path, Module>);

/// One module imports another one, which lies beside it, as in `frontend::reply → frontend::stop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: Path,
    pub(crate) to: Path,
}

impl std::fmt::Display for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} → {}", self.from.join("::"), self.to.join("::"))
    }
}

impl Crate {
    /// The crate with these files: paths below its `src`, and contents.
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let is_test = |name: &str| name.split('/').any(|part| part == "tests" || part == "tests.rs");
        let files = files.into_iter().filter(|(name, _)| !is_test(name));
        Self(files.map(|(name, text)| (module_path(name), read(text))).collect())
    }

    /// The edges of the crate, each with a module that has it.
    pub(crate) fn edges(&self) -> BTreeMap<Edge, String> {
        let mut edges = BTreeMap::new();
        for (from, module) in &self.0 {
            for path in &module.paths {
                let Some(to) = self.resolve(from, path, 0) else { continue };
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if common < from.len() && common < to.len() {
                    let edge = Edge { from: from[..=common].to_vec(), to: to[..=common].to_vec() };
                    edges.insert(edge, from.join("::"));
                }
            }
        }
        edges
    }

    /// The module that `path` leads to from `module`; `None` if it leaves the crate.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<Path> {
        let mut base = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => (base, rest) = (Path::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    base.pop()?;
                    rest = &rest[1..];
                }
            }
            child => {
                let inside = [module, &[child.to_owned()]].concat();
                self.0.contains_key(&inside).then_some(())?;
            }
        }
        while let Some(segment) = rest.first() {
            let inside = [&base[..], std::slice::from_ref(segment)].concat();
            if self.0.contains_key(&inside) {
                (base, rest) = (inside, &rest[1..]);
                continue;
            }
            // An imported name leads on. A chain longer than this would be a circle of imports of one name.
            let import = self.0.get(&base).and_then(|module| module.uses.get(segment)).filter(|_| depth < 8);
            let further =
                import.and_then(|path| self.resolve(&base, &[path, &rest[1..]].concat(), depth + 1));
            return Some(further.unwrap_or(base));
        }
        Some(base)
    }
}

/// The edges that lie on a circle: from whose end their beginning can be reached.
pub(crate) fn on_a_circle<'a>(edges: impl IntoIterator<Item = &'a Edge>) -> BTreeSet<&'a Edge> {
    let edges: Vec<&Edge> = edges.into_iter().collect();
    let leads_back = |edge: &Edge| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![&edge.to]);
        while let Some(module) = next.pop() {
            if *module == edge.from {
                return true;
            }
            if seen.insert(module) {
                next.extend(edges.iter().filter(|edge| edge.from == *module).map(|edge| &edge.to));
            }
        }
        false
    };
    edges.iter().copied().filter(|edge| leads_back(edge)).collect()
}

/// `a/b.rs` is `a::b`; `lib.rs` and `main.rs` are the root.
fn module_path(file: &str) -> Path {
    let path = file.trim_end_matches(".rs");
    if matches!(path, "lib" | "main") { Path::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn read(text: &str) -> Module {
    let code = source::split(text.split("#[cfg(test)]").next().unwrap_or_default()).code;
    let tokens = tokens(&code);
    let mut module = Module::default();
    let mut at = 0;
    while at < tokens.len() {
        let begins = matches!(tokens[at], "crate" | "super" | "self") && tokens.get(at + 1) == Some(&"::");
        if tokens[at] == "use" {
            at = tree(&tokens, at + 1, &[], &mut module);
        } else if begins && (at == 0 || tokens[at - 1] != "::") {
            let words = tokens[at..].chunks(2);
            let path = words.scan(true, |goes_on, word| {
                let segment = goes_on.then(|| word[0].to_owned());
                *goes_on = word.get(1) == Some(&"::");
                segment
            });
            module.paths.push(path.collect());
        }
        at += 1;
    }
    module
}

/// Words, `::`, and single other characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// Reads a tree of a `use` declaration that begins at `at`, below `prefix`; returns where it ends.
fn tree(tokens: &[&str], mut at: usize, prefix: &[String], module: &mut Module) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match *token {
            "::" => {}
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = tree(tokens, at, &path, module);
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => {
                let name = tokens.get(at + 1).copied().unwrap_or_default();
                module.uses.insert(name.to_owned(), path.clone());
                module.paths.push(path);
                return at + 2;
            }
            // The part before the braces.
            "self" if !prefix.is_empty() && path.len() == prefix.len() => {}
            "*" => {}
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    if let Some(name) = path.last() {
        module.uses.insert(name.clone(), path.clone());
        module.paths.push(path);
    }
    at
}

#[test]
fn imports_are_found_however_they_are_written() {
    let check = |text: &str, expect: &[&str]| {
        let lib = "mod a; mod b; mod c; pub use b::Bee; use c::{self as sea, deep::Fish};";
        let files = [
            ("lib.rs", lib),
            ("a.rs", text),
            ("a/child.rs", "use super::X; use crate::a::Y;"),
            ("b.rs", ""),
            ("c.rs", "mod deep;"),
            ("c/deep.rs", ""),
        ];
        let found: Vec<String> = Crate::new(files).edges().keys().map(Edge::to_string).collect();
        assert_eq!(found, expect, "{text}");
    };
    check("", &[]);
    check("use crate::b::X;", &["a → b"]);
    check("use crate::{b, c::{deep::{X, Y}, Z}};", &["a → b", "a → c"]);
    check("use super::{b::*, c as other};", &["a → b", "a → c"]);
    check("pub(crate) use crate::c::{self, X};", &["a → c"]);
    check("fn f() -> crate::b::X { super::c::deep::y() }", &["a → b", "a → c"]);
    check("use crate::Bee; use super::Fish;", &["a → b", "a → c"]);
    check("fn f() { super::sea::x() }", &["a → c"]);
    check("mod child; use child::X; use self::child::Y; use crate::Other; use std::c::d;", &[]);
    check("// use crate::b::X;\nconst A: &str = \"crate::c::X\";", &[]);
    check("#[cfg(test)]\nmod tests { use crate::b::X; }", &[]);
}

#[test]
fn circles_are_found_and_nothing_else() {
    let edge = |text: &str| {
        let (from, to) = text.split_once('>').expect("an arrow");
        Edge { from: vec![from.into()], to: vec![to.into()] }
    };
    let check = |edges: &[&str], expect: &[&str]| {
        let edges: Vec<Edge> = edges.iter().copied().map(edge).collect();
        let expect: Vec<Edge> = expect.iter().copied().map(edge).collect();
        assert_eq!(on_a_circle(&edges), expect.iter().collect(), "{edges:?}");
    };
    check(&["a>b", "b>c", "a>c"], &[]);
    check(&["a>b", "b>a", "b>c", "d>a"], &["a>b", "b>a"]);
    check(&["a>b", "b>c", "c>a", "c>d"], &["a>b", "b>c", "c>a"]);
}
