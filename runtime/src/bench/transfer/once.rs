//! One short measurement of a pair, for `runtime doctor`.

use anyhow::Result;
use common::statistics::median;
use connector::transport::{Event, EventSink};
use serde::{Deserialize, Serialize};

use super::{TransferOptions, measure};
use crate::config::Config;

/// What a line of the sender begins with that names the lane.
pub(super) const LANE: &str = "lane ";

/// The measured lane of a pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PutMeasurement {
    /// All transports and devices that carry the bytes, for example `tcp/lo`.
    pub lane: String,
    /// Bytes of one hand-over.
    pub bytes: u64,
    /// Median speed from the first put to the last flush.
    pub gigabytes_per_second: f64,
}

/// Measures a pair and prints a [`PutMeasurement`] as JSON.
pub(super) fn run(options: &TransferOptions, config: &Config) -> Result<()> {
    let (samples, lane) = measure(options, config, config.transport.page_hash)?;
    let bytes = options.page_bytes(config) * u64::from(options.pages);
    let seconds = median(samples.iter().map(|sample| sample.puts_seconds));
    let measurement = PutMeasurement { lane, bytes, gigabytes_per_second: bytes as f64 / seconds / 1e9 };
    println!("{}", serde_json::to_string(&measurement)?);
    Ok(())
}

/// A sink that prints the name of each connected lane before it passes the events on.
pub(super) fn naming(mut sink: EventSink) -> EventSink {
    Box::new(move |events| {
        for event in &events {
            if let Event::Connected { lane, .. } = event {
                println!("{LANE}{lane}");
            }
        }
        sink(events);
    })
}
