//! The handshake up to the client's request: the PROXY header of a balancer, then SOCKS 4, or
//! SOCKS 5 with its methods and passwords.
//!
//! Not here: carrying out the request, which the session does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::auth::{Attempt, AuthError, Checker, User};
use crate::log::Level;
use crate::net::ClientKey;
use crate::policy::Policy;
use crate::relay::End;
use crate::session::intake::{Intake, Unread};
use crate::session::record::{Record, Stop};
use crate::session::service::{Service, Slot};
use crate::wait::WaitError;
use crate::wire::proxy::{self, Header};
use crate::wire::reply::ReplyCode;
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Method, Rep};
use crate::wire::userpass;
use crate::wire::{DecodeError, Destination, Request, Version};

/// The result of a handshake.
pub(super) struct Handshake {
    /// The policy in force during the handshake, which decides on the request too.
    pub(super) policy: Arc<Policy>,
    pub(super) user: User,
    pub(super) request: Request,
}

/// Reads the PROXY header of a balancer; returns the balancer's address that the client connected
/// to, if the header names one.
///
/// # Errors
/// The header cannot be read, or the client is refused.
pub(super) fn read_proxy_header(
    service: &Service,
    record: &mut Record,
    intake: &mut Intake<'_>,
    slot: &mut impl Slot,
) -> Result<Option<SocketAddr>, Stop> {
    let header = intake.decode(proxy::V2_MAX, proxy::decode)?;
    let (client, balancer_addr) = match header {
        Header::Local => (record.client, None),
        Header::Unknown => (None, None),
        Header::Proxied { client, server } => (Some(client), Some(server)),
    };
    record.client = client;
    if service.shuts_out(record.ip()) {
        return Err(Stop::refused("penalty", "too many failed logins before"));
    }
    if header != Header::Local {
        slot.reassign(record.ip()).map_err(|full| Stop::refused("limit", full))?;
    }
    Ok(balancer_addr)
}

impl Handshake {
    /// The handshake of SOCKS 4 and 4A, which is the request alone.
    ///
    /// # Errors
    /// The request cannot be read.
    #[inline(never)]
    pub(super) fn v4(
        service: &Service,
        record: &mut Record,
        intake: &mut Intake<'_>,
    ) -> Result<Self, Stop> {
        record.version = Some(Version::V4);
        let allow_4a = service.allow_4a;
        let decoded = intake.decode(socks4::REQUEST_MAX, |r| socks4::decode_request(r, allow_4a));
        if let Err(Unread::Fault(_)) = decoded {
            intake.reply(record, ReplyCode::V4(Cd::REJECTED), &Destination::NONE)?;
        }
        let request = decoded?;
        record.user.clone_from(&request.userid);
        record.set_request(&request);
        Ok(Self { policy: service.policy.get(), user: User::anonymous(), request })
    }

    /// The handshake of SOCKS 5: a greeting, a password if the method is that, and the request
    /// (RFC 1928 sections 3 and 4).
    ///
    /// # Errors
    /// A message cannot be read, or the client is refused.
    #[inline(never)]
    pub(super) fn v5(
        service: &Service,
        record: &mut Record,
        intake: &mut Intake<'_>,
    ) -> Result<Self, Stop> {
        record.version = Some(Version::V5);
        let offered = intake.decode(socks5::GREETING_MAX, socks5::decode_greeting)?;
        let policy = service.policy.get();
        let methods = policy.methods(record.ip());
        let method = methods.select(&offered);
        intake.send(&socks5::encode_selection(method.unwrap_or(Method::NO_ACCEPTABLE)))?;
        let user = match (method, policy.checker()) {
            (Some(Method::NONE), _) => User::anonymous(),
            (Some(Method::USERPASS), Some(checker)) => password(service, record, intake, checker)?,
            _ if methods.is_empty() => {
                return Err(Stop::refused("denied", "no rule allows any request of this client"));
            }
            _ => return Err(Stop::refused("method", "no acceptable method offered")),
        };
        let decoded = intake.decode(socks5::REQUEST_MAX, socks5::decode_request);
        if let Err(Unread::Fault(error)) = decoded {
            let rep = match error {
                DecodeError::AddressType(_) => Rep::ADDRESS_TYPE_NOT_SUPPORTED,
                _ => Rep::GENERAL_FAILURE,
            };
            intake.reply(record, ReplyCode::V5(rep), &Destination::NONE)?;
        }
        let request = decoded?;
        record.set_request(&request);
        Ok(Self { policy, user, request })
    }
}

/// The sub-negotiation of a user name and password (RFC 1929).
///
/// # Errors
/// A message cannot be read, or the user is refused.
fn password(
    service: &Service,
    record: &mut Record,
    intake: &mut Intake<'_>,
    checker: &dyn Checker,
) -> Result<User, Stop> {
    let decoded = intake.decode(userpass::REQUEST_MAX, userpass::decode_request);
    if let Err(Unread::Fault(_)) = decoded {
        intake.send(&userpass::encode_reply(false))?;
    }
    let claim = decoded?;
    record.user.clone_from(&claim.uname);
    let client = ClientKey::of(record.ip());
    let checked = checker.check(&Attempt {
        claim: &claim,
        turns: &service.turns,
        wait: intake.wait_in_handshake(),
        shut_out: &|| service.penalties.shut_out(client, Instant::now()),
    });
    let is_answered = match checked {
        Err(AuthError::Wrong | AuthError::Expired) => {
            service.resources.stats.auth_failures.fetch_add(1, Ordering::Relaxed);
            penalize(service, record, intake)
        }
        Err(AuthError::ClientGone | AuthError::Stopped) => false,
        _ => true,
    };
    if is_answered {
        // A wrong password is logged even if the client has left before the answer.
        let sent = intake.send(&userpass::encode_reply(checked.is_ok()));
        if checked.is_ok() {
            sent?;
        }
    }
    let failed =
        |error: &str| Stop::Refused { level: Level::Quiet, reason: "auth", error: error.into() };
    checked.map_err(|error| match error {
        AuthError::Wrong => failed("wrong user name or password"),
        AuthError::Expired => failed("the account has expired"),
        AuthError::TimedOut => Stop::refused("timeout", "too many passwords to check"),
        AuthError::ClientGone => Stop::GONE,
        AuthError::Stopped => Stop::Ended(End::Stopped),
        AuthError::Failed(kind) => {
            Stop::refused("limit", format_args!("cannot wait for a turn: {kind}"))
        }
        AuthError::ShutOut => Stop::refused("penalty", "too many failed logins before"),
    })
}

/// Counts a wrong password and delays its answer; returns false if the client leaves or the server
/// ends before that.
fn penalize(service: &Service, record: &Record, intake: &Intake<'_>) -> bool {
    let penalty = service.penalties.fail(ClientKey::of(record.ip()), Instant::now());
    if penalty.shuts_out {
        let log = &service.log;
        let line = log
            .line("penalty")
            .client(record.client)
            .number("seconds", service.penalties.time().as_secs());
        log.write(Level::Quiet, line);
    }
    let delayed = intake.wait_in_handshake().sleep(penalty.delay);
    !matches!(delayed, Err(WaitError::ClientGone | WaitError::Stopped))
}
