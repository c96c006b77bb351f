//! From the first octet of a client to its whole request: the PROXY header of a balancer, SOCKS 4,
//! and SOCKS 5 with its methods and passwords. What comes of the request is for the session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::auth::{Attempt, AuthError, Checker, User};
use crate::log::Level;
use crate::net::client_block;
use crate::policy::Policy;
use crate::relay::End;
use crate::session::intake::{Intake, Unread};
use crate::session::record::{Record, Stop};
use crate::session::service::{Service, Slot};
use crate::wire::proxy::{self, Header};
use crate::wire::reply::ReplyCode;
use crate::wire::socks4::{self, Cd};
use crate::wire::socks5::{self, Method, Rep};
use crate::wire::userpass;
use crate::wire::{DecodeError, Destination, Request, Version};

/// What a handshake comes to.
pub(super) struct Handshake {
    /// What was in force when the client came, and judges its request.
    pub(super) policy: Arc<Policy>,
    pub(super) user: User,
    pub(super) request: Request,
}

/// Reads the PROXY header of a balancer; returns the address at which its client has reached it, if
/// there is one.
///
/// # Errors
/// Why the client is not served.
pub(super) fn read_proxy_header(
    service: &Service,
    record: &mut Record,
    intake: &mut Intake<'_>,
    slot: &mut impl Slot,
) -> Result<Option<SocketAddr>, Stop> {
    let header = intake.decode(proxy::V2_MAX, proxy::decode)?;
    let (client, reached) = match header {
        Header::Local => (record.client, None),
        Header::Unknown => (None, None),
        Header::Proxied { client, server } => (Some(client), Some(server)),
    };
    record.client = client;
    if service.shuts_out(record.ip()) {
        return Err(Stop::refused("penalty", "too many failures before"));
    }
    if header != Header::Local {
        slot.belongs_to(record.ip()).map_err(|full| Stop::refused("limit", full))?;
    }
    Ok(reached)
}

impl Handshake {
    /// SOCKS 4 and 4A: the request is all there is.
    ///
    /// # Errors
    /// Why there is none.
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
        record.asked(&request);
        Ok(Self { policy: service.policy.get(), user: User::anonymous(), request })
    }

    /// SOCKS 5: greeting, perhaps a password, request (RFC 1928 sections 3 and 4).
    ///
    /// # Errors
    /// Why there is no request.
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
                return Err(Stop::refused("denied", "no rule allows this client anything"));
            }
            _ => return Err(Stop::refused("method", "no acceptable method offered")),
        };
        let decoded = intake.decode(socks5::REQUEST_MAX, socks5::decode_request);
        if let Err(Unread::Fault(fault)) = decoded {
            let rep = match fault {
                DecodeError::AddressType(_) => Rep::ADDRESS_TYPE_NOT_SUPPORTED,
                _ => Rep::GENERAL_FAILURE,
            };
            intake.reply(record, ReplyCode::V5(rep), &Destination::NONE)?;
        }
        let request = decoded?;
        record.asked(&request);
        Ok(Self { policy, user, request })
    }
}

/// The sub-negotiation of RFC 1929.
///
/// # Errors
/// Why no user was proved.
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
    let client = client_block(record.ip());
    let checked = checker.check(&Attempt {
        claim: &claim,
        turns: &service.turns,
        wait: intake.wait_in_handshake(),
        shut_out: &|| service.penalties.shut_out(client, Instant::now()),
    });
    if let Err(AuthError::Wrong | AuthError::Expired) = checked {
        service.resources.stats.auth_failures.fetch_add(1, Ordering::Relaxed);
        penalize(service, record, intake);
    }
    let sent = intake.send(&userpass::encode_reply(checked.is_ok()));
    // A guess is logged as one even where the client does not stay for the answer.
    let failed =
        |error: &str| Stop::Refused { level: Level::Quiet, reason: "auth", error: error.into() };
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

/// Counts a wrong password and waits before its answer, as long as the client stays.
fn penalize(service: &Service, record: &Record, intake: &Intake<'_>) {
    let penalty = service.penalties.fail(client_block(record.ip()), Instant::now());
    if penalty.shuts_out {
        let log = &service.log;
        let line = log
            .line("penalty")
            .client(record.client)
            .number("seconds", service.penalties.time().as_secs());
        log.write(Level::Quiet, line);
    }
    // However the wait ends, the answer is next.
    let _ = intake.wait_in_handshake().sleep(penalty.delay);
}
