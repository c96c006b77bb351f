//! The options: one table for parsing and for the usage text, which a test compares with the
//! manual. Their arguments are checked in [`crate::cli`].

use std::ops::RangeInclusive;

use getopts::Options;

/// One option.
pub struct Opt {
    /// Its letter; empty if it has none.
    pub short: &'static str,
    /// Its name.
    pub long: &'static str,
    /// The name of its argument; empty if it takes none.
    pub argument: &'static str,
    /// Whether it may be repeated.
    pub repeats: bool,
    /// Its line in the usage text.
    pub help: &'static str,
}

const fn flag(short: &'static str, long: &'static str, help: &'static str) -> Opt {
    Opt { short, long, argument: "", repeats: false, help }
}

const fn value(long: &'static str, argument: &'static str, help: &'static str) -> Opt {
    Opt { short: "", long, argument, repeats: false, help }
}

const fn values(
    short: &'static str,
    long: &'static str,
    argument: &'static str,
    help: &'static str,
) -> Opt {
    Opt { short, long, argument, repeats: true, help }
}

/// All options that are not numbers, in the order of the manual.
pub const OPTIONS: [Opt; 36] = [
    flag("4", "ipv4-only", "reach IPv4 targets only"),
    flag("6", "ipv6-only", "reach IPv6 targets only"),
    values("", "advertise", "ADDR", "address told to clients for BIND and UDP, one per family"),
    flag("", "check", "check options and files, report all errors, and exit"),
    value("chroot", "DIR", "make DIR the root directory before files are opened"),
    value(
        "early-drop",
        "LOW-HIGH",
        "refuse new clients at random from LOW %, all at HIGH % of max-sessions [75-100]",
    ),
    value("explain", "REQUEST", "show how the rules decide a request, and exit"),
    flag("h", "help", "print this help and exit"),
    flag("", "hash", "read a password, print its users-file hash, and exit"),
    flag("", "inetd", "serve descriptor 0: a client or a listening socket"),
    values(
        "l",
        "listen",
        "ADDR:PORT",
        "address to listen on; also PORT for both loopbacks, or unix:PATH [127.0.0.1:1080]",
    ),
    value("log", "FILE", "append the log to FILE [standard error]"),
    value("log-format", "FORMAT", "text or json [text]"),
    value("metrics", "ADDR:PORT", "serve Prometheus metrics over HTTP; also unix:PATH"),
    flag("", "metrics-public", "allow --metrics on a non-loopback address"),
    flag("", "no-4a", "refuse SOCKS 4 requests with host names (4A)"),
    flag("", "no-fragments", "drop fragments of SOCKS 5 datagrams"),
    flag("", "no-landlock", "do not confine the server to its files"),
    flag("", "no-splice", "copy all bytes instead of splicing"),
    flag("", "peer-env", "take the client's address from the environment"),
    value("pid-file", "FILE", "write the process ID to FILE"),
    value("port-range", "LO-HI", "ports for BIND and UDP"),
    value("proxy-protocol", "CLIENTS", "balancers that send a PROXY header; also unix"),
    flag("q", "quiet", "log only errors and failed authentication"),
    value("ready-fd", "FD", "write a newline to descriptor FD once listening, and close it"),
    flag("", "reuse-port", "let several processes listen on one port"),
    values("", "rule", "TEXT", "an access rule, before those of --rules"),
    value(
        "rules",
        "FILE",
        "file of access rules [default: local clients, or users with a password, to public addresses]",
    ),
    values("", "source", "ADDR", "source address of outgoing connections, one per family"),
    flag("", "strict-reload", "end sessions that new rules or users no longer allow"),
    value("syslog", "FACILITY", "send the log to the syslog daemon"),
    value("unix-mode", "MODE", "mode of UNIX sockets, octal [600]"),
    value("user", "NAME[:GROUP]", "run as this user and in this group only"),
    value("users", "FILE", "file of users and hashes; without rules, demand a password"),
    flag("V", "version", "print the version and exit"),
    flag("v", "verbose", "log requests and connections as they happen"),
];

/// An option whose argument is a number.
pub struct Number {
    /// Its name.
    pub long: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// The value without the option.
    pub default: u64,
    /// The valid values.
    pub range: RangeInclusive<u64>,
    /// Its line in the usage text.
    pub help: &'static str,
}

const DAY: u64 = 86_400;

