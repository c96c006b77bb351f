//! The metrics in the text format of Prometheus, version 0.0.4. Labels are constants of the
//! program, never text from a peer.

use std::fmt::{self, Display, Formatter, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::server::metrics::http::Response;
use crate::server::slots::{Sessions, Totals};
use crate::session::service::Service;
use crate::stats::Histogram;

pub(super) fn metrics(service: &Service, sessions: &Sessions, started: SystemTime) -> Response {
    let (resources, traffic) = (&service.resources, service.live.traffic());
    let max = sessions.limits().sessions;
    let Totals { sessions, half_open, accepted, refused } = sessions.totals();
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = Text(String::with_capacity(8 * 1024));

    let version = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
    text.family("socksd_build_info", "gauge", "The version of the program; always 1.", version);
    let help = "Start of the server in seconds since 1970.";
    text.family("process_start_time_seconds", "gauge", help, [([], Seconds(started))]);

    let help = "Sessions accepted.";
    text.family("socksd_sessions_started_total", "counter", help, [([], accepted)]);
    let ended = resources.stats.ended.counts().map(|(&[version, command, reason], count)| {
        ([("version", version), ("command", command), ("reason", reason)], count)
    });
    text.family("socksd_sessions_ended_total", "counter", "Sessions ended.", ended);
    text.family("socksd_sessions", "gauge", "Current sessions.", [([], sessions)]);
    let help = "Sessions whose handshake is not complete.";
    text.family("socksd_sessions_half_open", "gauge", help, [([], half_open)]);
    let help = "Maximum number of sessions.";
    text.family("socksd_sessions_max", "gauge", help, [([], max)]);
    let refused = refused.map(|(refusal, count)| ([("limit", refusal.word())], count));
    let help = "Connections closed without a reply because of a limit.";
    text.family("socksd_connections_refused_total", "counter", help, refused);
    let help = "Passwords that were wrong or of an expired account.";
    let failures = [([], load(&resources.stats.auth_failures))];
    text.family("socksd_auth_failures_total", "counter", help, failures);

    let directions = |up, down| [("up", up), ("down", down)];
    let labelled = |(direction, count)| ([("direction", direction)], load(count));
    let octets = directions(&traffic.up, &traffic.down).map(labelled);
    text.family("socksd_relayed_bytes_total", "counter", "Bytes of payload relayed.", octets);
    let datagrams = directions(&traffic.datagrams_up, &traffic.datagrams_down).map(labelled);
    text.family("socksd_datagrams_total", "counter", "Datagrams relayed.", datagrams);
    let dropped = traffic.dropped().map(|(cause, count)| ([("cause", cause.word())], count));
    let help = "Datagrams and fragments not relayed.";
    text.family("socksd_datagrams_dropped_total", "counter", help, dropped);

    let help = "How long CONNECT and BIND waited for a name.";
    text.histogram("socksd_resolve_duration_seconds", help, &resources.stats.resolve);
    let help = "How long CONNECT waited for a connection.";
    text.histogram("socksd_connect_duration_seconds", help, &resources.stats.connect);
    let help = "Names being looked up or queued.";
    text.family("socksd_resolver_names", "gauge", help, [([], resources.resolver.waiting())]);

    let content = "text/plain; version=0.0.4; charset=utf-8";
    Response { status: "200 OK", content, body: text.0 }
}

/// A time in seconds, without trailing zeros.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:09}", self.0.subsec_nanos());
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{}", self.0.as_secs()),
            decimals => write!(f, "{}.{decimals}", self.0.as_secs()),
        }
    }
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds a counter or a gauge with all its samples.
    fn family<const LABELS: usize>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'static str); LABELS], impl Display)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in samples {
            self.sample(name, &labels, &value);
        }
    }

    // One function for all types of values, to save code.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
        let labels = labels.iter().map(|(label, word)| format!("{label}=\"{word}\""));
        let labels = labels.collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// Adds a histogram.
    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let (sums, count, sum) = histogram.sums();
        for (bound, count) in sums {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {count}", Seconds(bound));
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {count}", Seconds(sum));
    }
}
