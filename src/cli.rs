//! From arguments to settings: arguments are checked for form and range; nothing is opened or
//! looked up.

pub mod options;

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use getopts::{Fail, Matches};

use crate::cli::options::{
    AUTH_PENALTY, BIND_TIMEOUT, CONNECT_TIMEOUT, DRAIN, EXIT_WHEN_IDLE, HANDSHAKE_TIMEOUT,
    IDENT_PORT, IDENT_TIMEOUT, IDLE_TIMEOUT, LINGER_TIMEOUT, MAX_HALF_OPEN, MAX_PER_CLIENT,
    MAX_PER_USER, MAX_SESSIONS, Number, RESOLVE_TIMEOUT, RESOLVERS, UDP_IDLE_TIMEOUT, options,
};
use crate::command::ports::PortRange;
use crate::command::resources::Outgoing;
use crate::config::{Config, LogTo, PolicySource};
use crate::dial::PerFamily;
use crate::log::syslog::FACILITIES;
use crate::log::{Escaped, Format, Level};
use crate::policy::explain::Query;
use crate::policy::nets::Block;
use crate::server::Lifetime;
use crate::server::listeners::{Endpoint, Listen, Manner};
use crate::server::slots::SlotLimits;
use crate::session::service::Balancers;
use crate::wait::Timeouts;

/// The action that the arguments ask for.
#[derive(Debug)]
pub enum Action {
    /// Run the server.
    Run(Box<Config>),
    /// Check the settings and exit.
    Check(Box<Config>),
    /// Show how the rules decide a request and exit.
    Explain(PolicySource, Query),
    /// Read a password, print its hash and exit.
    Hash,
    /// Print this text and exit with status 0.
    Print(String),
}

