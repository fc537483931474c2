//! Plots as SVG, to be put into the page as they are.

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

use super::Summary;

const WIDTH: u32 = 860;
const FONT: &str = "sans-serif";
/// CloseDetails apart by people who do not tell red from green (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(150, 60, 60),
];

/// A named line of points.
pub struct Line {
    /// For the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// One bar for each name, its length the median, with a line from the lowest to the highest run.
pub fn bars(unit: &str, bars: &[(String, Summary)]) -> String {
    // A segmented axis of 0..n has n + 1 places.
    let last = bars.len().saturating_sub(1);
    draw(60 + 34 * bars.len() as u32, |area| {
        let longest = bars.iter().map(|(_, s)| s.high).fold(0.0, f64::max).max(1e-9);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(24)
            .set_label_area_size(LabelAreaPosition::Left, 170)
            .set_label_area_size(LabelAreaPosition::Bottom, 40)
            .build_cartesian_2d(0.0..longest * 1.05, (0..last).into_segmented())
            .map_err(text_of)?;
        let name = |value: &SegmentValue<usize>| match value {
            // Segments count from below, people read from above.
            SegmentValue::CenterOf(index) if *index < bars.len() => {
                bars[bars.len() - 1 - index].0.clone()
            }
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_labels(bars.len() + 1)
            .y_label_formatter(&name)
            .x_desc(unit)
            .label_style((FONT, 14))
            .draw()
            .map_err(text_of)?;
        for (index, (_, summary)) in bars.iter().enumerate() {
            let row = bars.len() - 1 - index;
            let corners =
                [(0.0, SegmentValue::Exact(row)), (summary.median, SegmentValue::Exact(row + 1))];
            let mut bar = Rectangle::new(corners, COLOURS[index % COLOURS.len()].filled());
            bar.set_margin(6, 6, 0, 0);
            let middle = SegmentValue::CenterOf(row);
            let whisker = PathElement::new(
                vec![(summary.low, middle.clone()), (summary.high, middle)],
                BLACK.stroke_width(2),
            );
            chart.draw_series(std::iter::once(bar)).map_err(text_of)?;
            chart.draw_series(std::iter::once(whisker)).map_err(text_of)?;
        }
        Ok(())
    })
}

/// Where latencies stand on the axis of [`quantiles`]: each step has a tenth of the rest.
pub const QUANTILES: [(&str, f64); 4] = [("p50", 0.0), ("p90", 1.0), ("p99", 2.0), ("p99.9", 3.0)];

/// Latencies over quantiles, on a logarithmic axis.
pub fn quantiles(unit: &str, lines: &[Line]) -> String {
    let name = |place: &f64| {
        let known = QUANTILES.iter().find(|(_, at)| (at - place).abs() < 0.01);
        known.map_or(String::new(), |(name, _)| (*name).to_owned())
    };
    lines_over(lines, "quantile", unit, (0.0, 3.0), 4, &name)
}

/// A value over sizes, whose steps are even on a logarithmic axis: `points` hold log2 of them.
pub fn over_sizes(what: &str, unit: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
    let (from, to) = (all().fold(f64::MAX, f64::min), all().fold(f64::MIN, f64::max));
    let name = |place: &f64| format!("{:.0}", place.exp2());
    lines_over(lines, what, unit, (from, to.max(from + 0.1)), 6, &name)
}

fn lines_over(
    lines: &[Line],
    what: &str,
    unit: &str,
    range: (f64, f64),
    labels: usize,
    name: &dyn Fn(&f64) -> String,
) -> String {
    let heights = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let low = heights().filter(|height| *height > 0.0).fold(f64::MAX, f64::min).min(1e9);
    let high = heights().fold(f64::MIN, f64::max).max(low);
    draw(380, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .set_label_area_size(LabelAreaPosition::Left, 80)
            .set_label_area_size(LabelAreaPosition::Bottom, 44)
            .build_cartesian_2d(range.0..range.1, (low * 0.8..high * 1.25).log_scale())
            .map_err(text_of)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(labels)
            .x_label_formatter(&|place| name(place))
            .y_label_formatter(&|height| super::number(*height))
            .x_desc(what)
            .y_desc(unit)
            .label_style((FONT, 14))
            .draw()
            .map_err(text_of)?;
        for (index, line) in lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = || line.points.iter().copied().filter(|point| point.1 > 0.0);
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))
                .map_err(text_of)?
                .label(&line.name)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
                });
            let dots = points().map(|point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots).map_err(text_of)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((FONT, 14))
            .draw()
            .map_err(text_of)
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws; a plot that cannot be drawn says so in its place rather than cost the whole report.
fn draw(height: u32, paint: impl FnOnce(&Area<'_>) -> Result<(), String>) -> String {
    let mut svg = String::new();
    let outcome = {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)
            .map_err(text_of)
            .and_then(|()| paint(&area))
            .and_then(|()| area.present().map_err(text_of))
    };
    match outcome {
        Ok(()) => svg,
        Err(error) => {
            format!("<p>This plot could not be drawn: {}</p>", super::page::escape(&error))
        }
    }
}

fn text_of<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> String {
    error.to_string()
}
