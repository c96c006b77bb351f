//! Starts the server from its settings, checks them without serving, and reloads rules and users
//! while it runs. The settings are in [`crate::config`], their texts in [`crate::cli`], the running
//! server in [`crate::server`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::penalties::Penalties;
use crate::auth::turns::Turns;
use crate::command::quotas::Quotas;
use crate::command::resources::Resources;
use crate::config::{Config, LogTo, PolicySource};
use crate::log::{Level, Line, Log};
use crate::policy::explain::{Explanation, Query};
use crate::policy::{Current, Policy};
use crate::relay::Relays;
use crate::resolve::Resolver;
use crate::server::inherit::Inherited;
use crate::server::landlock::{self, Confinement, Files};
use crate::server::listeners::{self, Client, Listen, Listener, Manner};
use crate::server::notify::{self, Notify};
use crate::server::pid_file::PidFile;
use crate::server::privileges::{self, UnixUser};
use crate::server::slots::{self, SlotLimits};
use crate::server::walls::{self, Walls};
use crate::server::{Ending, Lifetime, Server, signals};
use crate::session::live::LiveSessions;
use crate::session::service::Service;
use crate::stats::Stats;
use crate::sys;
use crate::threads::Threads;

/// Ends the log line of a panic, which is always a bug of this program.
const REPORT: &str = "please report it: see 'Reporting a problem' in the README";

/// Maximum pipes for splicing: half of those a user may have, pipe(7). With more busy directions
/// than that the processors are the limit.
const PIPES: u64 = 32;

/// Starts the server and runs it until a signal ends it.
///
/// # Errors
/// The reason why it cannot start, or cannot accept clients any longer.
pub fn run(config: Config) -> Result<(), StartError> {
    let notify = Notify::from_env()
        .map_err(|error| StartError::system("connect to NOTIFY_SOCKET", &error))?;
    let ready_fd = config.ready_fd.map(sys::take_fd).transpose();
    let ready_fd =
        ready_fd.map_err(|error| StartError::system("use the descriptor of --ready-fd", &error))?;
    signals::block().map_err(|error| StartError::system("block signals", &error))?;
    let asked = config.slots;
    let started = config.start()?;
    let logging = Arc::clone(&started.service);
    std::panic::set_hook(Box::new(move |info| {
        let error = format_args!("{info}; {REPORT}");
        let log = &logging.log;
        log.write(Level::Quiet, log.line("panic").text("error", error));
        log.flush();
    }));
    let lines = started.lines(asked);
    let Started {
        listeners,
        metrics,
        clients,
        lifetime,
        service,
        slots,
        source,
        pid_file: _pid_file,
        ..
    } = started;
    let server = Server::start(listeners, metrics, clients, &service, slots)
        .map_err(|error| StartError::system("start a thread", &error))?;
    // Only now, so that a reader of these lines can rely on the server.
    lines.into_iter().for_each(|(level, line)| service.log.write(level, line));
    notify.ready();
    if let Some(fd) = ready_fd {
        notify::end_with_newline(fd);
    }
    let reload = || {
        notify.reloading();
        reload(&source, &service);
        notify.ready();
    };
    let ending = server.run(lifetime, reload, || notify.stopping());
    service.log.flush();
    match ending {
        Ending::Signal(_) | Ending::Idle => Ok(()),
        Ending::Broken(error) => Err(StartError::system("accept clients", &error)),
    }
}

/// Adds the numbers of rules and users to a line.
fn policy_line(line: Line, service: &Service) -> Line {
    let policy = service.policy.get();
    let users = policy.users.as_ref().map(|users| users.len());
    line.number("rules", policy.len()).number_or_dash("users", users)
}

/// Reopens the log and rereads rules and users. After an error in either, the old ones stay in
/// use.
fn reload(source: &PolicySource, service: &Service) {
    let log = &service.log;
    if let Err(error) = log.reopen() {
        log.write(Level::Quiet, log.line("reopen-failed").text("error", error));
    }
    match source.load() {
        Ok(policy) => {
            service.change_policy(policy);
            log.write(Level::Normal, policy_line(log.line("reload"), service));
        }
        Err(StartError::Config(errors)) => {
            for error in errors {
                log.write(Level::Quiet, log.line("reload-failed").text("error", error));
            }
        }
        Err(StartError::System(error)) => {
            log.write(Level::Quiet, log.line("reload-failed").text("error", error));
        }
    }
}

/// Why the server cannot start; Display gives the messages for standard error.
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
    /// The error of a system call; the message reads "cannot `what`".
    #[must_use]
    pub fn system(what: &str, error: &io::Error) -> Self {
        Self::System(format!("cannot {what}: {error}"))
    }
}

impl PolicySource {
    /// Reads and checks rules and users.
    ///
    /// # Errors
    /// `Config` with all errors found.
    pub fn load(&self) -> Result<Policy, StartError> {
        Policy::load(&self.texts, self.rules.as_deref(), self.users.as_deref())
            .map_err(StartError::Config)
    }

