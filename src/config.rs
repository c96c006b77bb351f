//! Typed settings, as the options give them, and the service built from them. The texts of options,
//! their defaults and ranges are in [`crate::cli`]; nothing below this floor sees a `Config`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::penalties::Penalties;
use crate::command::ports::PortRange;
use crate::command::quotas::Caps as SharedCaps;
use crate::command::resources::Means;
use crate::dial::PerFamily;
use crate::log::syslog::Facility;
use crate::log::{Format, Level, Log};
use crate::policy::explain::Request;
use crate::policy::nets::Block;
use crate::policy::{Current, Policy};
use crate::relay::Relays;
use crate::resolve::Resolver;
use crate::server::Limits;
use crate::server::inherit::Inherited;
use crate::server::landlock::{self, Files};
use crate::server::listeners::{self, Client, Listen, Listener, Manner, Place};
use crate::server::pid_file::PidFile;
use crate::server::privileges::{self, Account};
use crate::server::slots::{self, Caps};
use crate::server::walls::{self, Walls};
use crate::session::live::Live;
use crate::session::service::Service;
use crate::stats::Stats;
use crate::sys;
use crate::threads::Threads;

/// Everything that can be set. Nothing here has been opened or looked at yet.
#[derive(Debug)]
pub struct Config {
    /// Where to listen; nowhere for the default, or for where somebody else has.
    pub listen: Vec<Listen>,
    /// How to open what to listen on.
    pub manner: Manner,
    /// Where to serve metrics.
    pub metrics: Option<Place>,
    /// Whether descriptor 0 is a client, or a socket to accept clients from.
    pub inetd: bool,
    /// Whether the environment tells where the client has come from.
    pub peer_env: bool,
    /// When to end.
    pub limits: Limits,
    /// From where clients come who begin with a PROXY header, and whether those of UNIX sockets do.
    pub balancers: (Vec<Block>, bool),
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
    /// How long such an answer may take.
    pub ident_timeout: Duration,
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
    /// Addresses told to clients in BIND and UDP ASSOCIATE replies.
    pub advertise: PerFamily,
    /// Addresses to leave from.
    pub source: PerFamily,
    /// Ports for BIND and UDP ASSOCIATE.
    pub ports: Option<PortRange>,
    /// Whether IPv4 targets are reached.
    pub ipv4: bool,
    /// Whether IPv6 targets are reached.
    pub ipv6: bool,
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
    /// How long a client may take from its connection to the end of its request.
    pub handshake_timeout: Duration,
    /// How long the look-up of a name may take.
    pub resolve_timeout: Duration,
    /// How long a connection to a target may take, all addresses of a name together.
    pub connect_timeout: Duration,
    /// How long a BIND waits for its peer.
    pub bind_timeout: Duration,
    /// How long a session may pass nothing once one side has closed.
    pub linger_timeout: Duration,
    /// How long a session may pass nothing; `None` for ever.
    pub idle_timeout: Option<Duration>,
    /// How long an association may pass no datagram; `None` for ever.
    pub udp_idle_timeout: Option<Duration>,
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

impl PolicySource {
    /// Reads and checks all of it.
    ///
    /// # Errors
    /// `Config` with everything that is wrong.
    pub fn load(&self) -> Result<Policy, StartError> {
        Policy::load(&self.texts, self.rules.as_deref(), self.users.as_deref())
            .map_err(StartError::Config)
    }

    /// What the rules make of `request`, and whether they allow it.
    ///
    /// # Errors
    /// As [`PolicySource::load`].
    pub fn explain(&self, request: &Request) -> Result<(String, bool), StartError> {
        Ok(request.explain(&self.load()?))
    }
}

/// What kept the server from starting; Display gives the message for standard error.
#[derive(Debug)]
pub enum StartError {
    /// Files or settings are wrong, one message each: exit status 100.
    Config(Vec<String>),
    /// A system call failed: exit status 111.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = match self {
            Self::Config(messages) => messages.as_slice(),
            Self::System(message) => std::slice::from_ref(message),
        };
        messages.iter().try_for_each(|message| writeln!(f, "socksd: {message}"))
    }
}

impl StartError {
    /// A system call failed while doing `what`.
    #[must_use]
    pub fn system(what: &str, error: &io::Error) -> Self {
        Self::System(format!("cannot {what}: {error}"))
    }
}

fn write_pid_file(path: PathBuf) -> Result<PidFile, StartError> {
    let what = format!("write {}", path.display());
    PidFile::write(path).map_err(|error| StartError::system(&what, &error))
}

