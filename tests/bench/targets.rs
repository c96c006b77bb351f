//! What the servers connect to: it lives in this process, for as long as this process.
//!
//! A closed connection takes its pair of ports away for a minute, so targets of many short
//! sessions are spread over many addresses of loopback.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before it counts as broken.
pub const SOON: Duration = Duration::from_secs(5);

/// Octets sent at once in a stream. The first of each block is 1 in the last one, else 0: so no
/// stream depends on how a server passes on the end of one.
pub const BLOCK: usize = 256 << 10;

/// Octets of a round trip.
pub const PING: usize = 64;

/// What is said on both sides of a session before it is idle.
pub const WORDS: usize = 16;

/// Addresses for short sessions, and threads that accept at each: while one waits for the end of a
/// session, another takes the next.
const SPREAD: u8 = 64;
const ACCEPTORS: usize = 2;

/// What a client asks of [`Targets::work`] with its first octet.
pub mod order {
    /// Send blocks for as many milliseconds as the next four octets say.
    pub const DOWN: u8 = b'd';
    /// Take blocks, and answer the last one with one octet.
    pub const UP: u8 = b'u';
    /// Both at once, the last block not before the client's last.
    pub const BOTH: u8 = b'b';
    /// Send back every [`super::PING`] octets.
    pub const PING: u8 = b'p';
    /// Send back [`super::WORDS`] octets, one by one, and wait for the end.
    pub const HOLD: u8 = b'h';
}

/// Where they are.
pub struct Targets {
    /// Each sends back one octet and waits for the end.
    pub octet: Vec<SocketAddr>,
    /// Each sends one octet at once and waits for the end.
    pub first: Vec<SocketAddr>,
    /// Does as [`order`] says.
    pub work: SocketAddr,
    /// Sends back every datagram.
    pub udp: SocketAddr,
}

impl Targets {
    /// Starts them all.
    pub fn start() -> Self {
        let spread = |base: u8, serve: fn(TcpStream) -> io::Result<()>| {
            (1..=SPREAD).map(|host| short([127, 0, base, host].into(), serve)).collect()
        };
        Self { octet: spread(2, octet), first: spread(3, first), work: workers(), udp: echo() }
    }
}

/// Serves one session after the other, without a thread for each.
fn short(ip: Ipv4Addr, serve: fn(TcpStream) -> io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    for _ in 0..ACCEPTORS {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The client notices what goes wrong.
                let _ = stream.set_read_timeout(Some(SOON)).and_then(|()| serve(stream));
            }
        });
    }
    addr
}

fn octet(mut stream: TcpStream) -> io::Result<()> {
    let mut octet = [0];
    stream.read_exact(&mut octet)?;
    stream.write_all(&octet)?;
    stream.read(&mut octet).map(drop)
}

fn first(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(b"!")?;
    stream.read(&mut [0]).map(drop)
}

/// Runs each session on a thread of its own.
fn workers() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || work(stream));
        }
    });
    addr
}

fn work(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    match order {
        [order::DOWN] => {
            let until = read_until(&mut stream)?;
            send_blocks(&mut stream, || Instant::now() >= until)?;
        }
        [order::UP] => {
            receive_blocks(&mut stream)?;
            stream.write_all(b"!")?;
        }
        [order::BOTH] => {
            let until = read_until(&mut stream)?;
            let ended = Arc::new(AtomicBool::new(false));
            let (mut from, tell) = (stream.try_clone()?, Arc::clone(&ended));
            thread::spawn(move || {
                let _ = receive_blocks(&mut from);
                tell.store(true, Ordering::SeqCst);
            });
            send_blocks(&mut stream, || Instant::now() >= until && ended.load(Ordering::SeqCst))?;
        }
        [order::PING] => {
            let mut ping = [0; PING];
            while stream.read_exact(&mut ping).is_ok() {
                stream.write_all(&ping)?;
            }
        }
        [order::HOLD] => {
            stream.set_read_timeout(Some(12 * SOON))?;
            for _ in 0..WORDS {
                stream.read_exact(&mut order)?;
                stream.write_all(&order)?;
            }
            let _ = stream.read(&mut order)?;
        }
        _ => {}
    }
    Ok(())
}

fn read_until(stream: &mut TcpStream) -> io::Result<Instant> {
    let mut millis = [0; 4];
    stream.read_exact(&mut millis)?;
    Ok(Instant::now() + Duration::from_millis(u32::from_be_bytes(millis).into()))
}

/// Sends blocks, of which the last is the first for which `end` holds; returns how many.
pub fn send_blocks(stream: &mut TcpStream, end: impl Fn() -> bool) -> io::Result<u32> {
    let mut block = vec![b'.'; BLOCK];
    for count in 1.. {
        let last = end();
        block[0] = u8::from(last);
        stream.write_all(&block)?;
        if last {
            return Ok(count);
        }
    }
    Err(io::Error::other("too many blocks"))
}

/// Takes blocks up to the last one; returns how many.
pub fn receive_blocks(stream: &mut TcpStream) -> io::Result<u32> {
    let mut block = vec![0; BLOCK];
    for count in 1.. {
        stream.read_exact(&mut block)?;
        if block[0] == 1 {
            return Ok(count);
        }
    }
    Err(io::Error::other("too many blocks"))
}

fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    addr
}
