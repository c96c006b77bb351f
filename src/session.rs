//! One client, from its first octet to its last: the only place that writes to a client before the
//! relay, and that decides nothing itself.

use std::fmt::Display;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::auth::{Auth, AuthError, User};
use crate::command::{Failure, Means, Opened, associate, bind, connect};
use crate::log::{Level, Line, Log};
use crate::policy::Asker;
use crate::policy::nets::client_block;
use crate::relay::udp::{Sockets, Terms};
use crate::relay::{self, End, Limits, Stopper, Traffic};
use crate::sys::{self, PollFd};
use crate::threads::{Reserved, Threads};
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Method, Rep};
use crate::wire::userpass;
use crate::wire::{
    Command, DecodeError, Destination, NO_ADDRESS, Reader, Request, Version, canonical,
};

/// Octets a whole handshake may take. The longest there can be, a greeting, a password and a
/// request of version 5, takes 1,032.
const HANDSHAKE_MAX: usize = 1_300;

/// Octets read and thrown away behind a refusal, and how long that may take: closing with octets
/// unread would reset the connection and could destroy the reply on its way.
const DRAIN_MAX: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What all sessions share.
pub struct Service {
    /// How clients prove who they are.
    pub auth: Auth,
    /// What commands work with.
    pub means: Means,
    /// Threads for sessions and their second direction.
    pub threads: Threads,
    /// Where the lines go.
    pub log: Log,
    /// Whether SOCKS 4A is spoken beside SOCKS 4.
    pub allow_4a: bool,
    /// How long a client may take from its connection to the end of its request.
    pub handshake_timeout: Duration,
    /// Limits of TCP relays.
    pub limits: Limits,
    /// Whether fragments of datagrams are put together rather than dropped.
    pub fragments: bool,
    /// How long an association may pass no datagram; `None` for ever.
    pub udp_idle: Option<Duration>,
}

impl Service {
    /// Whether a client is refused for a while because it has failed to authenticate too often.
    #[must_use]
    pub fn shuts_out(&self, client: IpAddr) -> bool {
        self.auth.penalties.shut_out(client_block(client), Instant::now())
    }
}

/// Serves one client that has just been accepted, to the end, and logs it as session `number`.
/// Closes `stream`, and drops `half_open` as soon as the handshake is over.
pub fn run(
    service: &Service,
    stream: TcpStream,
    client: SocketAddr,
    number: u64,
    half_open: impl Sized,
) {
    let mut record = Record::new(number, client);
    let mut session = Session { service, client, record: &mut record };
    match session.serve(stream, half_open) {
        Ok(end) => record.write(&service.log, "close", Level::Normal, end, None),
        Err(Stop::Gone) => record.write(&service.log, "close", Level::Normal, "client", None),
        Err(Stop::Refused { level, reason, error }) => {
            record.write(&service.log, "refuse", level, reason, Some(&error));
        }
    }
}

/// What the log says of a session.
struct Record {
    number: u64,
    client: SocketAddr,
    begun: Instant,
    user: Vec<u8>,
    version: Option<Version>,
    command: Option<Command>,
    dst: Option<Destination>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    reply: Option<u8>,
    traffic: Arc<Traffic>,
    dropped: Arc<AtomicU64>,
}

