//! One client, from its first octet to its last: the only place that writes to a client before the
//! relay, and that decides nothing itself.

pub mod live;

use std::fmt::Display;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::auth::ident::{self, IdentError};
use crate::auth::penalties::Penalties;
use crate::auth::users::Users;
use crate::auth::{AuthError, User};
use crate::command::caps::Slot;
use crate::command::{Admission, Failure, Means, Opened, associate, bind, connect};
use crate::dial::{self, Target};
use crate::log::{Level, Line, Log};
use crate::net::{canonical, client_block};
use crate::policy::nets::{Block, Set};
use crate::policy::rules::{Ident, Logging, Place, Rule};
use crate::policy::{Asker, Current, Policy};
use crate::relay::rate::Rate;
use crate::relay::udp::{Sockets, Terms};
use crate::relay::{self, End, Limits, Relays, Side, Stopper, Traffic, Tunnel};
use crate::session::live::{Grant, Live};
use crate::stats::Words;
use crate::sys::{self, PollFd};
use crate::threads::{Reserved, Threads};
use crate::wait::{InVain, Wait};
use crate::wire::proxy::{self, Header};
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Method, Rep};
use crate::wire::userpass;
use crate::wire::{Command, DecodeError, Destination, NO_ADDRESS, Reader, Request, Version};

/// Octets a whole handshake may take. The longest there can be, a greeting, a password and a
/// request of version 5, takes 1,032.
const HANDSHAKE_MAX: usize = 1_300;

/// Octets read and thrown away behind a refusal, and how long that may take: closing with octets
/// unread would reset the connection and could destroy the reply on its way.
const DRAIN_MAX: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What all sessions share.
pub struct Service {
    /// Who may do what.
    pub policy: Arc<Current>,
    /// Who has failed to authenticate of late.
    pub penalties: Penalties,
    /// The sessions under way.
    pub live: Arc<Live>,
    /// Whether sessions that a new policy would not grant end with the old one.
    pub strict_reload: bool,
    /// What commands work with.
    pub means: Means,
    /// Threads that wait for clients, serve them, and see to the second direction.
    pub threads: Threads,
    /// What relays share.
    pub relays: Relays,
    /// Where the lines go.
    pub log: Log,
    /// Whether SOCKS 4A is spoken beside SOCKS 4.
    pub allow_4a: bool,
    /// How long a client may take from its connection to the end of its request.
    pub handshake_timeout: Duration,
    /// From where clients come who begin with a PROXY header.
    pub balancers: Vec<Block>,
    /// Whether clients of UNIX sockets do.
    pub unix_balancer: bool,
    /// The port at which a client's host answers IDENT queries.
    pub ident_port: u16,
    /// How long it may take to do so.
    pub ident_timeout: Duration,
    /// How long neither side of a tunnel may send anything; `None` for ever.
    pub idle: Option<Duration>,
    /// The same once one side has closed.
    pub linger: Duration,
    /// Whether fragments of datagrams are put together rather than dropped.
    pub fragments: bool,
    /// How long an association may pass no datagram; `None` for ever.
    pub udp_idle: Option<Duration>,
}

impl Service {
    /// Whether a client is refused for a while because it has failed to authenticate too often.
    #[must_use]
    pub fn shuts_out(&self, client: Option<IpAddr>) -> bool {
        self.penalties.shut_out(client_block(client), Instant::now())
    }

    /// Whether a client at this address has to tell first for whom it comes.
    #[must_use]
    pub fn is_balancer(&self, client: Option<IpAddr>) -> bool {
        match client {
            Some(ip) => self.balancers.iter().any(|block| block.holds(ip)),
            None => self.unix_balancer,
        }
    }

    /// Puts another policy in force.
    pub fn change_policy(&self, policy: Policy) {
        self.policy.set(policy);
        if self.strict_reload {
            self.live.revoke(&self.policy.get());
        }
    }
}

