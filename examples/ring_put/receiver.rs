//! The receiver: grants credits and checks the pages that were put under them.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use connector::frame::{Frame, Incarnation, Versions, Welcome};
use connector::link::{Link, LinkError};
use connector::ring::{GrantLedger, PageIndex};
use connector::transport::{Event, Transport};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{PAGES, Side, shape};

/// Number of pages in our memory, and most credits outstanding.
const RING: NonZeroU32 = NonZeroU32::new(4).expect("the number is not zero");

pub(crate) async fn run() -> Result<()> {
    let mut side = Side::start(RING.get(), |_| 0)?;
    let Event::Opened { result, .. } = side.event().await? else { bail!("the session did not open") };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut sender = std::process::Command::new(std::env::current_exe()?)
        .arg(listener.local_addr()?.to_string())
        .spawn()?;
    let (stream, _) = timeout(Duration::from_secs(30), listener.accept())
        .await
        .context("no sender connected within 30 s")??;
    let (mut link, _hello) =
        Link::accept(stream, Versions::OURS, Incarnation::current()?, &shape(), None, None).await?;
    link.welcome(Welcome {
        incarnation: Incarnation::current()?,
        shape: shape(),
        descriptor: result?,
        ring_pages: RING.get(),
        proof: None,
    })
    .await?;
    let session = link.nonces().session_seed();
    let (writer, mut frames) = link.split();
    let (outbox, queue) = mpsc::channel(16);
    tokio::spawn(writer.run(queue));

    let mut ring = GrantLedger::new(RING);
    let mut filled = 0;
    // A receiver grants no credits before the sender has named its lane.
    let Frame::LaneConnected { .. } = frames.next().await? else { bail!("expected a LaneConnected frame") };
    outbox.send(grant(&mut ring, (0..RING.get()).map(PageIndex).collect())?).await?;
    loop {
        let (first, count, owner, hashes) = match frames.next().await {
            Ok(Frame::PageFilled { first, count, owner, hashes, .. }) => (first, count, owner, hashes),
            Ok(frame) => bail!("unexpected frame {}", frame.name()),
            Err(LinkError::Goodbye) => break,
            Err(error) => return Err(error.into()),
        };
        let place = owner.context("the pages have no owner")?.first_page;
        let pages = ring.fill(first, count)?;
        for ((n, page), hash) in (0..).zip(&pages).zip(hashes) {
            let mut credit = first;
            credit.0 += u64::from(n);
            ensure!(side.hash(page.0, session, credit, place + n)? == hash, "page {} is damaged", place + n);
            println!("receiver: page {} arrived under credit {}; its hash is right", place + n, credit.0);
        }
        filled += count;
        outbox.send(grant(&mut ring, pages)?).await?;
    }
    ensure!(sender.wait()?.success(), "the sender failed");
    side.transport.shutdown();
    ensure!(filled == PAGES, "{filled} pages arrived instead of {PAGES}");
    println!("receiver: {filled} pages are right");
    Ok(())
}

/// Grants one credit for each page, and returns the frame for the sender.
fn grant(ring: &mut GrantLedger, pages: Vec<PageIndex>) -> Result<Frame> {
    let credits = pages.iter().map(|page| ring.grant(*page)).collect::<Result<Vec<_>, _>>()?;
    let first = credits.first().context("no page to grant")?.number;
    println!("receiver: granted {} credits from {} on", credits.len(), first.0);
    Ok(Frame::Grant { first, pages })
}