/// An error in the arguments; Display names the option, the value and the expected form.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses and checks all arguments, without the name of the program. Has no side effects.
///
/// # Errors
/// The first wrong argument.
pub fn parse(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Action, UsageError> {
    let args: Vec<_> = args.into_iter().collect();
    if let Some(arg) = args.iter().map(AsRef::as_ref).find(|arg| arg.to_str().is_none()) {
        return Err(UsageError(format!("argument '{}' is not UTF-8", Escaped(arg.as_bytes()))));
    }
    let matches = options().parse(args).map_err(|fail| {
        UsageError(match fail {
            Fail::ArgumentMissing(name) => format!("option {} requires an argument", dashed(&name)),
            Fail::UnrecognizedOption(name) => format!("unknown option {}", dashed(&name)),
            Fail::OptionDuplicated(name) => format!("option {} is given twice", dashed(&name)),
            Fail::UnexpectedArgument(name) => format!("option {} takes no argument", dashed(&name)),
            Fail::OptionMissing(name) => format!("option {} is missing", dashed(&name)),
        })
    })?;
    if matches.opt_present("help") {
        let brief = "usage: socksd [OPTION]...\nServes SOCKS 4, 4A and 5. See socksd(8).";
        return Ok(Action::Print(options().usage(brief)));
    }
    if matches.opt_present("version") {
        return Ok(Action::Print(concat!("socksd ", env!("CARGO_PKG_VERSION"), "\n").into()));
    }
    if matches.opt_present("hash") {
        // The operand may be a password given by mistake: the message must not repeat it.
        return match matches.free.first() {
            None => Ok(Action::Hash),
            Some(_) => Err(UsageError(format!("option {} takes no argument", dashed("hash")))),
        };
    }
    if let Some(operand) = matches.free.first() {
        return Err(UsageError(format!("unexpected operand '{}'", operand.escape_debug())));
    }
    let config = config(&matches)?;
    if let Some(text) = matches.opt_str("explain") {
        let query = Query::parse(&text);
        let query = query.map_err(|wrong| UsageError(format!("--explain {wrong}")))?;
        return Ok(Action::Explain(config.policy, query));
    }
    if matches.opt_present("check") {
        return Ok(Action::Check(Box::new(config)));
    }
    Ok(Action::Run(Box::new(config)))
}

fn dashed(name: &str) -> String {
    let dashes = if name.chars().count() == 1 { "-" } else { "--" };
    format!("{dashes}{}", name.escape_debug())
}

fn config(matches: &Matches) -> Result<Config, UsageError> {
    Ok(Config {
        listen: listen(matches)?,
        manner: Manner {
            unix_mode: unix_mode(matches)?,
            reuse_port: matches.opt_present("reuse-port"),
        },
        metrics: metrics(matches)?,
        inetd: matches.opt_present("inetd"),
        peer_env: matches.opt_present("peer-env"),
        lifetime: Lifetime {
            drain: seconds(matches, &DRAIN)?,
            idle: some_seconds(matches, &EXIT_WHEN_IDLE)?,
        },
        balancers: balancers(matches)?,
        user: user(matches)?,
        chroot: matches.opt_str("chroot").map(PathBuf::from),
        landlock: !matches.opt_present("no-landlock"),
        policy: PolicySource {
            texts: matches.opt_strs("rule"),
            rules: matches.opt_str("rules").map(PathBuf::from),
            users: matches.opt_str("users").map(PathBuf::from),
        },
        strict_reload: matches.opt_present("strict-reload"),
        ident_port: u16::try_from(number(matches, &IDENT_PORT)?).unwrap_or(u16::MAX),
        auth_penalty: seconds(matches, &AUTH_PENALTY)?,
        log: log_to(matches)?,
        level: level(matches)?,
        format: format(matches)?,
        pid_file: matches.opt_str("pid-file").map(PathBuf::from),
        ready_fd: ready_fd(matches)?,
        outgoing: outgoing(matches)?,
        allow_4a: !matches.opt_present("no-4a"),
        fragments: !matches.opt_present("no-fragments"),
        slots: slots(matches)?,
        per_user: number(matches, &MAX_PER_USER)?,
        splice: !matches.opt_present("no-splice"),
        resolvers: count(matches, &RESOLVERS)?,
        timeouts: timeouts(matches)?,
    })
}

fn level(matches: &Matches) -> Result<Level, UsageError> {
    match (matches.opt_present("q"), matches.opt_present("v")) {
        (true, true) => Err(UsageError("options -q and -v are mutually exclusive".into())),
        (true, false) => Ok(Level::Quiet),
        (false, true) => Ok(Level::Verbose),
        (false, false) => Ok(Level::Normal),
    }
}

fn slots(matches: &Matches) -> Result<SlotLimits, UsageError> {
    Ok(SlotLimits {
        sessions: number(matches, &MAX_SESSIONS)?,
        per_client: number(matches, &MAX_PER_CLIENT)?,
        half_open: number(matches, &MAX_HALF_OPEN)?,
        early_drop: early_drop(matches)?,
    })
}

fn number(matches: &Matches, option: &Number) -> Result<u64, UsageError> {
    let Some(text) = matches.opt_str(option.long) else { return Ok(option.default) };
    let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse().ok().filter(|number| digits && option.range.contains(number)).ok_or_else(|| {
        let Number { long, unit, range, .. } = option;
        let (min, max) = (range.start(), range.end());
        UsageError(format!("--{long} {}: must be {min} to {max} {unit}", text.escape_debug()))
    })
}

fn seconds(matches: &Matches, option: &Number) -> Result<Duration, UsageError> {
    number(matches, option).map(Duration::from_secs)
}

/// Seconds of which 0 means no limit.
fn some_seconds(matches: &Matches, option: &Number) -> Result<Option<Duration>, UsageError> {
    seconds(matches, option).map(|time| Some(time).filter(|time| !time.is_zero()))
}

fn timeouts(matches: &Matches) -> Result<Timeouts, UsageError> {
    Ok(Timeouts {
        handshake: seconds(matches, &HANDSHAKE_TIMEOUT)?,
        ident: seconds(matches, &IDENT_TIMEOUT)?,
        resolve: seconds(matches, &RESOLVE_TIMEOUT)?,
        connect: seconds(matches, &CONNECT_TIMEOUT)?,
        bind: seconds(matches, &BIND_TIMEOUT)?,
        idle: some_seconds(matches, &IDLE_TIMEOUT)?,
        linger: seconds(matches, &LINGER_TIMEOUT)?,
        udp_idle: some_seconds(matches, &UDP_IDLE_TIMEOUT)?,
    })
}

fn count(matches: &Matches, option: &Number) -> Result<usize, UsageError> {
    number(matches, option).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

fn log_to(matches: &Matches) -> Result<LogTo, UsageError> {
    let name = match (matches.opt_str("log"), matches.opt_str("syslog")) {
        (None, None) => return Ok(LogTo::Stderr),
        (Some(path), None) => return Ok(LogTo::File(path.into())),
        (None, Some(name)) => name,
        (Some(_), Some(_)) => {
            return Err(UsageError("options --log and --syslog are mutually exclusive".into()));
        }
    };
    let found = FACILITIES.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, facility)| LogTo::Syslog(facility)).ok_or_else(|| {
        UsageError(format!(
            "--syslog {}: expected {}",
            name.escape_debug(),
            FACILITIES.map(|(name, _)| name).join(", ")
        ))
    })
}