/// A session's place among all others, which the server counts.
pub trait Seat {
    /// The number of the session in the log.
    fn number(&self) -> u64;

    /// Counts it for `client`, whom a balancer has told of, from now on.
    ///
    /// # Errors
    /// The cap that is reached.
    fn belongs_to(&mut self, client: Option<IpAddr>) -> Result<(), String>;

    /// Counts it no more among those whose handshake is not complete.
    fn handshake_is_over(&mut self);
}

/// Serves one client that has just been accepted, to the end, and logs it. Its last octets may be
/// relayed by another thread after this returns; then `seat` is given up there.
/// `stream` may also be a UNIX stream socket, whose `client` has no address. Closes `stream`.
pub fn run(
    service: &Arc<Service>,
    stream: TcpStream,
    client: Option<SocketAddr>,
    seat: impl Seat + Send + 'static,
) {
    if let Some(tunnel) = open(service, stream, client, seat) {
        service.relays.run(tunnel);
    }
}

/// Does all that comes before the relaying of octets; that too where there will be none.
// Its frames need not stay while octets are relayed.
#[inline(never)]
fn open(
    service: &Arc<Service>,
    stream: TcpStream,
    client: Option<SocketAddr>,
    mut seat: impl Seat + Send + 'static,
) -> Option<Tunnel> {
    let mut record = Box::new(Record::new(seat.number(), client));
    let session = Session { service, client, reached: None, record: &mut record };
    match session.serve(stream, &mut seat) {
        Ok((granted, intake)) => relay(service, record, granted, intake, seat),
        Err(stop) => {
            record.end(service, &stop);
            None
        }
    }
}

/// What the log says of a session.
struct Record {
    number: u64,
    client: Option<SocketAddr>,
    begun: Instant,
    user: Vec<u8>,
    version: Option<Version>,
    command: Option<Command>,
    dst: Option<Destination>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    reply: Option<u8>,
    /// The rule that decided, and what it has logged.
    rule: Option<Place>,
    logging: Option<Logging>,
    traffic: Arc<Traffic>,
}

impl Record {
    fn new(number: u64, client: Option<SocketAddr>) -> Self {
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

    fn line(&self, event: &str) -> Line {
        let line = Line::new(event)
            .number("session", self.number)
            .client(self.client)
            .octets("user", &self.user)
            .field_or_dash("version", self.version)
            .field_or_dash("command", self.command);
        match &self.dst {
            Some(Destination::Name(name, port)) => {
                line.octets("dst", &[name, format!(":{port}").as_bytes()].concat())
            }
            Some(Destination::Address(addr)) => line.address("dst", Some(*addr)),
            None => line.address("dst", None),
        }
        .address("addr", self.peer)
        .address("local", self.local)
        .field_or_dash("rule", self.rule.as_ref())
    }

    /// Adds what there is to count.
    fn counted(&self, line: Line) -> Line {
        let line = match self.reply {
            Some(code) => line.field("reply", format_args!("{code:02x}")),
            None => line.field("reply", '-'),
        };
        line.number("up", self.traffic.up.load(Ordering::Relaxed))
            .number("down", self.traffic.down.load(Ordering::Relaxed))
            .number("dropped", self.traffic.dropped().map(|(_, count)| count).sum())
            .seconds("seconds", self.begun.elapsed())
    }

    /// Notes the rule that decided, if one did.
    fn decided_by(&mut self, rule: Option<&Rule>) {
        self.rule = rule.map(|rule| rule.place.clone());
        self.logging = rule.and_then(|rule| rule.settings.log);
    }

    /// Writes a line of what happens within the session.
    fn tell(&self, log: &Log, event: &str) {
        let level = match self.logging {
            Some(Logging::No) => return,
            Some(Logging::Verbose) => Level::Normal,
            None => Level::Verbose,
        };
        if log.wants(level) {
            log.write(level, self.line(event));
        }
    }

    /// Counts and logs that the session has ended.
    fn end(&self, service: &Service, stop: &Stop) {
        let count = |reason| service.means.stats.ended.add(self.words(reason));
        match stop {
            Stop::Ended(end) => {
                count(end.word());
                self.write(&service.log, "close", Level::Normal, end.word(), None);
            }
            Stop::Refused { level, reason, error } => {
                count(reason);
                self.write(&service.log, "refuse", *level, reason, Some(error));
            }
        }
    }

    fn write(
        &self,
        log: &Log,
        event: &str,
        level: Level,
        reason: impl Display,
        error: Option<&str>,
    ) {
        if !log.wants(level) || self.logging == Some(Logging::No) {
            return;
        }
        let line = self.counted(self.line(event)).field("reason", reason);
        log.write(
            level,
            match error {
                Some(error) => line.text("error", error),
                None => line,
            },
        );
    }
}

/// Why a session ended before its relay.
enum Stop {
    /// It came to this end.
    Ended(End),
    /// This server refused it.
    Refused { level: Level, reason: &'static str, error: String },
}

impl Stop {
    /// The client left.
    const GONE: Self = Self::Ended(End::Closed(Side::Client));