    /// Explains how the rules decide on `query`.
    ///
    /// # Errors
    /// As [`PolicySource::load`].
    pub fn explain(&self, query: &Query) -> Result<Explanation, StartError> {
        Ok(query.explain(&self.load()?))
    }
}

/// A server ready to run.
struct Started {
    /// The listeners for clients.
    listeners: Vec<Listener>,
    /// The listener for metrics.
    metrics: Option<Listener>,
    /// Clients that another program has accepted.
    clients: Vec<Client>,
    /// When to end.
    lifetime: Lifetime,
    /// The resources that all sessions share.
    service: Arc<Service>,
    /// The slots in force, which may be lower than those of the settings.
    slots: SlotLimits,
    /// The files to reload.
    source: PolicySource,
    /// Whether the server is confined to its files.
    landlock: Confinement,
    /// Texts for the log.
    warnings: Vec<String>,
    /// The limits of the system, if they are to be logged.
    walls: Option<Walls>,
    /// The file with the process ID.
    pid_file: Option<PidFile>,
}

impl Started {
    /// The log lines of the start; `asked` are the slots of the settings.
    fn lines(&self, asked: SlotLimits) -> Vec<(Level, Line)> {
        let Self { listeners, metrics, service, slots, .. } = self;
        let log = &service.log;
        let mut lines = Vec::new();
        let mut add = |level: Level, line: Line| lines.push((level, line));
        for listener in listeners {
            add(Level::Normal, log.line("listening").word("addr", &listener.endpoint));
        }
        if let Some(listener) = metrics {
            add(Level::Normal, log.line("metrics").word("addr", &listener.endpoint));
        }
        // A server for one inherited client would log more about itself than about its session.
        if !listeners.is_empty() {
            let line = log
                .line("limits")
                .number("sessions", slots.sessions)
                .number("per_client", slots.per_client)
                .number("half_open", slots.half_open);
            add(Level::Normal, line);
            if let Some(walls) = &self.walls {
                let line = log.line("walls");
                let line = walls
                    .iter()
                    .fold(line, |line, (name, value)| line.number_or_dash(name, *value));
                add(Level::Verbose, line);
            }
            add(Level::Normal, policy_line(log.line("policy"), service));
            add(Level::Normal, log.line("landlock").word("state", self.landlock));
        }
        for warning in &self.warnings {
            add(Level::Quiet, log.line("warning").text("error", warning));
        }
        if slots.sessions < asked.sessions {
            let line = log.line("warning").text(
                "error",
                format_args!(
                    "too few descriptors for {} sessions: raise ulimit -n",
                    asked.sessions
                ),
            );
            add(Level::Quiet, line);
        }
        lines
    }
}

/// Sockets and files that are opened before the change of the root directory.
#[derive(Default)]
struct Listening {
    listeners: Vec<Listener>,
    metrics: Option<Listener>,
    pid_file: Option<PidFile>,
}

/// Everything opened, after privileges are given up.
struct Settled {
    listening: Listening,
    policy: Policy,
    log: Log,
    landlock: Confinement,
    warnings: Vec<String>,
}

impl Config {
    /// Takes inherited sockets, reads the files, opens the log and the listeners, and gives up
    /// privileges. No other thread may be running.
    ///
    /// # Errors
    /// The first step that fails.
    fn start(self) -> Result<Started, StartError> {
        let inherited = self.inherited().map_err(|error| StartError::Config(vec![error]))?;
        let (slots, pipes) = slots::fit(self.slots, if self.splice { PIPES } else { 0 })
            .map_err(|error| StartError::system("read the limit on descriptors", &error))?;
        let walls = (self.level == Level::Verbose).then(walls::read);
        let Inherited { mut listeners, clients, any } = inherited;
        let default = if any { Vec::new() } else { vec![Listen::default()] };
        let wanted = if self.listen.is_empty() { &default } else { &self.listen };
        let listen = || {
            listeners.extend(listeners::open(wanted, self.manner).map_err(StartError::System)?);
            // Processes that share a port must not share the metrics of one of them.
            let manner = Manner { reuse_port: false, ..self.manner };
            let wanted = self.metrics.clone().map(|endpoint| Listen { endpoint, optional: false });
            let metrics = listeners::open(wanted.as_slice(), manner).map_err(StartError::System)?;
            let pid_file = self.pid_file.clone().map(write_pid_file).transpose()?;
            Ok(Listening { listeners, metrics: metrics.into_iter().next(), pid_file })
        };
        let Settled { listening, policy, log, landlock, warnings } = self.settle(listen)?;
        let Listening { listeners, metrics, pid_file } = listening;
        let live =
            LiveSessions::new().map_err(|error| StartError::system("open a pipe", &error))?;
        let own_addrs = listeners.iter().chain(&metrics).filter_map(Listener::tcp_addr).collect();
        let (source, lifetime) = (self.policy.clone(), self.lifetime);
        let service = Arc::new(self.service(policy, log, live, own_addrs, pipes));
        Ok(Started {
            listeners,
            metrics,
            clients,
            lifetime,
            service,
            slots,
            source,
            landlock,
            warnings,
            walls,
            pid_file,
        })
    }