pub(super) const AUTH_PENALTY: Number = Number {
    long: "auth-penalty",
    unit: "seconds",
    default: 600,
    range: 0..=DAY,
    help: "how long to refuse a client that guesses passwords; 0: never",
};
pub(super) const BIND_TIMEOUT: Number = Number {
    long: "bind-timeout",
    unit: "seconds",
    default: 120,
    range: 1..=DAY,
    help: "how long BIND waits for its peer",
};
pub(super) const CONNECT_TIMEOUT: Number = Number {
    long: "connect-timeout",
    unit: "seconds",
    default: 30,
    range: 1..=3_600,
    help: "how long connecting may take, all addresses together",
};
pub(super) const DRAIN: Number = Number {
    long: "drain",
    unit: "seconds",
    default: 30,
    range: 0..=DAY,
    help: "how long sessions may continue after a signal to end",
};
pub(super) const EXIT_WHEN_IDLE: Number = Number {
    long: "exit-when-idle",
    unit: "seconds",
    default: 0,
    range: 0..=DAY,
    help: "end after this long without a session; 0: never",
};
pub(super) const HANDSHAKE_TIMEOUT: Number = Number {
    long: "handshake-timeout",
    unit: "seconds",
    default: 30,
    range: 1..=3_600,
    help: "how long a client may take to make its request",
};
pub(super) const IDENT_PORT: Number = Number {
    long: "ident-port",
    unit: "port",
    default: 113,
    range: 1..=65_535,
    help: "port of the IDENT servers on clients' hosts",
};
pub(super) const IDENT_TIMEOUT: Number = Number {
    long: "ident-timeout",
    unit: "seconds",
    default: 30,
    range: 1..=3_600,
    help: "how long an IDENT answer may take",
};
pub(super) const IDLE_TIMEOUT: Number = Number {
    long: "idle-timeout",
    unit: "seconds",
    default: 0,
    range: 0..=30 * DAY,
    help: "end TCP sessions after this long without traffic; 0: never",
};
pub(super) const LINGER_TIMEOUT: Number = Number {
    long: "linger-timeout",
    unit: "seconds",
    default: 600,
    range: 1..=30 * DAY,
    help: "end half-closed TCP sessions after this long without traffic",
};
/// A quarter is the maximum of one client: as many as `--max-per-client` allows by default.
pub(super) const MAX_HALF_OPEN: Number = Number {
    long: "max-half-open",
    unit: "sessions",
    default: 1_024,
    range: 1..=1_000_000,
    help: "maximum sessions with an incomplete handshake",
};
pub(super) const MAX_PER_CLIENT: Number = Number {
    long: "max-per-client",
    unit: "sessions",
    default: 256,
    range: 1..=1_000_000,
    help: "maximum sessions per IPv4 address or IPv6 /64",
};
pub(super) const MAX_PER_USER: Number = Number {
    long: "max-per-user",
    unit: "sessions",
    default: 1_024,
    range: 1..=1_000_000,
    help: "maximum sessions per user",
};
pub(super) const MAX_SESSIONS: Number = Number {
    long: "max-sessions",
    unit: "sessions",
    default: 4_096,
    range: 1..=1_000_000,
    help: "maximum sessions",
};
pub(super) const RESOLVE_TIMEOUT: Number = Number {
    long: "resolve-timeout",
    unit: "seconds",
    default: 10,
    range: 1..=3_600,
    help: "how long the look-up of a name may take",
};
/// A quarter is the maximum of one client, which should survive a few dozen look-ups that hang.
pub(super) const RESOLVERS: Number = Number {
    long: "resolvers",
    unit: "threads",
    default: 128,
    range: 1..=1_024,
    help: "maximum concurrent name look-ups",
};
pub(super) const UDP_IDLE_TIMEOUT: Number = Number {
    long: "udp-idle-timeout",
    unit: "seconds",
    default: 0,
    range: 0..=30 * DAY,
    help: "end UDP associations after this long without datagrams; 0: never",
};

/// All options that are numbers, in the order of the manual.
pub const NUMBERS: [&Number; 17] = [
    &AUTH_PENALTY,
    &BIND_TIMEOUT,
    &CONNECT_TIMEOUT,
    &DRAIN,
    &EXIT_WHEN_IDLE,
    &HANDSHAKE_TIMEOUT,
    &IDENT_PORT,
    &IDENT_TIMEOUT,
    &IDLE_TIMEOUT,
    &LINGER_TIMEOUT,
    &MAX_HALF_OPEN,
    &MAX_PER_CLIENT,
    &MAX_PER_USER,
    &MAX_SESSIONS,
    &RESOLVE_TIMEOUT,
    &RESOLVERS,
    &UDP_IDLE_TIMEOUT,
];

/// The getopts form of the two tables.
#[must_use]
pub fn options() -> Options {
    let mut options = Options::new();
    for opt in &OPTIONS {
        match (opt.argument, opt.repeats) {
            ("", _) => options.optflag(opt.short, opt.long, opt.help),
            (argument, true) => options.optmulti(opt.short, opt.long, opt.help, argument),
            (argument, false) => options.optopt(opt.short, opt.long, opt.help, argument),
        };
    }
    for number in NUMBERS {
        let Number { long, unit, default, range, help } = number;
        let help = format!("{help} [{default}; {} to {} {unit}]", range.start(), range.end());
        options.optopt("", long, &help, &unit.to_ascii_uppercase());
    }
    options
}