    fn refused(reason: &'static str, error: impl Display) -> Self {
        Self::Refused { level: Level::Normal, reason, error: error.to_string() }
    }
}

/// What is left to do once a request is granted.
enum Work {
    /// Relay octets with the target; the thread copies one of the directions, if it is needed.
    Tunnel(TcpStream, Reserved),
    /// Relay datagrams.
    Association(Sockets),
}

/// A request granted.
struct Granted {
    asker: Asker,
    /// What for and the address it led to, unless it is an association.
    target: Option<(Destination, IpAddr)>,
    work: Work,
    rates: Vec<Arc<Rate>>,
    /// The idle limit of the rule that admits it, if that has one.
    idle: Option<Duration>,
    /// Its place among the sessions of its user and of the rule.
    slot: Slot,
}

/// What the handshake comes to.
struct Agreed {
    /// What was in force when the client came, and judges its request.
    policy: Arc<Policy>,
    user: User,
    request: Request,
}

struct Session<'a, 'r> {
    service: &'a Service,
    client: Option<SocketAddr>,
    /// Where the client has reached a balancer.
    reached: Option<SocketAddr>,
    record: &'r mut Record,
}

impl<'a> Session<'a, '_> {
    /// The client's address, if it has one.
    fn ip(&self) -> Option<IpAddr> {
        self.client.map(|addr| addr.ip())
    }

    fn serve(
        mut self,
        stream: TcpStream,
        seat: &mut impl Seat,
    ) -> Result<(Box<Granted>, Intake<'a>), Stop> {
        let deadline = self.record.begun + self.service.handshake_timeout;
        let mut intake = Intake::new(stream, deadline, self.service.live.ended());
        if self.service.is_balancer(self.ip()) {
            self.introduction(&mut intake, seat)?;
        }
        let agreed = match intake.first_octet()? {
            socks4::VN => self.handshake4(&mut intake),
            socks5::VER => self.handshake5(&mut intake),
            // Such a client would not understand any reply.
            other => return Err(Stop::refused("protocol", DecodeError::Version(other))),
        };
        seat.handshake_is_over();
        match agreed.and_then(|agreed| self.carry_out(agreed, &mut intake)) {
            Ok(granted) => Ok((granted, intake)),
            Err(stop) => {
                if let Stop::Refused { .. } = stop {
                    intake.drain();
                }
                Err(stop)
            }
        }
    }

