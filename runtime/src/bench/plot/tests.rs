//! Reads plots back: the values in an SVG file are those of the result.

use common::statistics::quantile;
use roxmltree::{Document, Node};
use serde_json::json;

use super::*;

/// The panel of this class.
fn panel<'a>(document: &'a Document<'_>, class: &str) -> Node<'a, 'a> {
    let class = format!("panel {class}");
    let found = document.descendants().find(|node| node.attribute("class") == Some(&class));
    found.unwrap_or_else(|| panic!("no {class}"))
}

fn numeric(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name} in {node:?}"))
}

/// The function from a pixel to its value, as a reader finds it: from the labels of the ticks and their places.
fn scale(panel: Node<'_, '_>, axis: &str) -> impl Fn(f64) -> f64 {
    let axis = panel.children().find(|node| node.attribute("class") == Some(axis)).unwrap();
    let is_x = axis.attribute("class") == Some("x-axis");
    let ticks: Vec<(f64, f64)> = axis
        .children()
        .filter(|node| node.has_tag_name("text"))
        .map(|node| {
            let label = node.text().unwrap().replace(',', "").parse().unwrap();
            // Labels of the vertical axis stand 4 pixels lower than their lines.
            (if is_x { numeric(node, "x") } else { numeric(node, "y") - 4.0 }, label)
        })
        .collect();
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    let middle = ticks[ticks.len() / 2];
    let share = |pixel: f64| (pixel - first.0) / (last.0 - first.0);
    let expect = first.1 + (last.1 - first.1) * share(middle.0);
    let is_linear = (expect - middle.1).abs() < 0.01 * (last.1 - first.1).abs();
    move |pixel| {
        let share = (pixel - first.0) / (last.0 - first.0);
        if is_linear {
            first.1 + (last.1 - first.1) * share
        } else {
            first.1 * (last.1 / first.1).powf(share)
        }
    }
}

/// The values of the points of each curve of a panel.
fn curves(panel: Node<'_, '_>) -> Vec<Vec<(f64, f64)>> {
    let (x, y) = (scale(panel, "x-axis"), scale(panel, "y-axis"));
    let point = |text: &str| {
        let (left, top) = text.split_once(',').unwrap();
        (left.parse::<f64>().unwrap(), top.parse::<f64>().unwrap())
    };
    panel
        .children()
        .filter(|node| node.has_tag_name("polyline"))
        .map(|node| node.attribute("points").unwrap().split(' ').map(point).collect::<Vec<_>>())
        // The others are in the legend.
        .filter(|points| points[0].0 < RIGHT)
        .map(|points| points.into_iter().map(|(left, top)| (x(left), y(top))).collect())
        .collect()
}

/// The values of each element with this tag in the area of a panel, from the attributes with these names.
fn marks(panel: Node<'_, '_>, tag: &str, (left, top): (&str, &str)) -> Vec<(f64, f64)> {
    let (x, y) = (scale(panel, "x-axis"), scale(panel, "y-axis"));
    let found = panel.children().filter(|node| node.has_tag_name(tag) && numeric(*node, left) < RIGHT);
    found.map(|node| (x(numeric(node, left)), y(numeric(node, top)))).collect()
}

/// Right edge of the area of each panel. Legends are beyond.
const RIGHT: f64 = 710.0;

fn close(found: &[(f64, f64)], expect: &[(f64, f64)]) {
    assert_eq!(found.len(), expect.len(), "{found:?} {expect:?}");
    for (found, expect) in found.iter().zip(expect) {
        let near = |a: f64, b: f64| (a - b).abs() <= 0.005 * b.abs() + 0.02;
        assert!(near(found.0, expect.0) && near(found.1, expect.1), "{found:?} is not {expect:?}");
    }
}

/// A result of `count` requests whose latencies grow from request to request by `factor`. Each fifth one fails after its first token.
fn result(count: usize, server: &str, factor: f64) -> Value {
    let each = |value: &dyn Fn(usize) -> Value| Value::Array((0..count).map(value).collect());
    let fails = |n: usize| n % 5 == 4;
    json!({
        "date": "20261130-021500", "server": server, "model_id": "models/m", "request_rate": 4.0,
        "dataset_name": "random", "seed": 3,
        "start_times": each(&|n| json!(100.0 + n as f64 * 0.25)),
        "ttfts": each(&|n| json!(0.05 * factor.powi(n as i32))),
        "itls": each(&|n| if fails(n) { json!([]) } else { json!([0.02, 0.02 * factor.powi(n as i32)]) }),
        "errors": each(&|n| json!(if fails(n) { "<500> & \"gone\"" } else { "" })),
        "input_lens": each(&|_| json!(256)), "output_lens": each(&|_| json!(3)),
    })
}