impl Record {
    fn new(number: u64, client: SocketAddr) -> Self {
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
            traffic: Arc::default(),
            dropped: Arc::default(),
        }
    }

    fn line(&self, event: &str) -> Line {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let line = Line::new(event)
            .field("session", self.number)
            .field("client", self.client)
            .octets("user", &self.user)
            .field("version", or_dash(self.version.map(|version| version.to_string())))
            .field("command", or_dash(self.command.map(|command| command.to_string())));
        match &self.dst {
            Some(Destination::Name(name, port)) => {
                line.octets("dst", &[name, format!(":{port}").as_bytes()].concat())
            }
            Some(Destination::Address(addr)) => line.field("dst", addr),
            None => line.field("dst", '-'),
        }
        .address("addr", self.peer)
        .address("local", self.local)
    }

    fn write(
        &self,
        log: &Log,
        event: &str,
        level: Level,
        reason: impl Display,
        error: Option<&str>,
    ) {
        if !log.wants(level) {
            return;
        }
        let line = self
            .line(event)
            .field("reply", self.reply.map_or_else(|| "-".into(), |code| format!("{code:02x}")))
            .field("up", self.traffic.up.load(Ordering::Relaxed))
            .field("down", self.traffic.down.load(Ordering::Relaxed))
            .field("dropped", self.dropped.load(Ordering::Relaxed))
            .field("seconds", format_args!("{:.3}", self.begun.elapsed().as_secs_f64()))
            .field("reason", reason);
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
    /// The client left.
    Gone,
    /// This server refused it.
    Refused { level: Level, reason: &'static str, error: String },
}

impl Stop {
    fn refused(reason: &'static str, error: impl Display) -> Self {
        Self::Refused { level: Level::Normal, reason, error: error.to_string() }
    }
}

/// What is left to do once a request is granted.
enum Granted {
    /// Relay octets with the target; the thread copies the direction from it.
    Tunnel(TcpStream, Reserved),
    /// Relay datagrams.
    Association(Sockets, Asker),
}

/// What the handshake comes to.
struct Agreed {
    request: Request,
    user: User,
}

struct Session<'a> {
    service: &'a Service,
    client: SocketAddr,
    record: &'a mut Record,
}

