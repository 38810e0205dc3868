//! The sender: spends credits, puts its pages, and announces the pages that are flushed.

use std::num::NonZeroU32;

use anyhow::{Context, Result, bail};
use connector::frame::{Capabilities, Frame, Hello, Incarnation, PageOwner, Versions};
use connector::link::{self, Link};
use connector::ring::{Credit, SpendLedger};
use connector::transport::{Command, Event, Ticket, Transport};
use tokio::sync::mpsc;

use crate::{PAGE_BYTES, PAGES, REQUEST, SESSION, Side, offset, shape};

pub(crate) async fn run(address: &str) -> Result<()> {
    let mut side = Side::start(PAGES, |page| page as u8 + 1)?;
    let Event::Opened { .. } = side.event().await? else { bail!("the session did not open") };
    let (mut link, _) = Link::dial(address, Versions::OURS, None).await?;
    let hello = Hello {
        versions: Versions::OURS,
        version: link.version(),
        incarnation: Incarnation::current()?,
        capabilities: Capabilities { prefill: true, decode: false },
        http: String::new(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: shape(),
        nonce: link::nonce()?,
        proof: None,
    };
    let welcome = link.hello(hello, None).await?;
    let session = link.nonces().session_seed();
    let (writer, mut frames) = link.split();
    let (outbox, queue) = mpsc::channel(16);
    let writing = tokio::spawn(writer.run(queue));
    side.transport.submit(Command::Connect { session: SESSION, peer: welcome.descriptor })?;
    let Event::Connected { lane, .. } = side.event().await? else { bail!("the lane did not connect") };
    println!("sender:   connected over {lane}");
    outbox.send(Frame::LaneConnected { lane }).await?;

    let ring_pages = NonZeroU32::new(welcome.ring_pages).context("the receiver's ring has no pages")?;
    let mut ring = SpendLedger::new(ring_pages);
    let mut place = 0;
    while place < PAGES {
        let Frame::Grant { first, pages } = frames.next().await? else { bail!("expected a Grant frame") };
        ring.accept(first, &pages)?;
        // Spends all credits, up to the number of pages left. Any page may use any credit.
        let left = (PAGES - place) as usize;
        let credits: Vec<Credit> = std::iter::from_fn(|| ring.spend()).take(left).collect();
        let mut hashes = Vec::new();
        for (page, credit) in (place..).zip(&credits) {
            side.transport.submit(Command::Put {
                session: SESSION,
                ticket: Ticket(credit.number.0),
                lane: 0,
                local_offset: offset(page),
                remote_offset: offset(credit.page.0),
                bytes: PAGE_BYTES,
            })?;
            hashes.push(side.hash(page, session, credit.number, page)?);
        }
        side.transport.submit(Command::Flush { session: SESSION, ticket: Ticket(u64::MAX), lane: 0 })?;
        complete(&mut side, credits.len()).await?;
        let count = credits.len() as u32;
        println!("sender:   put and flushed pages {place} to {}", place + count - 1);
        let owner = Some(PageOwner { request: REQUEST, first_page: place });
        let first = ring.announce(count)?;
        outbox.send(Frame::PageFilled { first, count, owner, hashes, transfer_micros: 0 }).await?;
        place += count;
    }
    // The writer sends a Goodbye when the last sender of its queue is dropped.
    drop(outbox);
    writing.await??;
    side.transport.shutdown();
    Ok(())
}

/// Waits until `puts` puts and the flush behind them are complete. Then the pages are visible at the receiver.
async fn complete(side: &mut Side, mut puts: usize) -> Result<()> {
    loop {
        match side.event().await? {
            Event::PutCompleted { result, .. } => {
                result?;
                puts -= 1;
            }
            Event::Flushed { result, .. } => {
                anyhow::ensure!(puts == 0, "the flush completed before {puts} of its puts");
                return Ok(result?);
            }
            other => bail!("unexpected event {other:?}"),
        }
    }
}
