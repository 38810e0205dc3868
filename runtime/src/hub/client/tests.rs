use super::*;

#[test]
fn addresses_are_encoded() {
    assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
    assert_eq!(encoded("q 4/m+é.gguf", "/"), "q%204/m%2B%C3%A9.gguf");
}

#[test]
fn redirects_may_be_relative() {
    fn check(place: &str, expect: Option<&str>) {
        assert_eq!(joined("https://hub:8443/a/b?c=d", place).as_deref(), expect, "{place}");
    }
    check("https://cdn/x?y", Some("https://cdn/x?y"));
    check("http://cdn/x", Some("http://cdn/x"));
    check("/api/x?y", Some("https://hub:8443/api/x?y"));
    check("//cdn/x", Some("https://cdn/x"));
    check("x/y", None);
    check("", None);
}

/// The token goes where scheme, host and port are those of the hub.
#[test]
fn an_origin_is_scheme_host_and_port() {
    let hub = origin("https://hub.example");
    for same in ["https://HUB.example/x", "https://hub.example:443/y"] {
        assert_eq!(origin(same), hub, "{same}");
    }
    for other in
        ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://cdn.example"]
    {
        assert_ne!(origin(other), hub, "{other}");
    }
    assert_eq!(origin("no url"), None);
}

fn settings(variables: &[(&str, &str)]) -> HubSettings {
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    crate::config::Surroundings::from_variables(variables, 1).hub
}

#[test]
fn urls_name_repository_revision_and_file() {
    let client = HubClient::new(&settings(&[("HF_ENDPOINT", "http://hub:1/base/")])).unwrap();
    assert_eq!(
        client.model_url("org/name", "refs/pr/1"),
        "http://hub:1/base/api/models/org/name/revision/refs%2Fpr%2F1?blobs=true"
    );
    assert_eq!(
        client.file_url("org/name", "c0", "a/b.gguf"),
        "http://hub:1/base/org/name/resolve/c0/a/b.gguf"
    );
}

#[test]
fn wrong_variables_are_named() {
    for (variables, words) in [
        (&[("HF_ENDPOINT", "not a url")][..], "HF_ENDPOINT is \"not a url\""),
        (&[("HF_ENDPOINT", "ftp://hub")], "HF_ENDPOINT is \"ftp://hub\", which is no URL of HTTP"),
        (&[("HF_ENDPOINT", "user:word@hub")], "HF_ENDPOINT is \"not shown here\""),
        (&[("HF_ENDPOINT", "https://user:word@hub")], "HF_ENDPOINT has a user name"),
        (&[("HF_ENDPOINT", "https://hub?key=word")], "HF_ENDPOINT has a user name, a password or a query"),
        (&[("HF_TOKEN", "hf_\u{7}word")], "write it again to HF_TOKEN"),
        (&[("HTTPS_PROXY", "socks5://user:word@proxy:1080")], "HTTPS_PROXY is not the URL"),
        (&[("HTTPS_PROXY", "https://user:word@proxy")], "HTTPS_PROXY is not the URL"),
        (&[("SSL_CERT_FILE", "/nowhere/ca.pem")], "SSL_CERT_FILE is /nowhere/ca.pem, which cannot be read"),
        (&[("SSL_CERT_FILE", "/dev/null")], "which has no certificate"),
    ] {
        let error = HubClient::new(&settings(variables)).err().unwrap().to_string();
        assert!(error.contains(words) && !error.contains("word@") && !error.contains("=word"), "{error}");
    }
    for proxy in ["proxy:3128", "http://proxy:3128", "http://user:word@proxy:3128"] {
        assert!(HubClient::new(&settings(&[("HTTPS_PROXY", proxy)])).is_ok(), "{proxy}");
    }
}

#[test]
fn an_unknown_authority_is_named_with_the_remedy() {
    let reason =
        explained(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer).to_string());
    assert!(reason.contains("SSL_CERT_FILE"), "{reason}");
    assert_eq!(explained("connection refused".to_owned()), "connection refused");
}

/// The address of a file at another host has a signature in its query.
#[test]
fn errors_show_no_secrets() {
    let client = HubClient::new(&settings(&[])).unwrap();
    let url = || "https://user:word@cdn:8443/a/b?X-Amz-Signature=word&x=@".to_owned();
    let refused = |status| match refused(status, false, None) {
        Failure::Status(refused) => Failure::Status(RefusedStatus { url: url(), ..refused }),
        other => other,
    };
    for failure in [
        Failure::Connection { url: url(), reason: String::new() },
        Failure::Protocol { url: url(), what: String::new() },
        refused(503),
        refused(403),
    ] {
        let error = client.error(failure, "org/name", "main").to_string();
        assert!(error.contains("https://cdn:8443/a/b") && !error.contains("word"), "{error}");
    }
}

fn refused(status: u16, is_hub: bool, code: Option<&str>) -> Failure {
    Failure::Status(RefusedStatus {
        url: "http://hub/x".to_owned(),
        status: StatusCode::from_u16(status).unwrap(),
        is_hub,
        code: code.map(str::to_owned),
        message: None,
        asked: None,
    })
}

/// The answer of the hub for a model that needs a token is that for one that does not exist.
#[test]
fn refusals_have_a_kind() {
    let client = |token: &str| {
        HubClient::new(&settings(&[("HF_TOKEN", token), ("HF_TOKEN_PATH", "/nowhere/token")])).unwrap()
    };
    let (without, with) = (client(""), client("hf_x"));
    let kind = |client: &HubClient, failure| client.error(failure, "org/name", "main").kind();
    for (status, code, expect, expect_with_token) in [
        (401, None, "missing", "token_refused"),
        (401, Some("RepoNotFound"), "missing", "missing"),
        (404, Some("RepoNotFound"), "missing", "missing"),
        (404, Some("RevisionNotFound"), "no_revision", "no_revision"),
        (404, Some("EntryNotFound"), "unexpected", "unexpected"),
        (403, Some("GatedRepo"), "gated", "gated"),
        (403, None, "refused", "refused"),
        (429, None, "too_many_requests", "too_many_requests"),
        (503, None, "unreachable", "unreachable"),
        (400, None, "unexpected", "unexpected"),
    ] {
        assert_eq!(kind(&without, refused(status, true, code)), expect, "{status} {code:?}");
        assert_eq!(kind(&with, refused(status, true, code)), expect_with_token, "{status} {code:?}");
    }
}

/// The address of a file at another host expires.
#[test]
fn refusals_of_other_hosts_may_pass() {
    for (status, at_hub, elsewhere) in
        [(403, false, true), (404, false, true), (429, true, true), (500, true, true)]
    {
        assert_eq!(refused(status, true, None).may_pass().is_some(), at_hub, "{status}");
        assert_eq!(refused(status, false, None).may_pass().is_some(), elsewhere, "{status}");
    }
}
