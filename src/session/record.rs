//! What the log says of a session, while it runs and at its end.

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

/// What the log says of a session.
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
    /// The rule that decided, and what it has logged.
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

    /// What it is counted as. A command that is none has no word: clients could make up 253.
    fn words(&self, reason: &'static str) -> Words {
        let version = self.version.map_or("-", Version::word);
        let command = self.command.map_or("-", |command| command.word().unwrap_or("unknown"));
        [version, command, reason]
    }

    /// Begins the line of an event of this session.
    pub(super) fn line(&self, log: &Log, event: &'static str) -> Line {
        self.described(log.line(event))
    }

    /// Adds what the session is.
    pub(super) fn described(&self, line: Line) -> Line {
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

    /// Adds what there is to count.
    pub(super) fn counted(&self, line: Line) -> Line {
        let line = match self.reply {
            Some(code) => line.word("reply", format_args!("{code:02x}")),
            None => line.dash("reply"),
        };
        line.number("up", self.traffic.up.load(Ordering::Relaxed))
            .number("down", self.traffic.down.load(Ordering::Relaxed))
            .number("dropped", self.traffic.dropped().map(|(_, count)| count).sum::<u64>())
            .seconds("seconds", self.begun.elapsed())
    }

    /// Notes what the client asks for.
    pub(super) fn asked(&mut self, request: &Request) {
        self.version = Some(request.version);
        self.command = Some(request.command);
        self.dst = Some(request.dst.clone());
    }

    /// Notes the rule that decided, if one did.
    pub(super) fn decided_by(&mut self, rule: Option<&Rule>) {
        self.rule = rule.map(|rule| rule.place.clone());
        self.logging = rule.and_then(|rule| rule.settings.log);
    }

    /// Writes a line of what happens within the session.
    pub(super) fn tell(&self, log: &Log, event: &'static str) {
        let level = match self.logging {
            Some(Logging::No) => return,
            Some(Logging::Verbose) => Level::Normal,
            None => Level::Verbose,
        };
        if log.wants(level) {
            log.write(level, self.line(log, event));
        }
    }

    /// Counts and logs that the session has ended.
    pub(super) fn end(&self, log: &Log, stats: &Stats, stop: &Stop) {
        let count = |reason| stats.ended.add(self.words(reason));
        match stop {
            Stop::Ended(end) => {
                count(end.word());
                self.write(log, "close", Level::Normal, end.word(), None);
            }
            Stop::Refused { level, reason, error } => {
                count(reason);
                self.write(log, "refuse", *level, reason, Some(error));
            }
        }
    }

    fn write(
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
        let line = self.counted(self.line(log, event)).word("reason", reason);
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

/// Why a session ended before its relay.
pub(super) enum Stop {
    /// It came to this end.
    Ended(End),
    /// This server refused it.
    Refused { level: Level, reason: &'static str, error: String },
}

impl Stop {
    /// The client left.
    pub(super) const GONE: Self = Self::Ended(End::Closed(Side::Client));

    /// This server refused it, which matters as a session does.
    pub(super) fn refused(reason: &'static str, error: impl Display) -> Self {
        Self::Refused { level: Level::Normal, reason, error: error.to_string() }
    }
}
