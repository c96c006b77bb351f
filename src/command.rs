//! Carrying out a request: a command opens sockets and returns them. It has nothing to write to;
//! telling the client is the session's part.

pub mod associate;
pub mod bind;
pub mod connect;
pub mod failure;
pub mod ports;
pub mod quotas;
pub mod resources;
