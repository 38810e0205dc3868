//! Effects: what a state wants done, as data.
//!
//! A pure state takes one message and returns [`Effect`]s in order. Each names its recipient and carries one message for it.
//! [`Router`](crate::router::Router) delivers effects between actix actors and to threads and sockets; the simulator delivers the
//! same effects in virtual time. So a new message touches its definition (a struct and one row of the table below), the state
//! that sends it and the state that takes it.
//!
//! The table says of each message who sends it, how it is delivered and what bounds the number of such messages that wait.
//! `docs/messages.md` is this table, checked by a test.
//!
//! # Order
//!
//! Messages of one sender to one recipient arrive in the order in which they were sent. Nothing else is promised: the simulator
//! delays every edge on its own.
//!
//! # What does not compile
//!
//! A message for one actor cannot be sent to another:
//!
//! ```
//! use actors::effect::to;
//! use actors::messages::{ReleasePages, SequenceId};
//! use actors::request::RequestId;
//!
//! let release = ReleasePages { sequence: SequenceId::Own(RequestId(1)) };
//! let effect = to::buffer_manager(release);
//! assert_eq!(effect.row().message, "ReleasePages");
//! ```
//!
//! ```compile_fail,E0277
//! use actors::effect::to;
//! use actors::messages::{ReleasePages, SequenceId};
//! use actors::request::RequestId;
//!
//! let release = ReleasePages { sequence: SequenceId::Own(RequestId(1)) };
//! let effect = to::decoder(release);
//! ```

use crate::log::LogLine;
use crate::messages::*;
use crate::request::{AbortRequest, Generate};
use connector::transport::Command;

/// Who sends or takes messages inside one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// HTTP handlers.
    Frontend,
    /// The code that starts and ends the node's actors.
    Node,
    /// The timer of every actor.
    Ticker,
    /// [`Proxy`](crate::proxy::Proxy).
    Proxy,
    /// [`Decoder`](crate::decoder::Decoder).
    Decoder,
    /// [`BufferManager`](crate::buffer_manager::BufferManager).
    BufferManager,
    /// [`Generator`](crate::generator::Generator).
    Generator,
    /// [`Transfer`](crate::transfer::Transfer).
    Transfer,
    /// [`Prefiller`](crate::prefiller::Prefiller).
    Prefiller,
    /// [`PeerLink`](crate::peer_link::PeerLink).
    PeerLink,
    /// The clients' streams: [`Streams`](crate::streams::Streams).
    Streams,
    /// The engine thread.
    Engine,
    /// The hash thread.
    HashThread,
    /// The transport's thread.
    Transport,
    /// The tasks that serve the link's TCP connections.
    Sockets,
    /// The process's log.
    Log,
    /// The process itself.
    Process,
}

impl Endpoint {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Node => "node",
            Self::Ticker => "ticker",
            Self::Proxy => "proxy",
            Self::Decoder => "decoder",
            Self::BufferManager => "buffer manager",
            Self::Generator => "generator",
            Self::Transfer => "transfer",
            Self::Prefiller => "prefiller",
            Self::PeerLink => "peer link",
            Self::Streams => "streams",
            Self::Engine => "engine",
            Self::HashThread => "hash thread",
            Self::Transport => "transport",
            Self::Sockets => "sockets",
            Self::Log => "log",
            Self::Process => "process",
        }
    }
}

/// How a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A full mailbox refuses it, and the sender is told.
    Command,
    /// It is always taken; what it is about bounds how many there are.
    Post,
}

/// One row of the table of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The message's type.
    pub message: &'static str,
    /// Who may send it.
    pub from: &'static [Endpoint],
    /// Who takes it.
    pub to: Endpoint,
    /// How it is delivered.
    pub delivery: Delivery,
    /// What bounds how many of them wait.
    pub bound: &'static str,
}

