//! The plot of `bench serve`: two distributions and a timeline, of one server or of two.

use common::statistics::{median, quantile};
use serde_json::Value;

use super::PlotError;
use super::axis::{Axis, rounded};
use super::canvas::{COLORS, Canvas, PALE};
use super::panel::{Mark, Names, Panel, Place, header};
use super::runs::{Run, RunRequest};

/// Shares of the requests that the curves mark.
const MARKED: [f64; 3] = [0.5, 0.9, 0.99];
/// Largest number of values of which each one is a point of the curve.
const POINTS_MAX: usize = 400;
/// Letters of the compared servers.
const LETTERS: [&str; COLORS.len()] = ["A", "B", "C", "D"];
/// Largest number of requests whose bars have hints. Hints are most of the size of the file.
const HINTS_MAX: usize = 1000;
const CURVE_HEIGHT: f64 = 170.0;

/// Draws the results of one server, or of two.
pub(super) fn draw(results: &[Value]) -> Result<String, PlotError> {
    let runs = results.iter().take(COLORS.len()).map(Run::read).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = runs.first() else { return Err(PlotError::Missing { field: "servers" }) };
    let model = first.json["model_id"].as_str().unwrap_or("unknown model");
    let model = model.rsplit('/').next().unwrap_or(model);
    let title = if runs.len() > 1 {
        format!("bench serve: {model}, {} servers in turns", runs.len())
    } else {
        format!("bench serve: {model}")
    };
    let mut canvas = Canvas::default();
    let top = header(&mut canvas, &title, &what_was_run(&runs));

    let place = Place::below(top, CURVE_HEIGHT);
    let names = Names {
        class: "ttft",
        heading: "Time to first token",
        x: "time to first token (ms)",
        y: "requests (%)",
    };
    distribution(&mut canvas, place, &names, &runs, runs.iter().map(Run::ttfts_ms).collect());
    let place = Place::below(place.end(), CURVE_HEIGHT);
    let names = Names {
        class: "itl",
        heading: "Inter-token latency",
        x: "time from one token to the next (ms)",
        y: "tokens (%)",
    };
    distribution(&mut canvas, place, &names, &runs, runs.iter().map(Run::itls_ms).collect());
    let count: usize = runs.iter().map(|run| run.requests.len()).sum();
    let place = Place::below(place.end(), (6.0 * count as f64).clamp(110.0, 360.0));
    timeline(&mut canvas, place, &runs);
    Ok(canvas.finish(place.end() + 6.0, &title))
}

