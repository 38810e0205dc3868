//! The start-up measurement of a session's lane.

use connector::frame::Frame;

use super::TransferState;
use super::session::Phase;
use crate::effect::{Effect, to};
use crate::log::{LaneSpeed, LogLine, gigabytes_per_second};
use crate::messages::{SendFrame, SessionId};

impl TransferState {
    /// Advice for the operator about a lane that cannot carry pages.
    pub(super) fn remedy(&self) -> &'static str {
        if self.config.on_device {
            "add cuda_ipc to UCX_TLS, and check that the two GPUs are peers on one host, that both processes share a PID namespace (containers: \
             shareProcessNamespace), and that each sees both GPUs"
        } else {
            "check what UCX_TLS and UCX_NET_DEVICES allow"
        }
    }

    /// Advances the start-up measurement: from the warm-up to the measurement, from the measurement to its result.
    pub(super) fn measure(&mut self, now_micros: u64, session: SessionId) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        if live.is_probing() {
            return Vec::new();
        }
        let (lane, bytes, began) = match &live.phase {
            Phase::WarmingUp { lane, pages: 0 } => {
                let lane = lane.clone();
                live.begin_measuring(lane);
                return Vec::new();
            }
            Phase::Measuring { lane, began_micros: Some(began), bytes } => (lane.clone(), *bytes, *began),
            _ => return Vec::new(),
        };
        live.phase = Phase::Ready;
        let micros = now_micros.saturating_sub(began).max(1);
        let speed = gigabytes_per_second(bytes, micros);
        let least = self.config.min_gigabytes_per_second;
        if speed < least {
            let remedy = self.remedy();
            let reason = format!(
                "lane {lane} moves {speed:.2} GB/s, and transport.min_gigabytes_per_second is {least}; {remedy}, or lower the setting"
            );
            return self.break_session(session, reason);
        }
        let measured = LaneSpeed { name: lane.clone(), bytes, micros };
        let frame = Frame::LinkProbed { lane, bytes, micros };
        vec![
            to::log(LogLine::ReceiverReady { session, lane: measured }),
            to::peer_link(SendFrame { session, frame }),
        ]
    }
}