macro_rules! table {
    ($(
        $(#[doc = $doc:literal])+
        $mail:ident, $endpoint:ident, $to:ident {
            $( $message:ident $(in $holder:ident)?: $delivery:ident from [$($from:ident),+], $bound:literal; )+
        }
    )+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Debug, PartialEq)]
            #[allow(missing_docs, reason = "each variant is the message of its name")]
            pub enum $mail {
                $( $message(table!(@held $message $($holder)?)), )+
            }

            impl $mail {
                /// The message's row in the table.
                pub fn row(&self) -> &'static Row {
                    match self {
                        $( Self::$message(_) => {
                            const ROW: Row = Row {
                                message: stringify!($message),
                                from: &[$(Endpoint::$from),+],
                                to: Endpoint::$endpoint,
                                delivery: Delivery::$delivery,
                                bound: $bound,
                            };
                            &ROW
                        } )+
                    }
                }
            }

            impl actix::Message for $mail {
                type Result = ();
            }

            $(
                impl From<$message> for $mail {
                    fn from(message: $message) -> Self {
                        Self::$message(message.into())
                    }
                }
            )+
        )+

        /// One message on its way to its recipient.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Effect {
            $( $(#[doc = $doc])+ $endpoint($mail), )+
        }

        impl Effect {
            /// The message's row in the table.
            pub fn row(&self) -> &'static Row {
                match self {
                    $( Self::$endpoint(mail) => mail.row(), )+
                }
            }
        }

        /// Addresses a message. Only messages that the recipient takes compile.
        pub mod to {
            use super::*;

            $(
                $(#[doc = $doc])+
                pub fn $to(message: impl Into<$mail>) -> Effect {
                    Effect::$endpoint(message.into())
                }
            )+
        }

        /// Every message of a process.
        pub const TABLE: &[Row] = &[
            $($(
                Row {
                    message: stringify!($message),
                    from: &[$(Endpoint::$from),+],
                    to: Endpoint::$endpoint,
                    delivery: Delivery::$delivery,
                    bound: $bound,
                },
            )+)+
        ];
    };
    (@held $message:ident) => { $message };
    (@held $message:ident $holder:ident) => { $holder<$message> };
}