    /// The header in which a balancer tells of its client.
    fn introduction(&mut self, intake: &mut Intake<'_>, seat: &mut impl Seat) -> Result<(), Stop> {
        let header = intake.decode(proxy::decode)?;
        // The octets of the header are none of the handshake's.
        intake.taken = 0;
        (self.client, self.reached) = match header {
            Header::Local => (self.client, None),
            Header::Unknown => (None, None),
            Header::Proxied { client, server } => (Some(client), Some(server)),
        };
        self.record.client = self.client;
        if self.service.shuts_out(self.ip()) {
            return Err(Stop::refused("penalty", "too many failures before"));
        }
        if header == Header::Local {
            return Ok(());
        }
        seat.belongs_to(self.ip()).map_err(|full| Stop::refused("limit", full))
    }

    /// SOCKS 4 and 4A: the request is all there is.
    #[inline(never)]
    fn handshake4(&mut self, intake: &mut Intake<'_>) -> Result<Agreed, Stop> {
        self.record.version = Some(Version::V4);
        let allow_4a = self.service.allow_4a;
        let request = match intake.decode(|r| socks4::decode_request(r, allow_4a)) {
            Ok(request) => request,
            Err(stop) => {
                if intake.fault.is_some() {
                    self.reply4(intake, Cd::REJECTED, NO_ADDRESS)?;
                }
                return Err(stop);
            }
        };
        self.record.user.clone_from(&request.userid);
        self.note(&request);
        Ok(Agreed { policy: self.service.policy.get(), user: User::anonymous(), request })
    }

    /// SOCKS 5: greeting, perhaps a password, request (RFC 1928 sections 3 and 4).
    #[inline(never)]
    fn handshake5(&mut self, intake: &mut Intake<'_>) -> Result<Agreed, Stop> {
        self.record.version = Some(Version::V5);
        let offered = intake.decode(socks5::decode_greeting)?;
        let policy = self.service.policy.get();
        let methods = policy.methods(self.ip());
        let method = methods.select(&offered);
        let answer = method.unwrap_or(Method::NO_ACCEPTABLE);
        self.send(intake, &socks5::encode_selection(answer))?;
        let user = match (method, &policy.users) {
            (Some(Method::NONE), _) => User::anonymous(),
            (Some(Method::USERPASS), Some(users)) => self.password(users, intake)?,
            _ if !methods.none && !methods.userpass => {
                return Err(Stop::refused("denied", "no rule allows this client anything"));
            }
            _ => return Err(Stop::refused("method", "no acceptable method offered")),
        };
        match intake.decode(socks5::decode_request) {
            Ok(request) => {
                self.note(&request);
                Ok(Agreed { policy, user, request })
            }
            Err(stop) => {
                let rep = match intake.fault {
                    Some(DecodeError::AddressType(_)) => Rep::ADDRESS_TYPE_NOT_SUPPORTED,
                    Some(_) => Rep::GENERAL_FAILURE,
                    None => return Err(stop),
                };
                self.reply5(intake, rep, NO_ADDRESS)?;
                Err(stop)
            }
        }
    }

    /// The sub-negotiation of RFC 1929.
    fn password(&mut self, users: &Users, intake: &mut Intake<'_>) -> Result<User, Stop> {
        let claim = match intake.decode(userpass::decode_request) {
            Ok(claim) => claim,
            Err(stop) => {
                if intake.fault.is_some() {
                    self.send(intake, &userpass::encode_reply(false))?;
                }
                return Err(stop);
            }
        };
        self.record.user.clone_from(&claim.uname);
        let client = client_block(self.ip());
        let penalties = &self.service.penalties;
        let shut_out = || penalties.shut_out(client, Instant::now());
        let checked = users.check(&claim, intake.deadline, shut_out);
        if let Err(AuthError::Wrong | AuthError::Expired) = checked {
            self.service.means.stats.auth_failures.fetch_add(1, Ordering::Relaxed);
            self.penalize(intake.deadline);
        }
        let sent = self.send(intake, &userpass::encode_reply(checked.is_ok()));
        // A guess is told of as one even where the guesser does not stay for the answer.
        let failed = |error: &str| Stop::Refused {
            level: Level::Quiet,
            reason: "auth",
            error: error.into(),
        };
        let user = checked.map_err(|error| match error {
            AuthError::Wrong => failed("wrong user name or password"),
            AuthError::Expired => failed("the account has expired"),
            AuthError::TimedOut => Stop::refused("timeout", "too many passwords to check"),
            AuthError::ShutOut => Stop::refused("penalty", "too many failures before"),
        })?;
        sent?;
        Ok(user)
    }