fn ttfts_ms(count: usize, factor: f64) -> Vec<f64> {
    (0..count).filter(|n| n % 5 != 4).map(|n| 50.0 * factor.powi(n as i32)).collect()
}

#[test]
fn distributions_show_the_measured_values() {
    for (count, factor) in [(12, 1.05), (40, 1.15)] {
        let text = draw(&result(count, "http://a:1", factor)).unwrap();
        let document = Document::parse(&text).unwrap();
        let ttfts = ttfts_ms(count, factor);
        let last = (ttfts.len() - 1) as f64;
        let expect: Vec<_> = ttfts.iter().enumerate().map(|(n, ms)| (*ms, 100.0 * n as f64 / last)).collect();
        let panel = panel(&document, "ttft");
        close(&curves(panel)[0], &expect);
        let percentiles =
            [0.5, 0.9, 0.99].map(|share| (quantile(ttfts.iter().copied(), share), 100.0 * share));
        close(&marks(panel, "circle", ("cx", "cy")), &percentiles);
        let label = format!("p50: {} ms", axis::rounded(percentiles[0].0));
        assert!(panel.descendants().any(|node| node.text() == Some(&label)), "no {label} in the legend");
    }
}

#[test]
fn a_long_distribution_has_few_points_and_exact_percentiles() {
    let count = 5000;
    let factor = 1.001;
    let text = draw(&result(count, "http://a:1", factor)).unwrap();
    let document = Document::parse(&text).unwrap();
    let ttfts = ttfts_ms(count, factor);
    let panel = panel(&document, "ttft");
    let curve = &curves(panel)[0];
    assert!(curve.len() < 500, "{} points", curve.len());
    let all: Vec<_> =
        curve.iter().map(|(_, share)| (quantile(ttfts.iter().copied(), share / 100.0), *share)).collect();
    close(curve, &all);
    assert_eq!(curve.last().map(|(_, share)| share.round()), Some(100.0));
    let percentiles = [0.5, 0.9, 0.99].map(|share| (quantile(ttfts.iter().copied(), share), 100.0 * share));
    close(&marks(panel, "circle", ("cx", "cy")), &percentiles);
}

#[test]
fn the_timeline_shows_when_each_request_waited_and_decoded() {
    let text = draw(&result(5, "http://a:1", 1.2)).unwrap();
    let document = Document::parse(&text).unwrap();
    let panel = panel(&document, "timeline");
    let x = scale(panel, "x-axis");
    let bars: Vec<(f64, f64)> = panel
        .children()
        .filter(|node| node.has_tag_name("rect") && numeric(*node, "x") < RIGHT)
        .map(|node| (x(numeric(node, "x")), x(numeric(node, "x") + numeric(node, "width"))))
        .collect();
    let expect: Vec<(f64, f64)> = (0..5)
        .flat_map(|n| {
            let (start, ttft) = (0.25 * f64::from(n), 0.05 * 1.2f64.powi(n));
            let decoding = if n == 4 { 0.0 } else { 0.02 + 0.02 * 1.2f64.powi(n) };
            [(start, start + ttft), (start + ttft, start + ttft + decoding)]
        })
        .collect();
    close(&bars, &expect);
    let failed: Vec<_> = panel
        .children()
        .filter(|node| node.attribute("class") == Some("failed"))
        .filter_map(|node| node.first_element_child()?.text())
        .collect();
    assert_eq!(failed, ["request 5 failed: <500> & \"gone\""]);
}

#[test]
fn a_request_that_failed_before_its_first_token_waited_until_then() {
    let mut failed = result(5, "http://a:1", 1.0);
    failed["ttfts"][4] = json!(0.0);
    failed["latencies"] = json!([0.1, 0.1, 0.1, 0.1, 2.5]);
    let text = draw(&failed).unwrap();
    let document = Document::parse(&text).unwrap();
    let panel = panel(&document, "timeline");
    let x = scale(panel, "x-axis");
    let bars = panel.children().filter(|node| node.has_tag_name("rect") && numeric(*node, "x") < RIGHT);
    let ends: Vec<f64> = bars.map(|node| x(numeric(node, "x") + numeric(node, "width"))).collect();
    assert!((ends[8] - 3.5).abs() < 0.02, "the wait of the last request ends at {} s", ends[8]);
}