/// A server ready to run.
pub struct Started {
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// The listener for metrics.
    pub metrics: Option<Listener>,
    /// Clients that somebody else has accepted.
    pub clients: Vec<Client>,
    /// When to end.
    pub limits: Limits,
    /// What all sessions share.
    pub service: Arc<Service>,
    /// The caps that can be kept, which may be lower than those asked for.
    pub caps: Caps,
    /// What reads the policy anew.
    pub source: PolicySource,
    /// Whether the server is confined to its files.
    pub landlock: landlock::State,
    /// What is not as it should be.
    pub warnings: Vec<String>,
    /// What the system allows, if that is to be told.
    pub walls: Option<Walls>,
    /// The file with the process number.
    pub pid_file: Option<PidFile>,
}

/// What is opened before the root directory is another.
#[derive(Default)]
struct Opened {
    listeners: Vec<Listener>,
    metrics: Option<Listener>,
    pid_file: Option<PidFile>,
}

/// What there is once privileges are given up.
struct Settled {
    opened: Opened,
    policy: Policy,
    log: Log,
    landlock: landlock::State,
    warnings: Vec<String>,
}

/// Most pipes for splicing: half of what a user may have, pipe(7). With more busy directions than that
/// the processors are the limit.
const PIPES: u64 = 32;

impl Config {
    /// Where to log if standard error is not to be had.
    pub fn hide_stderr(&mut self) {
        if self.log == LogTo::Stderr {
            self.log = LogTo::Syslog(Facility::default());
        }
    }

    /// Takes what was inherited, reads the files, opens the log and the listeners, and gives up
    /// privileges. No other thread may be running.
    ///
    /// # Errors
    /// What is wrong with the first of them that cannot be used.
    pub fn start(self) -> Result<Started, StartError> {
        let inherited = self.inherited().map_err(|error| StartError::Config(vec![error]))?;
        let (caps, pipes) = slots::fit(self.caps, if self.splice { PIPES } else { 0 })
            .map_err(|error| StartError::system("read the limit on descriptors", &error))?;
        let walls = (self.level == Level::Verbose).then(walls::read);
        let Inherited { mut listeners, clients, any } = inherited;
        let default = if any { Vec::new() } else { vec![Listen::default()] };
        let wanted = if self.listen.is_empty() { &default } else { &self.listen };
        let listen = || {
            listeners.extend(listeners::open(wanted, self.manner).map_err(StartError::System)?);
            // Each process has metrics of its own.
            let manner = Manner { reuse_port: false, ..self.manner };
            let place = self.metrics.clone().map(|place| Listen { place, optional: false });
            let metrics = listeners::open(place.as_slice(), manner).map_err(StartError::System)?;
            let pid_file = self.pid_file.clone().map(write_pid_file).transpose()?;
            Ok(Opened { listeners, metrics: metrics.into_iter().next(), pid_file })
        };
        let Settled { opened, policy, log, landlock, warnings } = self.settle(listen)?;
        let Opened { listeners, metrics, pid_file } = opened;
        let live = Live::new().map_err(|error| StartError::system("open a pipe", &error))?;
        let service = Service {
            policy: Arc::new(Current::new(policy)),
            penalties: Penalties::new(self.auth_penalty),
            live: Arc::new(live),
            strict_reload: self.strict_reload,
            means: Means {
                stats: Stats::default(),
                caps: SharedCaps::new(self.per_user),
                resolver: Arc::new(Resolver::new(self.resolvers)),
                resolve_timeout: self.resolve_timeout,
                connect_timeout: self.connect_timeout,
                bind_timeout: self.bind_timeout,
                source: self.source,
                ipv4: self.ipv4,
                ipv6: self.ipv6,
                advertise: self.advertise,
                ports: self.ports,
                listening: listeners
                    .iter()
                    .chain(&metrics)
                    .filter_map(Listener::tcp_addr)
                    .collect(),
            },
            relays: Relays::new(usize::try_from(pipes).unwrap_or(0)),
            threads: Threads::default(),
            log,
            allow_4a: self.allow_4a,
            handshake_timeout: self.handshake_timeout,
            balancers: self.balancers.0,
            unix_balancer: self.balancers.1,
            ident_port: self.ident_port,
            ident_timeout: self.ident_timeout,
            idle: self.idle_timeout,
            linger: self.linger_timeout,
            fragments: self.fragments,
            udp_idle: self.udp_idle_timeout,
        };
        let source = self.policy;
        let (limits, service) = (self.limits, Arc::new(service));
        Ok(Started {
            listeners,
            metrics,
            clients,
            limits,
            service,
            caps,
            source,
            landlock,
            warnings,
            walls,
            pid_file,
        })
    }