    /// Counts a wrong password and waits before its answer.
    fn penalize(&self, deadline: Instant) {
        let (penalties, now) = (&self.service.penalties, Instant::now());
        let penalty = penalties.fail(client_block(self.ip()), now);
        if penalty.shuts_out {
            let line = Line::new("penalty")
                .client(self.client)
                .field("seconds", penalties.time().as_secs());
            self.service.log.write(Level::Quiet, line);
        }
        thread::sleep(penalty.delay.min(deadline.saturating_duration_since(now)));
    }

    fn note(&mut self, request: &Request) {
        self.record.version = Some(request.version);
        self.record.command = Some(request.command);
        self.record.dst = Some(request.dst.clone());
    }

    /// Carries out the request and replies.
    fn carry_out(&mut self, agreed: Agreed, intake: &mut Intake<'_>) -> Result<Box<Granted>, Stop> {
        let version = agreed.request.version;
        self.grant(agreed, intake).map_err(|failure| self.refuse(version, &failure, intake))
    }

    #[inline(never)]
    fn grant(&mut self, agreed: Agreed, intake: &mut Intake<'_>) -> Result<Box<Granted>, Failure> {
        let Agreed { policy, user, request } = agreed;
        let Request { version, command, dst, userid } = request;
        let Service { means, threads, log, .. } = self.service;
        // Where an association's datagrams go is not known yet.
        let asked = match command {
            Command::CONNECT | Command::BIND => Some(&dst),
            Command::UDP_ASSOCIATE if version == Version::V5 => None,
            _ => {
                self.record.tell(log, "request");
                return Err(Failure::Command);
            }
        };
        let ident = Ident::NotAsked;
        let mut asker = Asker { client: self.ip(), user, ident, version, command };
        if policy.wants_ident(&asker, asked) {
            asker.ident = self.identify(&policy, version, &userid, intake)?;
        }
        // A name may have to be looked up before it is known which rule decides; `-v` does not wait.
        let sure = policy.decider(&asker, asked);
        self.record.decided_by(sure);
        let told = sure.is_some() || log.wants(Level::Verbose);
        if told {
            self.record.tell(log, "request");
        }
        let candidates = match asked {
            Some(dst) if !dst.is_unspecified() || command == Command::CONNECT => {
                means.candidates(&policy, &asker, dst)?
            }
            // Any peer of a BIND, any destination of an association.
            _ => Vec::new(),
        };
        let rule = match candidates.first() {
            Some(candidate) => Arc::clone(&candidate.rule),
            None => Arc::clone(policy.admit(&asker, asked).map_err(Failure::Denied)?),
        };
        self.record.decided_by(Some(&rule));
        if !told {
            self.record.tell(log, "request");
        }
        let (work, target, admission) = if asked.is_none() {
            let local = intake.local()?;
            let (sockets, bnd, admission) = associate::open(means, &asker, &rule, local)?;
            self.record.local = Some(bnd);
            self.granted(version, bnd, intake)?;
            (Work::Association(sockets), None, admission)
        } else {
            // Before the reply: a relay that cannot be run must not be granted.
            let helper = threads.reserve().map_err(Failure::NoThread)?;
            let opened = if command == Command::CONNECT {
                let opened = connect::open(means, &asker, candidates)?;
                self.record.local = Some(opened.bnd);
                opened
            } else {
                let local = intake.local()?;
                let bound = bind::open(means, &asker, &dst, &candidates, &rule, local)?;
                self.record.local = Some(bound.bnd);
                self.granted(version, bound.bnd, intake)?;
                // A client that sends no more could not want much of its peer.
                let wait = intake.wait(means.bind_timeout, sys::POLLRDHUP);
                bound.wait(&policy, &asker, &wait)?
            };
            let Opened { target, peer, bnd, admission } = opened;
            self.record.peer = Some(peer);
            self.record.decided_by(Some(&admission.rule));
            self.granted(version, bnd, intake)?;
            self.record.tell(log, "connect");
            (Work::Tunnel(target, helper), Some((dst, peer.ip())), admission)
        };
        // Neither policy nor rule outlives this: they hold lists, which a reload is to set free.
        let Admission { rule, slot } = admission;
        let (rates, idle) = (means.caps.rates(&asker, &rule), rule.settings.idle);
        Ok(Box::new(Granted { asker, target, work, rates, idle, slot }))
    }

