//! Every test of the relay once more, where nothing is spliced.
#![allow(missing_docs)]

#[path = "relay.rs"]
mod relay;
