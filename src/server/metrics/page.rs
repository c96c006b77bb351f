//! The HTML page with the sessions that relay, without script or style.

use std::fmt::Write as _;

use crate::log::Line;
use crate::server::metrics::http::Response;
use crate::session::live::LiveSessions;

/// Maximum of sessions on the page.
const ROWS_MAX: usize = 1_000;

pub(super) fn page(live: &LiveSessions) -> Response {
    let (count, lines) = live.lines(ROWS_MAX, Line::of_cells);
    let mut body = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>socksd</title>\
         </head><body>\n<h1>socksd</h1>\n<p>Sessions that relay: {count}</p>\n<table border=\"1\">\n"
    );
    for (index, line) in lines.enumerate() {
        if index == 0 {
            row(&mut body, "th", line.cells().map(|(key, _)| key));
        }
        row(&mut body, "td", line.cells().map(|(_, value)| value));
    }
    body.push_str("</table>\n");
    if count > ROWS_MAX {
        let _ = writeln!(body, "<p>Only the first {ROWS_MAX} are shown.</p>");
    }
    body.push_str("<p><a href=\"/metrics\">Metrics</a></p>\n</body></html>\n");
    Response { status: "200 OK", content: "text/html; charset=utf-8", body }
}

fn row<'a>(body: &mut String, cell: &str, texts: impl Iterator<Item = &'a str>) {
    body.push_str("<tr>");
    for text in texts {
        let _ = write!(body, "<{cell}>");
        text.chars().for_each(|c| match c {
            '&' => body.push_str("&amp;"),
            '<' => body.push_str("&lt;"),
            '>' => body.push_str("&gt;"),
            '"' => body.push_str("&quot;"),
            '\'' => body.push_str("&#39;"),
            c => body.push(c),
        });
        let _ = write!(body, "</{cell}>");
    }
    body.push_str("</tr>\n");
}
