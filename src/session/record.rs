//! The record of a session: the fields of its log lines, while it runs and at its end; and why it ends
//! before its relay.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::log::{Level, Line, Log};
use crate::policy::rules::{Logging, Rule, RuleRef};
use crate::relay::{End, Side, Traffic};
use crate::stats::{Stats, Words};
use crate::wire::{Command, Destination, Request, Version};

/// The fields of a session's log lines.
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) client: Option<SocketAddr>,
    pub(super) begun: Instant,
    pub(super) user: Vec<u8>,
    pub(super) version: Option<Version>,
    pub(super) command: Option<Command>,
    pub(super) dst: Option<Destination>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) local: Option<Destination>,
    pub(super) reply: Option<u8>,
    /// The rule that decided, and its logging.
    rule: Option<RuleRef>,
    logging: Option<Logging>,
    pub(super) traffic: Arc<Traffic>,
}

impl Record {
    pub(super) fn new(number: u64, client: Option<SocketAddr>) -> Self {
        Self {
            number,
            client,
            begun: Instant::now(),
            user: Vec::new(),
            version: None,
            command: None,
            dst: None,
            peer: None,
            local: None,
            reply: None,
            rule: None,
            logging: None,
            traffic: Arc::default(),
        }
    }

    /// The words by which the end is counted. All unknown commands share one, since clients could
    /// invent 253.
    fn tally_words(&self, reason: &'static str) -> Words {
        let version = self.version.map_or("-", Version::word);
        let command = self.command.map_or("-", |command| command.word().unwrap_or("unknown"));
        [version, command, reason]
    }

    /// Begins the line of an event of this session.
    pub(super) fn line(&self, log: &Log, event: &'static str) -> Line {
        self.add_identity(log.line(event))
    }

    /// Adds the fields that identify the session and its request.
    pub(super) fn add_identity(&self, line: Line) -> Line {
        let line = line
            .number("session", self.number)
            .client(self.client)
            .octets("user", &self.user)
            .word_or_dash("version", self.version)
            .word_or_dash("command", self.command);
        let line = destination(line, "dst", self.dst.as_ref()).address("addr", self.peer);
        destination(line, "local", self.local.as_ref()).word_or_dash("rule", self.rule.as_ref())
    }

    /// The client's address, if it has one.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.client.map(|addr| addr.ip())
    }

    /// Adds the reply code, the numbers of bytes and the time.
    pub(super) fn add_totals(&self, line: Line) -> Line {
        let line = match self.reply {
            Some(code) => line.word("reply", format_args!("{code:02x}")),
            None => line.dash("reply"),
        };
        line.number("up", self.traffic.up.load(Ordering::Relaxed))
            .number("down", self.traffic.down.load(Ordering::Relaxed))
            .number("dropped", self.traffic.dropped().map(|(_, count)| count).sum::<u64>())
            .seconds("seconds", self.begun.elapsed())
    }

    /// Notes the client's request.
    pub(super) fn set_request(&mut self, request: &Request) {
        self.version = Some(request.version);
        self.command = Some(request.command);
        self.dst = Some(request.dst.clone());
    }

    /// Notes the rule that decides on the request, if there is one.
    pub(super) fn set_rule(&mut self, rule: Option<&Rule>) {
        self.rule = rule.map(|rule| rule.place.clone());
        self.logging = rule.and_then(|rule| rule.settings.log);
    }

    /// Logs an event within the session, as far as its rule says.
    pub(super) fn log_event(&self, log: &Log, event: &'static str) {
        let level = match self.logging {
            Some(Logging::No) => return,
            Some(Logging::Verbose) => Level::Normal,
            None => Level::Verbose,
        };
        if log.wants(level) {
            log.write(level, self.line(log, event));
        }
    }

    /// Counts and logs the end of the session.
    pub(super) fn log_end(&self, log: &Log, stats: &Stats, stop: &Stop) {
        let count = |reason| stats.ended.add(self.tally_words(reason));
        match stop {
            Stop::Ended(end) => {
                count(end.word());
                self.write_end(log, "close", Level::Normal, end.word(), None);
            }
            Stop::Refused { level, reason, error } => {
                count(reason);
                self.write_end(log, "refuse", *level, reason, Some(error));
            }
        }
    }

    fn write_end(
        &self,
        log: &Log,
        event: &'static str,
        level: Level,
        reason: impl Display,
        error: Option<&str>,
    ) {
        if !log.wants(level) || self.logging == Some(Logging::No) {
            return;
        }
        let line = self.add_totals(self.line(log, event)).word("reason", reason);
        log.write(
            level,
            match error {
                Some(error) => line.text("error", error),
                None => line,
            },
        );
    }
}

fn destination(line: Line, key: &'static str, dst: Option<&Destination>) -> Line {
    match dst {
        Some(Destination::Name(name, port)) => line.host(key, name, *port),
        Some(Destination::Address(addr)) => line.address(key, Some(*addr)),
        None => line.address(key, None),
    }
}

/// The reason why a session ends before its relay.
pub(super) enum Stop {
    /// It ended without a refusal.
    Ended(End),
    /// The server refused it.
    Refused { level: Level, reason: &'static str, error: String },
}

impl Stop {
    /// The client left.
    pub(super) const GONE: Self = Self::Ended(End::Closed(Side::Client));

    /// A refusal, logged at the level of ordinary sessions.
    pub(super) fn refused(reason: &'static str, error: impl Display) -> Self {
        Self::Refused { level: Level::Normal, reason, error: error.to_string() }
    }
}
