//! A real etcd, such as that of Debian's package `etcd-server`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{free_port, until};
use serde_json::{Value, json};

/// An etcd with one member; killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    folder: PathBuf,
    ports: [u16; 2],
    arguments: Vec<String>,
}

/// Certificates in PEM files.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes a certificate authority and the certificates `server` and `client`. `None`, with a line that says so, if OpenSSL is not installed.
    pub(crate) fn make() -> Result<Option<Self>> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: openssl is not in PATH");
            return Ok(None);
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("baton-certificates-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&made.0)?;
        std::fs::write(made.0.join("empty.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")?;
        made.renew()?;
        Ok(Some(made))
    }

    /// Replaces all files: a new authority and new certificates, which do not fit the old ones.
    pub(crate) fn renew(&self) -> Result<()> {
        self.certify("ca", &["basicConstraints=critical,CA:TRUE"], &[])?;
        for name in ["server", "client"] {
            let extensions = ["basicConstraints=critical,CA:FALSE", "subjectAltName=IP:127.0.0.1"];
            self.certify(name, &extensions, &["-CA", "ca.pem", "-CAkey", "ca.key"])?;
        }
        Ok(())
    }

    fn certify(&self, name: &str, extensions: &[&str], by: &[&str]) -> Result<()> {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let mut command = Command::new("openssl");
        command
            .current_dir(&self.0)
            .args(["req", "-x509", "-config", "empty.cnf", "-days", "2"])
            .args(key)
            .args(by);
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        let (subject, out) = (format!("/CN={name}"), [format!("{name}.key"), format!("{name}.pem")]);
        let output = command.args(["-subj", &subject, "-keyout", &out[0], "-out", &out[1]]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // Best effort: the folder is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Etcd {
    /// Starts an empty etcd. `None`, with a line that says so, if the program is not installed.
    pub(crate) fn start() -> Result<Option<Self>> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with further arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Result<Option<Self>> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: etcd is not in PATH; Debian's package etcd-server has it");
            return Ok(None);
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("baton-etcd-{}-{number}", std::process::id()));
        let ports = [free_port()?, free_port()?];
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(&folder, ports, &arguments)?;
        let etcd = Self { child, folder, ports, arguments };
        etcd.until_healthy()?;
        Ok(Some(etcd))
    }

    /// Starts an etcd that also listens with TLS, and wants a certificate of its clients there. Returns the URL of that port.
    pub(crate) fn start_tls(certificates: &Certificates) -> Result<Option<(Self, String)>> {
        let url = format!("https://127.0.0.1:{}", free_port()?);
        let files = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.file(name));
        let names = ["--cert-file", "--key-file", "--trusted-ca-file"];
        let mut arguments = vec!["--client-cert-auth", "--listen-client-urls", &url];
        names.iter().zip(&files).for_each(|(name, file)| arguments.extend([*name, file]));
        Ok(Self::start_with(&arguments)?.map(|etcd| (etcd, url)))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again with its data.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.folder, self.ports, &self.arguments)?;
        self.until_healthy()
    }

    /// Starts it again without its data.
    pub(crate) fn restart_empty(&mut self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder)?;
        self.restart()
    }

    /// Waits until it answers. The answer is an error if users have to log in.
    fn until_healthy(&self) -> Result<()> {
        let body = json!({ "key": base64("x") });
        until("etcd answers", STATE_WITHIN, || Ok(self.post("/v3/kv/range", &body).is_ok()))
    }

    /// The values of the keys with this prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Result<Vec<Value>> {
        let body = json!({ "key": base64(prefix), "range_end": base64(&after(prefix)) });
        let answer = self.call("/v3/kv/range", &body)?;
        Ok(answer["kvs"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn until_keys(&self, prefix: &str, count: usize) -> Result<()> {
        until(&format!("{count} keys begin with {prefix}"), STATE_WITHIN, || {
            Ok(self.keys(prefix)?.len() == count)
        })
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> Result<()> {
        self.call("/v3/kv/put", &json!({ "key": base64(key), "value": base64(value) })).map(drop)
    }

    pub(crate) fn delete(&self, prefix: &str) -> Result<()> {
        let body = json!({ "key": base64(prefix), "range_end": base64(&after(prefix)) });
        self.call("/v3/kv/deleterange", &body).map(drop)
    }

    /// Forgets all revisions but the newest one.
    pub(crate) fn compact(&self) -> Result<()> {
        self.put("other", "1")?;
        let answer = self.call("/v3/kv/range", &json!({ "key": base64("x") }))?;
        self.call("/v3/kv/compaction", &json!({ "revision": answer["header"]["revision"] })).map(drop)
    }

    /// Requires users to log in: `baton`, who may use the keys of fleets, and `reader`, who may read them. Returns the file with their password.
    pub(crate) fn enable_users(&self) -> Result<PathBuf> {
        const PASSWORD: &str = "secret";
        self.call("/v3/auth/user/add", &json!({ "name": "root", "password": "root" }))?;
        self.call("/v3/auth/user/grant", &json!({ "user": "root", "role": "root" }))?;
        for (name, kind) in [("baton", "READWRITE"), ("reader", "READ")] {
            let (key, end) = (base64("baton/v1/"), base64(&after("baton/v1/")));
            let permission = json!({ "permType": kind, "key": key, "range_end": end });
            self.call("/v3/auth/role/add", &json!({ "name": name }))?;
            self.call("/v3/auth/role/grant", &json!({ "name": name, "perm": permission }))?;
            self.call("/v3/auth/user/add", &json!({ "name": name, "password": PASSWORD }))?;
            self.call("/v3/auth/user/grant", &json!({ "user": name, "role": name }))?;
        }
        self.call("/v3/auth/enable", &json!({}))?;
        let file = self.folder.join("password");
        std::fs::write(&file, format!("{PASSWORD}\n"))?;
        Ok(file)
    }

    fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = self.post(path, body)?;
        ensure!(status == 200, "{path}: {status} {answer}");
        Ok(answer)
    }

    fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        integration_tests::client::post(&format!("127.0.0.1:{}", self.ports[0]), path, body)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // All of this fails only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(folder: &std::path::Path, [client, peer]: [u16; 2], arguments: &[String]) -> Result<Child> {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    // The flag may be given once.
    let mut arguments = arguments.to_vec();
    let mut listens = client.clone();
    if let Some(at) = arguments.iter().position(|argument| argument == "--listen-client-urls") {
        listens = format!("{listens},{}", arguments.remove(at + 1));
        arguments.remove(at);
    }
    Command::new("etcd")
        .arg("--data-dir")
        .arg(folder)
        .args(["--listen-client-urls", &listens, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run etcd")
}

/// The first key after those with this prefix.
fn after(prefix: &str) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = [bits >> 18, bits >> 12, bits >> 6, bits].map(digit);
        out.extend(&digits[..=chunk.len()]);
        out.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    out
}
