//! The hub behind TLS, and a proxy that leads to it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::FakeHub;

/// A certificate for `localhost` that signs itself.
const CERTIFICATE: &str = "MIIBizCCATKgAwIBAgIUf96Zi+pZrVq/k253AevwjzoL4LwwCgYIKoZIzj0EAwIwDjEMMAoGA1UEAwwDaHViMCAXDTI2MTEzMDAxNTU0MFoYDz \
     IxMjYxMTA2MDE1NTQwWjAOMQwwCgYDVQQDDANodWIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT6fr+qKeCk9GYi4zu+SEHDOs8XO/X2lX3a \
     U9Gvyni3gZySMUCm/waJ/5NweuNL7LTNS03hxppS8FEOhQTIr9uQo2wwajAdBgNVHQ4EFgQUA+qxG51PGfEqXgjbDxBO8frrrmYwHwYDVR0jBB \
     gwFoAUA+qxG51PGfEqXgjbDxBO8frrrmYwGgYDVR0RBBMwEYIJbG9jYWxob3N0hwR/AAABMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDRwAw \
     RAIgXp7uS6xhAbnjuv46O58GeKOoA4y+CuMP0lzuFZpOP/ACIBqLfUXYXFNRZm51yagiWZZ9sXJNW6s+5saf7ljalUGa";

/// The key of the certificate.
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgE05oUo7qcoxXwVZs7qYXQVlNeYl4W+XhgulfKAtETsOhRANCAAT6fr+qKeCk9G \
     Yi4zu+SEHDOs8XO/X2lX3aU9Gvyni3gZySMUCm/waJ/5NweuNL7LTNS03hxppS8FEOhQTIr9uQ";

/// The certificate in the format of `SSL_CERT_FILE`.
pub fn certificate() -> String {
    pem("CERTIFICATE", CERTIFICATE)
}

fn pem(kind: &str, base64: &str) -> String {
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

impl FakeHub {
    /// Opens a port at which the hub speaks TLS. Returns its URL.
    ///
    /// # Errors
    /// No port can be opened.
    pub fn listen_tls(&self) -> Result<String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(certificate().as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(pem("PRIVATE KEY", KEY).as_bytes())?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let (config, listener, hub) = (Arc::new(config), TcpListener::bind("127.0.0.1:0")?, self.address);
        let url = format!("https://localhost:{}", listener.local_addr()?.port());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let config = Arc::clone(&config);
                thread::spawn(move || {
                    // A client that does not trust the certificate closes the connection.
                    let _ = forward_tls(config, socket, hub);
                });
            }
        });
        Ok(url)
    }
}

/// Forwards one request and its answer, which ends with the connection.
fn forward_tls(config: Arc<ServerConfig>, socket: TcpStream, hub: SocketAddr) -> Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config)?, socket);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let mut hub = TcpStream::connect(hub)?;
    hub.write_all(&request)?;
    io::copy(&mut hub, &mut tls)?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}

/// A proxy for `CONNECT`. It leads every name to this machine.
pub struct ConnectProxy {
    /// Its address.
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts a proxy. Its threads end with the process.
    ///
    /// # Errors
    /// No port can be opened.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let this = Self { address: listener.local_addr()?, heads: Arc::default() };
        let heads = Arc::clone(&this.heads);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let heads = Arc::clone(&heads);
                thread::spawn(move || {
                    // The end of a connection is no failure.
                    let _ = forward(socket, &heads);
                });
            }
        });
        Ok(this)
    }

    /// The heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn forward(mut socket: TcpStream, heads: &Mutex<Vec<String>>) -> Result<()> {
    let mut head = String::new();
    // The client sends nothing more before the answer, so the reader takes nothing that is to be forwarded.
    let mut reader = BufReader::new(socket.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        anyhow::ensure!(reader.read_line(&mut head)? > 0, "the request ends early");
    }
    let target = head.split(' ').nth(1).context("the request has no target")?;
    let port: u16 = target.rsplit(':').next().context("the target has no port")?.parse()?;
    heads.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    let mut hub = TcpStream::connect(("127.0.0.1", port))?;
    socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut to_hub, mut from_client) = (hub.try_clone()?, socket.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_hub);
        let _ = to_hub.shutdown(Shutdown::Write);
    });
    io::copy(&mut hub, &mut socket)?;
    socket.shutdown(Shutdown::Write)?;
    Ok(())
}
