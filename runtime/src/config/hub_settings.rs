//! The settings of the hub of models. They are those of Python's `huggingface_hub`, so that both use one cache and one token.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Secret;

/// The hub if `HF_ENDPOINT` is not set.
const ENDPOINT: &str = "https://huggingface.co";

/// The time to wait for the hub if `HF_HUB_DOWNLOAD_TIMEOUT` is not set.
const PATIENCE: Duration = Duration::from_secs(10);

/// The hub of models and the cache of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The URL of the hub, without a slash at its end: `HF_ENDPOINT`.
    pub endpoint: String,
    /// The cache folder: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The token in `HF_TOKEN`.
    token: Option<Secret>,
    /// The file with the token: `HF_TOKEN_PATH`, else `token` in `HF_HOME`.
    token_file: PathBuf,
    /// Whether nothing is downloaded: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// The proxy for `https`: `HTTPS_PROXY`. Its URL may have a password.
    pub proxy: Option<Secret>,
    /// The hosts that are not reached through the proxy: `NO_PROXY`.
    pub no_proxy: String,
    /// A PEM file with the certificate authorities that replace those of the system: `SSL_CERT_FILE`.
    pub certificates: Option<PathBuf>,
    /// How long the hub may send nothing: `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
    pub patience: Duration,
}

impl HubSettings {
    /// The settings in these variables. An empty variable counts as not set.
    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(PathBuf::from);
        let folder = |name: &str| set(name).map(|value| expanded(&value, home.as_deref()));
        let base = folder("HF_HOME").unwrap_or_else(|| {
            let below_home = || home.as_ref().map(|home| home.join(".cache"));
            let caches = folder("XDG_CACHE_HOME").or_else(below_home);
            caches.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
        });
        let either = |upper: &str, lower: &str| set(upper).or_else(|| set(lower));
        let is_true = |value: String| ["1", "ON", "YES", "TRUE"].contains(&&*value.to_uppercase());
        let seconds = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.trim().parse().ok());
        Self {
            endpoint: set("HF_ENDPOINT")
                .map_or_else(|| ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| base.join("hub")),
            token: either("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN").and_then(|text| clean(&text)),
            token_file: folder("HF_TOKEN_PATH").unwrap_or_else(|| base.join("token")),
            offline: either("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE").is_some_and(is_true),
            proxy: either("HTTPS_PROXY", "https_proxy").map(|url| Secret::new(&url)),
            no_proxy: either("NO_PROXY", "no_proxy").unwrap_or_default(),
            certificates: folder("SSL_CERT_FILE"),
            patience: seconds.filter(|seconds| *seconds > 0).map_or(PATIENCE, Duration::from_secs),
        }
    }

    /// The token in `HF_TOKEN`, or else in the file of `HF_TOKEN_PATH`.
    pub fn token(&self) -> Option<Secret> {
        self.token.clone().or_else(|| clean(&fs::read_to_string(&self.token_file).ok()?))
    }
}

/// The token in a variable or a file; `None` if there is none.
fn clean(text: &str) -> Option<Secret> {
    let token = text.trim();
    (!token.is_empty()).then(|| Secret::new(token))
}

/// The path with the home folder in place of `~`.
fn expanded(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let all = [&[("HOME", "/home/u")], variables].concat();
        HubSettings::from_variables(|name| {
            all.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_that_of_python() {
        fn check(variables: &[(&str, &str)], expect: &str) {
            assert_eq!(settings(variables).cache, Path::new(expect), "{variables:?}");
        }
        check(&[], "/home/u/.cache/huggingface/hub");
        check(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub");
        check(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")], "/home/u/hf/hub");
        check(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old");
        check(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/c");
        check(&[("HF_HUB_CACHE", "")], "/home/u/.cache/huggingface/hub");
    }

    #[test]
    fn variables_of_python_are_read() {
        let default = settings(&[]);
        assert_eq!((&*default.endpoint, default.offline), (ENDPOINT, false));
        assert_eq!(default.patience, PATIENCE);
        let all = settings(&[
            ("HF_ENDPOINT", "http://mirror:1/"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("https_proxy", "http://user:password@proxy:3128"),
            ("NO_PROXY", "localhost"),
            ("SSL_CERT_FILE", "~/ca.pem"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "3"),
        ]);
        assert_eq!((&*all.endpoint, all.offline, &*all.no_proxy), ("http://mirror:1", true, "localhost"));
        assert_eq!(all.token().unwrap().reveal(), "hf_secret");
        assert_eq!(all.certificates.as_deref(), Some(Path::new("/home/u/ca.pem")));
        assert_eq!(all.patience, Duration::from_secs(3));
        let shown = format!("{all:?}");
        assert!(!shown.contains("hf_secret") && !shown.contains("password"), "{shown}");
        for value in ["0", "off", ""] {
            assert!(!settings(&[("HF_HUB_OFFLINE", value)]).offline, "{value:?}");
        }
        for value in ["", "0", "-1", "soon"] {
            assert_eq!(settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", value)]).patience, PATIENCE, "{value:?}");
        }
    }

    #[test]
    fn a_token_may_lie_in_a_file() {
        let folder = std::env::temp_dir().join(format!("baton-token-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("token");
        fs::write(&file, "hf_file\n").unwrap();
        let (path, home) = (file.display().to_string(), folder.display().to_string());
        let token =
            |variables: &[(&str, &str)]| settings(variables).token().map(|token| token.reveal().to_owned());
        assert_eq!(token(&[("HF_TOKEN_PATH", &path)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", &home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", &home), ("HF_TOKEN", "hf_variable")]).as_deref(), Some("hf_variable"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere/token")]), None);
        fs::remove_dir_all(folder).unwrap();
    }
}