fn format(matches: &Matches) -> Result<Format, UsageError> {
    match matches.opt_str("log-format").as_deref() {
        None | Some("text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some(other) => {
            let other = other.escape_debug();
            Err(UsageError(format!("--log-format {other}: expected text or json")))
        }
    }
}

fn ready_fd(matches: &Matches) -> Result<Option<i32>, UsageError> {
    let Some(text) = matches.opt_str("ready-fd") else { return Ok(None) };
    text.parse().ok().filter(|&fd| fd > 2).map(Some).ok_or_else(|| {
        UsageError(format!(
            "--ready-fd {}: expected a descriptor of 3 or more",
            text.escape_debug()
        ))
    })
}

fn listen(matches: &Matches) -> Result<Vec<Listen>, UsageError> {
    let texts = matches.opt_strs("listen");
    let mut listen = Vec::new();
    for text in &texts {
        if let Some(endpoint) = endpoint(text) {
            listen.push(Listen { endpoint, optional: false });
        } else if let Ok(port) = text.parse::<u16>() {
            let [v4, v6] = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
            let endpoint = |ip| Endpoint::Tcp(SocketAddr::new(ip, port));
            listen.push(Listen { endpoint: endpoint(v4), optional: false });
            listen.push(Listen { endpoint: endpoint(v6), optional: true });
        } else {
            return Err(UsageError(format!(
                "--listen {}: expected ADDR:PORT, [ADDR6]:PORT, PORT or unix:PATH",
                text.escape_debug()
            )));
        }
    }
    if matches.opt_present("inetd") && !listen.is_empty() {
        return Err(UsageError("options --inetd and --listen are mutually exclusive".into()));
    }
    Ok(listen)
}

/// Parses blocks of addresses and the word `unix`, separated by commas.
fn balancers(matches: &Matches) -> Result<Balancers, UsageError> {
    let mut balancers = Balancers::default();
    for item in matches.opt_str("proxy-protocol").iter().flat_map(|text| text.split(',')) {
        if item == "unix" {
            balancers.unix = true;
        } else {
            let wrong = |what| UsageError(format!("--proxy-protocol: {what}"));
            balancers.blocks.push(Block::parse(item.as_bytes()).map_err(wrong)?);
        }
    }
    Ok(balancers)
}

/// Parses an address with a port, or the path of a UNIX socket.
fn endpoint(text: &str) -> Option<Endpoint> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Endpoint::Unix(path.into())).filter(|_| !path.is_empty()),
        None => text.parse().ok().map(Endpoint::Tcp),
    }
}

fn metrics(matches: &Matches) -> Result<Option<Endpoint>, UsageError> {
    let Some(text) = matches.opt_str("metrics") else { return Ok(None) };
    let wrong = |why| UsageError(format!("--metrics {}: {why}", text.escape_debug()));
    let endpoint =
        endpoint(&text).ok_or_else(|| wrong("expected ADDR:PORT, [ADDR6]:PORT or unix:PATH"))?;
    match endpoint {
        Endpoint::Tcp(addr)
            if !addr.ip().to_canonical().is_loopback()
                && !matches.opt_present("metrics-public") =>
        {
            Err(wrong("not a loopback address: add --metrics-public to let others see it"))
        }
        endpoint => Ok(Some(endpoint)),
    }
}

