//! From the first octet of a client to its whole request: the PROXY header of a balancer, SOCKS 4,
//! and SOCKS 5 with its methods and passwords.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::auth::{Attempt, AuthError, Checker, User};
use crate::log::{Level, Line};
use crate::net::client_block;
use crate::relay::End;
use crate::session::intake::Intake;
use crate::session::record::Stop;
use crate::session::{Agreed, Seat, Session};
use crate::wire::proxy::{self, Header};
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Method, Rep};
use crate::wire::userpass;
use crate::wire::{DecodeError, NO_ADDRESS, Request, Version};

impl Session<'_, '_> {
    /// The header in which a balancer tells of its client.
    pub(super) fn introduction(
        &mut self,
        intake: &mut Intake<'_>,
        seat: &mut impl Seat,
    ) -> Result<(), Stop> {
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
    pub(super) fn handshake4(&mut self, intake: &mut Intake<'_>) -> Result<Agreed, Stop> {
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
    pub(super) fn handshake5(&mut self, intake: &mut Intake<'_>) -> Result<Agreed, Stop> {
        self.record.version = Some(Version::V5);
        let offered = intake.decode(socks5::decode_greeting)?;
        let policy = self.service.policy.get();
        let methods = policy.methods(self.ip());
        let method = methods.select(&offered);
        let answer = method.unwrap_or(Method::NO_ACCEPTABLE);
        self.send(intake, &socks5::encode_selection(answer))?;
        let user = match (method, policy.checker()) {
            (Some(Method::NONE), _) => User::anonymous(),
            (Some(Method::USERPASS), Some(checker)) => self.password(checker, intake)?,
            _ if methods.is_empty() => {
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
    fn password(&mut self, checker: &dyn Checker, intake: &mut Intake<'_>) -> Result<User, Stop> {
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
        let checked = checker.check(&Attempt {
            claim: &claim,
            turns: &self.service.turns,
            wait: intake.wait(intake.deadline.saturating_duration_since(Instant::now())),
            shut_out: &|| penalties.shut_out(client, Instant::now()),
        });
        if let Err(AuthError::Wrong | AuthError::Expired) = checked {
            self.service.means.stats.auth_failures.fetch_add(1, Ordering::Relaxed);
            self.penalize(intake);
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
            AuthError::ClientGone => Stop::GONE,
            AuthError::Stopped => Stop::Ended(End::Stopped),
            AuthError::Failed(kind) => Stop::refused("limit", format_args!("no turn: {kind}")),
            AuthError::ShutOut => Stop::refused("penalty", "too many failures before"),
        })?;
        sent?;
        Ok(user)
    }

    /// Counts a wrong password and waits before its answer.
    fn penalize(&self, intake: &Intake<'_>) {
        let (penalties, now) = (&self.service.penalties, Instant::now());
        let penalty = penalties.fail(client_block(self.ip()), now);
        if penalty.shuts_out {
            let line = Line::new("penalty")
                .client(self.client)
                .field("seconds", penalties.time().as_secs());
            self.service.log.write(Level::Quiet, line);
        }
        // A guess counts as one even where the guesser does not stay for the answer.
        let _ = intake.wait(intake.deadline.saturating_duration_since(now)).sleep(penalty.delay);
    }

    fn note(&mut self, request: &Request) {
        self.record.version = Some(request.version);
        self.record.command = Some(request.command);
        self.record.dst = Some(request.dst.clone());
    }
}
