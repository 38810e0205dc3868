//! A panel: a frame with two axes, and its legend beside it.

use super::axis::Axis;
use super::canvas::{
    Anchor, BODY, Canvas, GREY, GRID, HEADING, SMALL, Style, TITLE, WIDTH, shortened, wrapped,
};

/// Left edge of the area of each panel.
const LEFT: f64 = 78.0;
/// Right edge of the area of each panel.
const RIGHT: f64 = 706.0;
/// Left edge of the legends.
const LEGEND: f64 = 728.0;
const MARGIN: f64 = 16.0;
/// Height of a line of a legend.
const LINE: f64 = 16.5;
/// Room below the area of a panel, for the labels of its axis.
const BELOW: f64 = 48.0;
/// Room above the area of a panel, for its heading.
const ABOVE: f64 = 30.0;

/// Draws the title and what was run. Returns the height of both.
pub(super) fn header(canvas: &mut Canvas, title: &str, parts: &[String]) -> f64 {
    let room = WIDTH - 2.0 * MARGIN;
    canvas.text((MARGIN, 30.0), Anchor::Start, TITLE, &shortened(title, room, TITLE));
    let mut y = 36.0;
    let style = Style { color: GREY, ..BODY };
    for line in wrapped(parts, room, style) {
        y += 16.0;
        canvas.text((MARGIN, y), Anchor::Start, style, &line);
    }
    y + 12.0
}

/// The mark of an entry in a legend.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    /// No mark; the text is that of the entry above.
    None,
    Line(&'static str),
    Dashed(&'static str),
    Box(&'static str),
    Dot(&'static str),
    Cross,
}

/// A panel that is being drawn.
pub(super) struct Panel<'a> {
    pub(super) canvas: &'a mut Canvas,
    pub(super) x: Axis,
    pub(super) y: Axis,
    top: f64,
    bottom: f64,
    legend_y: f64,
}

/// Where a panel is drawn.
#[derive(Clone, Copy)]
pub(super) struct Place {
    top: f64,
    height: f64,
}

impl Place {
    /// Below everything that is drawn above `y`.
    pub(super) fn below(y: f64, height: f64) -> Self {
        Self { top: y + ABOVE, height }
    }

    /// The lower end of the panel and its labels.
    pub(super) fn end(self) -> f64 {
        self.top + self.height + BELOW
    }

    pub(super) fn x_pixels(self) -> (f64, f64) {
        (LEFT, RIGHT)
    }

    /// From bottom to top.
    pub(super) fn y_pixels(self) -> (f64, f64) {
        (self.top + self.height, self.top)
    }

    /// From top to bottom.
    pub(super) fn y_pixels_down(self) -> (f64, f64) {
        (self.top, self.top + self.height)
    }
}

/// The texts of a panel.
pub(super) struct Names<'a> {
    /// Name of the group in the SVG file.
    pub(super) class: &'a str,
    pub(super) heading: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
}

impl<'a> Panel<'a> {
    /// Draws the heading, the axes and the grid.
    pub(super) fn new(canvas: &'a mut Canvas, place: Place, names: &Names<'_>, (x, y): (Axis, Axis)) -> Self {
        let (top, bottom) = (place.top, place.top + place.height);
        canvas.open(&format!("panel {}", names.class));
        canvas.text((LEFT, top - 10.0), Anchor::Start, HEADING, names.heading);
        canvas.open("x-axis");
        for (value, label) in &x.ticks {
            let at = x.at(*value);
            canvas.line((at, top), (at, bottom), GRID, false);
            canvas.text((at, bottom + 16.0), Anchor::Middle, SMALL, label);
        }
        canvas.close();
        canvas.open("y-axis");
        for (value, label) in &y.ticks {
            let at = y.at(*value);
            canvas.line((LEFT, at), (RIGHT, at), GRID, false);
            canvas.text((LEFT - 8.0, at + 4.0), Anchor::End, SMALL, label);
        }
        canvas.close();
        canvas.line((LEFT, bottom), (RIGHT, bottom), GREY, false);
        canvas.line((LEFT, top), (LEFT, bottom), GREY, false);
        canvas.text(((LEFT + RIGHT) / 2.0, bottom + 34.0), Anchor::Middle, BODY, names.x);
        canvas.turned((24.0, (top + bottom) / 2.0), -90.0, Anchor::Middle, BODY, names.y);
        Self { canvas, x, y, top, bottom, legend_y: top + 4.0 }
    }

    /// The pixels of a pair of values.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x.at(x), self.y.at(y))
    }

    /// Draws a line through pairs of values.
    pub(super) fn curve(&mut self, values: &[(f64, f64)], color: &str) {
        let points: Vec<_> = values.iter().map(|(x, y)| self.at(*x, *y)).collect();
        self.canvas.curve(&points, color);
    }

    /// Draws a dot at a pair of values.
    pub(super) fn dot(&mut self, x: f64, y: f64, color: &str, hint: &str) {
        let at = self.at(x, y);
        self.canvas.dot(at, 4.0, color, hint);
    }

    /// Draws a dashed line at a value of the vertical axis, if the axis shows it.
    pub(super) fn level(&mut self, y: f64, color: &str) {
        if self.y.shows(y) {
            let y = self.y.at(y);
            self.canvas.line((LEFT, y), (RIGHT, y), color, true);
        }
    }

    /// Draws a dashed line at a value of the horizontal axis, if the axis shows it.
    pub(super) fn upright(&mut self, x: f64, color: &str) {
        if self.x.shows(x) {
            let x = self.x.at(x);
            self.canvas.line((x, self.top), (x, self.bottom), color, true);
        }
    }

    /// Writes into the middle of the panel.
    pub(super) fn say(&mut self, text: &str) {
        let at = ((LEFT + RIGHT) / 2.0, (self.top + self.bottom) / 2.0);
        self.canvas.text(at, Anchor::Middle, Style { color: GREY, ..BODY }, text);
    }

    /// Adds an entry to the legend.
    pub(super) fn legend(&mut self, mark: Mark, text: &str) {
        let (x, y) = (LEGEND, self.legend_y + 4.0);
        match mark {
            Mark::None => {}
            Mark::Line(color) => self.canvas.curve(&[(x, y), (x + 18.0, y)], color),
            Mark::Dashed(color) => self.canvas.line((x, y), (x + 18.0, y), color, true),
            Mark::Box(color) => self.canvas.rect((x + 2.0, y - 5.0), (14.0, 10.0), color, ""),
            Mark::Dot(color) => self.canvas.dot((x + 9.0, y), 4.0, color, ""),
            Mark::Cross => self.canvas.cross((x + 9.0, y), 3.5, ""),
        }
        let text = shortened(text, WIDTH - MARGIN - LEGEND - 25.0, BODY);
        self.canvas.text((x + 25.0, y + 4.0), Anchor::Start, BODY, &text);
        self.legend_y += LINE;
    }

    /// Leaves some room between two parts of the legend.
    pub(super) fn part_legend(&mut self) {
        self.legend_y += 0.4 * LINE;
    }

    /// Ends the panel.
    pub(super) fn close(self) {
        self.canvas.close();
    }
}