fn unix_mode(matches: &Matches) -> Result<u32, UsageError> {
    let Some(text) = matches.opt_str("unix-mode") else { return Ok(0o600) };
    let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    mode.ok_or_else(|| {
        UsageError(format!("--unix-mode {}: expected an octal mode up to 777", text.escape_debug()))
    })
}

fn user(matches: &Matches) -> Result<Option<String>, UsageError> {
    let Some(text) = matches.opt_str("user") else { return Ok(None) };
    if text.split(':').any(str::is_empty) || text.split(':').count() > 2 {
        let text = text.escape_debug();
        return Err(UsageError(format!("--user {text}: expected NAME or NAME:GROUP")));
    }
    Ok(Some(text))
}

fn outgoing(matches: &Matches) -> Result<Outgoing, UsageError> {
    let (only_v4, only_v6) = (matches.opt_present("4"), matches.opt_present("6"));
    if only_v4 && only_v6 {
        return Err(UsageError("options -4 and -6 are mutually exclusive".into()));
    }
    Ok(Outgoing {
        ipv4: !only_v6,
        ipv6: !only_v4,
        source: addresses(matches, "source")?,
        advertise: addresses(matches, "advertise")?,
        ports: port_range(matches)?,
    })
}

/// Parses the addresses of a repeatable option, at most one per family.
fn addresses(matches: &Matches, option: &str) -> Result<PerFamily, UsageError> {
    let mut source = PerFamily::default();
    for text in matches.opt_strs(option) {
        let wrong = |why| UsageError(format!("--{option} {}: {why}", text.escape_debug()));
        let ip: IpAddr = text.parse().map_err(|_| wrong("expected an IPv4 or IPv6 address"))?;
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(wrong("expected the address of a host"));
        }
        let family = if ip.is_ipv4() { &mut source.v4 } else { &mut source.v6 };
        if family.replace(ip).is_some() {
            return Err(wrong("this family already has an address"));
        }
    }
    Ok(source)
}

fn port_range(matches: &Matches) -> Result<Option<PortRange>, UsageError> {
    let Some(text) = matches.opt_str("port-range") else { return Ok(None) };
    let range = text
        .split_once('-')
        .and_then(|(lo, hi)| PortRange::new(lo.parse().ok()?..=hi.parse().ok()?));
    range.map(Some).ok_or_else(|| {
        UsageError(format!(
            "--port-range {}: expected LO-HI, ports from 1 to 65535",
            text.escape_debug()
        ))
    })
}