    /// Checks the files. Where privileges are to be given up, gives them up as the start does, and
    /// returns what is not as it should be. No other thread may be running.
    ///
    /// # Errors
    /// As [`Config::start`].
    pub fn check(&self) -> Result<Vec<String>, StartError> {
        if !self.gives_up_privileges() {
            return self.policy.load().map(|_| Vec::new());
        }
        self.settle(|| Ok(Opened::default())).map(|settled| settled.warnings)
    }

    fn gives_up_privileges(&self) -> bool {
        self.user.is_some() || self.chroot.is_some()
    }

    /// The user to become.
    fn account(&self) -> Result<Option<Account>, StartError> {
        let Some(user) = &self.user else { return Ok(None) };
        Account::look_up(user).map(Some).map_err(|error| match error.raw_os_error() {
            Some(_) => StartError::system(&format!("look up {user}"), &error),
            None => StartError::Config(vec![format!("--user {user}: {error}")]),
        })
    }

    fn open_log(&self) -> Result<Log, StartError> {
        let (level, format) = (self.level, self.format);
        match &self.log {
            LogTo::Stderr => Ok(Log::to_stderr(level, format)),
            LogTo::File(path) => {
                Log::to_file(level, format, path.clone()).map_err(StartError::System)
            }
            LogTo::Syslog(facility) => Ok(Log::to_syslog(level, format, *facility)),
        }
    }

    /// Opens the files, listens with `listen`, and gives up privileges, in the order that is best
    /// for each of them.
    fn settle(
        &self,
        listen: impl FnOnce() -> Result<Opened, StartError>,
    ) -> Result<Settled, StartError> {
        sys::prctl_set_no_new_privs()
            .map_err(|error| StartError::system("forbid new privileges", &error))?;
        let account = self.account()?;
        // What is wrong with the files is told before anything listens, if they can be had then.
        // Terminals and the syslog daemon are not to be found in another root directory.
        let here = self.chroot.is_none();
        let policy = if here { Some(self.policy.load()?) } else { None };
        // A log file is the user's to open: root would follow a link in a directory of the user's.
        let as_is = here && self.user.is_none() || !matches!(self.log, LogTo::File(_));
        let log = if as_is { Some(self.open_log()?) } else { None };
        let mut opened = listen()?;
        if let Some(directory) = &self.chroot {
            let what = format!("change the root directory to {}", directory.display());
            privileges::change_root(directory)
                .map_err(|error| StartError::system(&what, &error))?;
            let Opened { listeners, metrics, .. } = &mut opened;
            listeners.iter_mut().chain(metrics).for_each(Listener::leave_behind);
        }
        let policy = policy.map_or_else(|| self.policy.load(), Ok)?;
        if let (Some(account), Some(user)) = (account, &self.user) {
            let what = format!("change to user {user}");
            account.change_to().map_err(|error| StartError::system(&what, &error))?;
        }
        let log = log.map_or_else(|| self.open_log(), Ok)?;
        let mut warnings = Vec::new();
        let landlock = self.confine(&policy, &opened).unwrap_or_else(|error| {
            warnings.push(format!("cannot confine the server to its files: {error}"));
            landlock::State::Off
        });
        if self.gives_up_privileges() {
            warnings.extend(self.reload_troubles(&log));
        }
        Ok(Settled { opened, policy, log, landlock, warnings })
    }

    fn confine(&self, policy: &Policy, opened: &Opened) -> io::Result<landlock::State> {
        if !self.landlock {
            return Ok(landlock::State::Off);
        }
        let read = policy.files.iter().chain(&self.policy.users).map(PathBuf::as_path).collect();
        let log = match &self.log {
            LogTo::File(path) => Some(path.as_path()),
            LogTo::Stderr | LogTo::Syslog(_) => None,
        };
        // The process number is read before it is removed.
        let pid_file = self.pid_file.as_deref().filter(|_| self.chroot.is_none());
        let listeners = opened.listeners.iter().chain(&opened.metrics);
        let removed = listeners.filter_map(Listener::own_path).chain(pid_file).collect();
        landlock::confine(&Files { read, log, removed })
    }

    /// What would go wrong if all files were to be opened anew.
    fn reload_troubles(&self, log: &Log) -> Vec<String> {
        let mut troubles = match self.policy.load() {
            Ok(_) => Vec::new(),
            Err(StartError::Config(errors)) => errors,
            Err(StartError::System(error)) => vec![error],
        };
        troubles.extend(log.reopen().err());
        troubles.into_iter().map(|trouble| format!("a reload will fail: {trouble}")).collect()
    }

    fn inherited(&self) -> Result<Inherited, String> {
        let mut inherited =
            if self.inetd { Inherited::from_inetd()? } else { Inherited::from_systemd()? };
        if self.peer_env {
            inherited.believe_environment()?;
        }
        Ok(inherited)
    }
}
