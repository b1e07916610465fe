//! Charts as SVG. Colours, fonts and line widths are the style sheet's, which knows of light and dark.

use super::scale::{Scale, short};
use super::text::escape;
use crate::system::System;
use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// One system's points, in order of x.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) system: System,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over two logarithmic axes.
#[derive(Clone, Debug)]
pub(super) struct Lines<'a> {
    /// What it shows.
    pub(super) title: &'a str,
    /// What x is, with its unit.
    pub(super) x_label: &'a str,
    /// What y is, with its unit.
    pub(super) y_label: &'a str,
    /// Behind the numbers of x.
    pub(super) x_suffix: &'a str,
    /// Whether x has a tick at each value, because these were chosen.
    pub(super) x_is_chosen: bool,
    /// Whether points are marked: where there are few.
    pub(super) marked: bool,
    /// The lines.
    pub(super) series: Vec<Series>,
}

impl Lines<'_> {
    /// The chart, with its legend; nothing if there is nothing to draw.
    pub(super) fn to_html(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        if points().count() == 0 {
            return String::new();
        }
        let place = (LEFT, WIDTH - RIGHT);
        let xs = points().map(|point| point.0);
        let x = if self.x_is_chosen { Scale::chosen(xs, place) } else { Scale::decades(xs, place) };
        let y = Scale::decades(points().map(|point| point.1), (HEIGHT - BOTTOM, TOP));
        let mut svg = String::new();
        self.grid(&x, &y, &mut svg);
        for series in &self.series {
            self.line(series, &x, &y, &mut svg);
        }
        figure(self.title, HEIGHT, &svg, self.series.iter().map(|series| series.system))
    }

    fn grid(&self, x: &Scale, y: &Scale, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, at) in y.ticks() {
            put(
                svg,
                format_args!(r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#),
            );
            let (text, below) = (short(value), at + 4.0);
            put(
                svg,
                format_args!(
                    r#"<text class="tick" x="{:.1}" y="{below:.1}" text-anchor="end">{text}</text>"#,
                    LEFT - 6.0
                ),
            );
        }
        for (value, at) in x.ticks() {
            put(
                svg,
                format_args!(r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/>"#),
            );
            let text = format!("{}{}", short(value), self.x_suffix);
            put(
                svg,
                format_args!(
                    r#"<text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                    bottom + 16.0
                ),
            );
        }
        let (middle, low) = (f64::midpoint(LEFT, right), HEIGHT - 8.0);
        let label = escape(self.x_label);
        put(
            svg,
            format_args!(
                r#"<text class="label" x="{middle:.1}" y="{low}" text-anchor="middle">{label}</text>"#
            ),
        );
        let (middle, label) = (f64::midpoint(TOP, bottom), escape(self.y_label));
        put(
            svg,
            format_args!(
                r#"<text class="label" transform="translate(14 {middle:.1}) rotate(-90)" text-anchor="middle">{label}</text>"#
            ),
        );
    }

    fn line(&self, series: &Series, x: &Scale, y: &Scale, svg: &mut String) {
        let name = series.system.name();
        let seen = series.points.iter().filter(|point| point.1 >= y.low() * 0.999);
        let places: Vec<String> =
            seen.map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1))).collect();
        put(svg, format_args!(r#"<polyline class="line s-{name}" points="{}"/>"#, places.join(" ")));
        for point in series.points.iter().filter(|_| self.marked) {
            let (cx, cy) = (x.at(point.0), y.at(point.1));
            let told = format!("{name}: {} at {}{}", short(point.1), short(point.0), self.x_suffix);
            put(
                svg,
                format_args!(
                    r#"<circle class="mark s-{name}" cx="{cx:.1}" cy="{cy:.1}" r="3.5"><title>{told}</title></circle>"#
                ),
            );
        }
    }
}

/// Bars of several groups, one for each system, over a logarithmic axis.
#[derive(Clone, Debug)]
pub(super) struct Bars<'a> {
    /// What it shows.
    pub(super) title: &'a str,
    /// What the length of a bar is, with its unit.
    pub(super) label: &'a str,
    /// Groups with their names.
    pub(super) groups: Vec<(&'a str, Vec<(System, f64)>)>,
}

const BAR: f64 = 13.0;
const BETWEEN: f64 = 12.0;
const BAR_LEFT: f64 = 84.0;
/// Room for the number behind the longest bar.
const BAR_RIGHT: f64 = 52.0;

