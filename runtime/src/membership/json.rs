//! The value of a member's key in etcd.

use std::net::SocketAddr;

use actors::membership::{Entry, EntryError, Member, Statement};
use connector::frame::Versions;
use serde::{Deserialize, Serialize};

/// Maximum size of a value. That of a member has 400 bytes.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Maximum length of an error of the JSON parser in the log.
const ERROR_CHARACTERS: usize = 200;

/// A member as JSON. Readers ignore fields that they do not know, so later versions may add some.
#[derive(Serialize, Deserialize)]
struct Value {
    incarnation: String,
    role: String,
    prefills: bool,
    decodes: bool,
    http: Option<SocketAddr>,
    link: Option<SocketAddr>,
    model: String,
    fingerprint: String,
    /// The lowest and the highest version of the link protocol.
    protocol: (u32, u32),
}

/// The value of this member; empty if only its address is known.
pub(super) fn write(member: &Member) -> Vec<u8> {
    let Some(says) = member.says.clone() else { return Vec::new() };
    let value = Value {
        incarnation: member.name.clone(),
        role: says.role,
        prefills: says.prefills,
        decodes: says.decodes,
        http: member.http,
        link: member.link,
        model: says.model,
        fingerprint: says.fingerprint,
        protocol: (says.protocol.lowest, says.protocol.highest),
    };
    serde_json::to_vec(&value).unwrap_or_default()
}

/// The entry of a key whose last part is `name`.
pub(super) fn read(name: &str, value: &[u8]) -> Entry {
    let member = if is_name(name) { member(name, value) } else { Err(EntryError::Key) };
    Entry { name: shown(name), member }
}

/// The name of an entry, as it appears in log lines.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(64).filter(|c| !c.is_control()).collect()
}

/// 16 hexadecimal digits.
fn is_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn member(name: &str, value: &[u8]) -> Result<Member, EntryError> {
    if value.len() > VALUE_BYTES_MAX {
        let sentence = format!("the value has {} bytes, and {VALUE_BYTES_MAX} is the limit", value.len());
        return Err(EntryError::Value(sentence));
    }
    let value: Value = serde_json::from_slice(value).map_err(|error| {
        // The error quotes the value.
        let error: String = error.to_string().chars().take(ERROR_CHARACTERS).collect();
        EntryError::Value(format!("the value is no member: {error}"))
    })?;
    if value.incarnation != name {
        return Err(EntryError::Incarnation);
    }
    let is_reachable = |address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
    if let Some(address) = [value.http, value.link].iter().flatten().find(|address| !is_reachable(address)) {
        return Err(EntryError::Address(*address));
    }
    let says = Statement {
        role: value.role,
        prefills: value.prefills,
        decodes: value.decodes,
        model: value.model,
        fingerprint: value.fingerprint,
        protocol: Versions::new(value.protocol.0, value.protocol.1),
    };
    Ok(Member { name: name.to_owned(), http: value.http, link: value.link, says: Some(says) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "00000000000000ab";

    fn sample() -> Member {
        let says = Statement {
            role: "node".into(),
            prefills: true,
            decodes: true,
            model: "m".into(),
            fingerprint: "ff".into(),
            protocol: Versions::new(3, 4),
        };
        let at = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        Member { name: NAME.into(), http: at(8200), link: at(55555), says: Some(says) }
    }

    #[test]
    fn a_member_is_read_back() {
        let entry = read(NAME, &write(&sample()));
        assert_eq!(entry, Entry { name: NAME.into(), member: Ok(sample()) });
        let text = String::from_utf8(write(&sample())).unwrap().replacen('{', "{\"later\":[1],", 1);
        assert_eq!(read(NAME, text.as_bytes()).member, Ok(sample()), "fields of later versions are ignored");
    }

    #[test]
    fn what_is_no_member_is_an_error() {
        let good = String::from_utf8(write(&sample())).unwrap();
        let check = |name: &str, value: &str, expect: &str| {
            let error = read(name, value.as_bytes()).member.unwrap_err().to_string();
            assert!(error.contains(expect) && error.len() < 300, "{error}");
        };
        check("x", &good, "the key is no incarnation");
        check("00000000000000AB", &good, "the key is no incarnation");
        check("00000000000000ac", &good, "of another incarnation");
        check(NAME, "", "no member");
        check(NAME, "[]", "no member");
        check(NAME, &format!("\"{}\"", "m".repeat(5000)), "no member");
        check(NAME, &good.replace("127.0.0.1:8200", "0.0.0.0:8200"), "0.0.0.0:8200 is no address");
        check(NAME, &good.replace(":55555", ":0"), "127.0.0.1:0 is no address");
        check(NAME, &good.replace("\"m\"", &format!("\"{}\"", "m".repeat(VALUE_BYTES_MAX))), "is the limit");
    }
}
