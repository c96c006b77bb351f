//! The results as a picture: bars on a ground of its own, to be read in a light and in a dark page.

use std::fmt::Write as _;

use crate::report::{Row, median, show};

// All in pixels.
const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
/// Two panels stand beside each other.
const PANEL: f64 = 420.0;
/// For the name of a server, and for the longest bar.
const NAME: f64 = 96.0;
const BAR: f64 = 230.0;
/// From one bar to the next, and the thickness of one.
const STEP: f64 = 18.0;
const THICK: f64 = 12.0;
/// The title of a panel, and the space below its bars.
const TITLE: f64 = 24.0;
const SPACE: f64 = 18.0;
/// The title and the subtitle of the whole.
const HEAD: f64 = 72.0;

/// Draws the rows meant for it, two panels a line.
pub fn draw(machine: &str, names: &[String], rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.metric.in_chart).collect();
    let (mut panels, mut top) = (String::new(), HEAD);
    for pair in rows.chunks(2) {
        let mut bars = 0.0_f64;
        for (row, left) in pair.iter().zip([MARGIN, MARGIN + PANEL]) {
            bars = bars.max(panel(&mut panels, names, row, left, top));
        }
        top += TITLE + bars * STEP + SPACE;
    }
    let machine = escape(machine);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img" aria-labelledby="title desc" font-family="system-ui, sans-serif" font-size="12" fill="#1b1f24">
<title id="title">What SOCKS servers do and what it costs</title>
<desc id="desc">Bars of the median of each server for each figure, with a line from the lowest to the highest round. {machine}</desc>
<style>
.ours {{ fill: #0b6fa4 }} .peer {{ fill: #9aa7b2 }} .direct {{ fill: #fff; stroke: #6b7680 }}
.spread {{ stroke: #1b1f24 }} .better {{ fill: #57606a }}
</style>
<rect width="{WIDTH}" height="{top}" rx="8" fill="#fff"/>
<text x="{MARGIN}" y="32" font-size="18" font-weight="bold">What SOCKS servers do and what it costs</text>
<text x="{MARGIN}" y="52" class="better">{machine}</text>
{panels}</svg>
"##
    )
}

/// Draws one panel; returns how many bars it has.
fn panel(out: &mut String, names: &[String], row: &Row, left: f64, top: f64) -> f64 {
    let better = if row.metric.more_is_better { "more is better" } else { "less is better" };
    let _ = writeln!(
        out,
        r#"<text x="{left}" y="{:.1}"><tspan font-weight="bold">{}</tspan> <tspan class="better">({better})</tspan></text>"#,
        top + THICK,
        escape(row.metric.label),
    );
    let all = || row.rounds.iter().flatten().copied();
    let longest = all().max_by(f64::total_cmp).unwrap_or(1.0);
    let (start, mut bars) = (left + NAME, 0.0);
    for (name, rounds) in names.iter().zip(&row.rounds) {
        let Some(middle) = median(rounds) else { continue };
        let long = |number: f64| number / longest * BAR;
        let low = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let high = rounds.iter().copied().fold(0.0, f64::max);
        let y = top + TITLE + bars * STEP;
        let class = match name.as_str() {
            "direct" => "direct",
            _ if name.starts_with("socksd") => "ours",
            _ => "peer",
        };
        let (across, base) = (y + THICK / 2.0, y + THICK - 2.0);
        let (from, to) = (start + long(low), start + long(high));
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{base:.1}" text-anchor="end">{}</text><rect x="{start:.1}" y="{y:.1}" width="{:.1}" height="{THICK}" class="{class}"/><path d="M{from:.1} {across:.1}H{to:.1}" class="spread"/><text x="{:.1}" y="{base:.1}">{}</text>"#,
            start - 6.0,
            escape(name),
            long(middle).max(1.0),
            to + 6.0,
            show(middle),
        );
        bars += 1.0;
    }
    bars
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
