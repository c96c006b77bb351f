//! The two sides of a relay, how it ends, and the handle that ends it from outside. The work of
//! ending it is in [`crate::relay::state`] and [`crate::relay::udp`].

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer that sent the request.
    Client,
    /// The peer this server connected to, or that connected to a BIND.
    Target,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Target,
            Self::Target => Self::Client,
        }
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// This side closed first.
    Closed(Side),
    /// This side reset the connection.
    Reset(Side),
    /// This side stopped answering.
    Lost(Side),
    /// Nothing passed for the idle limit.
    Idle,
    /// Nothing passed for the linger limit after one side had closed.
    Linger,
    /// The rules or the users no longer allow it.
    Revoked,
    /// The server is ending.
    Stopped,
    /// A fault in this server.
    Internal,
}

impl End {
    /// The word in the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed(Side::Client) => "client",
            Self::Closed(Side::Target) => "target",
            Self::Reset(Side::Client) => "client-reset",
            Self::Reset(Side::Target) => "target-reset",
            Self::Lost(Side::Client) => "client-lost",
            Self::Lost(Side::Target) => "target-lost",
            Self::Idle => "idle",
            Self::Linger => "linger",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
            Self::Internal => "internal",
        }
    }
}

/// Ends one relay, of octets or datagrams, from another thread. All clones end the same relay.
#[derive(Clone, Default)]
pub struct Stopper(Arc<Mutex<Stopping>>);

#[derive(Default)]
struct Stopping {
    /// The end asked for.
    end: Option<End>,
    /// Ends the relay, once it has begun.
    abort: Option<Box<dyn Fn(End) + Send>>,
}

impl Stopper {
    /// Ends the relay with `end` now, or as soon as it begins. Only the first call counts, and none
    /// after the relay is over. Returns at once, or after an instant where `end` is a reset.
    pub fn stop(&self, end: End) {
        let mut stopping = lock(&self.0);
        stopping.end.get_or_insert(end);
        stopping.act();
    }

    /// Attaches a relay that is about to begin. `abort` must not keep its sockets open.
    pub(super) fn attach(&self, abort: impl Fn(End) + Send + 'static) {
        let mut stopping = lock(&self.0);
        stopping.abort = Some(Box::new(abort));
        stopping.act();
    }

    /// The end asked for, if there is one.
    pub(super) fn end(&self) -> Option<End> {
        lock(&self.0).end
    }
}

impl Stopping {
    fn act(&self) {
        if let (Some(end), Some(abort)) = (self.end, &self.abort) {
            abort(end);
        }
    }
}
