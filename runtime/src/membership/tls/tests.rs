use std::fs;

use super::*;

/// Two certificates that sign themselves, with their keys.
const CERTIFICATES: [&str; 2] = [
    "MIIBDTCBwKADAgECAhRQJwG3vEcR/8gjgGVEWm8m1YWG/jAFBgMrZXAwDDEKMAgG
A1UEAwwBYTAgFw0yNjExMjkyMzA1MzlaGA8yMTI2MTEwNTIzMDUzOVowDDEKMAgG
A1UEAwwBYTAqMAUGAytlcAMhAJvSDoofnWvfV3Zrs6+5r4cjh7juwtthkr3qYdM/
41nBozIwMDAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBQgQszpUB4L6Q8ops59
6neoNmmVMTAFBgMrZXADQQCqotgbZjMdeawGGru19fZpi+SCWkhqPjoa7DjNArHy
u3fDLzPqjetDw2L54EiP03hRlxRvNixPOoTaX1fAni0E",
    "MIIBDTCBwKADAgECAhRlAgfHdCzW04V7Z2BDA//1CGyj+TAFBgMrZXAwDDEKMAgG
A1UEAwwBYjAgFw0yNjExMjkyMzA1MzlaGA8yMTI2MTEwNTIzMDUzOVowDDEKMAgG
A1UEAwwBYjAqMAUGAytlcAMhACnNRrxSFMyZ0sX5ek1IJZkbtR2BjCNjZwkmJEK3
mKw9ozIwMDAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBQCmn8xubuTX/NvrhTn
Px61rZxwUTAFBgMrZXADQQDhl/tU6nqb+hvFRpe1TII4GhIrkMNnJvs5d8wc9PzW
dHecziPhuCNj28RlTsq0mAOeJEKlaAd8dtAAJmf0OUoH",
];
const KEYS: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEIIC+g5sJMBhsK1b3Wrh1CbwSsTUtWEqez3wVHijBmvB8",
    "MC4CAQAwBQYDK2VwBCIEICgNY6bIr+AsNaAobdqTV3tZBPaTkmJ29zu3IfsiOa1t",
];

/// The names of the files for the authority, the certificate and its key.
const NAMES: [&str; 3] = ["ca.pem", "client.pem", "client.key"];

fn pem(kind: &str, base64: &str) -> String {
    format!("-----BEGIN {kind}-----\n{base64}\n-----END {kind}-----\n")
}

fn certificate(number: usize) -> String {
    pem("CERTIFICATE", CERTIFICATES[number])
}

fn key(number: usize) -> String {
    pem("PRIVATE KEY", KEYS[number])
}

/// The files, and what was read of them.
struct Renewal {
    folder: PathBuf,
    credentials: Credentials,
}

impl Renewal {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("baton-tls-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [ca, cert, key_file] = NAMES.map(|name| folder.join(name));
        fs::write(&ca, certificate(0)).unwrap();
        fs::write(&cert, certificate(0)).unwrap();
        fs::write(&key_file, key(0)).unwrap();
        let settings = EtcdSettings {
            endpoints: Vec::new(),
            cluster: String::new(),
            user: None,
            ca_file: Some(ca),
            certificate: Some((cert, key_file)),
        };
        let (credentials, _) = Credentials::new(&settings).unwrap();
        Self { folder, credentials }
    }

    fn put(&self, name: &str, contents: &str) {
        fs::write(self.folder.join(name), contents).unwrap();
    }

    /// Whether there is a new connector now, and whether the files count as unusable after that.
    fn renewed(&mut self) -> (bool, bool) {
        let is_new = self.credentials.renewed().is_some();
        (is_new, self.credentials.outage.is_failing)
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

const UNCHANGED: (bool, bool) = (false, false);
const UNUSABLE: (bool, bool) = (false, true);
const READ: (bool, bool) = (true, false);

#[test]
fn files_are_used_when_they_have_changed_and_fit_each_other() {
    let mut files = Renewal::new();
    assert_eq!(files.renewed(), UNCHANGED);
    for (name, whole) in NAMES.into_iter().zip([certificate(0), certificate(0), key(0)]) {
        fs::remove_file(files.folder.join(name)).unwrap();
        assert_eq!(files.renewed(), UNUSABLE, "{name} is missing");
        files.put(name, &whole);
        assert_eq!(files.renewed(), UNCHANGED, "{name} is there again");
        for length in [0, whole.len() / 2, whole.len() - 10] {
            files.put(name, &whole[..length]);
            assert_eq!(files.renewed(), UNUSABLE, "{name} has {length} bytes");
        }
        files.put(name, &whole);
        assert_eq!(files.renewed(), UNCHANGED, "{name} is whole again");
    }

    // The key of another certificate, and the certificate of another key.
    files.put("client.key", &key(1));
    assert_eq!(files.renewed(), UNUSABLE);
    files.put("client.key", &key(0));
    files.put("client.pem", &certificate(1));
    assert_eq!(files.renewed(), UNUSABLE);
    files.put("client.key", &key(1));
    assert_eq!(files.renewed(), READ);
    assert_eq!(files.renewed(), UNCHANGED);

    // A bundle that is cut between two certificates can be parsed.
    for ca in [certificate(0) + &certificate(1), certificate(0), certificate(1)] {
        files.put("ca.pem", &ca);
        assert_eq!(files.renewed(), READ);
        assert_eq!(files.renewed(), UNCHANGED);
    }
}
