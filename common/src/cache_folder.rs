//! The cache folder. `cargo xtask` stores its downloads there; the runtime, the build and the tests read them.

use std::ffi::OsString;
use std::path::PathBuf;

/// The path of the UCX library within the cache folder.
pub const UCX: &str = "ucx-1.22.0/libucx/lib/libucp.so.0";

/// Returns `$XDG_CACHE_HOME/baton`, or `$HOME/.cache/baton` if `XDG_CACHE_HOME` is not set. `variable` looks up an
/// environment variable. An empty variable counts as not set.
///
/// # Errors
/// Neither variable is set.
pub fn locate(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, &'static str> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("baton"))
        .ok_or("there is no cache folder because neither XDG_CACHE_HOME nor HOME is set: set one of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_variables() {
        fn check(variables: &[(&str, &str)], expect: Option<&str>) {
            let found = locate(|name| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
            });
            assert_eq!(found.ok(), expect.map(PathBuf::from), "{variables:?}");
        }
        check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")], Some("/c/baton"));
        check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "")], Some("/home/u/.cache/baton"));
        check(&[("HOME", "/home/u")], Some("/home/u/.cache/baton"));
        check(&[], None);
    }
}