table! {
    /// What the proxy takes.
    ToProxy, Proxy, proxy {
        Generate: Command from [Frontend], "admission permits; a full mailbox refuses";
        AbortRequest: Post from [Frontend], "one a request";
        PrefillOver: Post from [Decoder], "one a request";
        PeerReady: Post from [PeerLink], "one a session";
        PeerLeaving: Post from [PeerLink], "one a session";
        RoomChanged: Post from [BufferManager], "two a session";
        PeerLost: Post from [PeerLink], "one a session";
        BeginDrain: Post from [Node], "one a process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the decoder takes.
    ToDecoder, Decoder, decoder {
        Decode in Box: Post from [Proxy], "admission permits";
        AbortRequest: Post from [Proxy, Streams], "one a request, and one a token that no client takes";
        AbortAll: Post from [Node], "one a process";
        PagesReserved: Post from [BufferManager], "one a ReservePages";
        PagesDenied: Post from [BufferManager], "one a ReservePages or GrowPages";
        PagesGrown: Post from [BufferManager], "one a GrowPages";
        PagesShort: Post from [BufferManager], "one a ReleasePages";
        PagesAdopted: Post from [BufferManager], "credits";
        PageRejected: Post from [BufferManager], "one a session";
        SequenceAdvanced: Post from [Generator], "one a sequence and step; two steps are in flight";
        PeerReady: Post from [PeerLink], "one a session";
        PeerLost: Post from [PeerLink], "one a session";
        PrefillFinished: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        PrefillFailed: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the buffer manager takes.
    ToBufferManager, BufferManager, buffer_manager {
        ReservePages: Post from [Decoder, Prefiller], "one a request, and one each time that it starts again";
        GrowPages: Post from [Decoder], "one a running sequence";
        PagesComputed: Post from [Decoder, Prefiller], "two a sequence";
        ReleasePages: Post from [Decoder, Prefiller], "one a ReservePages";
        SessionOpened: Post from [PeerLink], "one a session";
        PeerReady: Post from [PeerLink], "one a session";
        PeerLeaving: Post from [PeerLink], "one a session";
        PageFilled: Post from [PeerLink], "credits";
        PeerLost: Post from [PeerLink], "one a session";
        SessionDrained: Post from [PeerLink], "one a session";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the generator takes.
    ToGenerator, Generator, generator {
        StartSequence in Box: Post from [Decoder, Prefiller], "one a PagesReserved";
        ExtendSequence: Post from [Decoder], "one a PagesGrown";
        StopSequence: Post from [Decoder, Prefiller], "one a sequence";
        StepFinished: Post from [Engine], "two steps are in flight";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the transfer actor takes.
    ToTransfer, Transfer, transfer {
        SessionOpened: Post from [PeerLink], "one a session";
        LaneConnected: Post from [PeerLink], "one a session";
        CreditsGranted: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        RingShared: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        PeerLost: Post from [PeerLink], "one a session";
        SchedulePut: Post from [Prefiller], "pages of the pool";
        CancelPuts: Post from [Prefiller], "one a request";
        TransportEvents: Post from [Transport], "puts and flushes in flight";
        PagesHashed: Post from [HashThread], "credits";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the prefiller takes.
    ToPrefiller, Prefiller, prefiller {
        StartPrefill in Box: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        CancelPrefill: Post from [PeerLink], "one frame of a session is in the peer link's mailbox";
        PagesReserved: Post from [BufferManager], "one a ReservePages";
        PagesDenied: Post from [BufferManager], "one a ReservePages";
        SequenceAdvanced: Post from [Generator], "one a sequence and step; two steps are in flight";
        PagesSent: Post from [Transfer], "credits";
        PutsDrained: Post from [Transfer], "one a CancelPuts";
        PeerLost: Post from [PeerLink], "one a session";
        BeginDrain: Post from [Node], "one a process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What the peer link takes.
    ToPeerLink, PeerLink, peer_link {
        StartDialling: Post from [Node], "one a process";
        DialDue: Post from [Sockets], "one a receiver";
        Challenged: Post from [Sockets], "one a receiver";
        DialFailed: Post from [Sockets], "one a receiver";
        Welcomed in Box: Post from [Sockets], "one a receiver";
        HelloCame in Box: Post from [Sockets], "connections that are in a handshake";
        FrameCame: Post from [Sockets], "one a session: its task waits until the frame is handled";
        LinkEnded: Post from [Sockets], "one a session";
        ProcessWatched: Post from [Sockets], "one a peer's process";
        TransportEvents: Post from [Transport], "a few a session";
        SendFrame: Post from [Decoder, BufferManager, Transfer, Prefiller], "what each frame is about: a request, credits, a session";
        BreakSession: Post from [BufferManager, Transfer], "one a session";
        RoomChanged: Post from [BufferManager], "two a session";
        NothingOutstanding: Post from [BufferManager], "one a session";
        HealthSeen: Post from [Ticker], "a full mailbox skips it";
        AnnounceLeaving: Post from [Node], "one a process";
        CloseLinks: Post from [Node], "one a process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// What clients get.
    ToStreams, Streams, streams {
        StreamToken: Post from [Decoder], "max_tokens of each request";
        StreamEnd: Post from [Proxy, Decoder], "one a request";
    }

    /// What the engine thread takes.
    ToEngine, Engine, engine {
        Plan: Post from [Generator], "two steps are in flight";
    }

    /// What the hash thread takes.
    ToHashThread, HashThread, hash_thread {
        HashPages: Post from [Transfer], "credits";
    }

    /// What the transport takes.
    ToTransport, Transport, transport {
        Command: Command from [Transfer, PeerLink], "the transport's queue";
    }

    /// What the link's connections are told.
    ToSockets, Sockets, sockets {
        WakeDialler: Post from [PeerLink], "one a receiver";
        Dial: Post from [PeerLink], "one a receiver";
        SayHello: Post from [PeerLink], "one a receiver";
        Refuse: Post from [PeerLink], "connections that are in a handshake";
        Welcome: Post from [PeerLink], "one a session";
        Carry: Post from [PeerLink], "one a session";
        WriteFrame: Command from [PeerLink], "frames that wait for a socket";
        HangUp: Post from [PeerLink], "one a connection";
        WatchProcess: Post from [PeerLink], "one a peer's process";
    }

    /// What is worth a line in the log.
    ToLog, Log, log {
        LogLine: Post from [Decoder, BufferManager, Transfer, Prefiller, PeerLink], "written at once";
    }

    /// What concerns the whole process.
    ToProcess, Process, process {
        Fault: Post from [PeerLink], "the first one counts";
    }
}

#[cfg(test)]
mod tests;