fn early_drop(matches: &Matches) -> Result<(u64, u64), UsageError> {
    let Some(text) = matches.opt_str("early-drop") else { return Ok((75, 100)) };
    let range = text.split_once('-').and_then(|(low, high)| {
        let (low, high): (u8, u8) = (low.parse().ok()?, high.parse().ok()?);
        (1 <= low && low <= high && high <= 100).then_some((low.into(), high.into()))
    });
    range.ok_or_else(|| {
        let text = text.escape_debug();
        UsageError(format!("--early-drop {text}: expected LOW-HIGH, per cent from 1 to 100"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &str) -> Config {
        match parse(args.split_whitespace()) {
            Ok(Action::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn error(args: &str) -> String {
        match parse(args.split_whitespace()) {
            Err(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn v4_38_v5_01_the_default_is_loopback_port_1080() {
        assert_eq!(run("").listen, []);
        assert_eq!(Listen::default().endpoint.to_string(), "127.0.0.1:1080");
    }

    #[test]
    fn a_port_alone_means_both_loopbacks_and_only_ipv6_is_optional() {
        let listen = run("-l 1081 --listen [::]:1 -l unix:/run/s").listen;
        let texts: Vec<_> =
            listen.iter().map(|listen| (listen.endpoint.to_string(), listen.optional)).collect();
        let expected = [
            ("127.0.0.1:1081", false),
            ("[::1]:1081", true),
            ("[::]:1", false),
            ("unix:/run/s", false),
        ];
        assert_eq!(texts, expected.map(|(text, optional)| (text.to_string(), optional)));
    }

    #[test]
    fn messages_name_option_value_and_what_was_expected() {
        for (args, message) in [
            (
                "--listen localhost:1",
                "--listen localhost:1: expected ADDR:PORT, [ADDR6]:PORT, PORT or unix:PATH",
            ),
            (
                "--listen 1 --listen 65536",
                "--listen 65536: expected ADDR:PORT, [ADDR6]:PORT, PORT or unix:PATH",
            ),
            ("--handshake-timeout 0", "--handshake-timeout 0: must be 1 to 3600 seconds"),
            ("--handshake-timeout +5", "--handshake-timeout +5: must be 1 to 3600 seconds"),
            (
                "--max-sessions 99999999999999999999",
                "--max-sessions 99999999999999999999: must be 1 to 1000000 sessions",
            ),
            ("--port-range 9-5", "--port-range 9-5: expected LO-HI, ports from 1 to 65535"),
            ("--early-drop 9-5", "--early-drop 9-5: expected LOW-HIGH, per cent from 1 to 100"),
            ("--early-drop 0-5", "--early-drop 0-5: expected LOW-HIGH, per cent from 1 to 100"),
            ("--early-drop 9-101", "--early-drop 9-101: expected LOW-HIGH, per cent from 1 to 100"),
            ("--early-drop 9", "--early-drop 9: expected LOW-HIGH, per cent from 1 to 100"),
            ("--source 0.0.0.0", "--source 0.0.0.0: expected the address of a host"),
            ("--source ::1 --source ::2", "--source ::2: this family already has an address"),
            ("--metrics 9180", "--metrics 9180: expected ADDR:PORT, [ADDR6]:PORT or unix:PATH"),
            (
                "--metrics [::ffff:192.0.2.1]:1",
                "--metrics [::ffff:192.0.2.1]:1: not a loopback address: \
                 add --metrics-public to let others see it",
            ),
            ("--unix-mode 8", "--unix-mode 8: expected an octal mode up to 777"),
            ("--unix-mode 1000", "--unix-mode 1000: expected an octal mode up to 777"),
            ("--user :nogroup", "--user :nogroup: expected NAME or NAME:GROUP"),
            ("--user nobody:", "--user nobody:: expected NAME or NAME:GROUP"),
            ("--user a:b:c", "--user a:b:c: expected NAME or NAME:GROUP"),
            ("--inetd -l 1", "options --inetd and --listen are mutually exclusive"),
            ("-4 -6", "options -4 and -6 are mutually exclusive"),
            ("--log a --syslog user", "options --log and --syslog are mutually exclusive"),
            ("--log-format xml", "--log-format xml: expected text or json"),
            ("--ready-fd 2", "--ready-fd 2: expected a descriptor of 3 or more"),
            ("--ready-fd x", "--ready-fd x: expected a descriptor of 3 or more"),
            (
                "--syslog kern",
                "--syslog kern: expected user, mail, daemon, auth, syslog, lpr, news, uucp, cron, \
                 authpriv, ftp, local0, local1, local2, local3, local4, local5, local6, local7",
            ),
            ("-q -v", "options -q and -v are mutually exclusive"),
            ("--nonsense", "unknown option --nonsense"),
            ("-x", "unknown option -x"),
            ("--log", "option --log requires an argument"),
            ("--log a --log b", "option --log is given twice"),
            ("--quiet=1", "option --quiet takes no argument"),
            ("file", "unexpected operand 'file'"),
            ("--hash secret", "option --hash takes no argument"),
            ("--hash=secret", "option --hash takes no argument"),
        ] {
            assert_eq!(error(args), message);
        }
    }

    #[test]
    fn metrics_are_for_this_host_unless_others_are_to_see_them() {
        for endpoint in ["127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/s"] {
            assert!(run(&format!("--metrics {endpoint}")).metrics.is_some(), "{endpoint}");
        }
        for endpoint in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1"] {
            assert!(
                error(&format!("--metrics {endpoint}")).contains("not a loopback"),
                "{endpoint}"
            );
            assert!(run(&format!("--metrics {endpoint} --metrics-public")).metrics.is_some());
        }
    }

    #[test]
    fn an_argument_that_is_no_text_is_an_error() {
        let error = parse([OsStr::from_bytes(b"--log=\xff")]).unwrap_err();
        assert_eq!(error.to_string(), "argument '--log=\\xff' is not UTF-8");
    }
}
