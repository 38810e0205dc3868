//! The plot of `bench sweep`: the share of good requests and the latencies at each rate.

use serde_json::Value;

use super::axis::{Axis, rounded};
use super::canvas::{COLORS, Canvas, GREY, RED};
use super::panel::{Mark, Names, Panel, Place, header};
use super::serve::day;
use super::{PlotError, array, number};

const HEIGHT: f64 = 170.0;
const RATE: &str = "requests per second that arrived";

/// The figures of one rate.
struct RatePoint {
    arrived: f64,
    good_percent: f64,
    /// `None` if no request succeeded.
    ttft_ms: [Option<f64>; 2],
    gap_ms: Option<f64>,
}

/// Draws the result of a sweep.
pub(super) fn draw(results: &Value) -> Result<String, PlotError> {
    let mut rates = Vec::new();
    for rate in array(results, "rates")? {
        rates.push(RatePoint {
            arrived: number(rate, "arrived")?,
            good_percent: number(rate, "good_percent")?,
            ttft_ms: [rate["p50_ttft_ms"].as_f64(), rate["p90_ttft_ms"].as_f64()],
            gap_ms: rate["p99_itl_ms"].as_f64(),
        });
    }
    rates.sort_by(|a, b| a.arrived.total_cmp(&b.arrived));
    let model = results["model_id"].as_str().unwrap_or("unknown model");
    let title = format!("bench sweep: {}", model.rsplit('/').next().unwrap_or(model));
    let mut canvas = Canvas::default();
    let top = header(&mut canvas, &title, &what_was_run(results)?);
    let place = Place::below(top, HEIGHT);
    let goodput = results["goodput"].as_f64();
    share(&mut canvas, place, &rates, (number(results, "good_percent")?, goodput));
    let place = Place::below(place.end(), HEIGHT);
    let names =
        Names { class: "ttft", heading: "Time to first token", x: RATE, y: "time to first token (ms)" };
    let series = [
        ("p50", rates.iter().map(|rate| rate.ttft_ms[0]).collect()),
        ("p90", rates.iter().map(|rate| rate.ttft_ms[1]).collect()),
    ];
    latency(&mut canvas, place, &names, &rates, &series, number(results, "ttft_limit_ms")?);
    let place = Place::below(place.end(), HEIGHT);
    let names =
        Names { class: "gap", heading: "Inter-token latency", x: RATE, y: "inter-token latency (ms)" };
    let series = [("p99 of all gaps", rates.iter().map(|rate| rate.gap_ms).collect())];
    latency(&mut canvas, place, &names, &rates, &series, number(results, "gap_limit_ms")?);
    Ok(canvas.finish(place.end() + 6.0, &title))
}

fn what_was_run(results: &Value) -> Result<Vec<String>, PlotError> {
    let text = |field: &str| results[field].as_str().unwrap_or_default();
    Ok(vec![
        text("server").trim_start_matches("http://").to_owned(),
        format!("{} s at each rate", rounded(number(results, "seconds")?)),
        text("load").to_owned(),
        format!(
            "good: first token within {} ms, p99 of the request's own gaps at most {} ms",
            rounded(number(results, "ttft_limit_ms")?),
            rounded(number(results, "gap_limit_ms")?)
        ),
        results["seed"].as_u64().map_or(String::new(), |seed| format!("seed {seed}")),
        day(text("date")),
        text("label").to_owned(),
    ])
}

fn arrived(rates: &[RatePoint], place: Place) -> Axis {
    Axis::from_zero(rates.iter().map(|rate| rate.arrived), place.x_pixels())
}

/// Draws the share of good requests, the wanted share and the goodput.
fn share(canvas: &mut Canvas, place: Place, rates: &[RatePoint], (wanted, goodput): (f64, Option<f64>)) {
    let ticks = [0.0, 25.0, 50.0, 75.0, 100.0].map(|share| (share, format!("{share}")));
    let y = Axis::with_ticks((0.0, 104.0), ticks, place.y_pixels());
    let names = Names { class: "good", heading: "Good requests", x: RATE, y: "good requests (%)" };
    let mut panel = Panel::new(canvas, place, &names, (arrived(rates, place), y));
    panel.level(wanted, RED);
    let points: Vec<_> = rates.iter().map(|rate| (rate.arrived, rate.good_percent)).collect();
    panel.curve(&points, COLORS[0]);
    for (x, y) in points {
        panel.dot(x, y, COLORS[0], &format!("{} requests/s: {y:.1} % good", rounded(x)));
    }
    panel.legend(Mark::Line(COLORS[0]), "good requests");
    panel.legend(Mark::Dashed(RED), &format!("wanted: {} %", rounded(wanted)));
    if let Some(goodput) = goodput {
        panel.upright(goodput, GREY);
        panel.legend(Mark::Dashed(GREY), &format!("goodput: {} requests/s", rounded(goodput)));
    } else {
        panel.legend(Mark::None, "goodput: out of range");
    }
    panel.close();
}

/// Draws latencies, and their limit if the axis shows it.
fn latency(
    canvas: &mut Canvas,
    place: Place,
    names: &Names<'_>,
    rates: &[RatePoint],
    series: &[(&str, Vec<Option<f64>>)],
    limit: f64,
) {
    let mut values: Vec<f64> =
        series.iter().flat_map(|(_, values)| values.iter().flatten().copied()).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    // A limit that is far above all values would flatten the curves.
    if limit <= 4.0 * most {
        values.push(limit);
    }
    let y = Axis::around(&values, place.y_pixels());
    let mut panel = Panel::new(canvas, place, names, (arrived(rates, place), y));
    panel.level(limit, RED);
    for (n, (name, values)) in series.iter().enumerate() {
        let points = rates.iter().zip(values).filter_map(|(rate, value)| Some((rate.arrived, (*value)?)));
        let points: Vec<_> = points.collect();
        panel.curve(&points, COLORS[n]);
        for (x, y) in points {
            panel.dot(x, y, COLORS[n], &format!("{} requests/s: {name} {} ms", rounded(x), rounded(y)));
        }
        panel.legend(Mark::Line(COLORS[n]), name);
    }
    panel.legend(Mark::Dashed(RED), &format!("limit: {} ms", rounded(limit)));
    panel.close();
}
