//! Quotas and rates shared by the sessions of one user, and by those that one rule admits. Their
//! settings are in [`crate::policy::rules`].
//!
//! A rule is identified by its conditions: a reload of the rules resets no count, even if it
//! changes the quota.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::command::failure::Failure;
use crate::counts::Counts;
use crate::net::ClientKey;
use crate::policy::Asker;
use crate::policy::rules::{Rule, Settings};
use crate::relay::rate::Rate;
use crate::sync::lock;

/// The subject of a count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    User(Vec<u8>),
    Rule(Arc<str>),
    RuleAndClient(Arc<str>, ClientKey),
}

/// The owner of a rate: a user, or a client without a user name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RateOwner {
    User(Vec<u8>),
    Client(ClientKey),
}

/// The counts and the rates, shared by all sessions.
pub struct Quotas {
    per_user: u64,
    counts: Arc<Mutex<Counts<Key>>>,
    rates: Mutex<HashMap<(RateOwner, NonZeroU64), Arc<Rate>>>,
}

/// A session's place in the counts, given back when it is dropped.
#[derive(Debug)]
pub struct QuotaSlot {
    counts: Arc<Mutex<Counts<Key>>>,
    keys: Vec<Key>,
}

impl Quotas {
    /// Quotas without sessions; one user may have `per_user`.
    #[must_use]
    pub fn new(per_user: u64) -> Self {
        Self { per_user, counts: Arc::default(), rates: Mutex::default() }
    }

    /// Takes a place in the quotas of `rule` and of `asker`'s user, if there is one.
    ///
    /// # Errors
    /// `Full`.
    pub fn admit(&self, asker: &Asker, rule: &Rule) -> Result<QuotaSlot, Failure> {
        let mut slot = QuotaSlot { counts: Arc::clone(&self.counts), keys: Vec::new() };
        if let Some(name) = asker.user_for(rule).name() {
            slot.take(Key::User(name.to_vec()), self.per_user, "max-per-user")?;
        }
        let Settings { max_sessions, max_per_client, .. } = rule.settings;
        if max_sessions.is_some() || max_per_client.is_some() {
            let conditions = Rule { settings: Settings::default(), ..rule.clone() };
            let conditions: Arc<str> = conditions.to_string().into();
            if let Some(max) = max_sessions {
                let key = Key::Rule(Arc::clone(&conditions));
                slot.take(key, max.get(), "max-sessions of the rule")?;
            }
            if let Some(max) = max_per_client {
                let key = Key::RuleAndClient(conditions, ClientKey::of(asker.client));
                slot.take(key, max.get(), "max-per-client of the rule")?;
            }
        }
        Ok(slot)
    }

    /// The rates of a session of `asker` that `rule` admits.
    pub fn rates(&self, asker: &Asker, rule: &Rule) -> Vec<Arc<Rate>> {
        let mut rates: Vec<Arc<Rate>> = Vec::new();
        rates.extend(rule.settings.rate.map(|rate| Arc::new(Rate::new(rate))));
        if let Some(rate) = rule.settings.rate_user {
            let owner = match asker.user_for(rule).name() {
                Some(name) => RateOwner::User(name.to_vec()),
                None => RateOwner::Client(ClientKey::of(asker.client)),
            };
            let (mut shared, key) = (lock(&self.rates), (owner, rate));
            // Now and then drop rates without sessions. A rate in debt stays: its owner could
            // otherwise clear the debt by a new session.
            if shared.len().is_power_of_two() && !shared.contains_key(&key) {
                let now = Instant::now();
                shared.retain(|_, rate| Arc::strong_count(rate) > 1 || !rate.is_rested(now));
            }
            let own = shared.entry(key).or_insert_with(|| Arc::new(Rate::new(rate)));
            rates.push(Arc::clone(own));
        }
        rates
    }
}

impl QuotaSlot {
    fn take(&mut self, key: Key, max: u64, what: &'static str) -> Result<(), Failure> {
        let mut counts = lock(&self.counts);
        if counts.of(&key) >= max {
            return Err(Failure::Full(what));
        }
        counts.add(key.clone());
        self.keys.push(key);
        Ok(())
    }
}

impl Drop for QuotaSlot {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        self.keys.drain(..).for_each(|key| counts.remove(key));
    }
}
