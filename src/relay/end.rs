//! The two sides of a relay, how it ends, and what ends it from outside. What has to be done for that
//! is in [`crate::relay::shared`] and [`crate::relay::udp`].

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to this server.
    Client,
    /// Whom this server connected to, or who connected to a BIND.
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
    /// The server ends.
    Stopped,
    /// A fault in this server.
    Internal,
}

impl End {
    /// The word of the log.
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

/// Ends a relay of octets or datagrams from another thread. All clones are one, for one relay.
#[derive(Clone, Default)]
pub struct Stopper(Arc<Mutex<Stopping>>);

#[derive(Default)]
struct Stopping {
    /// What the relay is to end with.
    end: Option<End>,
    /// Ends the relay, once there is one.
    abort: Option<Box<dyn Fn(End) + Send>>,
}

impl Stopper {
    /// Ends the relay with `end` now, or as soon as it begins; one that is over stays as it is. The
    /// first call counts. Does not wait for the relay, but for an instant where the end is a reset.
    pub fn stop(&self, end: End) {
        let mut stopping = lock(&self.0);
        stopping.end.get_or_insert(end);
        stopping.act();
    }

    /// Gives the relay that is about to begin. `abort` must not keep its sockets open.
    pub(super) fn attach(&self, abort: impl Fn(End) + Send + 'static) {
        let mut stopping = lock(&self.0);
        stopping.abort = Some(Box::new(abort));
        stopping.act();
    }

    /// What the relay has been told to end with.
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