/// The load in a few words.
fn what_was_run(runs: &[Run<'_>]) -> Vec<String> {
    let json = runs[0].json;
    let lengths = |field: &str| {
        let all = json[field].as_array().map(Vec::as_slice).unwrap_or_default();
        median(all.iter().filter_map(Value::as_f64))
    };
    let text = |field: &str| json[field].as_str().unwrap_or_default();
    let rate = json["request_rate"].as_f64();
    let rate = rate.map_or("all sent at once".to_owned(), |rate| format!("{} requests/s", rounded(rate)));
    let mut parts = Vec::new();
    if runs.len() == 1 {
        parts.push(runs[0].server().to_owned());
    } else {
        parts.extend((0..runs.len()).map(|n| named(runs, n)));
    }
    parts.push(format!("{} requests{}", runs[0].requests.len(), if runs.len() > 1 { " each" } else { "" }));
    parts.push(rate);
    parts.extend(json["max_concurrency"].as_u64().map(|most| format!("at most {most} in flight")));
    parts.push(format!(
        "{} tokens in, {} out (medians)",
        rounded(lengths("input_lens")),
        rounded(lengths("output_lens"))
    ));
    let dataset = text("dataset_name");
    parts.extend((!dataset.is_empty()).then(|| format!("{dataset} prompts")));
    parts.extend(json["seed"].as_u64().map(|seed| format!("seed {seed}")));
    parts.push(day(text("date")));
    let note = text("label");
    parts.extend((!note.is_empty()).then(|| note.to_owned()));
    parts
}

/// The letter and the address of a server.
fn named(runs: &[Run<'_>], n: usize) -> String {
    format!("{}: {}", LETTERS[n], runs[n].server())
}

/// `2026-11-30` of a date as in result files, `20261130-020000`.
pub(super) fn day(date: &str) -> String {
    match (date.get(..4), date.get(4..6), date.get(6..8)) {
        (Some(year), Some(month), Some(day)) => format!("{year}-{month}-{day}"),
        _ => String::new(),
    }
}

/// Draws cumulative curves: for each value, the share of the values that are at most as large.
fn distribution(
    canvas: &mut Canvas,
    place: Place,
    names: &Names<'_>,
    runs: &[Run<'_>],
    mut series: Vec<Vec<f64>>,
) {
    series.iter_mut().for_each(|values| values.sort_unstable_by(f64::total_cmp));
    let x = Axis::around(&series.concat(), place.x_pixels());
    let ticks = [0.0, 25.0, 50.0, 75.0, 90.0, 99.0].map(|share| (share, format!("{share}")));
    let y = Axis::with_ticks((0.0, 100.0), ticks, place.y_pixels());
    let mut panel = Panel::new(canvas, place, names, (x, y));
    if series.iter().all(Vec::is_empty) {
        panel.say("no values");
    }
    for (n, sorted) in series.iter().enumerate() {
        let color = COLORS[n];
        if n > 0 {
            panel.part_legend();
        }
        let name = if runs.len() > 1 { named(runs, n) } else { "requests that succeeded".to_owned() };
        panel.legend(Mark::Line(color), &name);
        if sorted.is_empty() {
            continue;
        }
        panel.curve(&curve(sorted), color);
        for share in MARKED {
            let value = quantile(sorted.iter().copied(), share);
            let text = format!("p{:.0}: {} ms", share * 100.0, rounded(value));
            panel.dot(value, share * 100.0, color, &text);
            panel.legend(Mark::Dot(color), &text);
        }
    }
    panel.close();
}

/// The points of a cumulative curve of sorted values. The quantiles of `common::statistics` lie on it.
fn curve(sorted: &[f64]) -> Vec<(f64, f64)> {
    if let [only] = sorted {
        return vec![(*only, 0.0), (*only, 100.0)];
    }
    let last = sorted.len().saturating_sub(1).max(1) as f64;
    let exact = |n: usize| (sorted[n], 100.0 * n as f64 / last);
    if sorted.len() <= POINTS_MAX {
        return (0..sorted.len()).map(exact).collect();
    }
    // Few points where the curve is even, and more in its tail.
    let shares = (0..99 * 3).map(|n| n as f64 / 300.0).chain((0..=100).map(|n| 0.99 + n as f64 / 10_000.0));
    let ranks: Vec<usize> = shares.map(|share| (share * last).round() as usize).collect();
    let mut points: Vec<(f64, f64)> =
        ranks.into_iter().map(|rank| exact(rank.min(sorted.len() - 1))).collect();
    points.dedup();
    points
}

/// Draws a row for each request: it waits for its first token, then decodes.
fn timeline(canvas: &mut Canvas, place: Place, runs: &[Run<'_>]) {
    let mut rows: Vec<(usize, &RunRequest)> =
        runs.iter().enumerate().flat_map(|(n, run)| run.requests.iter().map(move |one| (n, one))).collect();
    rows.sort_by(|a, b| a.1.start.total_cmp(&b.1.start));
    let began = rows.first().map_or(0.0, |(_, request)| request.start);
    let end = |request: &RunRequest| request.start - began + request.waiting() + request.decoding();
    let x = Axis::from_zero(rows.iter().map(|(_, request)| end(request)), place.x_pixels());
    let (top, bottom) = place.y_pixels_down();
    let count = rows.len().max(1);
    let step = count.div_ceil(6).max(1);
    let ticks = (0..rows.len()).step_by(step).map(|n| (n as f64 + 0.5, format!("{}", n + 1)));
    let y = Axis::with_ticks((0.0, count as f64), ticks, (top, bottom));
    let names = Names {
        class: "timeline",
        heading: "Timeline: one row for each request, in order of arrival",
        x: "time since the first request (s)",
        y: "request",
    };
    let mut panel = Panel::new(canvas, place, &names, (x, y));
    let height = (bottom - top) / count as f64;
    let bar = if height >= 3.0 { height * 0.8 } else { height };
    for (row, (n, request)) in rows.iter().enumerate() {
        let start = request.start - began;
        let first = start + request.waiting();
        let last = first + request.decoding();
        let (from, to, end) = (panel.x.at(start), panel.x.at(first), panel.x.at(last));
        let y = panel.y.at(row as f64) + (height - bar) / 2.0;
        let hint = || {
            let ttft = rounded(request.ttft * 1e3);
            let row = row + 1;
            format!(
                "request {row}: sent at {start:.3} s, first token after {ttft} ms, last token at {last:.3} s"
            )
        };
        let hint = if rows.len() <= HINTS_MAX { hint() } else { String::new() };
        panel.canvas.rect((from, y), (to - from, bar), PALE[*n], &hint);
        panel.canvas.rect((to, y), (end - to, bar), COLORS[*n], &hint);
        if !request.error.is_empty() {
            let hint = format!("request {} failed: {}", row + 1, request.error);
            panel.canvas.cross((end, y + bar / 2.0), (0.5 * height + 1.0).clamp(2.0, 3.5), &hint);
        }
    }
    timeline_legend(&mut panel, runs);
    panel.close();
}

fn timeline_legend(panel: &mut Panel<'_>, runs: &[Run<'_>]) {
    for n in 0..runs.len() {
        if n > 0 {
            panel.part_legend();
        }
        if runs.len() > 1 {
            panel.legend(Mark::None, &named(runs, n));
        }
        panel.legend(Mark::Box(PALE[n]), "waits for its first token");
        panel.legend(Mark::Box(COLORS[n]), "decodes");
    }
    let failed =
        runs.iter().flat_map(|run| &run.requests).filter(|request| !request.error.is_empty()).count();
    if failed > 0 {
        panel.part_legend();
        panel.legend(Mark::Cross, &format!("failed: {failed}"));
    }
}