    /// Finds out who the client is by its host's word.
    ///
    /// # Errors
    /// `ClientGone`, `Stopped`.
    #[inline(never)]
    fn identify(
        &mut self,
        policy: &Policy,
        version: Version,
        userid: &[u8],
        intake: &Intake<'_>,
    ) -> Result<Ident, Failure> {
        match self.ask_identd(intake) {
            Ok(answer) => {
                let ident = Ident::of_answer(policy.users.as_ref(), version, userid, &answer);
                if self.record.user.is_empty()
                    && let Ident::Proved(user) = &ident
                {
                    self.record.user = user.name().unwrap_or_default().to_vec();
                }
                Ok(ident)
            }
            Err(IdentError::InVain(gone @ (InVain::ClientGone | InVain::Stopped))) => {
                Err(gone.into())
            }
            Err(error) => {
                let log = &self.service.log;
                if log.wants(Level::Verbose) {
                    log.write(Level::Verbose, self.record.line("ident").text("error", error));
                }
                Ok(Ident::Unproved)
            }
        }
    }

    /// Asks the client's host (RFC 1413), from the address the client reached.
    fn ask_identd(&self, intake: &Intake<'_>) -> Result<Vec<u8>, IdentError> {
        // It may have sent all it has to send behind its request.
        let wait = intake.wait(self.service.ident_timeout, 0);
        let (local, client) = (intake.local()?, self.client.ok_or(IdentError::NoHost)?);
        let mut addr = client;
        addr.set_port(self.service.ident_port);
        // A link-local address is no source without its scope, and a balancer's is none of this
        // host's; the system then finds one.
        let usable = |ip: &IpAddr| ip.is_ipv4() || !Set::Linklocal.holds(*ip);
        let source = Some(local.ip()).filter(|ip| self.reached.is_none() && usable(ip));
        let stream = TcpStream::from(dial::start(Target { addr, source })?);
        wait.on(&stream, sys::POLLOUT)?;
        if let Some(error) = stream.take_error()? {
            return Err(error.into());
        }
        let port = self.reached.unwrap_or(local).port();
        ident::ask(stream, client.port(), port, &wait)
    }

    fn granted(
        &mut self,
        version: Version,
        bnd: SocketAddr,
        intake: &mut Intake<'_>,
    ) -> Result<(), Failure> {
        let sent = match version {
            Version::V4 | Version::V4a => self.reply4(intake, Cd::GRANTED, bnd),
            Version::V5 => self.reply5(intake, Rep::SUCCEEDED, bnd),
        };
        sent.map_err(|_| Failure::ClientGone)
    }

    #[inline(never)]
    fn refuse(&mut self, version: Version, failure: &Failure, intake: &mut Intake<'_>) -> Stop {
        let bnd = match failure {
            Failure::ClientGone => return Stop::GONE,
            Failure::Stopped => return Stop::Ended(End::Stopped),
            Failure::WrongPeer(peer, denial) => {
                self.record.peer = Some(*peer);
                if let Some(denial) = denial {
                    self.record.decided_by(denial.rule());
                }
                *peer
            }
            Failure::Denied(denial) => {
                self.record.decided_by(denial.rule());
                NO_ADDRESS
            }
            _ => NO_ADDRESS,
        };
        // A client that is gone by now has been refused all the same.
        let _ = match version {
            Version::V4 | Version::V4a => self.reply4(intake, failure.cd(), bnd),
            Version::V5 => self.reply5(intake, failure.rep(), bnd),
        };
        Stop::refused(failure.reason(), failure)
    }

