//! One client, from its first octet to its last: the handshake, the plan of the request, its
//! execution, the reply, and the hand-over to the relay.
//!
//! Not here: decisions, which the policy takes, and relaying, for which the relay takes the
//! connection by value. Until then only the session writes to the client.

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
use crate::session::live::LiveSession;
use crate::session::record::{Record, Stop};
use crate::session::service::{Service, Slot};
use crate::threads::Reserved;
use crate::wait::WaitError;
use crate::wire::reply::ReplyCode;
use crate::wire::{DecodeError, Destination, Request, socks4, socks5};

/// Serves the accepted client of `stream`, and logs its end. When this returns, another thread may
/// still relay the last octets; it then drops `slot`. A `client` of a UNIX socket has no address.
pub fn run(
    service: &Arc<Service>,
    stream: Stream,
    client: Option<SocketAddr>,
    slot: impl Slot + Send + 'static,
) {
    if let Some(tunnel) = run_up_to_relay(service, stream, client, slot) {
        service.relays.run(tunnel);
    }
}

/// Runs the session up to the relay of octets, or to its end if there is none.
// Not inlined, so that its frames take no stack during the relay.
#[inline(never)]
fn run_up_to_relay(
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
            let Session { record, intake, .. } = session;
            // Closed before the line that says so.
            drop(intake);
            record.log_end(&service.log, &service.resources.stats, &stop);
            None
        }
    }
}

/// The relay of a granted request.
enum RelayKind {
    /// Octets to and from the target. The thread relays one of the directions, if needed.
    Tunnel(Leg, Reserved),
    /// Datagrams.
    Association(Sockets),
}

/// A granted request, ready for the relay.
struct Ready {
    asker: Asker,
    /// The destination and the address of the target; an association has none.
    target: Option<(Destination, IpAddr)>,
    kind: RelayKind,
    rates: Vec<Arc<Rate>>,
    /// The idle limit of the rule, if it has one.
    idle: Option<Duration>,
    /// The place in the quotas of the rule and of the user.
    quota: QuotaSlot,
}

impl Ready {
    /// Takes the settings from the rule and drops it: it holds lists, which a reload has to free.
    fn new(
        service: &Service,
        asker: Asker,
        target: Option<(Destination, IpAddr)>,
        kind: RelayKind,
        Admission { rule, quota }: Admission,
    ) -> Box<Self> {
        let (rates, idle) = (service.resources.quotas.rates(&asker, &rule), rule.settings.idle);
        Box::new(Self { asker, target, kind, rates, idle, quota })
    }
}

struct Session<'s> {
    service: &'s Arc<Service>,
    record: Box<Record>,
    intake: Intake<'s>,
}

