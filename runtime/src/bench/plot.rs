//! Draws results as an SVG file: the only place that draws.
//!
//! A plot is made from the JSON of a result alone, so a saved result can be drawn again. The text of an SVG file needs no font library, and
//! the few shapes of these plots need no crate. Each file has its own background, so that it can be read in light and dark pages.

mod axis;
mod canvas;
mod panel;
mod runs;
mod serve;
mod sweep;
mod transfer;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use thiserror::Error;

/// Why a result cannot be drawn.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum PlotError {
    /// The JSON lacks the figures of each request.
    #[error(
        "the result has no {field:?}; make it with --save-result and --save-detailed, or by `bench sweep` or `bench transfer` with --json"
    )]
    Missing {
        /// The field that is missing or has another type.
        field: &'static str,
    },
    /// This version does not write results of this kind.
    #[error(
        "this version does not draw results of the kind {kind:?}; use the version of Baton that wrote the file"
    )]
    UnknownKind {
        /// The `kind` in the JSON.
        kind: String,
    },
}

/// The SVG text of a result. Results without a kind are those of `bench serve` or `vllm bench serve`.
///
/// # Errors
/// The JSON lacks the figures of each request, or is of an unknown kind.
pub(super) fn draw(results: &Value) -> Result<String, PlotError> {
    match results["kind"].as_str() {
        None => serve::draw(std::slice::from_ref(results)),
        Some("compare") => serve::draw(array(results, "servers")?),
        Some("sweep") => sweep::draw(results),
        Some("transfer") => transfer::draw(results),
        Some(kind) => Err(PlotError::UnknownKind { kind: kind.to_owned() }),
    }
}

/// Draws a result into a file and says so.
///
/// # Errors
/// The result cannot be drawn, or the file cannot be written.
pub(super) fn write(results: &Value, path: &Path) -> Result<()> {
    std::fs::write(path, draw(results)?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote the plot to {}", path.display());
    Ok(())
}

/// Draws a saved result again.
///
/// # Errors
/// The file is not valid JSON, or as [`write()`].
pub(super) fn redraw(result: &Path, path: &Path) -> Result<()> {
    let text =
        std::fs::read_to_string(result).with_context(|| format!("cannot read {}", result.display()))?;
    let results =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", result.display()))?;
    write(&results, path).with_context(|| format!("cannot draw {}", result.display()))
}

fn array<'a>(results: &'a Value, field: &'static str) -> Result<&'a [Value], PlotError> {
    results[field].as_array().map(Vec::as_slice).ok_or(PlotError::Missing { field })
}

fn number(results: &Value, field: &'static str) -> Result<f64, PlotError> {
    results[field].as_f64().ok_or(PlotError::Missing { field })
}

#[cfg(test)]
mod tests;