impl Bars<'_> {
    /// The chart, with its legend; nothing if there is nothing to draw.
    pub(super) fn to_html(&self) -> String {
        let bars = || self.groups.iter().flat_map(|group| group.1.iter());
        if bars().count() == 0 {
            return String::new();
        }
        let x = Scale::decades(bars().map(|bar| bar.1), (BAR_LEFT, WIDTH - BAR_RIGHT));
        let heights = self.groups.iter().map(|group| group.1.len() as f64 * BAR + BETWEEN);
        let bottom = TOP + heights.sum::<f64>();
        let mut svg = String::new();
        for (value, at) in x.ticks() {
            put(
                &mut svg,
                format_args!(r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom:.1}"/>"#),
            );
            let (text, below) = (short(value), bottom + 16.0);
            put(
                &mut svg,
                format_args!(
                    r#"<text class="tick" x="{at:.1}" y="{below:.1}" text-anchor="middle">{text}</text>"#
                ),
            );
        }
        let mut top = TOP + BETWEEN / 2.0;
        for (name, bars) in &self.groups {
            let middle = top + bars.len() as f64 * BAR / 2.0 + 4.0;
            let (name, end) = (escape(name), BAR_LEFT - 8.0);
            put(
                &mut svg,
                format_args!(
                    r#"<text class="name" x="{end}" y="{middle:.1}" text-anchor="end">{name}</text>"#
                ),
            );
            for (system, value) in bars {
                bar(*system, *value, x.at(*value), top, &mut svg);
                top += BAR;
            }
            top += BETWEEN;
        }
        let (middle, low, label) =
            (f64::midpoint(BAR_LEFT, WIDTH - BAR_RIGHT), bottom + 38.0, escape(self.label));
        put(
            &mut svg,
            format_args!(
                r#"<text class="label" x="{middle:.1}" y="{low:.1}" text-anchor="middle">{label}</text>"#
            ),
        );
        figure(self.title, bottom + BOTTOM, &svg, bars().map(|bar| bar.0))
    }
}

fn bar(system: System, value: f64, end: f64, top: f64, svg: &mut String) {
    let (name, number) = (system.name(), short(value));
    let (length, height, below) = (end - BAR_LEFT, BAR - 2.0, top + BAR - 3.5);
    put(
        svg,
        format_args!(
            r#"<rect class="bar s-{name}" x="{BAR_LEFT}" y="{top:.1}" width="{length:.1}" height="{height}" rx="2"><title>{name}: {number}</title></rect>"#
        ),
    );
    let at = end + 5.0;
    put(svg, format_args!(r#"<text class="number" x="{at:.1}" y="{below:.1}">{number}</text>"#));
}

/// Puts a drawing under its title and its legend.
fn figure(title: &str, height: f64, svg: &str, systems: impl Iterator<Item = System>) -> String {
    let used: Vec<System> = systems.collect();
    let shown = System::ALL.into_iter().filter(|system| used.contains(system));
    let legend: String = shown
        .map(|system| format!(r#"<span class="key"><i class="s-{0}"></i>{0}</span>"#, system.name()))
        .collect();
    let title = escape(title);
    format!(
        r#"<figure><figcaption>{title}</figcaption><div class="legend">{legend}</div><svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{title}">{svg}</svg></figure>
"#
    )
}

fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines<'static> {
        Lines {
            title: "speed & size",
            x_label: "working set <over> budget",
            y_label: "MB/s",
            x_suffix: "x",
            x_is_chosen: true,
            marked: true,
            series: vec![
                Series { system: System::Hmm, points: vec![(0.5, 1000.0), (2.0, 100.0)] },
                Series { system: System::Zram, points: vec![(0.5, 900.0), (2.0, 20.0)] },
            ],
        }
    }

    #[test]
    fn lines_are_where_their_values_say() {
        let html = lines().to_html();
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        // Two decades from 10 to 1000, so 100 is in the middle.
        let middle = f64::midpoint(TOP, bottom);
        assert!(
            html.contains(&format!(r#"s-hmm" points="{LEFT:.1},{TOP:.1} {right:.1},{middle:.1}""#)),
            "{html}"
        );
        assert!(
            html.contains("working set &lt;over&gt; budget") && html.contains("speed &amp; size"),
            "{html}"
        );
        assert!(html.contains("<title>zram: 20 at 2x</title>") && html.contains("</i>zram</span>"), "{html}");
        assert!(!html.contains("</i>ram</span>"), "the legend has only what is drawn: {html}");
        for tick in [">10<", ">100<", ">1000<", ">0.5x<", ">2x<"] {
            assert!(html.contains(tick), "{tick}: {html}");
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let groups = vec![("seqread", vec![(System::Ram, 1000.0), (System::Hmm, 100.0)]), ("sort", vec![])];
        let html = Bars { title: "t", label: "MB/s", groups }.to_html();
        // One decade from 100 to 1000.
        let whole = WIDTH - BAR_LEFT - BAR_RIGHT;
        assert!(
            html.contains(&format!(r#"width="{whole:.1}""#)) && html.contains(r#"width="0.0""#),
            "{html}"
        );
        assert!(html.contains(">1000</text>") && html.contains(">MB/s</text>"), "{html}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(Lines { series: Vec::new(), ..lines() }.to_html(), "");
        assert_eq!(Bars { title: "t", label: "l", groups: vec![("a", vec![])] }.to_html(), "");
    }
}
