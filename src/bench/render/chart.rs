//! A line chart with a logarithmic axis, as a part of an SVG.

use std::fmt::Write;

/// Lines over places that are the same distance apart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// Below the places.
    pub(super) x_label: String,
    /// Beside the values.
    pub(super) y_label: String,
    /// The places.
    pub(super) places: Vec<String>,
    pub(super) lines: Vec<Line>,
    /// How a value is written at its axis.
    pub(super) tick: fn(f64) -> String,
}

/// The values of one contestant, by place.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) colour: &'static str,
    /// A pattern of dashes; empty: drawn through.
    pub(super) dashes: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

impl Chart {
    /// Draws it with its upper edge here.
    pub(super) fn draw(&self, top: f64, svg: &mut String) {
        let values = self.lines.iter().flat_map(|line| line.values.iter());
        let values: Vec<f64> = values
            .flatten()
            .copied()
            .filter(|value| *value > 0.0)
            .collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let (low, high) = decades(least, most);
        let frame = Frame { top, low, high };
        put(
            svg,
            format_args!(
                "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
                top + 18.0,
                escape(&self.title)
            ),
        );
        self.axes(&frame, svg);
        for (number, line) in self.lines.iter().enumerate() {
            self.line(&frame, line, svg);
            let y = top + HEAD + 12.0 + 16.0 * place(number);
            let x = LEFT + WIDTH + 20.0;
            put(
                svg,
                format_args!(
                    "<line x1=\"{x}\" y1=\"{:.1}\" x2=\"{}\" y2=\"{:.1}\" stroke=\"{}\" stroke-width=\"2.5\" stroke-dasharray=\"{}\"/>\n",
                    y - 4.0,
                    x + 26.0,
                    y - 4.0,
                    line.colour,
                    line.dashes
                ),
            );
            put(
                svg,
                format_args!(
                    "<text x=\"{}\" y=\"{y:.1}\">{}</text>\n",
                    x + 32.0,
                    escape(&line.name)
                ),
            );
        }
    }

    fn axes(&self, frame: &Frame, svg: &mut String) {
        let bottom = frame.bottom();
        for decade in frame.low..=frame.high {
            let value = 10f64.powi(decade);
            let y = frame.y(value);
            put(
                svg,
                format_args!(
                    "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\n",
                    LEFT + WIDTH
                ),
            );
            put(
                svg,
                format_args!(
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                    LEFT - 8.0,
                    y + 4.0,
                    escape(&(self.tick)(value))
                ),
            );
        }
        for (number, name) in self.places.iter().enumerate() {
            put(
                svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                    self.x(number),
                    bottom + 18.0,
                    escape(name)
                ),
            );
        }
        put(
            svg,
            format_args!(
                "<path d=\"M{LEFT} {:.1}V{bottom:.1}H{}\" fill=\"none\" stroke=\"#444\"/>\n",
                frame.top + HEAD,
                LEFT + WIDTH
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                LEFT + WIDTH / 2.0,
                bottom + 38.0,
                escape(&self.x_label)
            ),
        );
        let middle = frame.top + HEAD + PLOT / 2.0;
        put(
            svg,
            format_args!(
                "<text transform=\"translate(16 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                escape(&self.y_label)
            ),
        );
    }

    fn line(&self, frame: &Frame, line: &Line, svg: &mut String) {
        let values = line.values.iter().enumerate();
        let points: Vec<(f64, f64)> = values
            .filter_map(|(number, value)| Some((self.x(number), frame.y((*value)?))))
            .collect();
        let path: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        put(
            svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>\n",
                path.join(" "),
                line.colour,
                line.dashes
            ),
        );
        for (x, y) in points {
            put(
                svg,
                format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"/>\n",
                    line.colour
                ),
            );
        }
    }

    fn x(&self, number: usize) -> f64 {
        let gaps = place(self.places.len().saturating_sub(1)).max(1.0);
        LEFT + 30.0 + (WIDTH - 60.0) * place(number) / gaps
    }
}

/// Where values lie.
struct Frame {
    top: f64,
    low: i32,
    high: i32,
}

impl Frame {
    fn bottom(&self) -> f64 {
        self.top + HEAD + PLOT
    }

    fn y(&self, value: f64) -> f64 {
        let decades = f64::from(self.high - self.low);
        let at = (value.max(f64::MIN_POSITIVE).log10() - f64::from(self.low)) / decades;
        self.bottom() - PLOT * at.clamp(0.0, 1.0)
    }
}

/// The powers of ten around some values.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the logarithm of a figure is small"
)]
fn decades(least: f64, most: f64) -> (i32, i32) {
    if !least.is_finite() {
        return (0, 1);
    }
    let low = least.log10().floor() as i32;
    let high = most.log10().ceil() as i32;
    (low, high.max(low + 1))
}

/// A small count to draw with.
fn place(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Text as it may stand in XML.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

pub(super) fn put(svg: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = svg.write_fmt(arguments);
}

/// How high a chart is with so many lines in its legend.
pub(super) fn height(lines: usize) -> f64 {
    HEAD + PLOT.max(16.0 * place(lines)) + FOOT
}

/// How wide a picture is.
pub(super) const PICTURE_WIDTH: f64 = LEFT + WIDTH + LEGEND;
const LEFT: f64 = 96.0;
const WIDTH: f64 = 560.0;
const LEGEND: f64 = 190.0;
const HEAD: f64 = 32.0;
const PLOT: f64 = 280.0;
const FOOT: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_powers_of_ten() {
        for (least, most, want) in [
            (1.0, 10.0, (0, 1)),
            (0.8, 1.2, (-1, 1)),
            (5_000.0, 400_000.0, (3, 6)),
            (7.0, 7.0, (0, 1)),
            (100.0, 100.0, (2, 3)),
            (f64::INFINITY, 0.0, (0, 1)),
        ] {
            assert_eq!(decades(least, most), want, "{least} {most}");
        }
    }
}