#[test]
fn one_value_is_a_visible_step_and_none_is_said() {
    let text = draw(&result(1, "http://a:1", 1.0)).unwrap();
    let document = Document::parse(&text).unwrap();
    close(&curves(panel(&document, "ttft"))[0], &[(50.0, 0.0), (50.0, 100.0)]);
    // Answers of one token.
    let mut short = result(3, "http://a:1", 1.0);
    short["itls"] = json!([[], [], []]);
    let text = draw(&short).unwrap();
    let document = Document::parse(&text).unwrap();
    let says = |class| panel(&document, class).children().any(|node| node.text() == Some("no values"));
    assert_eq!((says("ttft"), says("itl")), (false, true));
}

#[test]
fn sweeps_of_few_rates_and_hostile_names_are_drawn() {
    let rate = json!({"arrived": 1.0, "good_percent": 100.0, "p50_ttft_ms": 5.0, "p90_ttft_ms": 5.0, "p99_itl_ms": null});
    let name = "</text><script>alert(\"1\")</script>&\u{0}";
    for (rates, dots) in [(json!([]), 0), (json!([rate]), 1)] {
        let results = json!({
            "kind": "sweep", "model_id": name, "server": name, "seconds": 20.0, "load": name, "label": name,
            "ttft_limit_ms": 1000.0, "gap_limit_ms": 25.0, "good_percent": 90.0, "goodput": null, "rates": rates,
        });
        let text = draw(&results).unwrap();
        let document = Document::parse(&text).unwrap();
        assert!(document.descendants().all(|node| !node.has_tag_name("script")));
        let found = panel(&document, "good").children().filter(|node| node.has_tag_name("circle")).count();
        assert_eq!(found, dots);
    }
}

#[test]
fn a_comparison_shows_both_servers() {
    let servers = [result(10, "http://a:1", 1.1), result(10, "http://b:2", 1.3)];
    let text = draw(&json!({"kind": "compare", "servers": servers})).unwrap();
    let document = Document::parse(&text).unwrap();
    let panel = panel(&document, "ttft");
    let curves = curves(panel);
    assert_eq!(curves.len(), 2);
    for (curve, factor) in curves.iter().zip([1.1, 1.3]) {
        let last = curve.len() - 1;
        close(&[curve[0], curve[last]], &[(50.0, 0.0), (50.0 * f64::powi(factor, 8), 100.0)]);
    }
    for name in ["A: a:1", "B: b:2"] {
        assert!(panel.descendants().any(|node| node.text() == Some(name)), "no {name} in the legend");
    }
}

#[test]
fn a_sweep_shows_share_and_latencies_at_each_rate() {
    let rate = |arrived: f64, good: f64, ttft: f64| json!({"arrived": arrived, "good_percent": good, "p50_ttft_ms": ttft, "p90_ttft_ms": 2.0 * ttft, "p99_itl_ms": 0.1 * ttft});
    let dead = json!({"arrived": 16.0, "good_percent": 0.0, "p50_ttft_ms": null, "p90_ttft_ms": null, "p99_itl_ms": null});
    let results = json!({
        "kind": "sweep", "model_id": "m", "server": "http://a:1", "seconds": 20.0, "load": "random prompts",
        "ttft_limit_ms": 1000.0, "gap_limit_ms": 25.0, "good_percent": 90.0, "goodput": 5.0, "seed": 0,
        "rates": [rate(1.0, 100.0, 80.0), rate(7.9, 20.0, 3000.0), rate(4.1, 95.0, 130.0), dead],
    });
    let text = draw(&results).unwrap();
    let document = Document::parse(&text).unwrap();
    close(&curves(panel(&document, "good"))[0], &[(1.0, 100.0), (4.1, 95.0), (7.9, 20.0), (16.0, 0.0)]);
    let ttft = curves(panel(&document, "ttft"));
    close(&ttft[0], &[(1.0, 80.0), (4.1, 130.0), (7.9, 3000.0)]);
    close(&ttft[1], &[(1.0, 160.0), (4.1, 260.0), (7.9, 6000.0)]);
    close(&curves(panel(&document, "gap"))[0], &[(1.0, 8.0), (4.1, 13.0), (7.9, 300.0)]);
}

#[test]
fn a_transfer_shows_each_cycle() {
    let column = |name: &str, rates: [f64; 3]| json!({"name": name, "gigabytes_per_second": rates});
    let columns = [column("lane alone", [4.0, 5.0, 4.5]), column("hash", [3.0, 3.5, 2.5])];
    let results = json!({
        "kind": "transfer", "pages": 83, "page_kib": 720, "scattered": false, "cycles": 3, "rounds": 20,
        "columns": columns,
    });
    let text = draw(&results).unwrap();
    let document = Document::parse(&text).unwrap();
    let panel = panel(&document, "throughput");
    let y = scale(panel, "y-axis");
    let dots = panel.children().filter(|node| node.has_tag_name("circle") && numeric(*node, "cx") < RIGHT);
    let found: Vec<_> = dots.map(|node| (y(numeric(node, "cy")), 0.0)).collect();
    close(&found, &[4.0, 5.0, 4.5, 3.0, 3.5, 2.5].map(|rate| (rate, 0.0)));
}

