//! One client, from its first octet to its last. A session decides nothing itself: it asks who the
//! client is, has a plan made of the request, carries that out, replies, and hands what it opened to
//! the relay. Before the relay nothing else writes to a client; the relay takes the client by value.

mod handshake;
mod intake;
pub mod live;
mod record;
pub mod service;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::ident::{self, IdentError};
use crate::command::failure::Failure;
use crate::command::quotas::QuotaSlot;
use crate::command::resources::{Admission, Candidate, Opened};
use crate::command::{self, Plan, associate, bind, connect};
use crate::dial::{self, Target};
use crate::log::Level;
use crate::net::Stream;
use crate::policy::nets::Set;
use crate::policy::rules::{Ident, Rule};
use crate::policy::{Asker, Policy};
use crate::relay::rate::Rate;
use crate::relay::udp::{Sockets, Terms};
use crate::relay::{self, End, Leg, RelayLimits, Stopper, Tunnel};
use crate::session::handshake::{Handshake, read_proxy_header};
use crate::session::intake::Intake;
use crate::session::live::Grant;
use crate::session::record::{Record, Stop};
use crate::session::service::{Service, Slot};
use crate::threads::Reserved;
use crate::wait::WaitError;
use crate::wire::reply::ReplyCode;
use crate::wire::{DecodeError, Destination, Request, socks4, socks5};

/// Serves one client that has just been accepted, to the end, and logs it. Its last octets may be
/// relayed by another thread after this returns; then `slot` is given up there.
/// The `client` of a UNIX socket has no address. Closes `stream`.
pub fn run(
    service: &Arc<Service>,
    stream: Stream,
    client: Option<SocketAddr>,
    slot: impl Slot + Send + 'static,
) {
    if let Some(tunnel) = open(service, stream, client, slot) {
        service.relays.run(tunnel);
    }
}

/// Runs the session up to the relay of octets, and to its end where there is none.
// Its frames need not stay while octets are relayed.
#[inline(never)]
fn open(
    service: &Arc<Service>,
    stream: Stream,
    client: Option<SocketAddr>,
    mut slot: impl Slot + Send + 'static,
) -> Option<Tunnel> {
    let record = Box::new(Record::new(slot.number(), client));
    let deadline = record.begun + service.resources.timeouts.handshake;
    let intake = Intake::new(stream, deadline, service.live.ended());
    let mut session = Session { service, record, intake };
    match session.serve(&mut slot) {
        Ok(ready) => session.relay(ready, slot),
        Err(stop) => {
            session.record.end(&service.log, &service.resources.stats, &stop);
            None
        }
    }
}

/// What is left to do once a request is granted.
enum Work {
    /// Relay octets with the target; the thread copies one of the directions, if it is needed.
    Tunnel(Leg, Reserved),
    /// Relay datagrams.
    Association(Sockets),
}

/// A request granted and carried out, ready for the relay.
struct Ready {
    asker: Asker,
    /// What for and the address it led to, unless it is an association.
    target: Option<(Destination, IpAddr)>,
    work: Work,
    rates: Vec<Arc<Rate>>,
    /// The idle limit of the rule that admits it, if that has one.
    idle: Option<Duration>,
    /// Its place among the sessions of its user and of the rule.
    quota: QuotaSlot,
}

impl Ready {
    /// The rule does not outlive this: it holds lists, which a reload is to set free.
    fn new(
        service: &Service,
        asker: Asker,
        target: Option<(Destination, IpAddr)>,
        work: Work,
        Admission { rule, quota }: Admission,
    ) -> Box<Self> {
        let (rates, idle) = (service.resources.quotas.rates(&asker, &rule), rule.settings.idle);
        Box::new(Self { asker, target, work, rates, idle, quota })
    }
}

struct Session<'s> {
    service: &'s Arc<Service>,
    record: Box<Record>,
    intake: Intake<'s>,
}

