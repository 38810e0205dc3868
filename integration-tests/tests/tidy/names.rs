//! The names of types: each public or crate-visible type of the workspace has a name that no other one has.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{CRATES, source, sources};

/// True for a file whose types ship: the sources of a crate, without its tests.
fn is_checked(name: &str) -> bool {
    let in_crate = CRATES
        .iter()
        .any(|krate| *krate != "integration-tests" && name.starts_with(&format!("{krate}/src/")));
    let is_test = name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("/testing.rs");
    in_crate && !is_test
}

/// The code in front of the file's first inline module of tests.
fn without_tests(code: &str) -> &str {
    let is_module =
        |rest: &str| rest.lines().nth(1).is_some_and(|line| line.contains("mod ") && line.ends_with('{'));
    let starts = code.match_indices("#[cfg(test)]").map(|(at, _)| at);
    let end = starts.into_iter().find(|at| is_module(&code[*at..]));
    &code[..end.unwrap_or(code.len())]
}

/// The names of the types that `code` declares as `pub` or `pub(crate)`.
fn declared(code: &str) -> impl Iterator<Item = &str> {
    code.lines().filter_map(|line| {
        let line = line.trim_start();
        let item = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
        let (keyword, rest) = item.trim_start_matches("unsafe ").split_once(' ')?;
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let is_type = ["struct", "enum", "union", "trait", "type"].contains(&keyword);
        (is_type && end > 0).then_some(&rest[..end])
    })
}

#[test]
fn declarations_are_found() {
    let code = "pub struct A;\n    pub(crate) enum B<T> {\nstruct C;\npub(super) struct D;\npub unsafe trait E: F {\n\
                pub type G = u8;\ntype H = u8;\npub struct $I {\npub fn j() {\n#[cfg(test)]\nuse k;\n\
                #[cfg(test)]\npub(crate) mod testing {\npub struct L;\n";
    assert_eq!(declared(without_tests(code)).collect::<Vec<_>>(), ["A", "B", "E", "G"]);
    assert!(is_checked("runtime/src/frontend.rs"));
    assert!(!is_checked("runtime/src/frontend/tests/harness.rs") && !is_checked("runtime/tests/no_gpu.rs"));
}

/// A reader who sees a type's name in a signature, a log line or an error has to know which type it is.
#[test]
fn every_type_has_a_name_of_its_own() -> Result<()> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in sources()?.into_iter().filter(|(file, _)| is_checked(file)) {
        let code = source::split(&text).code;
        for name in declared(without_tests(&code)) {
            places.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(places.len() > 100, "only {} types are found: the search is broken", places.len());
    places.retain(|_, files| files.len() > 1);
    assert_eq!(
        places,
        BTreeMap::new(),
        "each of these names belongs to more than one type: rename all but one"
    );
    Ok(())
}
