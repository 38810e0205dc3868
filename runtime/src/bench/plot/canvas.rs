//! Writes the elements of an SVG file.

use std::fmt::Write as _;

/// Width of each plot in pixels.
pub(super) const WIDTH: f64 = 960.0;
/// Colours of two series that people with colour blindness can tell apart.
pub(super) const COLORS: [&str; 4] = ["#0b6bb8", "#d9660a", "#0f8a62", "#9a4fa3"];
/// Lighter colours of the same series.
pub(super) const PALE: [&str; 4] = ["#a9cdea", "#f6c9a0", "#a5d9c6", "#dcbfe0"];
/// Colour of failures and of limits.
pub(super) const RED: &str = "#c6212b";
pub(super) const INK: &str = "#1c2330";
pub(super) const GREY: &str = "#5b6472";
pub(super) const GRID: &str = "#e3e7ec";

/// Width of a character, as a share of the font's size, and that of a bold one. Few fonts are wider.
const CHARACTER: (f64, f64) = (0.6, 0.66);

/// Which part of a text is at its coordinates.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// The look of a text.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) color: &'static str,
}

pub(super) const TITLE: Style = Style { size: 17.0, bold: true, color: INK };
pub(super) const HEADING: Style = Style { size: 13.0, bold: true, color: INK };
pub(super) const BODY: Style = Style { size: 12.0, bold: false, color: INK };
pub(super) const SMALL: Style = Style { size: 11.0, bold: false, color: GREY };

/// An SVG file that is being written.
#[derive(Default)]
pub(super) struct Canvas {
    body: String,
}

impl Canvas {
    // Writing to a string cannot fail.
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        self.body.write_fmt(element).unwrap_or_default();
        self.body.push('\n');
    }

    /// Begins a group of this class. `close` ends it.
    pub(super) fn open(&mut self, class: &str) {
        self.put(format_args!("<g class=\"{}\">", escaped(class)));
    }

    pub(super) fn close(&mut self) {
        self.put(format_args!("</g>"));
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, style: Style, text: &str) {
        self.turned((x, y), 0.0, anchor, style, text);
    }

    /// A text that is turned clockwise by some degrees.
    pub(super) fn turned(&mut self, (x, y): (f64, f64), by: f64, anchor: Anchor, style: Style, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.bold { " font-weight=\"600\"" } else { "" };
        let turn =
            if by == 0.0 { String::new() } else { format!(" transform=\"rotate({by} {x:.1} {y:.1})\"") };
        let Style { size, color, .. } = style;
        let text = escaped(text);
        self.put(format_args!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{color}\"{weight}{turn}>{text}</text>"
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, dashed: bool) {
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            "<line x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\" stroke=\"{color}\"{dash}/>"
        ));
    }

    /// A line through points.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
        let points = points.join(" ");
        self.put(format_args!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>"
        ));
    }

    /// A rectangle from its upper left corner. A browser shows `hint` for it.
    pub(super) fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), color: &str, hint: &str) {
        let (width, height) = (width.max(0.0), height.max(0.0));
        let hint = title(hint);
        self.put(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{color}\">{hint}</rect>"
        ));
    }

    /// A dot. A browser shows `hint` for it.
    pub(super) fn dot(&mut self, (x, y): (f64, f64), radius: f64, color: &str, hint: &str) {
        let hint = title(hint);
        self.put(format_args!(
            "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\" fill=\"{color}\" stroke=\"#ffffff\">{hint}</circle>"
        ));
    }

    /// A cross, the mark of a failure. A browser shows `hint` for it.
    pub(super) fn cross(&mut self, (x, y): (f64, f64), radius: f64, hint: &str) {
        let (left, top, size, hint) = (x - radius, y - radius, 2.0 * radius, title(hint));
        self.put(format_args!(
            "<path class=\"failed\" d=\"M{left:.2} {top:.2} l{size:.2} {size:.2} m0 -{size:.2} l-{size:.2} {size:.2}\" \
             stroke=\"{RED}\" stroke-width=\"1.8\" fill=\"none\">{hint}</path>"
        ));
    }

    /// The file, with this height and title.
    pub(super) fn finish(self, height: f64, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif\" role=\"img\">\n\
             <title>{}</title>\n<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{:.0}\" rx=\"6\" fill=\"#ffffff\" stroke=\"#d5dae1\"/>\n{}</svg>\n",
            escaped(title),
            WIDTH - 1.0,
            height.round() - 1.0,
            self.body
        )
    }
}

fn title(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(hint)) }
}

/// Text with the characters that XML reserves replaced. Control characters, which XML forbids, become spaces.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The width of a text in characters. Chinese, Japanese and Korean characters and emoji count twice.
fn characters(text: &str) -> usize {
    text.chars().map(breadth).sum()
}

fn breadth(c: char) -> usize {
    1 + usize::from(matches!(c, '\u{1100}'..='\u{11ff}' | '\u{2e80}'..))
}

/// The characters from the start of `all` that are together at most `most` wide.
fn within(all: impl Iterator<Item = char>, most: usize) -> Vec<char> {
    let mut room = most;
    let fits = |c: &char| room.checked_sub(breadth(*c)).map(|left| room = left).is_some();
    all.take_while(fits).collect()
}

/// The number of characters of a style that fit into a width.
fn fitting(width: f64, style: Style) -> usize {
    let character = if style.bold { CHARACTER.1 } else { CHARACTER.0 };
    (width / (style.size * character)) as usize
}

/// The text, shortened in its middle to a width.
pub(super) fn shortened(text: &str, width: f64, style: Style) -> String {
    let most = fitting(width, style).max(1);
    if characters(text) <= most {
        return text.to_owned();
    }
    let end = most / 2;
    let (head, tail) = (within(text.chars(), most - end - 1), within(text.chars().rev(), end));
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// The parts, joined by dots in lines that fit into a width.
pub(super) fn wrapped(parts: &[String], width: f64, style: Style) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        match lines.last_mut() {
            Some(line) if characters(line) + characters(part) + 3 <= fitting(width, style) => {
                line.push_str(" · ");
                line.push_str(part);
            }
            _ => lines.push(shortened(part, width, style)),
        }
    }
    lines
}
