use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::{FrameReader, FrameWriter};
use super::*;
use crate::frame::{Capabilities, Frame, Hello, Incarnation, KvShape, Versions, Welcome};
use crate::link::{Link, nonce};
use crate::transport::{Descriptor, ShardDescriptor};

/// An authority that signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate of this authority for `names`, which trusts the same authority.
    fn signs(&self, names: &[&str]) -> LinkCredentials {
        self.signs_with(names, |_| ())
    }

    fn signs_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> LinkCredentials {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (mut params, key) = (CertificateParams::new(names).unwrap(), KeyPair::generate().unwrap());
        change(&mut params);
        let chain = vec![params.signed_by(&key, &self.0).unwrap().der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::ring::default_provider();
        let mut authorities = RootCertStore::empty();
        authorities.add(self.0.der().clone()).unwrap();
        LinkCredentials {
            certificate: Arc::new(CertifiedKey::from_der(chain, key, &provider).unwrap()),
            authorities: Arc::new(authorities),
            allowed_names: Vec::new(),
        }
    }
}

impl LinkCredentials {
    fn allowing(mut self, names: &[&'static str]) -> Self {
        self.allowed_names = names.iter().map(|name| ServerName::try_from(*name).unwrap()).collect();
        self
    }

    fn trusting(mut self, authority: &Authority) -> Self {
        let mut authorities = RootCertStore::empty();
        authorities.add(authority.0.der().clone()).unwrap();
        self.authorities = Arc::new(authorities);
        self
    }
}

fn shape() -> KvShape {
    KvShape {
        model: "m".into(),
        fingerprint: [7; 32],
        layers: 2,
        kv_heads: 1,
        head_dim: 16,
        page_tokens: 16,
        dtype: "f32".into(),
        scale: "1".into(),
        page_bytes: 4096,
        page_hash: true,
        shards: 1,
    }
}

fn incarnation(pid: u32) -> Incarnation {
    Incarnation { pid, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 }
}

fn hello() -> Hello {
    Hello {
        versions: Versions::OURS,
        version: Versions::OURS.highest,
        incarnation: incarnation(1),
        capabilities: Capabilities { prefill: true, decode: false },
        http: String::new(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: shape(),
        nonce: nonce().unwrap(),
        proof: None,
    }
}

fn welcome() -> Welcome {
    let shard = ShardDescriptor { worker_address: vec![1], rkey: vec![2], base: 0, bytes: 8192 };
    let descriptor = Descriptor { transport: "t".into(), shards: vec![shard] };
    Welcome { incarnation: incarnation(2), shape: shape(), descriptor, ring_pages: 2, proof: None }
}

async fn listen(listener: &TcpListener, tls: Option<&LinkTls>) -> Result<Link, LinkError> {
    let (stream, _) = listener.accept().await?;
    let (mut link, _) =
        Link::accept(stream, Versions::OURS, incarnation(2), &shape(), Some("secret"), tls).await?;
    let proof = link.nonces().prove(Some("secret"), crate::link::Prover::Listener);
    link.welcome(Welcome { proof, ..welcome() }).await?;
    Ok(link)
}

async fn dial(address: &str, tls: Option<&LinkTls>) -> Result<Link, LinkError> {
    let (mut link, _) = Link::dial(address, Versions::OURS, tls).await?;
    link.hello(hello(), Some("secret")).await?;
    Ok(link)
}

fn tls(credentials: Option<&LinkCredentials>) -> Option<LinkTls> {
    credentials.map(|credentials| LinkTls::new(credentials).unwrap())
}

/// A handshake over 127.0.0.1. The results of the listener and of the dialer.
async fn shake(
    ours: Option<&LinkTls>,
    theirs: Option<&LinkTls>,
) -> (Result<Link, LinkError>, Result<Link, LinkError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::join!(listen(&listener, ours), dial(&address, theirs))
}

/// Checks that both ends refuse, each with one sentence that has this part.
async fn refused(
    ours: Option<&LinkCredentials>,
    theirs: Option<&LinkCredentials>,
    listener_says: &str,
    dialer_says: &str,
) {
    let (ours, theirs) = (tls(ours), tls(theirs));
    let (listened, dialled) = shake(ours.as_ref(), theirs.as_ref()).await;
    for (side, ended, expect) in [("listener", listened, listener_says), ("dialer", dialled, dialer_says)] {
        let error = ended.err().unwrap_or_else(|| panic!("the {side} accepts, but should say {expect:?}"));
        let text = error.to_string();
        assert!(text.contains(expect), "the {side} says {text:?} in place of {expect:?}");
        assert!(matches!(error, LinkError::Tls(_)), "{side}: {text}");
        assert!(
            !text.contains('\n') && (text.contains("_file") || text.contains("_names")),
            "{side}: {text}"
        );
    }
}

#[tokio::test]
async fn each_refusal_names_its_reason_on_both_sides() {
    let (ours, other) = (Authority::new(), Authority::new());
    let good = ours.signs(&["127.0.0.1", "node-1"]);
    let check = refused;

    let stranger = other.signs(&["127.0.0.1"]);
    let trusting = stranger.clone().trusting(&ours);
    check(
        Some(&good),
        Some(&trusting),
        "signed by no authority in link.tls_ca_file",
        "no authority in its link.tls_ca_file signed it",
    )
    .await;
    check(
        Some(&trusting),
        Some(&good),
        "no authority in its link.tls_ca_file signed it",
        "signed by no authority in link.tls_ca_file",
    )
    .await;

    let expired = ours.signs_with(&["127.0.0.1"], |params| params.not_after = date_time_ymd(2020, 1, 1));
    check(Some(&good), Some(&expired), "peer's certificate expired ", "it has expired or is not valid yet")
        .await;
    check(Some(&expired), Some(&good), "it has expired or is not valid yet", "peer's certificate expired ")
        .await;
    let early = ours.signs_with(&["127.0.0.1"], |params| params.not_before = date_time_ymd(4000, 1, 1));
    check(Some(&early), Some(&good), "it has expired or is not valid yet", "is not valid before ").await;

    let elsewhere = ours.signs(&["10.0.0.9", "node-9"]);
    check(
        Some(&elsewhere),
        Some(&good),
        "add one of its names to link.tls_allowed_names of the peer",
        "is for 10.0.0.9, node-9, but this process expects 127.0.0.1",
    )
    .await;
    let picky = good.clone().allowing(&["node-1", "node-2"]);
    check(
        Some(&picky),
        Some(&elsewhere.clone().allowing(&["node-1"])),
        "but this process expects node-1",
        "add one of its names to link.tls_allowed_names of the peer",
    )
    .await;

    let server_only = ours.signs_with(&["127.0.0.1"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    check(Some(&good), Some(&server_only), "extended key usage", "extended key usage").await;
}

#[tokio::test]
async fn an_end_with_tls_and_one_without_both_say_so() {
    let good = Authority::new().signs(&["127.0.0.1"]);
    let plain = "speaks without TLS on the link, but this process with TLS";
    let encrypted = "speaks TLS on the link, but this process does not";
    refused(None, Some(&good), encrypted, plain).await;
    refused(Some(&good), None, plain, encrypted).await;
}

/// Sends one frame and waits for it at the other end.
async fn carry(queue: &mpsc::Sender<Frame>, reader: &mut FrameReader, pages: u32) {
    queue.send(Frame::RingShare { pages }).await.unwrap();
    assert_eq!(reader.next().await.unwrap(), Frame::RingShare { pages });
}

fn start(writer: FrameWriter) -> (mpsc::Sender<Frame>, tokio::task::JoinHandle<Result<(), LinkError>>) {
    let (queue, source) = mpsc::channel(4);
    (queue, tokio::spawn(writer.run(source)))
}

/// Both ends move frames, each of which arrives before the next is sent, and a Goodbye ends the session on both.
#[tokio::test]
async fn frames_travel_both_ways_and_a_goodbye_is_one() {
    let ours = Authority::new();
    let (a, b) = (ours.signs(&["127.0.0.1"]), ours.signs(&["node-2"]));
    for (listens, dials) in [
        (a.clone(), b.clone()),
        // With allowed names, the address that was dialled needs no name in the certificate.
        (b.clone().allowing(&["node-1", "node-2"]), b.clone().allowing(&["node-2"])),
    ] {
        let (listens, dials) = (tls(Some(&listens)), tls(Some(&dials)));
        let (listened, dialled) = shake(listens.as_ref(), dials.as_ref()).await;
        let (listened, dialled) = (listened.unwrap(), dialled.unwrap());
        assert!(listened.socket.get_ref().tcp().nodelay().unwrap());
        assert!(dialled.socket.get_ref().tcp().nodelay().unwrap());
        let ((writer, mut from_dialer), (back, mut from_listener)) = (listened.split(), dialled.split());
        let ((to_dialer, _answers), (to_listener, asks)) = (start(writer), start(back));
        for pages in 0..50 {
            carry(&to_listener, &mut from_dialer, pages).await;
            carry(&to_dialer, &mut from_listener, pages).await;
        }
        drop(to_listener);
        assert!(matches!(from_dialer.next().await, Err(LinkError::Goodbye)));
        asks.await.unwrap().unwrap();
    }
}

/// A peer that dies sends no `close_notify`. That is the end of the connection, not an error of TLS.
#[tokio::test]
async fn a_peer_that_dies_closes_the_link() {
    let good = tls(Some(&Authority::new().signs(&["127.0.0.1"])));
    let (listened, dialled) = shake(good.as_ref(), good.as_ref()).await;
    let (_writer, mut reader) = listened.unwrap().split();
    drop(dialled);
    let end = reader.next().await.unwrap_err();
    assert!(matches!(end, LinkError::Closed), "{end}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dials = async { drop(Link::dial(&address, Versions::OURS, good.as_ref()).await.unwrap()) };
    let (listened, ()) = tokio::join!(listen(&listener, good.as_ref()), dials);
    let end = listened.err().unwrap();
    assert!(matches!(end, LinkError::Closed), "{end}");
}

/// A renewal holds for the next connection, in both directions, and not for the live one.
#[tokio::test]
async fn renewed_credentials_hold_for_the_next_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let (ours, theirs) = (tls(Some(&old.signs(&["127.0.0.1"]))), tls(Some(&old.signs(&["a"]))));
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    let (listened, dialled) = shake(Some(&ours), Some(&theirs)).await;
    let (_writer, mut reader) = listened.unwrap().split();
    let (queue, _task) = start(dialled.unwrap().split().0);

    ours.renew(&new.signs(&["127.0.0.1"])).unwrap();
    let (listened, dialled) = shake(Some(&ours), Some(&theirs)).await;
    assert!(listened.is_err() && dialled.is_err(), "the ends trust different authorities");
    theirs.renew(&new.signs(&["a"])).unwrap();
    let (listened, dialled) = shake(Some(&ours), Some(&theirs)).await;
    assert!(listened.is_ok() && dialled.is_ok());

    let empty = LinkCredentials { authorities: RootCertStore::empty().into(), ..new.signs(&["a"]) };
    assert_eq!(theirs.renew(&empty), Err(LinkTlsError::NoAuthority));
    let (listened, dialled) = shake(Some(&ours), Some(&theirs)).await;
    assert!(listened.is_ok() && dialled.is_ok(), "the old credentials stay in use");
    carry(&queue, &mut reader, 1).await;
}

/// A key whose signatures wait until the test allows them, as if each took that long to compute.
#[derive(Debug)]
struct SlowKey {
    key: Arc<dyn SigningKey>,
    /// Signatures that have begun.
    begun: Arc<AtomicUsize>,
    allowed: Arc<(Mutex<bool>, Condvar)>,
}

/// [`SlowKey`]'s signer.
#[derive(Debug)]
struct SlowSigner(Box<dyn Signer>, Arc<AtomicUsize>, Arc<(Mutex<bool>, Condvar)>);

impl SigningKey for SlowKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.key.choose_scheme(offered)?;
        Some(Box::new(SlowSigner(signer, Arc::clone(&self.begun), Arc::clone(&self.allowed))))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Signer for SlowSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let allowed = self.2.0.lock().unwrap();
        // After a minute the test fails in another place.
        drop(self.2.1.wait_timeout_while(allowed, Duration::from_secs(60), |allowed| !*allowed).unwrap());
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

/// The runtime of the test has one thread, which carries the session. It would wait for the signature if it computed the handshakes.
#[tokio::test]
async fn a_session_goes_on_while_a_flood_of_handshakes_is_computed() {
    let ours = Authority::new();
    let good = ours.signs(&["127.0.0.1"]);
    let (begun, allowed) = (Arc::<AtomicUsize>::default(), Arc::<(Mutex<bool>, Condvar)>::default());
    let fast = &good.certificate;
    let key =
        SlowKey { key: Arc::clone(&fast.key), begun: Arc::clone(&begun), allowed: Arc::clone(&allowed) };
    let slow = LinkCredentials {
        certificate: Arc::new(CertifiedKey::new(fast.cert.clone(), Arc::new(key))),
        ..good.clone()
    };
    let (listens, dials) = (tls(Some(&good)).unwrap(), tls(Some(&good)).unwrap());
    let (listened, dialled) = shake(Some(&listens), Some(&dials)).await;
    let ((writer, mut from_dialer), (back, mut from_listener)) =
        (listened.unwrap().split(), dialled.unwrap().split());
    let ((to_dialer, _answers), (to_listener, _asks)) = (start(writer), start(back));

    listens.renew(&slow).unwrap();
    let (listens, dials) = (Arc::new(listens), Arc::new(dials));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let flood: Vec<_> = (0..16)
        .map(|_| {
            let (address, dials) = (address.clone(), Arc::clone(&dials));
            tokio::spawn(async move { dial(&address, Some(&*dials)).await.map(drop) })
        })
        .collect();
    let mut accepted = Vec::new();
    for _ in &flood {
        let (stream, _) = listener.accept().await.unwrap();
        let listens = Arc::clone(&listens);
        accepted.push(tokio::spawn(async move { listens.accept(stream).await.map(drop) }));
    }
    while begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    for pages in 0..50 {
        carry(&to_listener, &mut from_dialer, pages).await;
        carry(&to_dialer, &mut from_listener, pages).await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1, "the first handshake is still computed");
    *allowed.0.lock().unwrap() = true;
    allowed.1.notify_all();
    for handshake in accepted {
        handshake.await.unwrap().unwrap();
    }
}

/// With allowed names, the dialled host needs no name in a certificate. It may be one that no certificate can have.
#[test]
fn allowed_names_stand_in_for_a_host_that_no_certificate_can_have() {
    let allowed = ServerName::try_from("nodes").unwrap();
    for (address, expect) in [("a:1", "a"), ("[::1]:1", "::1"), ("[fe80::1%eth0]:1", "nodes")] {
        assert_eq!(server_name(address, Some(&allowed)).unwrap().to_str(), expect);
    }
    let error = server_name("[fe80::1%eth0]:1", None).unwrap_err();
    assert_eq!(error, LinkTlsError::Address("[fe80::1%eth0]:1".to_owned()));
    assert!(error.to_string().contains("link.tls_allowed_names"), "{error}");
}

#[test]
fn the_first_byte_tells_frames_from_tls() {
    assert_eq!(peer_speaks_tls(&REFUSAL), Some(LinkTlsError::PeerSpeaksTls));
    assert_eq!(peer_speaks_tls(&[22, 3, 1, 2]), Some(LinkTlsError::PeerSpeaksTls));
    let longest = u32::try_from(crate::wire::FRAME_BYTES_MAX).unwrap().to_be_bytes();
    for other in [&b"GET / HTTP/1.1"[..], &longest, &[22], &[]] {
        assert_eq!(peer_speaks_tls(other), None);
    }
}

#[test]
fn the_host_of_an_address_has_no_brackets() {
    for (address, expect) in [("a:1", "a"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1"), ("a", "a")] {
        assert_eq!(host(address), expect);
    }
}

#[test]
fn a_fault_that_may_pass_does_not_end_the_dialling() {
    for (fault, permanent) in [
        (LinkTlsError::PeerIsPlain, true),
        (LinkTlsError::UnknownAuthority, true),
        (LinkTlsError::Expired("1 day".into()), false),
        (LinkTlsError::NotValidYet("1 day".into()), false),
    ] {
        assert_eq!(LinkError::from(fault.clone()).is_permanent(), permanent, "{fault:?}");
    }
}
