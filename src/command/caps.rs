//! What sessions of one user, and those that one rule admits, have in common: how many there may be,
//! and how fast they may be together. What a rule says of both is in [`crate::policy::rules`].
//!
//! A rule is known by its text, so that a reload of rules starts no count anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, Weak};

use crate::command::Failure;
use crate::policy::Asker;
use crate::policy::nets::client_block;
use crate::policy::rules::Rule;
use crate::relay::rate::Rate;
use crate::threads::lock;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    User(Vec<u8>),
    Rule(Arc<str>),
    RuleAndClient(Arc<str>, IpAddr),
}

/// Whose rate it is: a user, or a client that is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Payer {
    User(Vec<u8>),
    Client(IpAddr),
}

/// The counts and the rates. Shared by all sessions.
pub struct Caps {
    per_user: u64,
    counts: Arc<Mutex<HashMap<Key, u64>>>,
    rates: Mutex<HashMap<(Payer, NonZeroU64), Weak<Rate>>>,
}

/// A place in some counts, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    counts: Arc<Mutex<HashMap<Key, u64>>>,
    keys: Vec<Key>,
}

impl Caps {
    /// Nothing counted yet; one user may have `per_user` sessions.
    #[must_use]
    pub fn new(per_user: u64) -> Self {
        Self { per_user, counts: Arc::default(), rates: Mutex::default() }
    }

    /// Takes a place among the sessions of `asker`'s user; of all places, where it is none.
    ///
    /// # Errors
    /// `Full`.
    pub fn of_user(&self, asker: &Asker) -> Result<Slot, Failure> {
        let user = asker.identity().name().map(|name| Key::User(name.to_vec()));
        self.take(user.map(|key| (key, self.per_user, "max-per-user")))
    }

    /// Takes a place among the sessions that `rule` admits.
    ///
    /// # Errors
    /// `Full`.
    pub fn of_rule(&self, asker: &Asker, rule: &Rule) -> Result<Slot, Failure> {
        let settings = &rule.settings;
        if settings.max_sessions.is_none() && settings.max_per_client.is_none() {
            return self.take(None);
        }
        let text: Arc<str> = rule.to_string().into();
        let client = client_block(asker.client);
        let all = settings
            .max_sessions
            .map(|max| (Key::Rule(Arc::clone(&text)), max.get(), "max-sessions of the rule"));
        let each = settings
            .max_per_client
            .map(|max| (Key::RuleAndClient(text, client), max.get(), "max-per-client of the rule"));
        self.take(all.into_iter().chain(each))
    }

    /// Takes a place in all of these counts or in none.
    fn take(
        &self,
        wanted: impl IntoIterator<Item = (Key, u64, &'static str)>,
    ) -> Result<Slot, Failure> {
        let mut slot = Slot { counts: Arc::clone(&self.counts), keys: Vec::new() };
        for (key, max, what) in wanted {
            let mut counts = lock(&self.counts);
            let count = counts.entry(key.clone()).or_default();
            if *count >= max {
                return Err(Failure::Full(what));
            }
            *count += 1;
            slot.keys.push(key);
        }
        Ok(slot)
    }

    /// The rates that hold for a session of `asker` admitted by `rule`.
    pub fn rates(&self, asker: &Asker, rule: &Rule) -> Vec<Arc<Rate>> {
        let mut rates: Vec<Arc<Rate>> = Vec::new();
        rates.extend(rule.settings.rate.map(|rate| Arc::new(Rate::new(rate))));
        if let Some(rate) = rule.settings.rate_user {
            let payer = match asker.identity().name() {
                Some(name) => Payer::User(name.to_vec()),
                None => Payer::Client(client_block(asker.client)),
            };
            let (mut shared, key) = (lock(&self.rates), (payer, rate));
            // Now and then, rates that nobody shares any more are forgotten.
            if shared.len().is_power_of_two() && !shared.contains_key(&key) {
                shared.retain(|_, rate| rate.strong_count() > 0);
            }
            let entry = shared.entry(key).or_default();
            let own = entry.upgrade().unwrap_or_else(|| Arc::new(Rate::new(rate)));
            *entry = Arc::downgrade(&own);
            rates.push(own);
        }
        rates
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        for key in self.keys.drain(..) {
            if let Entry::Occupied(mut entry) = counts.entry(key) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }
}
