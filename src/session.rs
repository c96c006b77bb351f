//! One client, from its first octet to its last: the only place that writes to a client before the
//! relay, and that decides nothing itself.

mod handshake;
mod intake;
pub mod live;
mod record;
pub mod service;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::User;
use crate::auth::ident::{self, IdentError};
use crate::command::failure::Failure;
use crate::command::quotas::Slot;
use crate::command::resources::{Admission, Opened};
use crate::command::{associate, bind, connect};
use crate::dial::{self, Target};
use crate::log::Level;
use crate::net::Stream;
use crate::policy::nets::Set;
use crate::policy::rules::Ident;
use crate::policy::{Asker, Policy};
use crate::relay::rate::Rate;
use crate::relay::udp::{Sockets, Terms};
use crate::relay::{self, End, Limits, Stopper, Tunnel};
use crate::session::intake::Intake;
use crate::session::live::Grant;
use crate::session::record::{Record, Stop};
use crate::session::service::Service;
use crate::threads::Reserved;
use crate::wait::WaitError;
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Rep};
use crate::wire::{Command, DecodeError, Destination, NO_ADDRESS, Request, Version};

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
/// The `client` of a UNIX socket has no address. Closes `stream`.
pub fn run(
    service: &Arc<Service>,
    stream: Stream,
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
        let deadline = self.record.begun + self.service.means.timeouts.handshake;
        let mut intake = Intake::new(stream, deadline, self.service.live.ended());
        if self.service.balancers.includes(self.ip()) {
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
        if policy.needs_ident(&asker, asked) {
            asker.ident = self.identify(&policy, version, &userid, intake)?;
        }
        // A name may have to be looked up before it is known which rule decides; `-v` does not wait.
        let sure = policy.sure_rule(&asker, asked);
        self.record.decided_by(sure);
        let told = sure.is_some() || log.wants(Level::Verbose);
        if told {
            self.record.tell(log, "request");
        }
        let candidates = match asked {
            Some(dst) if !dst.is_unspecified() || command == Command::CONNECT => {
                means.candidates(&policy, &asker, dst, &intake.wait(means.timeouts.resolve))?
            }
            // Any peer of a BIND, any destination of an association.
            _ => Vec::new(),
        };
        let rule = match candidates.first() {
            Some(candidate) => Arc::clone(&candidate.rule),
            None => Arc::clone(policy.may_allow(&asker, asked).map_err(Failure::Denied)?),
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
                let opened =
                    connect::open(means, &asker, candidates, &intake.wait(means.timeouts.connect))?;
                self.record.local = Some(opened.bnd);
                opened
            } else {
                let local = intake.local()?;
                let bound = bind::open(means, &asker, &dst, &candidates, &rule, local)?;
                self.record.local = Some(bound.bnd);
                self.granted(version, bound.bnd, intake)?;
                bound.wait(&policy, &asker, &intake.wait_until_fin(means.timeouts.bind))?
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
            Err(IdentError::Wait(gone @ (WaitError::ClientGone | WaitError::Stopped))) => {
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
        let wait = intake.wait(self.service.means.timeouts.ident);
        let (local, client) = (intake.local()?, self.client.ok_or(IdentError::NoHost)?);
        let mut addr = client;
        addr.set_port(self.service.ident_port);
        // A link-local address is no source without its scope, and a balancer's is none of this
        // host's; the system then finds one.
        let usable = |ip: &IpAddr| ip.is_ipv4() || !Set::Linklocal.holds(*ip);
        let source = Some(local.ip()).filter(|ip| self.reached.is_none() && usable(ip));
        let (stream, _) = dial::connect(&[Target { addr, source }], &wait)?;
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
    let Service { means, live, policy, .. } = &**service;
    let timeouts = &means.timeouts;
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
            let limits = Limits { idle: idle(timeouts.idle), linger: timeouts.linger, rates };
            let done = Box::new(done);
            Some(Tunnel { client, leftover, target, helper, limits, traffic, stopper, done })
        }
        Work::Association(sockets) => {
            let terms = Terms {
                asker,
                policy: Arc::clone(policy),
                resolver: Arc::clone(&means.resolver),
                resolve_timeout: timeouts.resolve,
                fragments: service.fragments,
                idle: idle(timeouts.udp_idle),
                rates,
            };
            done(relay::udp::run(client, sockets, terms, &traffic, &stopper));
            None
        }
    }
}