impl Session<'_> {
    /// Reads the client's request, carries it out and replies.
    fn serve(&mut self, slot: &mut impl Slot) -> Result<Box<Ready>, Stop> {
        let Self { service, record, intake } = self;
        let balancer_addr = if service.balancers.includes(record.ip()) {
            read_proxy_header(service, record, intake, slot)?
        } else {
            None
        };
        let handshake = match intake.peek_octet()? {
            socks4::VN => Handshake::v4(service, record, intake),
            socks5::VER => Handshake::v5(service, record, intake),
            // Such a client would not understand any reply.
            other => return Err(Stop::refused("protocol", DecodeError::Version(other))),
        };
        slot.end_handshake();
        let ready = handshake.and_then(|Handshake { policy, user, request }| {
            let asker = Asker {
                client: self.record.ip(),
                user,
                ident: Ident::NotAsked,
                version: request.version,
                command: request.command,
            };
            let ready = self.carry_out(&policy, asker, &request, balancer_addr);
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
        balancer_addr: Option<SocketAddr>,
    ) -> Result<Box<Ready>, Failure> {
        match command::destination(request) {
            Ok(dst) if policy.needs_ident(&asker, dst) => {
                asker.ident = self.identify(policy, request, balancer_addr)?;
            }
            _ => {}
        }
        match self.plan(policy, &asker, request)? {
            Plan::Connect(candidates) => self.connect(asker, request, candidates),
            Plan::Bind { expected, rule } => self.bind(policy, asker, request, &expected, &rule),
            Plan::Associate(rule) => self.associate(asker, request, &rule),
        }
    }

    /// Plans the request, and logs it as soon as the rule is known.
    fn plan(&mut self, policy: &Policy, asker: &Asker, request: &Request) -> Result<Plan, Failure> {
        let Service { resources, log, .. } = &**self.service;
        let dst = command::destination(request);
        // The rule may depend on a name's addresses; with `-v` the line does not wait for them.
        let rule = dst.as_ref().ok().and_then(|dst| policy.sure_rule(asker, *dst));
        self.record.set_rule(rule);
        let logged = rule.is_some() || dst.is_err() || log.wants(Level::Verbose);
        if logged {
            self.record.log_event(log, "request");
        }
        let wait = self.intake.wait(resources.timeouts.resolve);
        let plan = Plan::new(resources, policy, asker, request, &wait)?;
        self.record.set_rule(plan.rule());
        if !logged {
            self.record.log_event(log, "request");
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
        // Reserved before the reply, since a relay without its thread must not be granted.
        let helper = threads.reserve().map_err(Failure::NoThread)?;
        let wait = self.intake.wait(resources.timeouts.connect);
        let opened = connect::open(resources, &asker, request, candidates, &wait)?;
        self.record.local = Some(opened.bnd.clone());
        self.grant_tunnel(asker, request, opened, helper)
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
        self.reply_granted(request, &bound.bnd)?;
        let wait = self.intake.wait_until_fin(resources.timeouts.bind);
        let opened = bound.wait(policy, &asker, &wait)?;
        self.grant_tunnel(asker, request, opened, helper)
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
        self.reply_granted(request, &bnd)?;
        Ok(Ready::new(self.service, asker, None, RelayKind::Association(sockets), admission))
    }

    /// Grants a request whose connection to the target has been made.
    fn grant_tunnel(
        &mut self,
        asker: Asker,
        request: &Request,
        Opened { target, peer, bnd, admission }: Opened,
        helper: Reserved,
    ) -> Result<Box<Ready>, Failure> {
        self.record.peer = Some(peer);
        self.record.set_rule(Some(&admission.rule));
        self.reply_granted(request, &bnd)?;
        let Service { log, .. } = &**self.service;
        self.record.log_event(log, "connect");
        let (kind, target) = (RelayKind::Tunnel(target, helper), (request.dst.clone(), peer.ip()));
        Ok(Ready::new(self.service, asker, Some(target), kind, admission))
    }

    /// Replies that the request is granted.
    fn reply_granted(&mut self, request: &Request, bnd: &Destination) -> Result<(), Failure> {
        let code = ReplyCode::granted(request.version);
        self.intake.reply(&mut self.record, code, bnd).map_err(|_| Failure::ClientGone)
    }

    /// Replies that the request has failed.
    #[inline(never)]
    fn refuse(&mut self, request: &Request, failure: &Failure) -> Stop {
        let mut bnd = Destination::NONE;
        match failure {
            Failure::ClientGone => return Stop::GONE,
            Failure::Stopped => return Stop::Ended(End::Stopped),
            Failure::WrongPeer(peer, denial) => {
                self.record.peer = Some(*peer);
                if let Some(denial) = denial {
                    self.record.set_rule(denial.rule());
                }
                bnd = Destination::Address(*peer);
            }
            Failure::Denied(denial) => self.record.set_rule(denial.rule()),
            _ => {}
        }
        // The session counts as refused even if the client has left.
        let _ = self.intake.reply(&mut self.record, failure.code(request.version), &bnd);
        Stop::refused(failure.reason(), failure)
    }

    /// Identifies the client's user by IDENT (RFC 1413). An IDENT that fails proves nothing.
    ///
    /// # Errors
    /// `ClientGone`, `Stopped`.
    #[inline(never)]
    fn identify(
        &mut self,
        policy: &Policy,
        request: &Request,
        balancer_addr: Option<SocketAddr>,
    ) -> Result<Ident, Failure> {
        match self.ask_identd(balancer_addr) {
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

    /// Asks identd on the client's host about the client's connection, which goes to the balancer
    /// if there is one.
    fn ask_identd(&self, balancer_addr: Option<SocketAddr>) -> Result<Vec<u8>, IdentError> {
        let wait = self.intake.wait(self.service.resources.timeouts.ident);
        let (local, client) = (self.intake.local()?, self.record.client.ok_or(IdentError::NoHost)?);
        let mut addr = client;
        addr.set_port(self.service.ident_port);
        // The query leaves from the address that the client reached, which identd looks for. The
        // system has to choose if that is the balancer's, or link-local, without its scope.
        let usable = |ip: &IpAddr| ip.is_ipv4() || !Set::Linklocal.holds(*ip);
        let source = Some(local.ip()).filter(|ip| balancer_addr.is_none() && usable(ip));
        let (stream, _) = dial::connect(&[Target { addr, source }], &wait)?;
        ident::ask(stream, client.port(), balancer_addr.unwrap_or(local).port(), &wait)
    }

    /// Registers the session and relays datagrams to its end. A relay of octets is returned for the
    /// caller to run.
    #[inline(never)]
    fn relay(self, ready: Box<Ready>, slot: impl Slot + Send + 'static) -> Option<Tunnel> {
        let Self { service, record, intake } = self;
        let Service { resources, live, policy, .. } = &**service;
        let timeouts = &resources.timeouts;
        let Ready { asker, target, kind, rates, idle, quota } = *ready;
        let idle = |default: Option<Duration>| match idle {
            Some(idle) => Some(idle).filter(|idle| !idle.is_zero()),
            None => default,
        };
        let stopper = Stopper::default();
        let record: Arc<Record> = Arc::from(record);
        let live_session = LiveSession {
            asker: asker.clone(),
            target,
            record: Arc::clone(&record),
            stopper: stopper.clone(),
        };
        let registration = live.register(record.number, live_session);
        if service.strict_reload {
            // A reload may have changed the policy since the request was allowed.
            registration.enforce(&policy.get());
        }
        let client = intake.into_leg();
        let traffic = Arc::clone(&record.traffic);
        let done = {
            let service = Arc::clone(service);
            move |end| {
                drop((registration, quota));
                record.log_end(&service.log, &service.resources.stats, &Stop::Ended(end));
                drop(slot);
            }
        };
        match kind {
            RelayKind::Tunnel(target, helper) => {
                let limits =
                    RelayLimits { idle: idle(timeouts.idle), linger: timeouts.linger, rates };
                let done = Box::new(done);
                Some(Tunnel { client, target, helper, limits, traffic, stopper, done })
            }
            RelayKind::Association(sockets) => {
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
