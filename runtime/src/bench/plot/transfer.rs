//! The plot of `bench transfer`: the throughput of each cycle, in columns.

use common::statistics::quartiles;
use serde_json::Value;

use super::axis::{Axis, rounded};
use super::canvas::{COLORS, Canvas, INK, PALE};
use super::panel::{Mark, Names, Panel, Place, header};
use super::serve::day;
use super::{PlotError, array, number};

const HEIGHT: f64 = 280.0;
/// Width of the box of a column, as a share of the width of the column.
const BOX: f64 = 0.4;

/// Draws the result of `bench transfer`.
pub(super) fn draw(results: &Value) -> Result<String, PlotError> {
    let mut columns: Vec<(&str, Vec<f64>)> = Vec::new();
    for column in array(results, "columns")? {
        let values: Vec<f64> =
            array(column, "gigabytes_per_second")?.iter().filter_map(Value::as_f64).collect();
        if !values.is_empty() {
            columns.push((column["name"].as_str().unwrap_or_default(), values));
        }
    }
    let title = "bench transfer: KV pages from one process to another";
    let mut canvas = Canvas::default();
    let pages = format!(
        "{} pages of {} KiB a page table, {}",
        number(results, "pages")?,
        number(results, "page_kib")?,
        if results["scattered"] == true { "scattered" } else { "neighbouring" }
    );
    let cycles = format!("{} cycles", number(results, "cycles")?);
    let rounds = format!("each the median of {} page tables", number(results, "rounds")?);
    let date = day(results["date"].as_str().unwrap_or_default());
    let top = header(&mut canvas, title, &[pages, cycles, rounds, date]);

    let place = Place::below(top, HEIGHT);
    let ticks = columns.iter().enumerate().map(|(n, (name, _))| (n as f64 + 0.5, (*name).to_owned()));
    let x = Axis::with_ticks((0.0, columns.len().max(1) as f64), ticks, place.x_pixels());
    let y = Axis::from_zero(columns.iter().flat_map(|(_, values)| values.iter().copied()), place.y_pixels());
    let names = Names { class: "throughput", heading: "Throughput", x: "measurement", y: "GB/s" };
    let mut panel = Panel::new(&mut canvas, place, &names, (x, y));
    panel.legend(Mark::Dot(COLORS[0]), "one cycle");
    panel.legend(Mark::Box(PALE[0]), "middle half of the cycles");
    panel.legend(Mark::Line(INK), "median");
    panel.part_legend();
    for (n, (name, values)) in columns.iter().enumerate() {
        let [low, middle, high] = quartiles(values.iter().copied());
        let left = panel.at(n as f64 + 0.5 - BOX / 2.0, high);
        let right = panel.at(n as f64 + 0.5 + BOX / 2.0, low);
        panel.canvas.rect(left, (right.0 - left.0, right.1 - left.1), PALE[0], &format!("{name}: quartiles"));
        for (cycle, value) in values.iter().enumerate() {
            // Beside each other in the order of the cycles, so that equal values stay visible.
            let offset = BOX * 0.8 * ((cycle as f64 + 0.5) / values.len() as f64 - 0.5);
            let hint = format!("{name}, cycle {}: {} GB/s", cycle + 1, rounded(*value));
            panel.dot(n as f64 + 0.5 + offset, *value, COLORS[0], &hint);
        }
        panel.curve(&[(n as f64 + 0.5 - BOX / 2.0, middle), (n as f64 + 0.5 + BOX / 2.0, middle)], INK);
        panel.legend(Mark::None, &format!("{name}: {} GB/s", rounded(middle)));
    }
    panel.close();
    Ok(canvas.finish(place.end() + 6.0, title))
}
