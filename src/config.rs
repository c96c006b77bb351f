//! Typed settings, as the options give them. The texts of options, their defaults and ranges are in
//! [`crate::cli`], what is made of the settings in [`crate::start`]; nothing below this floor sees a
//! `Config`.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::resources::Outgoing;
use crate::log::syslog::Facility;
use crate::log::{Format, Level};
use crate::server::Lifetime;
use crate::server::listeners::{Endpoint, Listen, Manner};
use crate::server::slots::Caps;
use crate::session::service::Balancers;
use crate::wait::Timeouts;

/// Everything that can be set. Nothing here has been opened or looked at yet.
#[derive(Debug)]
pub struct Config {
    /// Where to listen; nowhere for the default, or for where somebody else has.
    pub listen: Vec<Listen>,
    /// How to open what to listen on.
    pub manner: Manner,
    /// Where to serve metrics.
    pub metrics: Option<Endpoint>,
    /// Whether descriptor 0 is a client, or a socket to accept clients from.
    pub inetd: bool,
    /// Whether the environment tells where the client has come from.
    pub peer_env: bool,
    /// When to end.
    pub lifetime: Lifetime,
    /// The clients that begin with a PROXY header.
    pub balancers: Balancers,
    /// The user to become, `NAME` or `NAME:GROUP`.
    pub user: Option<String>,
    /// The directory to make the root directory.
    pub chroot: Option<PathBuf>,
    /// Whether to be confined to the files that are needed.
    pub landlock: bool,
    /// Where the rules and the users are.
    pub policy: PolicySource,
    /// Whether a reload ends the sessions that the new rules and users would not grant.
    pub strict_reload: bool,
    /// The port at which clients' hosts answer IDENT queries.
    pub ident_port: u16,
    /// How long a client is shut out that fails to authenticate; zero for never.
    pub auth_penalty: Duration,
    /// Where to log.
    pub log: LogTo,
    /// How much to log.
    pub level: Level,
    /// What the lines look like.
    pub format: Format,
    /// The file to write the process number to.
    pub pid_file: Option<PathBuf>,
    /// The descriptor that waits for a newline once the server listens, 3 or more.
    pub ready_fd: Option<i32>,
    /// Which addresses and ports the sockets have that sessions open.
    pub outgoing: Outgoing,
    /// Whether SOCKS 4A is spoken.
    pub allow_4a: bool,
    /// Whether fragments of datagrams are put together.
    pub fragments: bool,
    /// Most sessions.
    pub caps: Caps,
    /// Most sessions of one user.
    pub per_user: u64,
    /// Whether octets are spliced where that is cheaper than copying them.
    pub splice: bool,
    /// Most threads that resolve names.
    pub resolvers: usize,
    /// How long each wait of a session may take.
    pub timeouts: Timeouts,
}

/// Where to log.
#[derive(Debug, PartialEq, Eq)]
pub enum LogTo {
    /// To standard error.
    Stderr,
    /// To the end of this file.
    File(PathBuf),
    /// To the syslog daemon.
    Syslog(Facility),
}

/// Where the rules and the users are.
#[derive(Clone, Debug, Default)]
pub struct PolicySource {
    /// Rules given as they are, before those of the file.
    pub texts: Vec<String>,
    /// The file of rules.
    pub rules: Option<PathBuf>,
    /// The users file.
    pub users: Option<PathBuf>,
}

impl Config {
    /// Where to log if standard error is not to be had.
    pub fn hide_stderr(&mut self) {
        if self.log == LogTo::Stderr {
            self.log = LogTo::Syslog(Facility::default());
        }
    }
}
