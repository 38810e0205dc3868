//! Fuzzes whole links over TCP: the peer sends a handshake and frames, damaged or not, and hangs up.

use std::time::{Duration, Instant};

use connector::frame::{Frame, Versions, Welcome};
use connector::link::{Link, LinkError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::counting_allocator::allocated;
use crate::inputs::{self, Random};
use crate::{LINK_BYTES_MAX, Line, feed, violation};

/// Time limit for a link to end after its peer has hung up.
const LINK_WITHIN: Duration = Duration::from_secs(10);

/// Fuzzes links for `turn`. Our side is the listener for `lines[0]` and the dialer for `lines[1]`.
pub(crate) fn fuzz_links_for(turn: Duration, random: &mut Random, lines: &mut [Line; 2]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
    let end = Instant::now() + turn;
    while Instant::now() < end {
        for (dials, target) in [(false, "link that accepts"), (true, "link that dials")] {
            let script = script(dials, random);
            let (hello, welcome) = (inputs::hello(random), inputs::welcome(random));
            feed(target, &script);
            let line = &mut lines[usize::from(dials)];
            let began = Instant::now();
            let conversation = async {
                let peer = peer(&listener, dials, &script);
                let address = listener.local_addr().expect("the socket is bound").to_string();
                let ours = async {
                    if dials {
                        let (mut link, _) = Link::dial(&address, Versions::OURS, None).await?;
                        link.hello(hello, None).await?;
                        return Ok(frames(link, &mut line.decoded).await);
                    }
                    let (stream, _) = listener.accept().await?;
                    let (incarnation, shape) = (hello.incarnation, inputs::shape());
                    let (mut link, _) =
                        Link::accept(stream, Versions::OURS, incarnation, &shape, None, None).await?;
                    link.welcome(welcome).await?;
                    Ok::<LinkError, LinkError>(frames(link, &mut line.decoded).await)
                };
                tokio::time::timeout(LINK_WITHIN, async { tokio::join!(peer, ours) }).await
            };
            let (ended, cost) = allocated(|| runtime.block_on(conversation));
            if ended.is_err() {
                violation("the link did not end after its peer had hung up");
            }
            line.inputs += 1;
            line.took += began.elapsed();
            line.cost(cost);
            if cost.largest > LINK_BYTES_MAX.0 || cost.peak > LINK_BYTES_MAX.1 {
                violation(&format!("{cost:?} for a link that received {} bytes", script.len()));
            }
        }
    }
}

/// Reads frames until the link ends.
async fn frames(link: Link, read: &mut u64) -> LinkError {
    let (_writer, mut reader) = link.split();
    loop {
        match reader.next().await {
            Ok(_) => *read += 1,
            Err(end) => return end,
        }
    }
}

/// The peer: sends the script, hangs up, and reads until the other side closes.
async fn peer(listener: &TcpListener, listens: bool, script: &[u8]) -> std::io::Result<()> {
    let mut socket =
        if listens { listener.accept().await?.0 } else { TcpStream::connect(listener.local_addr()?).await? };
    // The other side closes the socket if it refuses the peer early. Then the rest cannot be sent.
    let sent = socket.write_all(script).await;
    if sent.is_ok() {
        socket.shutdown().await?;
        let mut received = [0; 4096];
        while socket.read(&mut received).await? > 0 {}
    }
    Ok(())
}

/// Appends a value, with its length in front.
fn append(script: &mut Vec<u8>, value: &[u8]) {
    script.extend((value.len() as u32).to_be_bytes());
    script.extend(value);
}

/// The bytes that the peer sends: its part of the handshake and up to eleven frames, some of them damaged.
fn script(listens: bool, random: &mut Random) -> Vec<u8> {
    let mut script = Vec::new();
    let mut values: Vec<Vec<u8>> = if listens {
        let challenge = inputs::encoded(&inputs::challenge(random));
        let answer = if random.one_in(8) {
            inputs::encoded(&inputs::answer(random))
        } else {
            let descriptor = inputs::descriptor(random, 1);
            let fits = Welcome { shape: inputs::shape(), descriptor, ..inputs::welcome(random) };
            inputs::encoded(&connector::frame::Answer::Welcome(Box::new(fits)))
        };
        vec![challenge, answer]
    } else {
        let mut hello = inputs::hello(random);
        if !random.one_in(8) {
            hello.shape = inputs::shape();
        }
        vec![inputs::encoded(&hello)]
    };
    for _ in 0..random.below(12) {
        let frame = match inputs::frame(random) {
            Frame::Goodbye if !random.one_in(8) => Frame::Heartbeat,
            frame => frame,
        };
        values.push(inputs::encoded(&frame));
    }
    let damaged = random.below(values.len() + 1);
    if let Some(value) = values.get_mut(damaged) {
        let other = inputs::valid(random);
        inputs::damage(random, value, &other);
    }
    values.iter().for_each(|value| append(&mut script, value));
    match random.below(4) {
        // A wrong length in front of a value, up to and beyond the longest frame.
        0 => {
            let wrong = [0, 1, 1 << 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 1 << 31, u32::MAX];
            script.extend(wrong[random.below(wrong.len())].to_be_bytes());
            script.extend(inputs::noise(random));
        }
        1 => {
            let other = inputs::valid(random);
            inputs::damage(random, &mut script, &other);
        }
        _ => {}
    }
    script
}
