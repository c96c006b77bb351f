//! The results as text: tables that a README takes as they are.

use std::fmt::Write as _;

use crate::figures::Metric;

/// A metric and what was measured of it.
pub struct Row {
    pub metric: &'static Metric,
    /// The numbers of each server, one from each round; none where it has failed.
    pub rounds: Vec<Vec<f64>>,
}

/// The middle one of some numbers.
pub fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// A number with three digits that count, or as many as are before the point.
pub fn show(number: f64) -> String {
    let digits = [1000.0, 100.0, 10.0].iter().take_while(|limit| number < **limit).count();
    let text = format!("{number:.*}", digits.saturating_sub(1));
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut shown = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown + rest
}

/// The medians.
pub fn medians(names: &[String], rows: &[Row]) -> String {
    table("median", names, rows, |rounds, _| median(rounds).map(show))
}

/// The lowest and the highest of all rounds.
pub fn spread(names: &[String], rows: &[Row]) -> String {
    table("lowest to highest", names, rows, |rounds, _| {
        let low = rounds.iter().copied().min_by(f64::total_cmp)?;
        let high = rounds.iter().copied().max_by(f64::total_cmp)?;
        Some(format!("{} to {}", show(low), show(high)))
    })
}

/// How far each server is from the first one: the median of what the rounds say.
pub fn against_first(names: &[String], rows: &[Row]) -> String {
    table(&format!("against {}", names[0]), names, rows, |rounds, first| {
        let ratios: Vec<f64> = rounds.iter().zip(first).map(|(own, first)| own / first).collect();
        let ratio = median(&ratios).filter(|ratio| ratio.is_finite())?;
        Some(format!("{:+.1} %", (ratio - 1.0) * 100.0))
    })
}

fn table(
    title: &str,
    names: &[String],
    rows: &[Row],
    cell: impl Fn(&[f64], &[f64]) -> Option<String>,
) -> String {
    let mut lines = vec![[&[title.to_owned()], names].concat()];
    for row in rows {
        let cells = row.rounds.iter().map(|rounds| cell(rounds, &row.rounds[0]));
        let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
        lines.push([row.metric.label.to_owned()].into_iter().chain(cells).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..=names.len()).map(|column| width(column).unwrap()).collect();
    let rule = widths.iter().enumerate().map(|(column, width)| match column {
        0 => "-".repeat(*width),
        _ => "-".repeat(width - 1) + ":",
    });
    lines.insert(1, rule.collect());
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                0 => write!(text, "| {cell:width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
    }
    text
}