    fn reply4(&mut self, intake: &mut Intake<'_>, cd: Cd, addr: SocketAddr) -> Result<(), Stop> {
        self.record.reply = Some(cd.0);
        self.send(intake, &socks4::encode_reply(cd, addr))
    }

    fn reply5(&mut self, intake: &mut Intake<'_>, rep: Rep, bnd: SocketAddr) -> Result<(), Stop> {
        self.record.reply = Some(rep.0);
        self.send(intake, &socks5::encode_reply(rep, bnd))
    }

    /// Writes a whole message. All that is ever written before the relay fits into the send buffer
    /// of a new connection, so this does not wait.
    fn send(&self, intake: &mut Intake<'_>, message: &[u8]) -> Result<(), Stop> {
        intake.stream.write_all(message).map_err(|_| Stop::GONE)
    }
}

/// Relays datagrams until the session ends, and logs that; returns what is left to do for octets.
#[inline(never)]
fn relay(
    service: &Arc<Service>,
    record: Box<Record>,
    granted: Box<Granted>,
    intake: Intake<'_>,
    seat: impl Seat + Send + 'static,
) -> Option<Tunnel> {
    let Service { means, live, policy, linger, .. } = &**service;
    let Granted { asker, target, work, rates, idle, slot } = *granted;
    let idle = |default: Option<Duration>| match idle {
        Some(idle) => Some(idle).filter(|idle| !idle.is_zero()),
        None => default,
    };
    let stopper = Stopper::default();
    let record: Arc<Record> = Arc::from(record);
    let grant = Grant {
        asker: asker.clone(),
        target,
        record: Arc::clone(&record),
        stopper: stopper.clone(),
    };
    let entered = live.enter(record.number, grant);
    if service.strict_reload {
        // Another policy may have come into force since this session was judged.
        entered.check(&policy.get());
    }
    let (client, leftover) = intake.into_tunnel();
    let traffic = Arc::clone(&record.traffic);
    let done = {
        let service = Arc::clone(service);
        move |end| {
            drop((entered, slot));
            record.end(&service, &Stop::Ended(end));
            drop(seat);
        }
    };
    match work {
        Work::Tunnel(target, helper) => {
            let limits = Limits { idle: idle(service.idle), linger: *linger, rates };
            let done = Box::new(done);
            Some(Tunnel { client, leftover, target, helper, limits, traffic, stopper, done })
        }
        Work::Association(sockets) => {
            let terms = Terms {
                asker,
                policy: Arc::clone(policy),
                resolver: Arc::clone(&means.resolver),
                resolve_timeout: means.resolve_timeout,
                fragments: service.fragments,
                idle: idle(service.udp_idle),
                rates,
            };
            done(relay::udp::run(client, sockets, terms, &traffic, &stopper));
            None
        }
    }
}

/// The client before the relay: what it has sent and nobody has used yet, and how long it may take.
struct Intake<'a> {
    stream: TcpStream,
    deadline: Instant,
    /// Hangs up when the server ends.
    ended: BorrowedFd<'a>,
    /// Octets read and not yet decoded.
    octets: Vec<u8>,
    /// Octets decoded.
    taken: usize,
    /// What the last message that could not be decoded had wrong.
    fault: Option<DecodeError>,
}

impl<'a> Intake<'a> {
    fn new(stream: TcpStream, deadline: Instant, ended: BorrowedFd<'a>) -> Self {
        Self { stream, deadline, ended, octets: Vec::new(), taken: 0, fault: None }
    }

