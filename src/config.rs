//! Typed settings. Their texts, defaults and ranges are in [`crate::cli`], their use at the start
//! is in [`crate::start`]. No floor below this one sees a `Config`.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::resources::Outgoing;
use crate::log::syslog::Facility;
use crate::log::{Format, Level};
use crate::server::Lifetime;
use crate::server::listeners::{Endpoint, Listen, Manner};
use crate::server::slots::SlotLimits;
use crate::session::service::Balancers;
use crate::wait::Timeouts;

/// All settings. Nothing named here has been opened or looked up yet.
#[derive(Debug)]
pub struct Config {
    /// The endpoints to listen on. If empty: inherited sockets, or without those the default.
    pub listen: Vec<Listen>,
    /// How to open listeners.
    pub manner: Manner,
    /// The endpoint that serves metrics.
    pub metrics: Option<Endpoint>,
    /// Whether descriptor 0 is a client or a listening socket.
    pub inetd: bool,
    /// Whether the address of the client is taken from the environment.
    pub peer_env: bool,
    /// When to end.
    pub lifetime: Lifetime,
    /// The clients that begin with a PROXY header.
    pub balancers: Balancers,
    /// The user to become, `NAME` or `NAME:GROUP`.
    pub user: Option<String>,
    /// The directory to make the root directory.
    pub chroot: Option<PathBuf>,
    /// Whether Landlock confines the server to the files it needs.
    pub landlock: bool,
    /// The sources of rules and users.
    pub policy: PolicySource,
    /// Whether a reload ends the sessions that the new rules and users do not allow.
    pub strict_reload: bool,
    /// The port at which clients' hosts answer IDENT queries.
    pub ident_port: u16,
    /// How long a client that fails to authenticate is shut out; zero: never.
    pub auth_penalty: Duration,
    /// The destination of the log.
    pub log: LogTo,
    /// The level of the log.
    pub level: Level,
    /// The format of log lines.
    pub format: Format,
    /// The file for the process ID.
    pub pid_file: Option<PathBuf>,
    /// The descriptor to write a newline to once the server listens, 3 or more.
    pub ready_fd: Option<i32>,
    /// Addresses, ports and families of the sockets that commands open.
    pub outgoing: Outgoing,
    /// Whether SOCKS 4A is spoken.
    pub allow_4a: bool,
    /// Whether fragments of datagrams are reassembled.
    pub fragments: bool,
    /// Limits on sessions.
    pub slots: SlotLimits,
    /// Maximum sessions per user.
    pub per_user: u64,
    /// Whether octets are spliced where that is cheaper than copying them.
    pub splice: bool,
    /// Maximum threads that resolve names.
    pub resolvers: usize,
    /// How long each wait may take.
    pub timeouts: Timeouts,
}

/// The destination of the log.
#[derive(Debug, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error.
    Stderr,
    /// The end of this file.
    File(PathBuf),
    /// The syslog daemon.
    Syslog(Facility),
}

/// The sources of rules and users.
#[derive(Clone, Debug, Default)]
pub struct PolicySource {
    /// Rules given as options, before those of the file.
    pub texts: Vec<String>,
    /// The file of rules.
    pub rules: Option<PathBuf>,
    /// The users file.
    pub users: Option<PathBuf>,
}

impl Config {
    /// Logs to the syslog daemon instead of standard error.
    pub fn hide_stderr(&mut self) {
        if self.log == LogTo::Stderr {
            self.log = LogTo::Syslog(Facility::default());
        }
    }
}