/// No text is outside the picture, also with long names. Fonts of viewers may be wider than estimated, so the estimate is high.
#[test]
fn texts_are_inside_the_picture() {
    let mut long = result(300, &format!("http://{}:9000", "receiver-with-a-long-name.".repeat(9)), 1.01);
    long["model_id"] = json!("a-model-with-a-very-long-name-".repeat(9));
    long["label"] = json!("长的注释 ".repeat(40));
    let text = draw(&json!({"kind": "compare", "servers": [long.clone(), long]})).unwrap();
    let document = Document::parse(&text).unwrap();
    let root = document.root_element();
    let (width, height) = (numeric(root, "width"), numeric(root, "height"));
    for node in document.descendants().filter(|node| node.has_tag_name("text")) {
        let (x, y) = (numeric(node, "x"), numeric(node, "y"));
        let em = |c: char| if c.is_ascii() { 0.6 } else { 1.0 };
        let long = node.text().unwrap_or_default().chars().map(em).sum::<f64>() * numeric(node, "font-size");
        let (left, right) = match (node.attribute("text-anchor"), node.attribute("transform")) {
            (_, Some(_)) => (x - 12.0, x + 12.0),
            (Some("middle"), _) => (x - long / 2.0, x + long / 2.0),
            (Some("end"), _) => (x - long, x),
            _ => (x, x + long),
        };
        let inside = left >= 0.0 && right <= width && y > 10.0 && y < height;
        assert!(inside, "{:?} is at {left} to {right}, {y}", node.text());
    }
}

#[test]
fn results_without_the_figures_of_requests_are_refused() {
    for (results, expect) in [
        (
            json!({"completed": 5}),
            "the result has no \"start_times\"; make it with --save-result and --save-detailed",
        ),
        (json!({"kind": "compare", "servers": []}), "the result has no \"servers\""),
        (json!({"kind": "sweep"}), "the result has no \"rates\""),
        (json!({"kind": "fleet"}), "this version does not draw results of the kind \"fleet\""),
    ] {
        let error = draw(&results).unwrap_err().to_string();
        assert!(error.starts_with(expect), "{error}");
    }
    // A server that answers nothing is drawn too.
    let mut failed = result(3, "http://a:1", 1.0);
    failed["errors"] = json!(["x", "x", "x"]);
    assert!(draw(&failed).unwrap().contains("no values"));
}

#[test]
fn axes_have_round_ticks_around_their_values() {
    let labels = |axis: axis::Axis| axis.ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>().join(" ");
    for (values, expect) in [
        (&[50.0, 60.0][..], "50 52 54 56 58 60"),
        (&[3.0, 70.0], "2 5 10 20 50 100"),
        (&[0.4, 1.1], "0.0 0.2 0.4 0.6 0.8 1.0 1.2"),
        (&[800.0, 30_000.0], "500 1,000 2,000 5,000 10,000 20,000 50,000"),
        (&[0.001, 90_000.0], "0.001 0.01 0.1 1 10 100 1,000 10,000 100,000"),
        (&[7.0], "7.0 7.1 7.2 7.3 7.4 7.5 7.6 7.7"),
        (&[0.0, 0.0], "0.00000 0.00002 0.00004 0.00006 0.00008 0.00010"),
        (&[], "0.0 0.2 0.4 0.6 0.8 1.0"),
    ] {
        assert_eq!(labels(axis::Axis::around(values, (0.0, 1.0))), expect, "{values:?}");
    }
    assert_eq!(labels(axis::Axis::from_zero([4.6], (0.0, 1.0))), "0 1 2 3 4 5");
    for (value, expect) in [
        (0.0, "0"),
        (64.0, "64"),
        (15.23, "15.2"),
        (1234.5, "1,234"),
        (0.01234, "0.0123"),
        (0.000_01, "0.0000"),
    ] {
        assert_eq!(axis::rounded(value), expect);
    }
}

/// `docs/plots` has results and their plots. A plot that differs from its result was changed by hand, or the drawing changed: draw it again
/// with `runtime bench plot`.
#[test]
fn plots_of_the_documentation_are_those_of_their_results() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plots");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let results = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let plot = std::fs::read_to_string(path.with_extension("svg")).unwrap();
            assert!(draw(&results).unwrap() == plot, "{} is not drawn from its result", path.display());
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} results");
}