    /// The address at which the client reached this server; loopback for a UNIX socket, which has
    /// none: its client is on this host.
    fn local(&self) -> io::Result<SocketAddr> {
        if sys::is_unix(&self.stream)? {
            return Ok((Ipv4Addr::LOCALHOST, 0).into());
        }
        Ok(canonical(self.stream.local_addr()?))
    }

    fn first_octet(&mut self) -> Result<u8, Stop> {
        loop {
            match self.octets.first() {
                Some(&octet) => return Ok(octet),
                None => self.read()?,
            }
        }
    }

    /// Decodes one message, reading as much as it takes. Octets behind it stay for the next one or
    /// for the relay.
    fn decode<T>(
        &mut self,
        decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, Stop> {
        loop {
            let mut reader = Reader::new(&self.octets);
            match decode(&mut reader) {
                Ok(message) => {
                    let len = reader.consumed();
                    self.taken += len;
                    self.octets.drain(..len);
                    return Ok(message);
                }
                // Every decoder has bounds of its own, which together stay below this one.
                Err(DecodeError::Incomplete) if self.taken + self.octets.len() < HANDSHAKE_MAX => {
                    self.read()?;
                }
                Err(DecodeError::Incomplete) => {
                    self.fault = Some(DecodeError::Overlong);
                    return Err(Stop::refused("protocol", "handshake too long"));
                }
                Err(fault) => {
                    self.fault = Some(fault);
                    return Err(Stop::refused("protocol", fault));
                }
            }
        }
    }

    /// Reads what the client has sent, waiting for it until the deadline.
    fn read(&mut self) -> Result<(), Stop> {
        let mut buffer = [0; HANDSHAKE_MAX];
        let len = match self.wait_and_read(&mut buffer, self.deadline)? {
            Some(Ok(len @ 1..)) => len,
            Some(_) => return Err(Stop::GONE),
            None => return Err(Stop::refused("timeout", "no complete request in time")),
        };
        self.octets.extend_from_slice(buffer.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Ends the handshake: the client, and what it sent behind its request.
    fn into_tunnel(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.octets)
    }

    /// Reads once, waiting until `deadline` for something to come; `None` where nothing does.
    ///
    /// # Errors
    /// `Ended`.
    fn wait_and_read(
        &mut self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> Result<Option<io::Result<usize>>, Stop> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut fds = [PollFd::new(&self.stream, sys::POLLIN), PollFd::new(&self.ended, 0)];
            let ready = sys::poll(&mut fds, Some(left));
            let [on_stream, on_ended] = fds.map(|fd| fd.has(!0));
            let result = match ready {
                Ok(_) if on_stream => self.stream.read(buffer),
                Ok(_) if on_ended => return Err(Stop::Ended(End::Stopped)),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Ok(Some(result)),
            }
        }
    }

    /// The terms on which the client has somebody else waited for; see [`Wait::leaves_by`].
    fn wait(&self, time: Duration, leaves_by: i16) -> Wait<'_> {
        let deadline = Instant::now() + time;
        Wait { client: &self.stream, leaves_by, ended: self.ended, deadline }
    }

    /// After a refusal: ends the output and reads away what the client still sends, within bounds.
    // Its buffer need not stay while octets are relayed.
    #[inline(never)]
    fn drain(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIME;
        let mut buffer = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_MAX {
            match self.wait_and_read(&mut buffer, deadline) {
                Ok(Some(Ok(len @ 1..))) => drained += len,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    #[test]
    fn sec_09_a_handshake_ends_at_1300_octets_whatever_a_decoder_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        let (ended, _open) = io::pipe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut intake = Intake::new(stream, deadline, ended.as_fd());
        let stop = intake.decode(|_| Err::<(), _>(DecodeError::Incomplete));
        assert!(matches!(stop, Err(Stop::Refused { reason: "protocol", .. })));
        assert!(intake.octets.len() <= 2 * HANDSHAKE_MAX);
    }
}
