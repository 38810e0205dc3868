//! Converts values to pixels, and chooses the ticks of an axis.

/// Largest number of ticks of an axis.
const TICKS_MAX: usize = 9;
/// An axis is logarithmic if the largest of its values is this many times the smallest.
const LOG_FROM: f64 = 20.0;

/// One axis of a panel.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    /// Pixels of `low` and of `high`.
    pixels: (f64, f64),
    /// Values and labels.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis that contains these values and 0. Values are at least 0.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>, pixels: (f64, f64)) -> Self {
        let high = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self::linear(0.0, if high > 0.0 { high } else { 1.0 }, pixels)
    }

    /// An axis that contains these values: logarithmic if they differ much, else linear. A logarithmic axis draws values near 0
    /// at its lower end.
    pub(super) fn around(values: &[f64], pixels: (f64, f64)) -> Self {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else {
            return Self::linear(0.0, 1.0, pixels);
        };
        let usual = sorted[sorted.len() / 20];
        if usual > 0.0 && high / usual > LOG_FROM {
            return Self::logarithmic(low.max(usual / 10.0), *high, pixels);
        }
        // The curve may begin anywhere, but 0 is shown if it is near.
        let low = if *low < 0.5 * high { 0.0 } else { *low };
        Self::linear(low, if *high > low { *high } else { low + low.abs().max(1e-3) * 0.1 }, pixels)
    }

    fn linear(low: f64, high: f64, pixels: (f64, f64)) -> Self {
        let step = step((high - low) / (TICKS_MAX - 2) as f64);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let count = (last - first) as usize;
        let places = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (0..=count).map(|n| (first + n as f64) * step).map(|value| (value, label(value, places)));
        Self { low: first * step, high: last * step, is_log: false, pixels, ticks: ticks.collect() }
    }

    fn logarithmic(low: f64, high: f64, pixels: (f64, f64)) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let decade = |power: i32| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power));
        let all: Vec<f64> = (first..=last).flat_map(decade).collect();
        let from = all.iter().rposition(|tick| *tick <= low * (1.0 + 1e-9)).unwrap_or(0);
        let to = all.iter().position(|tick| *tick >= high * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
        let inside = &all[from..=to.max(from)];
        let is_power = |tick: f64| (tick.log10() - tick.log10().round()).abs() < 1e-6;
        let sparse = inside.len() > TICKS_MAX + 2;
        let ticks = inside.iter().copied().filter(|tick| !sparse || is_power(*tick));
        let places = |tick: f64| (-(tick.log10() + 1e-9).floor()).max(0.0) as usize;
        let ticks = ticks.map(|tick| (tick, label(tick, places(tick)))).collect();
        Self { low: inside[0], high: inside[inside.len() - 1], is_log: true, pixels, ticks }
    }

    /// An axis with these limits and ticks.
    pub(super) fn with_ticks(
        (low, high): (f64, f64),
        ticks: impl IntoIterator<Item = (f64, String)>,
        pixels: (f64, f64),
    ) -> Self {
        Self { low, high, is_log: false, pixels, ticks: ticks.into_iter().collect() }
    }

    /// The pixel of a value. Values outside the axis are at its end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let scaled = |value: f64| if self.is_log { value.ln() } else { value };
        let (low, high) = (scaled(self.low), scaled(self.high));
        let (from, to) = self.pixels;
        from + (to - from) * (scaled(value) - low) / (high - low)
    }

    /// True if the axis shows this value.
    pub(super) fn shows(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A number with this many places and commas between thousands.
fn label(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) && digit.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

/// A whole number as it is, another one with three significant digits or all digits before the point.
pub(super) fn rounded(value: f64) -> String {
    let places = if value.fract() == 0.0 { 0.0 } else { (2.0 - value.abs().log10().floor()).clamp(0.0, 4.0) };
    label(value, places as usize)
}
