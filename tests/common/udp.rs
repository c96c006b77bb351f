//! UDP associations as a client sees them.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;

use super::{HELLO, SOON, Server, read, reply5, request5};

/// An association, and the client's socket for it.
pub struct Association {
    /// The connection it lives as long as.
    pub control: TcpStream,
    /// Connected to BND.
    pub socket: UdpSocket,
}

impl Association {
    /// Opens one over a new connection to a server; the error is REP.
    pub fn over(mut control: TcpStream) -> Result<Self, u8> {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        control.write_all(&[HELLO, &request5(3, any)].concat()).unwrap();
        assert_eq!(read(&mut control, 2), [5, 0]);
        let (rep, bnd) = reply5(&mut control);
        if rep != 0 {
            return Err(rep);
        }
        let socket = UdpSocket::bind((control.local_addr().unwrap().ip(), 0)).unwrap();
        socket.connect(bnd).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Ok(Self { control, socket })
    }

    pub fn open(server: &Server) -> Self {
        Self::over(server.connect()).unwrap_or_else(|rep| panic!("REP {rep:02x} to UDP ASSOCIATE"))
    }

    /// Sends `data` to an address.
    pub fn send(&self, dst: SocketAddr, data: &[u8]) {
        let mut datagram = Vec::new();
        socksd::wire::udp::encode_header(dst, &mut datagram);
        self.socket.send(&[&datagram, data].concat()).unwrap();
    }

    /// Sends `data` to a name.
    pub fn send_to_name(&self, name: &str, port: u16, data: &[u8]) {
        let len = u8::try_from(name.len()).unwrap();
        let header = [&[0, 0, 0, 3, len], name.as_bytes(), &port.to_be_bytes()].concat();
        self.socket.send(&[&header, data].concat()).unwrap();
    }

    /// Waits for a datagram; returns its data.
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let len =
            self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no answer: {error}"));
        socksd::wire::udp::decode(&buffer[..len]).unwrap().data.to_vec()
    }
}

/// Sends back every datagram that comes to a port of `ip`, for as long as the test runs.
pub fn echo_on(ip: &str) -> SocketAddr {
    let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    addr
}