    /// Builds the resources that all sessions share.
    fn service(
        self,
        policy: Policy,
        log: Log,
        live: LiveSessions,
        own_addrs: Vec<SocketAddr>,
        pipes: u64,
    ) -> Service {
        Service {
            policy: Arc::new(Current::new(policy)),
            penalties: Penalties::new(self.auth_penalty),
            turns: Turns::for_this_machine(),
            live: Arc::new(live),
            strict_reload: self.strict_reload,
            resources: Resources {
                stats: Stats::default(),
                quotas: Quotas::new(self.per_user),
                resolver: Arc::new(Resolver::new(self.resolvers)),
                timeouts: self.timeouts,
                outgoing: self.outgoing,
                listening: own_addrs,
            },
            relays: Relays::new(usize::try_from(pipes).unwrap_or(0)),
            threads: Threads::default(),
            log,
            allow_4a: self.allow_4a,
            balancers: self.balancers,
            ident_port: self.ident_port,
            fragments: self.fragments,
        }
    }

    /// Checks the files. With a user or a root directory to change to, changes to them like the
    /// start and returns the warnings that it would log. No other thread may be running.
    ///
    /// # Errors
    /// As the start.
    pub fn check(&self) -> Result<Vec<String>, StartError> {
        if !self.gives_up_privileges() {
            return self.policy.load().map(|_| Vec::new());
        }
        self.settle(|| Ok(Listening::default())).map(|settled| settled.warnings)
    }

    fn gives_up_privileges(&self) -> bool {
        self.user.is_some() || self.chroot.is_some()
    }

    /// The user to become.
    fn unix_user(&self) -> Result<Option<UnixUser>, StartError> {
        let Some(user) = &self.user else { return Ok(None) };
        UnixUser::look_up(user).map(Some).map_err(|error| match error.raw_os_error() {
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

    /// Opens the files, listens with `listen`, and gives up privileges, each at the time that
    /// suits it best.
    fn settle(
        &self,
        listen: impl FnOnce() -> Result<Listening, StartError>,
    ) -> Result<Settled, StartError> {
        sys::prctl_set_no_new_privs()
            .map_err(|error| StartError::system("forbid new privileges", &error))?;
        let unix_user = self.unix_user()?;
        // Errors in the files are reported before anything listens, unless the files are in another
        // root directory. That directory has neither terminals nor the syslog daemon.
        let here = self.chroot.is_none();
        let policy = if here { Some(self.policy.load()?) } else { None };
        // The new user opens a log file: root would follow a link that this user has made.
        let as_is = here && self.user.is_none() || !matches!(self.log, LogTo::File(_));
        let log = if as_is { Some(self.open_log()?) } else { None };
        let mut listening = listen()?;
        if let Some(directory) = &self.chroot {
            let what = format!("change the root directory to {}", directory.display());
            privileges::change_root(directory)
                .map_err(|error| StartError::system(&what, &error))?;
            let Listening { listeners, metrics, .. } = &mut listening;
            listeners.iter_mut().chain(metrics).for_each(Listener::keep_path);
        }
        let policy = policy.map_or_else(|| self.policy.load(), Ok)?;
        if let (Some(unix_user), Some(name)) = (unix_user, &self.user) {
            let what = format!("change to user {name}");
            unix_user.change_to().map_err(|error| StartError::system(&what, &error))?;
        }
        let log = log.map_or_else(|| self.open_log(), Ok)?;
        let mut warnings = Vec::new();
        let landlock = self.confine(&policy, &listening).unwrap_or_else(|error| {
            warnings.push(format!("cannot confine the server to its files: {error}"));
            Confinement::Off
        });
        if self.gives_up_privileges() {
            warnings.extend(self.reload_troubles(&log));
        }
        Ok(Settled { listening, policy, log, landlock, warnings })
    }

    fn confine(&self, policy: &Policy, listening: &Listening) -> io::Result<Confinement> {
        if !self.landlock {
            return Ok(Confinement::Off);
        }
        let read = policy.files.iter().chain(&self.policy.users).map(PathBuf::as_path).collect();
        let log = match &self.log {
            LogTo::File(path) => Some(path.as_path()),
            LogTo::Stderr | LogTo::Syslog(_) => None,
        };
        // A new root directory puts the file out of reach.
        let pid_file = self.pid_file.as_deref().filter(|_| self.chroot.is_none());
        let listeners = listening.listeners.iter().chain(&listening.metrics);
        let removed = listeners.filter_map(Listener::own_path).chain(pid_file).collect();
        landlock::confine(&Files { read, log, removed })
    }

    /// Opens all files again as a reload does, and returns the errors.
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

fn write_pid_file(path: PathBuf) -> Result<PidFile, StartError> {
    let what = format!("write {}", path.display());
    PidFile::write(path).map_err(|error| StartError::system(&what, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_of_the_readme_that_a_panic_names_is_there() {
        let (_, section) = REPORT.split_once('\'').unwrap();
        let (section, _) = section.split_once('\'').unwrap();
        let readme = include_str!("../README.md");
        assert!(readme.lines().any(|line| line == format!("## {section}")), "{section}");
    }
}