impl Session<'_> {
    fn serve(&mut self, stream: TcpStream, half_open: impl Sized) -> Result<End, Stop> {
        relay::prepare(&stream);
        let mut intake = Intake::new(stream, self.record.begun + self.service.handshake_timeout);
        let agreed = match intake.first_octet()? {
            socks4::VN => self.handshake4(&mut intake),
            socks5::VER => self.handshake5(&mut intake),
            // Such a client would not understand any reply.
            other => return Err(Stop::refused("protocol", DecodeError::Version(other))),
        };
        drop(half_open);
        match agreed.and_then(|agreed| self.carry_out(agreed, &mut intake)) {
            Ok(granted) => Ok(self.relay(granted, intake)),
            Err(stop) => {
                if let Stop::Refused { .. } = stop {
                    intake.drain();
                }
                Err(stop)
            }
        }
    }

    /// SOCKS 4 and 4A: the request is all there is.
    fn handshake4(&mut self, intake: &mut Intake) -> Result<Agreed, Stop> {
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
        match self.service.auth.anonymous() {
            Some(user) => Ok(Agreed { request, user }),
            None => {
                self.reply4(intake, Cd::REJECTED, NO_ADDRESS)?;
                Err(Stop::refused("method", "SOCKS 4 cannot give a password"))
            }
        }
    }

    /// SOCKS 5: greeting, perhaps a password, request (RFC 1928 sections 3 and 4).
    fn handshake5(&mut self, intake: &mut Intake) -> Result<Agreed, Stop> {
        self.record.version = Some(Version::V5);
        let auth = &self.service.auth;
        let offered = intake.decode(socks5::decode_greeting)?;
        let method = auth.select(&offered).unwrap_or(Method::NO_ACCEPTABLE);
        self.send(intake, &socks5::encode_selection(method))?;
        let user = match method {
            Method::NONE => auth.anonymous(),
            Method::USERPASS => Some(self.password(intake)?),
            _ => None,
        };
        let Some(user) = user else {
            return Err(Stop::refused("method", "no acceptable method offered"));
        };
        match intake.decode(socks5::decode_request) {
            Ok(request) => {
                self.note(&request);
                Ok(Agreed { request, user })
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
    fn password(&mut self, intake: &mut Intake) -> Result<User, Stop> {
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
        let client = client_block(self.client.ip());
        let checked = self.service.auth.check(&claim, client, intake.deadline);
        if let Err(AuthError::Wrong | AuthError::Expired) = checked {
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
        let (penalties, now) = (&self.service.auth.penalties, Instant::now());
        let penalty = penalties.fail(client_block(self.client.ip()), now);
        if penalty.shuts_out {
            let line = Line::new("penalty")
                .field("client", self.client)
                .field("seconds", penalties.time().as_secs());
            self.service.log.write(Level::Quiet, line);
        }
        thread::sleep(penalty.delay.min(deadline.saturating_duration_since(now)));
    }

    fn note(&mut self, request: &Request) {
        self.record.version = Some(request.version);
        self.record.command = Some(request.command);
        self.record.dst = Some(request.dst.clone());
        if self.service.log.wants(Level::Verbose) {
            self.service.log.write(Level::Verbose, self.record.line("request"));
        }
    }

    /// Carries out the request and replies.
    fn carry_out(&mut self, agreed: Agreed, intake: &mut Intake) -> Result<Granted, Stop> {
        let Agreed { request, user } = agreed;
        let Request { version, command, dst, .. } = request;
        let asker = Asker { client: self.client.ip(), user, version, command };
        let result = match command {
            Command::CONNECT => self.connect(&asker, &dst, intake),
            Command::BIND => self.bind(&asker, &dst, intake),
            Command::UDP_ASSOCIATE if version == Version::V5 => self.associate(asker, intake),
            _ => Err(Failure::Command),
        };
        result.map_err(|failure| self.refuse(version, &failure, intake))
    }

    fn connect(
        &mut self,
        asker: &Asker,
        dst: &Destination,
        intake: &mut Intake,
    ) -> Result<Granted, Failure> {
        // Before the reply: a relay that cannot be run must not be granted.
        let helper = self.service.threads.reserve().map_err(Failure::NoThread)?;
        let opened = connect::open(&self.service.means, asker, dst)?;
        self.record.local = Some(opened.bnd);
        self.tunnel(asker.version, opened, helper, intake)
    }

    fn bind(
        &mut self,
        asker: &Asker,
        dst: &Destination,
        intake: &mut Intake,
    ) -> Result<Granted, Failure> {
        let means = &self.service.means;
        let helper = self.service.threads.reserve().map_err(Failure::NoThread)?;
        let bound = bind::open(means, asker, dst, intake.local()?)?;
        self.record.local = Some(bound.bnd);
        self.granted(asker.version, bound.bnd, intake)?;
        let opened = bound.wait(means, asker, &intake.stream)?;
        self.tunnel(asker.version, opened, helper, intake)
    }

    /// Tells the client that its target stands open.
    fn tunnel(
        &mut self,
        version: Version,
        opened: Opened,
        helper: Reserved,
        intake: &mut Intake,
    ) -> Result<Granted, Failure> {
        self.record.peer = Some(opened.peer);
        relay::prepare(&opened.target);
        self.granted(version, opened.bnd, intake)?;
        let log = &self.service.log;
        if log.wants(Level::Verbose) {
            log.write(Level::Verbose, self.record.line("connect"));
        }
        Ok(Granted::Tunnel(opened.target, helper))
    }

    fn associate(&mut self, asker: Asker, intake: &mut Intake) -> Result<Granted, Failure> {
        let (sockets, bnd) = associate::open(&self.service.means, &asker, intake.local()?)?;
        self.record.local = Some(bnd);
        self.granted(asker.version, bnd, intake)?;
        Ok(Granted::Association(sockets, asker))
    }

    /// Relays until the session ends.
    fn relay(&self, granted: Granted, intake: Intake) -> End {
        let Service { means, limits, fragments, udp_idle, .. } = self.service;
        let (client, leftover) = intake.into_tunnel();
        let traffic = &self.record.traffic;
        let stopper = Stopper::default();
        match granted {
            Granted::Tunnel(target, helper) => {
                relay::run(client, &leftover, target, helper, limits.clone(), traffic, &stopper)
            }
            Granted::Association(sockets, asker) => {
                let terms = Terms {
                    asker,
                    policy: means.policy,
                    resolver: Arc::clone(&means.resolver),
                    resolve_timeout: means.resolve_timeout,
                    fragments: *fragments,
                    idle: *udp_idle,
                    rates: limits.rates.clone(),
                };
                relay::udp::run(client, sockets, terms, traffic, &self.record.dropped, &stopper)
            }
        }
    }

    fn granted(
        &mut self,
        version: Version,
        bnd: SocketAddr,
        intake: &mut Intake,
    ) -> Result<(), Failure> {
        let sent = match version {
            Version::V4 | Version::V4a => self.reply4(intake, Cd::GRANTED, bnd),
            Version::V5 => self.reply5(intake, Rep::SUCCEEDED, bnd),
        };
        sent.map_err(|_| Failure::ClientGone)
    }

    fn refuse(&mut self, version: Version, failure: &Failure, intake: &mut Intake) -> Stop {
        let bnd = match failure {
            Failure::ClientGone => return Stop::Gone,
            Failure::WrongPeer(peer) => {
                self.record.peer = Some(*peer);
                *peer
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

    fn reply4(&mut self, intake: &mut Intake, cd: Cd, addr: SocketAddr) -> Result<(), Stop> {
        self.record.reply = Some(cd.0);
        self.send(intake, &socks4::encode_reply(cd, addr))
    }

    fn reply5(&mut self, intake: &mut Intake, rep: Rep, bnd: SocketAddr) -> Result<(), Stop> {
        self.record.reply = Some(rep.0);
        self.send(intake, &socks5::encode_reply(rep, bnd))
    }

    /// Writes a whole message. All that is ever written before the relay fits into the send buffer
    /// of a new connection, so this does not wait.
    fn send(&self, intake: &mut Intake, message: &[u8]) -> Result<(), Stop> {
        intake.stream.write_all(message).map_err(|_| Stop::Gone)
    }
}

/// The client before the relay: what it has sent and nobody has used yet, and how long it may take.
struct Intake {
    stream: TcpStream,
    deadline: Instant,
    /// Octets read and not yet decoded.
    octets: Vec<u8>,
    /// Octets decoded.
    taken: usize,
    /// What the last message that could not be decoded had wrong.
    fault: Option<DecodeError>,
}

impl Intake {
    fn new(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline, octets: Vec::new(), taken: 0, fault: None }
    }

    /// The address at which the client reached this server.
    fn local(&self) -> io::Result<SocketAddr> {
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
        let len =
            wait_and_read(&mut self.stream, &mut buffer, self.deadline).map_err(
                |error| match error.kind() {
                    io::ErrorKind::TimedOut => {
                        Stop::refused("timeout", "no complete request in time")
                    }
                    _ => Stop::Gone,
                },
            )?;
        if len == 0 {
            return Err(Stop::Gone);
        }
        self.octets.extend_from_slice(buffer.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Ends the handshake: the client, and what it sent behind its request.
    fn into_tunnel(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.octets)
    }

    /// After a refusal: ends the output and reads away what the client still sends, within bounds.
    fn drain(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIME;
        let mut buffer = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_MAX {
            match wait_and_read(&mut self.stream, &mut buffer, deadline) {
                Ok(len) if len > 0 => drained += len,
                _ => return,
            }
        }
    }
}

/// Reads once, waiting until `deadline` for something to come.
fn wait_and_read(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let result = match sys::poll(&mut [PollFd::new(stream, sys::POLLIN)], Some(left)) {
            Ok(0) => continue,
            Ok(_) => stream.read(buffer),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn sec_09_a_handshake_ends_at_1300_octets_whatever_a_decoder_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        let mut intake = Intake::new(stream, Instant::now() + Duration::from_secs(5));
        let stop = intake.decode(|_| Err::<(), _>(DecodeError::Incomplete));
        assert!(matches!(stop, Err(Stop::Refused { reason: "protocol", .. })));
        assert!(intake.octets.len() <= 2 * HANDSHAKE_MAX);
    }
}
