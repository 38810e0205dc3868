//! The plan of a history, which its seed determines.

use super::dice::Dice;

/// Microseconds of a millisecond.
pub(super) const MS: u64 = 1000;
/// Microseconds of a second.
pub(super) const SECOND: u64 = 1_000_000;
/// Tokens in a page.
pub(super) const PAGE_TOKENS: u32 = 4;
/// Token ids are below this number. Token 0 ends a sequence.
pub(super) const VOCABULARY: u32 = 50;

/// A fault. The number names a sender, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The sender is killed and restarts later.
    SenderCrashes(usize),
    /// The receiver is killed and restarts later.
    ReceiverCrashes,
    /// The sender is stopped and continues later. Its device may continue to write in the meantime.
    SenderStops(usize),
    /// The receiver is stopped and continues later.
    ReceiverStops,
    /// The connection breaks, and no connection can be opened for a while.
    LinkBreaks(usize),
    /// From now on puts of the session fail. Some of them land nevertheless.
    LaneFails(usize),
    /// From now on operations of the session never complete.
    LaneHangs(usize),
    /// One bit of the next page that lands is flipped.
    BitFlips,
    /// The next frame about filled pages is sent twice, with a wrong credit, or for a request of another sender.
    SenderMiscounts(usize),
    /// The sender ends in order and restarts later.
    SenderLeaves(usize),
    /// The watchdog reports the sender as unhealthy for a while.
    SenderUnhealthy(usize),
    /// A step of the engine of the receiver (0) or of a sender fails.
    StepFails(usize),
}

impl Fault {
    /// The fault's name without the number.
    pub fn name(self) -> &'static str {
        match self {
            Self::SenderCrashes(_) => "sender crashes",
            Self::ReceiverCrashes => "receiver crashes",
            Self::SenderStops(_) => "sender stops",
            Self::ReceiverStops => "receiver stops",
            Self::LinkBreaks(_) => "link breaks",
            Self::LaneFails(_) => "lane fails",
            Self::LaneHangs(_) => "lane hangs",
            Self::BitFlips => "bit flips",
            Self::SenderMiscounts(_) => "sender miscounts",
            Self::SenderLeaves(_) => "sender leaves",
            Self::SenderUnhealthy(_) => "sender unhealthy",
            Self::StepFails(_) => "step fails",
        }
    }
}

/// Sizes, rates and faults of one history.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of this plan.
    pub seed: u64,
    /// Number of senders.
    pub senders: usize,
    /// Pages in the receiver's pool.
    pub receiver_pages: u32,
    /// Maximum number of outstanding credits, in pages.
    pub ring_pages: u32,
    /// Pages in each sender's pool.
    pub sender_pages: u32,
    /// Maximum number of tokens of one prompt in a step.
    pub chunk_tokens: u32,
    /// Number of further tokens for which the pages of a request are reserved.
    pub growth_tokens: u32,
    /// Senders write the memory of the receiver directly, so that closing the receiving end does not stop puts.
    pub foreign: bool,
    /// The receiver cannot see whether a sender's process has ended.
    pub blind: bool,
    /// Every fourth Hello stays in a buffer, often until its dialler has given up and sent another one.
    pub late_hellos: bool,
    /// Pages are hashed and checked.
    pub hashed: bool,
    /// Pages are in device memory, so that adjacent pages go as one put.
    pub on_device: bool,
    /// Engines accept a second step while one runs.
    pub runs_ahead: bool,
    /// Maximum number of rows in a step, often less than the number of decoding sequences.
    pub step_rows: u32,
    /// Maximum number of grammars that a sender keeps for a session.
    pub grammars: u32,
    /// Senders compile no grammars.
    pub refuses_grammars: bool,
    /// Deadline of a request in microseconds.
    pub deadline: u64,
    /// Arrival times of requests in microseconds.
    pub requests: Vec<u64>,
    /// Faults and their times.
    pub faults: Vec<(u64, Fault)>,
    /// The time after which there are no more faults, and everything heals.
    pub horizon: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let senders = dice.between(1, 3) as usize;
        let receiver_pages = dice.between(8, 40) as u32;
        let ring_pages = match dice.between(0, 2) {
            0 => dice.between(1, 2) as u32,
            _ => dice.between(1, u64::from(receiver_pages / 2)) as u32,
        };
        let horizon = dice.between(1, 12) * SECOND;
        let hashed = !dice.one_in(3);
        let requests = (0..dice.between(2, 24)).map(|_| dice.between(0, horizon)).collect();
        let count = if dice.one_in(6) { 0 } else { dice.between(1, 8) };
        let faults = (0..count)
            .map(|_| {
                let who = dice.between(1, senders as u64) as usize;
                let fault = match dice.between(0, 14) {
                    0 | 1 => Fault::SenderCrashes(who),
                    2 => Fault::ReceiverCrashes,
                    3 | 4 => Fault::SenderStops(who),
                    5 => Fault::ReceiverStops,
                    6 | 7 => Fault::LinkBreaks(who),
                    8 => Fault::LaneFails(who),
                    9 => Fault::LaneHangs(who),
                    10 if hashed => Fault::BitFlips,
                    10 | 11 => Fault::SenderMiscounts(who),
                    12 => Fault::SenderLeaves(who),
                    13 => Fault::SenderUnhealthy(who),
                    _ => Fault::StepFails(dice.between(0, senders as u64) as usize),
                };
                (dice.between(0, horizon), fault)
            })
            .collect();
        Self {
            seed,
            senders,
            receiver_pages,
            ring_pages,
            sender_pages: dice.between(4, 40) as u32,
            chunk_tokens: dice.between(1, 16) as u32,
            growth_tokens: dice.between(1, 30) as u32,
            foreign: dice.one_in(2),
            blind: dice.one_in(4),
            late_hellos: dice.one_in(4),
            hashed,
            deadline: dice.between(5, 30) * SECOND,
            requests,
            faults,
            horizon,
            on_device: dice.one_in(2),
            runs_ahead: dice.one_in(2),
            step_rows: dice.between(1, 8) as u32,
            grammars: dice.between(1, 4) as u32,
            refuses_grammars: dice.one_in(8),
        }
    }
}
