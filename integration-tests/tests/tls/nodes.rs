//! A proxy reaches nodes with HTTPS, and says why it leaves one out.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use integration_tests::certificates::{Authority, PemFolder, SignedPair};
use integration_tests::client::complete;
use integration_tests::process::{Event, start_member, start_proxy};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::{HERE, all};

#[test]
fn a_proxy_serves_https_and_forwards_with_https() -> Result<()> {
    let (authority, files) = (Authority::new()?, PemFolder::new()?);
    let node = start_member("node", &all(&files.http(&authority.signs(&["127.0.0.1"])?)?))?;
    // The members that etcd or DNS names are reached by address, so their certificates may have one common name.
    let named = PemFolder::new()?;
    let other = start_member("node", &all(&named.http(&authority.signs(&["nodes.baton"])?)?))?;

    let address = |process: &integration_tests::process::Process| -> Result<String> {
        Ok(process.address("http.port")?.replace("https://", ""))
    };
    let ca = files.put("fleet.nodes_ca_file", "ca.pem", &authority.pem())?;
    let own = PemFolder::new()?;
    let own = own.http(&authority.signs(&HERE)?)?;
    let proxy = start_proxy(&[address(&node)?], &[&*ca, &own[0], &own[1]])?;
    let frontend = proxy.address("frontend.port")?;
    assert!(frontend.starts_with("https://"), "{frontend}");
    assert_eq!(complete(&frontend, &json!("Once upon a time"), 4)?.ids.len(), 4);

    let proxy = start_proxy(&[address(&other)?], &[&ca, "fleet.nodes_tls_name=nodes.baton"])?;
    let frontend = proxy.address("frontend.port")?;
    assert_eq!(complete(&frontend, &json!("Once upon a time"), 4)?.ids.len(), 4);

    // Without TLS, a proxy says what to set.
    let plain = start_member("proxy", &[&format!("fleet.nodes={}", address(&node)?)])?;
    plain.wait_event(Event::NodeLeftOut, &["if the node serves HTTPS, set fleet.nodes_ca_file"])?;
    Ok(())
}

/// The proxy keeps connections to nodes. It must not go on with those to a node whose authority it no longer trusts.
#[test]
fn a_node_is_left_out_when_its_authority_is_removed() -> Result<()> {
    let (authority, other, files) = (Authority::new()?, Authority::new()?, PemFolder::new()?);
    let node = start_member("node", &all(&files.http(&authority.signs(&["127.0.0.1"])?)?))?;
    let ca = files.put("fleet.nodes_ca_file", "ca.pem", &(authority.pem() + &other.pem()))?;
    let proxy = start_proxy(&[node.address("http.port")?.replace("https://", "")], &[&ca])?;
    let frontend = proxy.address("frontend.port")?;
    assert_eq!(complete(&frontend, &json!("Once upon a time"), 4)?.ids.len(), 4);
    files.put("fleet.nodes_ca_file", "ca.pem", &other.pem())?;
    proxy.wait_event(Event::PemRenewed, &["the authorities of the nodes"])?;
    proxy.wait_event(Event::NodeLeftOut, &["signed by no authority in fleet.nodes_ca_file"])?;
    Ok(())
}

/// A port with this certificate, or one without TLS that answers the first bytes of each connection with 404. Its thread ends with the test.
fn port(pair: Option<&SignedPair>) -> Result<String> {
    let tls = pair.map(|pair| -> Result<_> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key)?))
    });
    let (tls, listener) = (tls.transpose()?, TcpListener::bind("127.0.0.1:0")?);
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            // A proxy that refuses the certificate closes the connection.
            let _ = match &tls {
                None => socket.read(&mut [0; 4096]).and_then(|_| socket.write_all(answer)),
                Some(tls) => ServerConnection::new(Arc::clone(tls))
                    .map_err(std::io::Error::other)
                    .and_then(|connection| StreamOwned::new(connection, socket).read(&mut [0]).map(drop)),
            };
        }
    });
    Ok(address)
}

#[test]
fn a_proxy_names_the_reason_for_each_node_that_it_refuses() -> Result<()> {
    let (authority, files) = (Authority::new()?, PemFolder::new()?);
    let ca = files.put("fleet.nodes_ca_file", "ca.pem", &authority.pem())?;
    let cases = [
        (Some(Authority::new()?.signs(&HERE)?), "signed by no authority in fleet.nodes_ca_file"),
        (Some(authority.signs_until(&HERE, 2020)?), "has expired; renew tls.cert_file of the node"),
        (
            Some(authority.signs(&["node-9"])?),
            "is for node-9, but this proxy expects 127.0.0.1; set fleet.nodes_tls_name",
        ),
        (None, "answers without TLS; set tls.cert_file and tls.key_file of the node"),
    ];
    let ports = cases.iter().map(|(pair, _)| port(pair.as_ref())).collect::<Result<Vec<_>>>()?;
    let proxy = start_member("proxy", &[&ca, &format!("fleet.nodes={}", ports.join(","))])?;
    for (port, (_, reason)) in ports.iter().zip(&cases) {
        proxy.wait_event(Event::NodeLeftOut, &[reason, port])?;
    }
    Ok(())
}