impl Session<'_> {
    fn serve(&mut self, slot: &mut impl Slot) -> Result<Box<Ready>, Stop> {
        let Self { service, record, intake } = self;
        let reached = if service.balancers.includes(record.ip()) {
            read_proxy_header(service, record, intake, slot)?
        } else {
            None
        };
        let handshake = match intake.first_octet()? {
            socks4::VN => Handshake::v4(service, record, intake),
            socks5::VER => Handshake::v5(service, record, intake),
            // Such a client would not understand any reply.
            other => return Err(Stop::refused("protocol", DecodeError::Version(other))),
        };
        slot.handshake_is_over();
        let ready = handshake.and_then(|Handshake { policy, user, request }| {
            let asker = Asker {
                client: self.record.ip(),
                user,
                ident: Ident::NotAsked,
                version: request.version,
                command: request.command,
            };
            let ready = self.carry_out(&policy, asker, &request, reached);
            ready.map_err(|failure| self.refuse(&request, &failure))
        });
        if let Err(Stop::Refused { .. }) = ready {
            self.intake.drain();
        }
        ready
    }

    /// Carries out the request and replies.
    #[inline(never)]
    fn carry_out(
        &mut self,
        policy: &Policy,
        mut asker: Asker,
        request: &Request,
        reached: Option<SocketAddr>,
    ) -> Result<Box<Ready>, Failure> {
        match command::destination(request) {
            Ok(dst) if policy.needs_ident(&asker, dst) => {
                asker.ident = self.identify(policy, request, reached)?;
            }
            _ => {}
        }
        match self.plan(policy, &asker, request)? {
            Plan::Connect(candidates) => self.connect(asker, request, candidates),
            Plan::Bind { expected, rule } => self.bind(policy, asker, request, &expected, &rule),
            Plan::Associate(rule) => self.associate(asker, request, &rule),
        }
    }

    /// Makes a plan of the request, and logs the request as soon as the rule is known.
    fn plan(&mut self, policy: &Policy, asker: &Asker, request: &Request) -> Result<Plan, Failure> {
        let Service { resources, log, .. } = &**self.service;
        let dst = command::destination(request);
        // A name may have to be looked up before it is known which rule decides; `-v` does not wait.
        let sure = dst.as_ref().ok().and_then(|dst| policy.sure_rule(asker, *dst));
        self.record.decided_by(sure);
        let told = sure.is_some() || dst.is_err() || log.wants(Level::Verbose);
        if told {
            self.record.tell(log, "request");
        }
        let wait = self.intake.wait(resources.timeouts.resolve);
        let plan = Plan::new(resources, policy, asker, request, &wait)?;
        self.record.decided_by(plan.rule());
        if !told {
            self.record.tell(log, "request");
        }
        Ok(plan)
    }

    fn connect(
        &mut self,
        asker: Asker,
        request: &Request,
        candidates: Vec<Candidate>,
    ) -> Result<Box<Ready>, Failure> {
        let Service { resources, threads, .. } = &**self.service;
        // Before the reply: a relay that cannot be run must not be granted.
        let helper = threads.reserve().map_err(Failure::NoThread)?;
        let wait = self.intake.wait(resources.timeouts.connect);
        let opened = connect::open(resources, &asker, candidates, &wait)?;
        self.record.local = Some(opened.bnd.clone());
        self.tunnel(asker, request, opened, helper)
    }

    fn bind(
        &mut self,
        policy: &Policy,
        asker: Asker,
        request: &Request,
        expected: &[Candidate],
        rule: &Arc<Rule>,
    ) -> Result<Box<Ready>, Failure> {
        let Service { resources, threads, .. } = &**self.service;
        let helper = threads.reserve().map_err(Failure::NoThread)?;
        let local = self.intake.local()?;
        let bound = bind::open(resources, &asker, request, expected, rule, local)?;
        self.record.local = Some(bound.bnd.clone());
        self.grant(request, &bound.bnd)?;
        let wait = self.intake.wait_until_fin(resources.timeouts.bind);
        let opened = bound.wait(policy, &asker, &wait)?;
        self.tunnel(asker, request, opened, helper)
    }

    fn associate(
        &mut self,
        asker: Asker,
        request: &Request,
        rule: &Arc<Rule>,
    ) -> Result<Box<Ready>, Failure> {
        let local = self.intake.local()?;
        let (sockets, bnd, admission) =
            associate::open(&self.service.resources, &asker, rule, local)?;
        self.record.local = Some(bnd.clone());
        self.grant(request, &bnd)?;
        Ok(Ready::new(self.service, asker, None, Work::Association(sockets), admission))
    }

    /// Grants a connection that has been made.
    fn tunnel(
        &mut self,
        asker: Asker,
        request: &Request,
        Opened { target, peer, bnd, admission }: Opened,
        helper: Reserved,
    ) -> Result<Box<Ready>, Failure> {
        self.record.peer = Some(peer);
        self.record.decided_by(Some(&admission.rule));
        self.grant(request, &bnd)?;
        let Service { log, .. } = &**self.service;
        self.record.tell(log, "connect");
        let (work, target) = (Work::Tunnel(target, helper), (request.dst.clone(), peer.ip()));
        Ok(Ready::new(self.service, asker, Some(target), work, admission))
    }

    /// Replies that the request is granted.
    fn grant(&mut self, request: &Request, bnd: &Destination) -> Result<(), Failure> {
        let code = ReplyCode::granted(request.version);
        self.intake.reply(&mut self.record, code, bnd).map_err(|_| Failure::ClientGone)
    }

    /// Replies with what kept the request from being carried out.
    #[inline(never)]
    fn refuse(&mut self, request: &Request, failure: &Failure) -> Stop {
        let mut bnd = Destination::NONE;
        match failure {
            Failure::ClientGone => return Stop::GONE,
            Failure::Stopped => return Stop::Ended(End::Stopped),
            Failure::WrongPeer(peer, denial) => {
                self.record.peer = Some(*peer);
                if let Some(denial) = denial {
                    self.record.decided_by(denial.rule());
                }
                bnd = Destination::Address(*peer);
            }
            Failure::Denied(denial) => self.record.decided_by(denial.rule()),
            _ => {}
        }
        // A client that is gone by now has been refused all the same.
        let _ = self.intake.reply(&mut self.record, failure.code(request.version), &bnd);
        Stop::refused(failure.reason(), failure)
    }

    /// Finds out by the word of the client's host who the client is.
    ///
    /// # Errors
    /// `ClientGone`, `Stopped`.
    #[inline(never)]
    fn identify(
        &mut self,
        policy: &Policy,
        request: &Request,
        reached: Option<SocketAddr>,
    ) -> Result<Ident, Failure> {
        match self.ask_identd(reached) {
            Ok(answer) => {
                let Request { version, userid, .. } = request;
                let ident = Ident::of_answer(policy.users.as_ref(), *version, userid, &answer);
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
                    log.write(Level::Verbose, self.record.line(log, "ident").text("error", error));
                }
                Ok(Ident::Unproved)
            }
        }
    }

    /// Asks the client's host (RFC 1413), from the address that the client reached: that of a
    /// balancer, if there is one.
    fn ask_identd(&self, reached: Option<SocketAddr>) -> Result<Vec<u8>, IdentError> {
        let wait = self.intake.wait(self.service.resources.timeouts.ident);
        let (local, client) = (self.intake.local()?, self.record.client.ok_or(IdentError::NoHost)?);
        let mut addr = client;
        addr.set_port(self.service.ident_port);
        // A link-local address is no source without its scope, and a balancer's is none of this
        // host's; the system then finds one.
        let usable = |ip: &IpAddr| ip.is_ipv4() || !Set::Linklocal.holds(*ip);
        let source = Some(local.ip()).filter(|ip| reached.is_none() && usable(ip));
        let (stream, _) = dial::connect(&[Target { addr, source }], &wait)?;
        ident::ask(stream, client.port(), reached.unwrap_or(local).port(), &wait)
    }

    /// Relays datagrams until the session ends, and logs that; returns what is left to do for
    /// octets.
    #[inline(never)]
    fn relay(self, ready: Box<Ready>, slot: impl Slot + Send + 'static) -> Option<Tunnel> {
        let Self { service, record, intake } = self;
        let Service { resources, live, policy, .. } = &**service;
        let timeouts = &resources.timeouts;
        let Ready { asker, target, work, rates, idle, quota } = *ready;
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
        let client = intake.into_leg();
        let traffic = Arc::clone(&record.traffic);
        let done = {
            let service = Arc::clone(service);
            move |end| {
                drop((entered, quota));
                record.end(&service.log, &service.resources.stats, &Stop::Ended(end));
                drop(slot);
            }
        };
        match work {
            Work::Tunnel(target, helper) => {
                let limits =
                    RelayLimits { idle: idle(timeouts.idle), linger: timeouts.linger, rates };
                let done = Box::new(done);
                Some(Tunnel { client, target, helper, limits, traffic, stopper, done })
            }
            Work::Association(sockets) => {
                let terms = Terms {
                    asker,
                    policy: Arc::clone(policy),
                    resolver: Arc::clone(&resources.resolver),
                    resolve_timeout: timeouts.resolve,
                    fragments: service.fragments,
                    idle: idle(timeouts.udp_idle),
                    rates,
                };
                done(relay::udp::run(client.stream, sockets, terms, &traffic, &stopper));
                None
            }
        }
    }
}
