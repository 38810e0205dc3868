//! Effects: the messages that a state sends, as data.
//!
//! A pure state takes one message and returns [`Effect`]s in order. Each effect names its recipient and carries one message for it.
//! [`Router`](crate::router::Router) delivers effects to actix actors, threads and sockets. The simulator delivers the same effects in
//! virtual time. So a new message needs a definition (a struct and one row of the table below), a state that sends it, and a state that
//! handles it.
//!
//! The table lists for each message its senders, its delivery, and what bounds the number of waiting messages. `docs/messages.md` is this
//! table; a test compares them.
//!
//! # Order
//!
//! Messages from one sender to one recipient arrive in the order in which they were sent. There is no other guarantee: the simulator delays
//! every edge independently.
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

/// A sender or recipient of messages inside one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// HTTP handlers.
    Frontend,
    /// The code that starts and stops the node's actors.
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
    /// The thread that compiles grammars.
    GrammarThread,
    /// The publisher of KV events.
    KvEvents,
    /// The exporter of traces.
    Traces,
    /// The transport's thread.
    Transport,
    /// The tasks of the link's TCP connections.
    Sockets,
    /// The log of the process.
    Log,
    /// The main task of the process.
    Process,
}

impl Endpoint {
    /// The name in logs.
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
            Self::GrammarThread => "grammar thread",
            Self::KvEvents => "KV events",
            Self::Traces => "traces",
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
    /// A full queue refuses the message, and the sender gets an error.
    Command,
    /// The message is always accepted. [`Row::bound`] names what bounds the number of such messages.
    Post,
}

/// One row of the table of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The message's type.
    pub message: &'static str,
    /// The endpoints that may send it.
    pub from: &'static [Endpoint],
    /// The endpoint that receives it.
    pub to: Endpoint,
    /// How the message is delivered.
    pub delivery: Delivery,
    /// What bounds the number of such messages that wait.
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
            #[allow(missing_docs, reason = "each variant holds the message of its name")]
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

        /// One message and its recipient.
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

        /// Functions that address a message. A message that the recipient does not take does not compile.
        pub mod to {
            use super::*;

            $(
                $(#[doc = $doc])+
                pub fn $to(message: impl Into<$mail>) -> Effect {
                    Effect::$endpoint(message.into())
                }
            )+
        }

        /// Every message inside a process.
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
    /// Messages to the proxy.
    ToProxy, Proxy, proxy {
        Generate in Box: Command from [Frontend], "the number of admission permits; a full mailbox refuses";
        AbortRequest: Post from [Frontend], "one per request";
        PrefillOver: Post from [Decoder], "one per request and sender";
        PlaceAgain in Box: Post from [Decoder], "one per PrefillOver";
        HandOverEnded: Post from [Decoder], "one per request";
        LoadReport: Post from [Generator], "one per 50 ms and one per tick";
        PeerLoad: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        PeerReady: Post from [PeerLink], "one per session";
        PeerLeaving: Post from [PeerLink], "one per session";
        RoomChanged: Post from [BufferManager], "two per session";
        PeerLost: Post from [PeerLink], "one per session";
        BeginDrain: Post from [Node], "two per process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the decoder.
    ToDecoder, Decoder, decoder {
        Decode in Box: Post from [Proxy], "the number of admission permits";
        PlacedAgain: Post from [Proxy], "one per PlaceAgain";
        AbortRequest: Post from [Proxy, Streams], "one per request, and one per token whose client has disconnected";
        AbortAll: Post from [Node], "one per process";
        PagesReserved: Post from [BufferManager], "one per ReservePages";
        PagesDenied: Post from [BufferManager], "one per ReservePages or GrowPages";
        PagesGrown: Post from [BufferManager], "one per GrowPages or ComputeHere";
        PagesShort: Post from [BufferManager], "one per ReleasePages";
        PagesAdopted: Post from [BufferManager], "credits";
        PageRejected: Post from [BufferManager], "one per session";
        SequenceBegun: Post from [Generator], "one per StartSequence";
        SequenceAdvanced: Post from [Generator], "one per sequence and step; two steps are in flight";
        LoadReport: Post from [Generator], "one per 50 ms and one per tick";
        PeerReady: Post from [PeerLink], "one per session";
        PeerLost: Post from [PeerLink], "one per session";
        PromptLogprobs: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        PrefillFinished: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        PrefillFailed: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the buffer manager.
    ToBufferManager, BufferManager, buffer_manager {
        ReservePages: Post from [Decoder, Prefiller], "one per request, and one each time that the request resumes";
        GrowPages: Post from [Decoder], "one per running sequence";
        ComputeHere: Post from [Decoder], "one per ReservePages";
        PagesComputed: Post from [Decoder, Prefiller], "two per sequence";
        ReleasePages: Post from [Decoder, Prefiller], "one per ReservePages";
        SessionOpened: Post from [PeerLink], "one per session";
        PeerReady: Post from [PeerLink], "one per session";
        PeerLeaving: Post from [PeerLink], "one per session";
        PageFilled: Post from [PeerLink], "credits";
        PeerLost: Post from [PeerLink], "one per session";
        SessionDrained: Post from [PeerLink], "one per session";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the generator.
    ToGenerator, Generator, generator {
        StartSequence in Box: Post from [Decoder, Prefiller], "one per PagesReserved";
        ExtendSequence: Post from [Decoder], "one per PagesGrown";
        StopSequence: Post from [Decoder, Prefiller], "one per sequence";
        StepFinished: Post from [Engine], "two steps are in flight";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the transfer actor.
    ToTransfer, Transfer, transfer {
        SessionOpened: Post from [PeerLink], "one per session";
        LaneConnected: Post from [PeerLink], "one per session";
        CreditsGranted: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        RingShared: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        PeerLost: Post from [PeerLink], "one per session";
        SchedulePut: Post from [Prefiller], "the number of pages in the pool";
        CancelPuts: Post from [Prefiller], "one per request";
        TransportEvents: Post from [Transport], "puts and flushes in flight";
        PagesHashed: Post from [HashThread], "credits";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the prefiller.
    ToPrefiller, Prefiller, prefiller {
        StoreGrammar: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        StartPrefill in Box: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        CancelPrefill: Post from [PeerLink], "one frame per session is in the peer link's mailbox";
        PagesReserved: Post from [BufferManager], "one per ReservePages";
        PagesDenied: Post from [BufferManager], "one per ReservePages";
        GrammarCompiled: Post from [GrammarThread], "one per CompileGrammar";
        SequenceAdvanced: Post from [Generator], "one per sequence and step; two steps are in flight";
        PagesSent: Post from [Transfer], "credits";
        PutsDrained: Post from [Transfer], "one per CancelPuts";
        PeerLost: Post from [PeerLink], "one per session";
        BeginDrain: Post from [Node], "two per process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to the peer link.
    ToPeerLink, PeerLink, peer_link {
        StartDialling: Post from [Node], "one per process";
        PeersFound: Post from [Node], "one per change of the fleet";
        DialDue: Post from [Sockets], "one per receiver";
        Challenged: Post from [Sockets], "one per receiver";
        DialFailed: Post from [Sockets], "one per receiver";
        Welcomed in Box: Post from [Sockets], "one per receiver";
        HelloCame in Box: Post from [Sockets], "connections in a handshake";
        FrameCame: Post from [Sockets], "one per session: the session's task waits until the frame is handled";
        LinkEnded: Post from [Sockets], "one per session";
        ProcessWatched: Post from [Sockets], "one per peer process";
        TransportEvents: Post from [Transport], "a few per session";
        SendFrame: Post from [Decoder, BufferManager, Transfer, Prefiller], "each frame is bounded by its request, its credits or its session";
        BreakSession: Post from [BufferManager, Transfer], "one per session";
        LoadReport: Post from [Generator], "one per 50 ms and one per tick";
        RoomChanged: Post from [BufferManager], "two per session";
        NothingOutstanding: Post from [BufferManager], "one per session";
        HealthSeen: Post from [Ticker], "a full mailbox skips it";
        AnnounceLeaving: Post from [Node], "two per process";
        CloseLinks: Post from [Node], "one per process";
        Tick: Post from [Ticker], "a full mailbox skips it";
    }

    /// Messages to clients.
    ToStreams, Streams, streams {
        StreamPrompt: Post from [Decoder], "one per request";
        StreamToken: Post from [Decoder], "max_tokens of each request";
        StreamEnd: Post from [Proxy, Decoder], "one per request";
    }

    /// Messages to the engine thread.
    ToEngine, Engine, engine {
        RunStep: Post from [Generator], "two steps are in flight";
    }

    /// Messages to the hash thread.
    ToHashThread, HashThread, hash_thread {
        HashPages: Post from [Transfer], "credits";
    }

    /// Messages to the grammar thread.
    ToGrammarThread, GrammarThread, grammar_thread {
        CompileGrammar: Post from [Prefiller], "a fixed number; prefills with further grammars are refused";
    }

    /// Messages to the publisher of KV events.
    ToKvEvents, KvEvents, kv_events {
        CacheChanged: Post from [BufferManager], "a full queue drops it";
    }

    /// Messages to the exporter of traces.
    ToTraces, Traces, traces {
        PrefillTraced in Box: Post from [Prefiller], "a full queue drops it";
    }

    /// Messages to the transport.
    ToTransport, Transport, transport {
        Command: Command from [Transfer, PeerLink], "the transport's queue";
    }

    /// Messages to the link's connections.
    ToSockets, Sockets, sockets {
        WakeDialler: Post from [PeerLink], "one per receiver";
        Dial: Post from [PeerLink], "one per receiver";
        SayHello: Post from [PeerLink], "one per receiver";
        Refuse: Post from [PeerLink], "connections in a handshake";
        SayWelcome: Post from [PeerLink], "one per session";
        Carry: Post from [PeerLink], "one per session";
        WriteFrame: Command from [PeerLink], "frames that wait for a socket";
        HangUp: Post from [PeerLink], "one per connection";
        WatchProcess: Post from [PeerLink], "one per peer process";
    }

    /// Log lines.
    ToLog, Log, log {
        LogLine: Post from [Proxy, Decoder, BufferManager, Transfer, Prefiller, PeerLink], "written at once";
    }

    /// Messages to the process.
    ToProcess, Process, process {
        ProcessFault: Post from [PeerLink], "only the first is kept";
    }
}

#[cfg(test)]
mod tests;
